// The page: asks the desk for its last requests, draws them, and sends some of its own. No library, no build step.

import { $, answered, call, ending, GONE, h, hop, merge, number, pick, pill, REASONS, story, TOKEN } from "./common.js";
import { askForStrangers, readOwnWrite } from "./contests.js";
import { open } from "./detail.js";

const ENDS = {
  committed: ["committed", "2xx or 3xx: the data is there", "good"],
  rolled_back: ["rolled back", "4xx, 5xx, or a COMMIT that failed", "bad"],
  read: ["read only", "nothing to commit, no connection held", "read"],
  none: ["no SQL", "no connection taken, or no server answered", "muted"],
  unknown: ["unknown", "outcome unknown: answered with an error", "bad"],
};
const ISOLATION = {
  database: ["A database of its own", "united"],
  schema: ["A schema of its own", "airlines"],
  rows: ["Shared tables, row security", "airlines"],
};
const NODES = ["primary", "r1", "r2"];
const colours = {};            // of the canvases, from the style sheet: it knows dark and light
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["read", "write", "pinned", "bad", "good", "line", "r1", "r2", "primary", "muted"]) colours[name] = style.getPropertyValue(`--${name}`).trim();
}

const state = {
  airlines: [], tenant: "dl", last: 0, records: [], filter: "all", report: "hours",
  total: 0, errors: 0, servers: null, perTenant: new Map(), reasons: new Map(), ends: new Map(), flights: new Map(),
  perNode: Object.fromEntries(NODES.map((node) => [node, { reads: 0, writes: 0, recent: [] }])),
  isPlaying: true, waiting: new Map(),
};

// ---------------------------------------------------------------------------------------------------- talking

async function flightsOf(tenant) {
  if (!state.flights.has(tenant)) {
    const { status, content } = await call(tenant, "GET", `/flights?date=${$("day").value}&limit=200`);
    if (status !== 200) throw new Error(`The flights of ${tenant.toUpperCase()} were answered with ${status}`);
    state.flights.set(tenant, content);
  }
  if (!state.flights.get(tenant).length) throw new Error(`${tenant.toUpperCase()} has no flights on ${$("day").value}: choose another day`);
  return state.flights.get(tenant);
}

// ---------------------------------------------------------------------------------------------------- the feed

let pollErrors = 0;
async function poll() {
  try {
    const response = await fetch(`/ui/requests?after=${state.last}`);
    if (!response.ok) throw new Error(response.status);
    const { last, requests, servers, relays } = await response.json();
    if (last < state.last) state.records = [];            // the desk was started anew
    const isFirst = state.last === 0;
    state.last = last;
    if (pollErrors) isGone(false);
    drawServers(servers);
    drawRelays(relays);
    requests.forEach((record, index) => {
      count(record);
      if (!isFirst) setTimeout(() => fly(record), (index / requests.length) * 380);
    });
    if (requests.length) {
      state.records = [...requests.reverse(), ...state.records].slice(0, 500);
      drawLog(isFirst ? 0 : requests.length);
      drawMatrix();
      drawWhy();
      if (!isFirst) tick(true);
    }
    for (const record of requests) state.waiting.get(record.number)?.(record);
  } catch (error) {
    if (++pollErrors === 3) isGone(true);
  }
  setTimeout(poll, document.hidden ? 2000 : 350);
}

// Without the desk, the stage shows the past: it says so, and greys out.
function isGone(gone) {
  if (!gone) pollErrors = 0;
  document.body.classList.toggle("gone", gone);
  $("gone").hidden = !gone;
  $("gone").textContent = gone ? GONE : "";
  for (const button of document.querySelectorAll(".action, .server button")) button.disabled = gone;
  if (gone) planes.length = 0;
  else for (const node of NODES) delete cards[node].buttons.dataset.shown;
}

const leaderOf = (servers) => Object.keys(servers ?? {}).find((name) => servers[name].is_primary) ?? "primary";

function count(record) {
  state.total += 1;
  if (record.status >= 500) state.errors += 1;
  const mine = state.perTenant.get(record.tenant) ?? { requests: 0, primary: 0, r1: 0, r2: 0 };
  mine.requests += 1;
  for (const step of record.steps) {
    state.reasons.set(step.is_failed ? "no answer" : step.reason, (state.reasons.get(step.is_failed ? "no answer" : step.reason) ?? 0) + 1);
    // The primary is a role: the server that has it changes with a failover.
    const node = state.perNode[step.node === "primary" ? leaderOf(state.servers) : step.node];
    if (!answered(step) || !node) continue;
    const isWrite = step.intent === "write";
    node[isWrite ? "writes" : "reads"] += 1;
    node.recent.push([record.at * 1000, isWrite]);
    mine[step.node] += 1;
  }
  const end = record.outcome ?? (record.steps.some(answered) ? "read" : "none");
  state.ends.set(end, (state.ends.get(end) ?? 0) + 1);
  if (record.tenant) state.perTenant.set(record.tenant, mine);
  $("total").textContent = number(state.total);
  $("errors").textContent = number(state.errors);
  $("errors").parentElement.classList.toggle("alarm", state.errors > 0);
}

// ---------------------------------------------------------------------------------------------------- the sentence

const TIPS = [
  ["Stop r1", "Other servers answer its reads, and the counter of server errors stays at 0."],
  ["Pause replay, then read your own write", "The token of the answer leads later requests past the replicas that lag."],
  ["Promote r1", "Writes move to it by themselves: no restart, no reload, and nothing is lost."],
  ["Ask for another airline's flight", "Each way is refused, or finds nothing, whatever keeps the two apart."],
  ["Overbook a flight", "Every statement works, COMMIT fails, and the client gets 422 instead of 201."],
  ["Click on a request", "Its SQL with BEGIN and settings, its spans, and why it went to no other server."],
  ["Kill a relay", "The changes of flights go on arriving, in the order of each flight."],
];
const told = new Map();        // kinds of stories, with the time when each was last told
let lastTick = 0, tip = 0;

const kindOf = (record) => [record.status >= 500, record.status >= 400, record.outcome, ...new Set(record.steps.map((step) => (step.is_failed ? "no answer" : step.reason)))].join();
const isNews = (record) => record.status >= 500 || record.steps.some((step) => !answered(step));

// Another kind of story each time, oldest first; what is rare interrupts.
function tick(hasFresh = false) {
  const now = Date.now(), since = now - lastTick;
  const recent = state.records.filter((record) => now - record.at * 1000 < 12_000);
  if (hasFresh ? since < 1600 || !recent.slice(0, 8).some((record) => isNews(record) && now - (told.get(kindOf(record)) ?? 0) > 8000) : since < 3500) return;
  if ($("ticker").matches(":hover") || pollErrors) return;
  lastTick = now;
  if (!recent.length || (!hasFresh && Math.random() < 0.25)) {
    const [what, words] = TIPS[tip++ % TIPS.length];
    say(h("span", { class: "code" }, what), h("span", { class: "muted" }, words));
    return;
  }
  const age = (record) => (told.get(kindOf(record)) ?? 0) - (isNews(record) ? now : 0);
  const record = recent.reduce((best, one) => (age(one) < age(best) ? one : best));
  told.set(kindOf(record), now);
  say(h("span", { class: "code" }, `${(record.tenant ?? "?").toUpperCase()}  ${record.method} ${record.path}`), h("span", { class: "muted" }, story(record)));
}

const say = (...content) => $("ticker").replaceChildren(...content);

// ---------------------------------------------------------------------------------------------------- the log

const FILTERS = {
  all: () => true,
  mine: (record) => record.tenant === state.tenant,
  write: (record) => record.outcome !== null,
  odd: (record) => record.status >= 400 || record.steps.some((step) => !answered(step) || ["unhealthy", "behind"].includes(step.reason)),
};

const SHOWN = 60;

function row(record, isFresh) {
  return h("tr", { class: isFresh ? "fresh" : "", title: story(record), onclick: () => open(record.number) },
    h("td", {}, h("span", { class: "code tag" }, (record.tenant ?? "–").toUpperCase())),
    h("td", {}, h("button", { class: "link", "aria-haspopup": "dialog" }, `${record.method} ${record.path}`)),
    h("td", {}, ...(record.steps.length ? merge(record.steps).map(hop) : [h("span", { class: "muted" }, "nobody")])),
    h("td", {}, ending(record)),
    h("td", {}, pill(record.status)),
    h("td", { class: "num muted" }, record.ms.toFixed(1)));
}

// With `fresh` only the new rows are made: a row that has the focus keeps it.
function drawLog(fresh = 0) {
  const rows = state.records.slice(0, fresh || undefined).filter(FILTERS[state.filter]).slice(0, SHOWN).map((record) => row(record, fresh > 0));
  if (!fresh) { $("log").replaceChildren(...rows); return; }
  $("log").prepend(...rows);
  for (const old of [...$("log").children].slice(SHOWN)) if (!old.contains(document.activeElement)) old.remove();
}

function drawMatrix() {
  const cell = (value, node, most) => h("td", { class: "num" }, h("span", { class: "heat", style: `background: color-mix(in srgb, var(--${node}) ${Math.round(7 + 58 * (value / most))}%, transparent)` }, value ? number(value) : "·"));
  const words = { database: "own database", schema: "own schema", rows: "row security" };
  const most = Math.max(1, ...[...state.perTenant.values()].flatMap((one) => [one.r1, one.r2, one.primary]));
  $("matrix").replaceChildren(...state.airlines.map((airline) => {
    const one = state.perTenant.get(airline.tenant) ?? { requests: 0, primary: 0, r1: 0, r2: 0 };
    return h("tr", {},
      h("td", {}, h("span", { class: "code tag" }, airline.tenant.toUpperCase()), h("span", { class: "muted" }, `  ${airline.name}`)),
      h("td", { class: "muted" }, words[airline.isolation]),
      cell(one.r1, "r1", most), cell(one.r2, "r2", most), cell(one.primary, "primary", most),
      h("td", { class: "num" }, one.requests ? number(one.requests) : "·"));
  }));
}

const KNOWN = ["balanced", "sticky", "write", "pinned", "proved", "behind", "failover", "unhealthy"];
const TONES = { write: "write", pinned: "pinned", behind: "pinned", failover: "bad", unhealthy: "bad", not_proved: "bad", "no answer": "bad" };

function drawWhy() {
  const reasons = [...KNOWN, ...[...state.reasons.keys()].filter((reason) => !KNOWN.includes(reason))];
  const all = Math.max(1, ...state.reasons.values());
  $("why").replaceChildren(...reasons.map((reason) => {
    const value = state.reasons.get(reason) ?? 0;
    return h("li", { class: value ? "" : "unused", style: `--tone: var(--${TONES[reason] ?? "read"})` },
      h("b", { class: "code" }, reason.replace("_", " ")), h("span", { class: "num" }, number(value)),
      h("i", { style: `width: ${(100 * value) / all}%` }),
      h("span", { class: "muted" }, REASONS[reason] ?? "the server could not be reached"));
  }));
  const ends = Object.entries(ENDS).filter(([end]) => end !== "unknown" || state.ends.has(end));
  drawShares($("ends"), ends.map(([end, [word, hint, tone]]) => [word, hint, tone, state.ends.get(end) ?? 0]));
}

function drawShares(table, rows) {
  const all = Math.max(1, rows.reduce((sum, row) => sum + row[3], 0));
  table.replaceChildren(...rows.map(([word, hint, tone, value]) =>
    h("tr", {}, h("td", { class: "code" }, word), h("td", { class: "muted" }, hint),
      h("td", { class: "share" }, h("i", { style: `width: ${(100 * value) / all}%; background: var(--${tone})` })),
      h("td", { class: "num" }, number(value)))));
}

// ---------------------------------------------------------------------------------------------------- the servers

const cards = {};
function makeServers() {
  for (const node of NODES) {
    const buttons = h("div", { class: "buttons", hidden: "" });
    const card = h("div", { class: "server", "data-node": node },
      h("div", { class: "row" }, h("span", { class: "name" }, node), h("span", { class: "muted role" }, ""), h("span", { class: "state" }, "up")),
      h("canvas", { class: "spark", "aria-hidden": "true" }),
      h("div", { class: "row" }, h("span", { class: "counts" }), buttons));
    cards[node] = { card, buttons, role: card.querySelector(".role"), state: card.querySelector(".state"), counts: card.querySelector(".counts"), spark: card.querySelector(".spark"), busy: false };
    $("servers").append(card);
  }
}

function drawServers(servers) {
  state.servers = servers;
  for (const node of NODES) {
    const part = cards[node], counts = state.perNode[node];
    counts.recent = counts.recent.filter(([at]) => at > Date.now() - 30000);
    const perSecond = counts.recent.filter(([at]) => at > Date.now() - 5000).length / 5;
    const isLeader = node === leaderOf(servers);
    part.counts.replaceChildren(h("b", {}, perSecond.toFixed(1)), "/s · ", h("b", {}, number(counts.reads)), " reads", ...(counts.writes || isLeader ? [" · ", h("b", {}, number(counts.writes)), " writes"] : []));
    part.role.textContent = isLeader ? (node === "primary" ? "writes, reads after writes" : "the primary now, and reads") : node === "primary" ? (servers[node].up ? `a standby of ${leaderOf(servers)}` : "was the primary") : "replica, reads";
    part.card.classList.toggle("leader", isLeader);
    spark(part.spark, counts.recent);
    if (!servers) continue;
    const now = servers[node];
    part.card.classList.toggle("stopped", !now.up);
    part.card.classList.toggle("paused", now.up && now.paused);
    part.state.textContent = !now.up ? "stopped" : now.paused ? `replay paused${now.lag_bytes ? `, ${size(now.lag_bytes)} behind` : ""}` : "up";
    part.buttons.hidden = false;
    const wanted = [now.up ? "stop" : "start", ...(now.up && !isLeader ? [now.paused ? "resume" : "pause", "promote"] : [])];
    if (part.buttons.dataset.shown !== wanted.join() + part.busy) {
      part.buttons.dataset.shown = wanted.join() + part.busy;
      const names = { stop: "Stop", start: "Start", pause: "Pause", resume: "Resume", promote: "Promote" };
      const hints = { pause: "Pause its replay: it lags from then on", resume: "Resume its replay", promote: `Failover: stop ${leaderOf(servers)}, promote ${node}`, start: isLeader ? null : `As a standby of ${leaderOf(servers)}` };
      const focused = part.buttons.contains(document.activeElement) ? document.activeElement.dataset.action : null;
      part.buttons.replaceChildren(...wanted.map((action) => {
        const button = h("button", { "data-action": action, "aria-label": `${names[action]}: ${node}`, title: hints[action], onclick: () => control(node, action) }, part.busy === action ? "…" : names[action]);
        // Not `disabled`, which would take the focus away.
        button.setAttribute("aria-disabled", part.busy !== false);
        return button;
      }));
      if (focused) (part.buttons.querySelector(`[data-action=${focused}]`) ?? part.buttons.firstElementChild)?.focus();
    }
  }
}

const size = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(0)} kB` : `${(bytes / 1048576).toFixed(1)} MB`);

async function control(server, action) {
  if (cards[server].busy !== false) return;
  cards[server].busy = action;
  drawServers(state.servers);
  try {
    const { status, content } = await call(null, "POST", "/ui/control", { action, server });
    if (status !== 200) say(content?.error ?? content?.title ?? `The order was answered with ${status}.`);
    else {
      drawServers(content.servers);
      if (action === "promote") say(h("span", { class: "code" }, `${server} is the primary now`), h("span", { class: "muted" }, "Writes find it by themselves: the configuration names all three servers."));
    }
  } catch {
    say(GONE);
  } finally {
    cards[server].busy = false;
    drawServers(state.servers);
  }
}

function spark(canvas, recent) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio)) [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const slots = 60, now = Date.now(), reads = Array(slots).fill(0), writes = Array(slots).fill(0);
  for (const [at, isWrite] of recent) {
    const slot = slots - 1 - Math.floor((now - at) / 500);
    if (slot >= 0 && slot < slots) (isWrite ? writes : reads)[slot] += 1;
  }
  const most = Math.max(6, ...reads.map((value, index) => value + writes[index])), step = width / slots;
  for (let index = 0; index < slots; index += 1) {
    const low = (reads[index] / most) * height, high = (writes[index] / most) * height;
    pen.fillStyle = colours.line; pen.fillRect(index * step, height - 1, step - 1.5, 1);
    pen.fillStyle = colours.read; pen.fillRect(index * step, height - low, step - 1.5, low);
    pen.fillStyle = colours.write; pen.fillRect(index * step, height - low - high, step - 1.5, high);
  }
}

// ---------------------------------------------------------------------------------------------------- changes of flights

const TOPICS = {
  "flights.note_added": ["note", (data) => data.body],
  "flights.cancelled": ["cancelled", (data) => data.reason],
  "flights.rebooked": ["rebooked", (data) => `${data.passengers} passengers to flight ${data.to}`],
  "flights.aircraft_changed": ["aircraft", (data) => data.tailnum],
};
const changes = { last: -1, rows: [], busy: new Set() };

async function follow() {
  let pause = 0;
  try {
    const response = await fetch(`/ui/changes?after=${changes.last}`);
    if (!response.ok) throw new Error(response.status);
    const { last, changes: arrived, out_of_order: late, repeated } = await response.json();
    if (last < changes.last) changes.rows = [];           // the desk was started anew
    const isFirst = changes.last < 0;
    changes.last = last;
    changes.rows = [...arrived.reverse(), ...changes.rows].slice(0, 100);
    $("arrived").textContent = number(last);
    $("late").textContent = number(late);
    $("again").textContent = number(repeated);
    if (arrived.length) drawChanges(isFirst ? 0 : arrived.length);
  } catch {
    pause = 2000;
  }
  setTimeout(follow, document.hidden ? 2000 : pause);
}

function drawChanges(fresh) {
  $("changes").replaceChildren(...changes.rows.map((change, index) => {
    const [word, words] = TOPICS[change.topic] ?? [change.topic, () => ""];
    return h("tr", { class: index < fresh ? "fresh" : "" },
      h("td", {}, h("span", { class: "code tag" }, change.tenant.toUpperCase())),
      h("td", { class: "code" }, String(change.flight)),
      h("td", {}, h("span", { class: `pill ${change.is_late ? "bad" : word === "cancelled" ? "warn" : ""}` }, word)),
      h("td", { class: "muted words" }, words(change.data)),
      h("td", { class: "num muted" }, change.ms.toFixed(1)));
  }));
}

function drawRelays(relays) {
  const names = Object.entries(relays ?? {});
  const shown = JSON.stringify([names, [...changes.busy]]);
  if ($("relays").dataset.shown === shown) return;
  $("relays").dataset.shown = shown;
  $("relays").replaceChildren(...names.map(([name, { up }]) => {
    const action = up ? "kill" : "start", isBusy = changes.busy.has(name);
    const button = h("button", { title: up ? "SIGKILL: the other relay takes its flights over" : "", onclick: () => controlRelay(name, action) }, isBusy ? "…" : up ? "Kill" : "Start");
    button.disabled = isBusy;
    return h("span", { class: up ? "" : "stopped" }, name, button);
  }));
}

async function controlRelay(name, action) {
  changes.busy.add(name);
  try {
    const { status, content } = await call(null, "POST", "/ui/control", { action, server: name });
    if (status !== 200) say(content?.error ?? content?.title ?? `The order was answered with ${status}.`);
  } catch {
    say(GONE);
  } finally {
    changes.busy.delete(name);
  }
}

// ---------------------------------------------------------------------------------------------------- the sky

const sky = $("sky"), planes = [], bursts = [];
const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;

function anchor(element, side) {
  const box = element.getBoundingClientRect(), frame = sky.getBoundingClientRect();
  return [(side === "left" ? box.left : side === "right" ? box.right : (box.left + box.right) / 2) - frame.left, (box.top + box.bottom) / 2 - frame.top];
}
const bend = (from, to) => { const middle = (from[0] + to[0]) / 2; return [from, [middle, from[1]], [middle, to[1]], to]; };
function point([a, b, c, d], t) {
  const u = 1 - t;
  return [0, 1].map((i) => u * u * u * a[i] + 3 * u * u * t * b[i] + 3 * u * t * t * c[i] + t * t * t * d[i]);
}

function fly(record) {
  const chip = document.querySelector(`.chip[data-tenant="${CSS.escape(record.tenant ?? "")}"]`);
  if (chip) { chip.classList.remove("ping"); void chip.offsetWidth; chip.classList.add("ping"); }
  if (reduced || document.hidden || planes.length > 60) return;
  const hub = $("hub"), start = chip ? anchor(chip, "right") : [0, anchor(hub)[1]];
  const isBad = record.status >= 400;
  const hops = record.steps.filter((step, index, steps) => index === 0 || step.node !== steps[index - 1].node || step.reason !== steps[index - 1].reason && step.reason !== "sticky").slice(0, 5);
  const first = hops[0], leader = leaderOf(state.servers);
  const tone = (step) => (!answered(step) ? colours.bad : ["pinned", "behind"].includes(step.reason) ? colours.pinned : colours[step.intent] ?? colours.read);
  const inward = bend(start, anchor(hub, "left"));
  const legs = [{ path: inward, colour: first ? tone(first) : isBad ? colours.bad : colours.read, ms: 520, bounces: !hops.length && isBad }];
  for (const step of hops) {
    const card = cards[step.node === "primary" ? leader : step.node]?.card;
    if (!card) continue;
    const out = bend(anchor(hub, "right"), anchor(card, "left"));
    // A server that does not answer is not reached: the plane bounces off, and takes the next leg.
    legs.push({ path: out, colour: tone(step), ms: 480, hit: answered(step) ? card : null, bounces: step.is_failed });
    legs.push({ path: [...out].reverse(), colour: record.outcome === "rolled_back" || !answered(step) ? colours.bad : tone(step), ms: 320, isBack: true, tumbles: step.is_failed });
  }
  // The client of a refused request gets it back.
  if (record.status >= 500 || (isBad && !hops.length)) legs.push({ path: [...inward].reverse(), colour: colours.bad, ms: 620, tumbles: true });
  planes.push({ legs, leg: 0, t: 0, trail: [] });
}

function drawPlane(pen, [x, y], angle, colour, scale) {
  pen.save();
  pen.translate(x, y); pen.rotate(angle + Math.PI / 2); pen.scale(scale, scale);
  pen.fillStyle = colour; pen.shadowColor = colour; pen.shadowBlur = 10;
  pen.fill(SHAPE);
  pen.restore();
}
const SHAPE = new Path2D("M9 3.5v-2L1.2 -3.4V-8.7a1.2 1.2 0 0 0-2.4 0v5.3L-9 1.5v2l7.8-2.4v5l-2.1 1.6V9l3.3-1 3.3 1V7.7l-2.1-1.6v-5z");

let before = performance.now();
function frame(now) {
  const passed = Math.min(60, now - before);
  before = now;
  const ratio = devicePixelRatio || 1, width = sky.clientWidth, height = sky.clientHeight;
  if (sky.width !== Math.round(width * ratio) || sky.height !== Math.round(height * ratio)) [sky.width, sky.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const pen = sky.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (width && cards.primary) {
    const hub = $("hub");
    pen.lineWidth = 1.5; pen.setLineDash([2, 6]); pen.globalAlpha = 0.45;
    const line = (path, colour) => { pen.strokeStyle = colour; pen.beginPath(); pen.moveTo(...path[0]); pen.bezierCurveTo(...path[1], ...path[2], ...path[3]); pen.stroke(); };
    for (const group of document.querySelectorAll(".group")) line(bend(anchor(group, "right"), anchor(hub, "left")), colours.muted);
    for (const node of NODES) line(bend(anchor(hub, "right"), anchor(cards[node].card, "left")), cards[node].card.classList.contains("stopped") ? colours.bad : node === leaderOf(state.servers) ? colours.primary : colours[node]);
    pen.setLineDash([]); pen.globalAlpha = 1;
  }
  for (const plane of [...planes]) {
    const leg = plane.legs[plane.leg];
    plane.t += passed / leg.ms;
    if (plane.t >= 1) {
      if (leg.bounces) { bursts.push({ at: leg.path[3], t: 0 }); sky.dataset.bounced = Number(sky.dataset.bounced ?? 0) + 1; }
      if (leg.hit) { leg.hit.classList.add("hit"); setTimeout(() => leg.hit.classList.remove("hit"), 180); }
      plane.leg += 1; plane.t = 0; plane.trail = [];
      if (plane.leg >= plane.legs.length) { planes.splice(planes.indexOf(plane), 1); continue; }
    }
    const now = plane.legs[plane.leg], eased = plane.t * plane.t * (3 - 2 * plane.t);
    const here = point(now.path, eased), ahead = point(now.path, Math.min(1, eased + 0.02)), behind = point(now.path, Math.max(0, eased - 0.02));
    plane.trail.push(here);
    if (plane.trail.length > 14) plane.trail.shift();
    plane.trail.forEach((spot, index) => {
      pen.globalAlpha = (index / plane.trail.length) * 0.35; pen.fillStyle = now.colour;
      pen.beginPath(); pen.arc(spot[0], spot[1], 1 + (index / plane.trail.length) * 1.6, 0, 7); pen.fill();
    });
    pen.globalAlpha = now.isBack ? 0.7 : 1;
    if (now.isBack && !now.tumbles) { pen.fillStyle = now.colour; pen.beginPath(); pen.arc(...here, 3, 0, 7); pen.fill(); }
    else drawPlane(pen, here, Math.atan2(ahead[1] - behind[1], ahead[0] - behind[0]) + (now.tumbles ? plane.t * 9 : 0), now.colour, 1);
    pen.globalAlpha = 1;
  }
  for (const burst of [...bursts]) {
    burst.t += passed / 450;
    if (burst.t >= 1) { bursts.splice(bursts.indexOf(burst), 1); continue; }
    pen.globalAlpha = 1 - burst.t; pen.strokeStyle = colours.bad; pen.lineWidth = 2.5;
    for (let ray = 0; ray < 8; ray += 1) {
      const angle = (ray * Math.PI) / 4, from = 5 + 8 * burst.t, to = 9 + 16 * burst.t;
      pen.beginPath(); pen.moveTo(burst.at[0] + Math.cos(angle) * from, burst.at[1] + Math.sin(angle) * from);
      pen.lineTo(burst.at[0] + Math.cos(angle) * to, burst.at[1] + Math.sin(angle) * to); pen.stroke();
    }
    pen.globalAlpha = 1;
  }
  requestAnimationFrame(frame);
}

// ---------------------------------------------------------------------------------------------------- trying things

const NOTES = ["Gate changed to B12", "Crew arrives 10 minutes late", "Two wheelchairs at the gate", "De-icing requested", "Catering loaded", "Bags for 3 passengers reloaded", "Captain asks for more fuel", "Waiting for 12 connecting passengers"];
const NOBODY = "zz";

const ACTIONS = [
  { title: "Delay report", hint: "GET: takes turns, r1, r2, r1…", tone: "read", run: (t) => call(t, "GET", `/reports/${pick(["hours", "weekdays", "routes"])}`) },
  { title: "Look at a flight", hint: "Three reads, all on one replica", tone: "read", run: async (t) => call(t, "GET", `/flights/${pick(await flightsOf(t)).id}`) },
  { title: "Add a note", hint: "Read, write, read: sees its own write", tone: "write", run: async (t) => call(t, "POST", `/flights/${pick(await flightsOf(t)).id}/notes`, { body: pick(NOTES) }) },
  { title: "Search by POST", hint: "A rule says it only reads: a replica", tone: "read", run: (t) => call(t, "POST", "/flights/search", { origin: "JFK", limit: 3 }) },
  { title: "Overbook a flight", hint: "COMMIT fails: never a 2xx", tone: "bad", run: async (t) => { const pair = await sameRoute(t); return call(t, "POST", `/flights/${pair[0].id}/rebook`, { to: pair[1].id, passengers: 400 }); } },
  { title: "Read your own write", hint: "The next request, while replicas lag", tone: "pinned", shows: async (t) => readOwnWrite(t, await flightsOf(t), state.servers, control) },
  { title: "Another airline's flight", hint: "Seven ways to get at it: none does", tone: "good", shows: (t) => askForStrangers(t, state.airlines, flightsOf) },
  { title: "Ask for airline ZZ", hint: "Unknown tenant: no SQL at all", tone: "bad", run: () => call(NOBODY, "GET", "/flights") },
];

async function sameRoute(tenant) {
  const flights = await flightsOf(tenant), seen = new Map();
  for (const flight of flights) {
    const key = flight.origin + flight.dest;
    if (seen.has(key)) return [seen.get(key), flight];
    seen.set(key, flight);
  }
  return [flights[0], flights[1] ?? flights[0]];
}

function arrived(number) {
  const known = state.records.find((record) => record.number === number);
  return known ? Promise.resolve(known) : new Promise((resolve) => { state.waiting.set(number, resolve); setTimeout(resolve, 4000); }).finally(() => state.waiting.delete(number));
}

async function show(promise) {
  const answer = await promise.catch((error) => ({ status: 0, content: { title: error.message } }));
  const record = answer.number ? await arrived(answer.number) : null;
  $("answer").replaceChildren(
    h("div", { class: "line" }, pill(answer.status), ...(record ? [h("button", { class: "link code", "aria-haspopup": "dialog", title: "Its SQL, spans, and why it went there", onclick: () => open(record.number) }, `${record.method} ${record.path}`), ...merge(record.steps).map(hop), ending(record)] : [])),
    h("p", {}, record ? story(record) : ""),
    ...(answer.token ? [h("p", { class: "token" }, h("b", {}, TOKEN), " ", h("code", {}, answer.token))] : []),
    h("pre", { tabindex: "0" }, JSON.stringify(answer.content, null, 1).replace(/\n\s*/g, " ").slice(0, 420)));
  return answer;
}

async function showAll(action) {
  $("answer").setAttribute("aria-busy", "true");
  const content = await action.shows(state.tenant).catch((error) => [h("p", {}, error.message)]);
  $("answer").replaceChildren(...content);
  $("answer").removeAttribute("aria-busy");
}

function makeActions() {
  $("actions").replaceChildren(...ACTIONS.map((action) =>
    h("button", { class: "action", style: `--tone: var(--${action.tone})`, onclick: () => (action.shows ? showAll(action) : show(action.run(state.tenant))) }, h("b", {}, action.title), h("span", {}, action.hint))));
}

function choose(tenant) {
  state.tenant = tenant;
  for (const chip of document.querySelectorAll(".chip")) chip.setAttribute("aria-pressed", chip.dataset.tenant === tenant);
  const airline = state.airlines.find((one) => one.tenant === tenant);
  $("who").textContent = $("mine").textContent = tenant.toUpperCase();
  $("who-name").textContent = airline.name;
  if (state.filter === "mine") drawLog();
  drawBoard();
  drawReport();
}

function makeAirlines() {
  for (const [isolation, [title, where]] of Object.entries(ISOLATION)) {
    const chips = state.airlines.filter((airline) => airline.isolation === isolation).map((airline) =>
      h("button", { class: "chip", "data-tenant": airline.tenant, "aria-pressed": "false", title: airline.name, onclick: () => choose(airline.tenant) }, airline.tenant.toUpperCase()));
    $("airlines").append(h("div", { class: "group" }, h("h3", {}, title, h("small", { class: "code", title: "the datasource" }, where)), h("div", { class: "chips" }, ...chips)));
  }
}

// ---------------------------------------------------------------------------------------------------- the desk itself

async function drawBoard() {
  state.flights.delete(state.tenant);
  const tenant = state.tenant, flights = await flightsOf(tenant).catch(() => []);
  if (tenant !== state.tenant) return;
  $("board-sub").textContent = `${number(flights.length)}${flights.length === 200 ? "+" : ""} flights of ${tenant.toUpperCase()}`;
  const status = (flight) => {
    if (flight.status === "cancelled") return h("span", { class: "pill bad" }, "cancelled");
    if (flight.status === "diverted") return h("span", { class: "pill warn" }, "diverted");
    const delay = flight.dep_delay ?? 0;
    return h("span", { class: `pill ${delay > 60 ? "bad" : delay > 15 ? "warn" : ""}` }, delay > 0 ? `${delay} min late` : "on time");
  };
  const later = (flight) => flights.find((other) => other.dest === flight.dest && other.origin === flight.origin && other.sched_dep > flight.sched_dep && other.status !== "cancelled");
  const act = (flight, path, body) => show(call(tenant, "POST", `/flights/${flight.id}/${path}`, body)).then(drawBoard);
  $("board").replaceChildren(...flights.map((flight) => {
    const next = later(flight);
    return h("tr", {},
      h("td", { class: "code" }, String(flight.sched_dep).slice(11, 16)),
      h("td", { class: "code" }, `${flight.carrier} ${flight.flight_no}`),
      h("td", {}, `${flight.origin} → ${flight.dest} `, h("span", { class: "muted" }, flight.destination ?? "")),
      h("td", { class: "code muted" }, flight.tailnum ?? "–"),
      h("td", {}, status(flight)),
      h("td", { class: "num" },
        h("button", { class: "mini", onclick: () => act(flight, "notes", { body: pick(NOTES) }) }, "Note"),
        flight.status === "cancelled" ? null : h("button", { class: "mini", onclick: () => act(flight, "cancel", { reason: "crew out of hours" }) }, "Cancel"),
        next ? h("button", { class: "mini", title: `5 passengers to ${next.carrier} ${next.flight_no}, ${String(next.sched_dep).slice(11, 16)}`, onclick: () => act(flight, "rebook", { to: next.id, passengers: 5 }) }, "Rebook 5") : null));
  }));
}

async function drawReport() {
  const tenant = state.tenant, by = state.report;
  const { status, content } = await call(tenant, "GET", `/reports/${by}`);
  if (tenant !== state.tenant || by !== state.report || status !== 200) return;
  const days = ["", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
  const label = (row) => ({ hours: `${String(row.hour).padStart(2, "0")}:00`, weekdays: days[row.weekday], airports: row.origin, routes: `${row.origin}-${row.dest}` })[by];
  const rows = content.slice(0, 19), most = Math.max(1, ...rows.map((row) => row.mean_dep_delay ?? 0));
  $("report-sub").textContent = `mean departure delay of ${tenant.toUpperCase()}, ${number(content.reduce((sum, row) => sum + row.flights, 0))} flights`;
  $("report").replaceChildren(h("div", { class: "bars" }, ...rows.map((row) =>
    h("div", { class: "bar" }, h("span", { class: "label" }, label(row)),
      h("div", { class: "track" }, h("div", { class: "fill", style: `width: ${Math.max(0, (100 * (row.mean_dep_delay ?? 0)) / most)}%` })),
      h("span", { class: "value" }, h("b", {}, row.mean_dep_delay === null ? "–" : `${row.mean_dep_delay.toFixed(1)} min`), ` · ${row.on_time_pct ?? "–"}% on time`)))));
}

// ---------------------------------------------------------------------------------------------------- traffic

async function drive() {
  if (state.isPlaying && !document.hidden && pollErrors === 0) {
    // The large airlines ask more often than the small ones, and everybody reads more than they write.
    const tenant = pick(Math.random() < 0.6 ? ["ua", "b6", "ev", "dl", "aa", "mq", "us"] : state.airlines.map((airline) => airline.tenant));
    const dice = Math.random();
    const title = dice < 0.45 ? "Delay report" : dice < 0.7 ? "Look at a flight" : dice < 0.8 ? "Search by POST" : dice < 0.985 ? "Add a note" : "Ask for airline ZZ";
    ACTIONS.find((action) => action.title === title).run(tenant).catch(() => {});
  }
  setTimeout(drive, (1000 / Number($("rate").value)) * (0.5 + Math.random()));
}

function press(attribute, value) {
  for (const button of document.querySelectorAll(`[data-${attribute}]`)) button.setAttribute("aria-pressed", button.dataset[attribute] === value);
}

async function start() {
  $("origin").textContent = location.origin;
  state.airlines = await (await fetch("/ui/airlines")).json();
  readColours();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);
  makeAirlines(); makeServers(); makeActions(); drawWhy(); drawMatrix();
  $("play").title = "Pause the traffic that this page makes";
  $("play").onclick = () => { state.isPlaying = !state.isPlaying; $("play").setAttribute("aria-pressed", state.isPlaying); };
  $("rate").oninput = () => { $("rate-out").textContent = `${$("rate").value}/s`; };
  $("day").onchange = () => { state.flights.clear(); drawBoard(); };
  document.querySelectorAll("[data-filter]").forEach((button) => { button.onclick = () => { state.filter = button.dataset.filter; press("filter", state.filter); drawLog(); }; });
  document.querySelectorAll("[data-report]").forEach((button) => { button.onclick = () => { state.report = button.dataset.report; press("report", state.report); drawReport(); }; });
  $("detail-close").onclick = () => $("detail").close();
  // A click beside the dialog.
  $("detail").onclick = (event) => { if (event.target === $("detail")) $("detail").close(); };
  requestAnimationFrame(frame);
  setInterval(tick, 1000);
  await poll();
  follow();
  choose("dl");
  drive();
}

start();
