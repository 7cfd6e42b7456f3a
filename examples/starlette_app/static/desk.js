// The page: asks the desk for its last requests, draws them, and sends some of its own. No library, no build step.

const REASONS = {
  balanced: "a read: the next replica in turn",
  sticky: "the request read from this replica before: one request sees one server",
  write: "a write: always the primary",
  pinned: "the request has written: its reads see it, on the primary",
  transaction: "inside the request's open transaction",
  strong: "the route asks for the primary",
  failover: "the first choice did not answer: the next one",
  unhealthy: "no replica is up: the primary stands in, read only",
  no_replicas: "this datasource has no replicas",
};
const ENDS = {
  committed: ["committed", "2xx or 3xx: the data is there", "committed"],
  rolled_back: ["rolled back", "4xx, 5xx, or a COMMIT that failed", "bad"],
  read: ["read only", "nothing to commit, no connection held", "read"],
  none: ["no SQL", "no connection taken at all", "none"],
  unknown: ["unknown", "outcome unknown: answered with an error", "bad"],
};
const ISOLATION = {
  database: ["A database of its own", "united"],
  schema: ["A schema of its own", "airlines"],
  rows: ["Shared tables, row security", "airlines"],
};
const NODES = ["primary", "r1", "r2"];
const COLOURS = { read: "#4cc2ff", write: "#ffb938", pinned: "#c7a6ff", bad: "#ff7b7b", committed: "#47d7a0", none: "#5b6f92" };

const $ = (id) => document.getElementById(id);
const text = (value) => document.createTextNode(value);
function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key === "class") element.className = value;
    else if (key === "style") element.style.cssText = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null).map((child) => (typeof child === "object" ? child : text(child))));
  return element;
}
const pick = (list) => list[Math.floor(Math.random() * list.length)];
const number = (value) => value.toLocaleString("en");

const state = {
  airlines: [], tenant: "dl", last: 0, records: [], filter: "all", report: "hours",
  total: 0, errors: 0, servers: null, perTenant: new Map(), reasons: new Map(), ends: new Map(), flights: new Map(),
  perNode: Object.fromEntries(NODES.map((node) => [node, { reads: 0, writes: 0, recent: [] }])),
  isPlaying: true, waiting: new Map(),
};

// ---------------------------------------------------------------------------------------------------- talking

async function call(tenant, method, path, body) {
  const headers = { "X-Desk-Page": "1" };
  if (tenant) headers["X-Tenant"] = tenant;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const content = await response.json().catch(() => null);
  return { status: response.status, content, number: Number(response.headers.get("x-request-number")) };
}

async function flightsOf(tenant) {
  if (!state.flights.has(tenant)) {
    const { status, content } = await call(tenant, "GET", `/flights?date=${$("day").value}&limit=200`);
    if (status !== 200) return [];
    state.flights.set(tenant, content);
  }
  return state.flights.get(tenant);
}

// ---------------------------------------------------------------------------------------------------- the feed

const GONE = "The desk does not answer. Is scripts/demo still running?";
let pollErrors = 0;
async function poll() {
  try {
    const response = await fetch(`/ui/requests?after=${state.last}`);
    if (!response.ok) throw new Error(response.status);
    const { last, requests, servers, relays } = await response.json();
    if (last < state.last) state.records = [];            // the desk was started anew
    const isFirst = state.last === 0;
    state.last = last;
    pollErrors = 0;
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
      if (!isFirst) tick(state.records);
    }
    for (const record of requests) state.waiting.get(record.number)?.(record);
  } catch (error) {
    if (++pollErrors === 4) $("ticker").textContent = GONE;
  }
  setTimeout(poll, document.hidden ? 2000 : 350);
}

function count(record) {
  state.total += 1;
  if (record.status >= 500) state.errors += 1;
  const mine = state.perTenant.get(record.tenant) ?? { requests: 0, primary: 0, r1: 0, r2: 0 };
  mine.requests += 1;
  for (const step of record.steps) {
    if (step.is_failed) continue;
    const node = state.perNode[step.node];
    if (!node) continue;
    const isWrite = step.intent === "write";
    node[isWrite ? "writes" : "reads"] += 1;
    node.recent.push([record.at * 1000, isWrite]);
    mine[step.node] += 1;
    state.reasons.set(step.reason, (state.reasons.get(step.reason) ?? 0) + 1);
  }
  const end = record.outcome ?? (record.steps.length ? "read" : "none");
  state.ends.set(end, (state.ends.get(end) ?? 0) + 1);
  if (record.tenant) state.perTenant.set(record.tenant, mine);
  $("total").textContent = number(state.total);
  $("errors").textContent = number(state.errors);
  $("errors").parentElement.classList.toggle("alarm", state.errors > 0);
}

function story(record) {
  const steps = record.steps, good = steps.filter((step) => !step.is_failed);
  const failed = steps.filter((step) => step.is_failed).map((step) => step.node);
  if (!steps.length) {
    if (record.status === 404 || record.status === 400) return "Refused before any SQL ran: no connection was taken, no server was asked.";
    return "No SQL: no connection was taken.";
  }
  const over = failed.length ? `${failed.join(" and ")} did not answer, so the next server took it; the client noticed nothing. ` : "";
  const writes = good.some((step) => step.intent === "write");
  if (!good.length) return `${failed.join(", ")} cannot be reached: answered with ${record.status}.`;
  if (!writes) {
    const node = good[good.length - 1].node;
    if (node === "primary") return `${over}No replica is up: the primary stands in for this read, read only.`;
    if (good.length > 1) return `${over}${good.length} reads, one request, one server: ${node}.`;
    return `${over}A read: ${node}, ${REASONS[good[0].reason] ?? good[0].reason}.`;
  }
  const pinned = good.some((step) => step.reason === "pinned");
  const before = good[0].intent === "read" ? `Read on ${good[0].node}, then the write on the primary` : "The write went to the primary";
  const after = pinned ? "; from there on the request reads the primary and sees its own write" : "";
  if (record.outcome === "rolled_back") {
    if (record.status === 422) return `Every statement worked, then COMMIT failed: the client gets ${record.status} instead of a 2xx, and nothing is stored.`;
    return `${before}${after}. Answered ${record.status}: everything is rolled back.`;
  }
  return `${over}${before}${after}. Committed before the first byte left.`;
}

let lastTick = 0;
function tick(records) {
  const now = Date.now();
  if (now - lastTick < 1600) return;
  // What is rare is more worth a line than one more read.
  const rank = (record) => (record.steps.some((step) => step.is_failed) ? 3 : record.outcome === "rolled_back" || record.status >= 400 ? 2 : record.outcome ? 1 : 0);
  const record = records.slice(0, 8).sort((a, b) => rank(b) - rank(a))[0];
  lastTick = now;
  $("ticker").replaceChildren(h("span", { class: "code" }, `${(record.tenant ?? "?").toUpperCase()}  ${record.method} ${record.path}`), h("span", { class: "muted" }, story(record)));
}

// ---------------------------------------------------------------------------------------------------- the log

const hop = (step) =>
  h("span", { class: `hop ${step.is_failed ? "failed" : step.node}`, title: `${step.reasons.map((reason) => `${reason}: ${REASONS[reason] ?? ""}`).join("\n")}\n${step.statements.join("\n")}\nservers: ${(step.candidates ?? []).join(", ")}` },
    h("b", {}, step.node), h("span", {}, step.is_failed ? "no answer" : step.reasons.join(", ")));
const pill = (status) => h("span", { class: `pill ${status >= 500 || !status ? "bad" : status >= 400 ? "warn" : ""}` }, status || "none");
const ending = (record) => {
  const word = { committed: "committed", rolled_back: "rolled back", unknown: "unknown" }[record.outcome];
  return h("span", { class: `end ${record.outcome ?? ""}` }, word ?? (record.steps.length ? "read only" : "no SQL"));
};
const FILTERS = {
  all: () => true,
  mine: (record) => record.tenant === state.tenant,
  write: (record) => record.outcome !== null,
  odd: (record) => record.status >= 400 || record.steps.some((step) => step.is_failed || step.reason === "unhealthy"),
};

function drawLog(fresh = 0) {
  const newest = new Set(state.records.slice(0, fresh));
  $("log").replaceChildren(...state.records.filter(FILTERS[state.filter]).slice(0, 60).map((record) =>
    h("tr", { class: newest.has(record) ? "fresh" : "", title: story(record) },
      h("td", {}, h("span", { class: "code tag" }, (record.tenant ?? "–").toUpperCase())),
      h("td", {}, `${record.method} ${record.path}`),
      h("td", {}, ...(record.steps.length ? merge(record.steps).map(hop) : [h("span", { class: "muted" }, "nobody")])),
      h("td", {}, ending(record)),
      h("td", {}, pill(record.status)),
      h("td", { class: "num muted" }, record.ms.toFixed(1)))));
}

function merge(steps) {
  // What one request does in a row on one server is one thing to look at.
  const visits = [];
  for (const step of steps) {
    const last = visits[visits.length - 1];
    if (last && last.node === step.node && !last.is_failed && !step.is_failed) {
      if (!last.reasons.includes(step.reason)) last.reasons.push(step.reason);
      last.statements.push(...step.statements);
    } else visits.push({ ...step, reasons: [step.reason], statements: [...step.statements] });
  }
  return visits;
}

function drawMatrix() {
  const cell = (value, colour, most) => h("td", { class: "num" }, h("span", { class: "heat", style: `background: ${colour}${Math.round(18 + 150 * (value / most)).toString(16).padStart(2, "0")}` }, value ? number(value) : "·"));
  const words = { database: "own database", schema: "own schema", rows: "row security" };
  const most = Math.max(1, ...[...state.perTenant.values()].flatMap((one) => [one.r1, one.r2, one.primary]));
  $("matrix").replaceChildren(...state.airlines.map((airline) => {
    const one = state.perTenant.get(airline.tenant) ?? { requests: 0, primary: 0, r1: 0, r2: 0 };
    return h("tr", {},
      h("td", {}, h("span", { class: "code tag" }, airline.tenant.toUpperCase()), h("span", { class: "muted" }, `  ${airline.name}`)),
      h("td", { class: "muted" }, words[airline.isolation]),
      cell(one.r1, "#4cc2ff", most), cell(one.r2, "#37d6c3", most), cell(one.primary, "#ffb938", most),
      h("td", { class: "num" }, one.requests ? number(one.requests) : "·"));
  }));
}

function drawWhy() {
  const known = ["balanced", "sticky", "write", "pinned", "failover", "unhealthy"];
  const reasons = [...known, ...[...state.reasons.keys()].filter((reason) => !known.includes(reason))];
  const tones = { write: "write", pinned: "pinned", failover: "bad", unhealthy: "bad" };
  drawShares($("why"), reasons.map((reason) => [reason, REASONS[reason] ?? "", tones[reason] ?? "read", state.reasons.get(reason) ?? 0]));
  const ends = Object.entries(ENDS).filter(([end]) => end !== "unknown" || state.ends.has(end));
  drawShares($("ends"), ends.map(([end, [word, hint, tone]]) => [word, hint, tone, state.ends.get(end) ?? 0]));
}

function drawShares(table, rows) {
  const all = Math.max(1, rows.reduce((sum, row) => sum + row[3], 0));
  table.replaceChildren(...rows.map(([word, hint, tone, value]) =>
    h("tr", {}, h("td", { class: "code" }, word), h("td", { class: "muted" }, hint),
      h("td", { class: "share" }, h("i", { style: `width: ${(100 * value) / all}%; background: ${COLOURS[tone]}` })),
      h("td", { class: "num" }, number(value)))));
}

// ---------------------------------------------------------------------------------------------------- the servers

const cards = {};
function makeServers() {
  for (const node of NODES) {
    const buttons = h("div", { class: "buttons", hidden: "" });
    const card = h("div", { class: "server", "data-node": node },
      h("div", { class: "row" }, h("span", { class: "name" }, node), h("span", { class: "muted" }, node === "primary" ? "writes, reads after writes" : "replica, reads"), h("span", { class: "state" }, "up")),
      h("canvas", { class: "spark", "aria-hidden": "true" }),
      h("div", { class: "row" }, h("span", { class: "counts" }), buttons));
    cards[node] = { card, buttons, state: card.querySelector(".state"), counts: card.querySelector(".counts"), spark: card.querySelector(".spark"), busy: false };
    $("servers").append(card);
  }
}

function drawServers(servers) {
  state.servers = servers;
  for (const node of NODES) {
    const part = cards[node], counts = state.perNode[node];
    counts.recent = counts.recent.filter(([at]) => at > Date.now() - 30000);
    const perSecond = counts.recent.filter(([at]) => at > Date.now() - 5000).length / 5;
    part.counts.replaceChildren(h("b", {}, perSecond.toFixed(1)), "/s · ", h("b", {}, number(counts.reads)), " reads", node === "primary" ? " · " : "", node === "primary" ? h("b", {}, number(counts.writes)) : "", node === "primary" ? " writes" : "");
    spark(part.spark, counts.recent);
    if (!servers) continue;
    const now = servers[node];
    part.card.classList.toggle("stopped", !now.up);
    part.card.classList.toggle("paused", now.up && now.paused);
    part.state.textContent = !now.up ? "stopped" : now.paused ? `replay paused${now.lag_bytes ? `, ${size(now.lag_bytes)} behind` : ""}` : "up";
    part.buttons.hidden = false;
    const wanted = [now.up ? "stop" : "start", ...(now.up && node !== "primary" ? [now.paused ? "resume" : "pause"] : [])];
    if (part.buttons.dataset.shown !== wanted.join() + part.busy) {
      part.buttons.dataset.shown = wanted.join() + part.busy;
      const names = { stop: "Stop", start: "Start", pause: "Pause replay", resume: "Resume replay" };
      part.buttons.replaceChildren(...wanted.map((action) => {
        const button = h("button", { onclick: () => control(node, action) }, part.busy === action ? "…" : names[action]);
        button.disabled = part.busy !== false;
        return button;
      }));
    }
  }
}

const size = (bytes) => (bytes < 1024 ? `${bytes} B` : bytes < 1048576 ? `${(bytes / 1024).toFixed(0)} kB` : `${(bytes / 1048576).toFixed(1)} MB`);

async function control(server, action) {
  cards[server].busy = action;
  drawServers(state.servers);
  try {
    const { status, content } = await call(null, "POST", "/ui/control", { action, server });
    if (status !== 200) $("ticker").textContent = content?.error ?? content?.title ?? `The order was answered with ${status}.`;
  } catch {
    $("ticker").textContent = GONE;
  } finally {
    cards[server].busy = false;
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
    pen.fillStyle = "#1b2945"; pen.fillRect(index * step, height - 1, step - 1.5, 1);
    pen.fillStyle = COLOURS.read; pen.fillRect(index * step, height - low, step - 1.5, low);
    pen.fillStyle = COLOURS.write; pen.fillRect(index * step, height - low - high, step - 1.5, high);
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
    if (status !== 200) $("ticker").textContent = content?.error ?? content?.title ?? `The order was answered with ${status}.`;
  } catch {
    $("ticker").textContent = GONE;
  } finally {
    changes.busy.delete(name);
  }
}

// ---------------------------------------------------------------------------------------------------- the sky

const sky = $("sky"), planes = [];
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
  const first = hops[0];
  const tone = (step) => (step.is_failed ? COLOURS.bad : step.reason === "pinned" ? COLOURS.pinned : COLOURS[step.intent] ?? COLOURS.read);
  const legs = [{ path: bend(start, anchor(hub, "left")), colour: first ? tone(first) : isBad ? COLOURS.bad : COLOURS.read, ms: 520 }];
  for (const step of hops) {
    const card = cards[step.node]?.card;
    if (!card) continue;
    const out = bend(anchor(hub, "right"), anchor(card, "left"));
    legs.push({ path: out, colour: tone(step), ms: 480, hit: step.is_failed ? null : card });
    legs.push({ path: [...out].reverse(), colour: record.outcome === "rolled_back" || step.is_failed ? COLOURS.bad : tone(step), ms: 320, isBack: true });
  }
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
    pen.lineWidth = 1.5; pen.setLineDash([2, 6]);
    const line = (path, colour) => { pen.strokeStyle = colour; pen.beginPath(); pen.moveTo(...path[0]); pen.bezierCurveTo(...path[1], ...path[2], ...path[3]); pen.stroke(); };
    for (const group of document.querySelectorAll(".group")) line(bend(anchor(group, "right"), anchor(hub, "left")), "#2c426e");
    for (const node of NODES) line(bend(anchor(hub, "right"), anchor(cards[node].card, "left")), cards[node].card.classList.contains("stopped") ? "#6b2c38" : node === "primary" ? "#6b542a" : "#245a75");
    pen.setLineDash([]);
  }
  for (const plane of [...planes]) {
    const leg = plane.legs[plane.leg];
    plane.t += passed / leg.ms;
    if (plane.t >= 1) {
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
    if (now.isBack) { pen.fillStyle = now.colour; pen.beginPath(); pen.arc(...here, 3, 0, 7); pen.fill(); }
    else drawPlane(pen, here, Math.atan2(ahead[1] - behind[1], ahead[0] - behind[0]), now.colour, 1);
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
  const answer = await promise.catch((error) => ({ status: 0, content: { title: String(error) } }));
  const record = answer.number ? await arrived(answer.number) : null;
  $("answer").replaceChildren(
    h("div", { class: "line" }, pill(answer.status), ...(record ? [h("span", { class: "code" }, `${record.method} ${record.path}`), ...merge(record.steps).map(hop), ending(record)] : [])),
    h("p", {}, record ? story(record) : ""),
    h("pre", {}, JSON.stringify(answer.content, null, 1).replace(/\n\s*/g, " ").slice(0, 420)));
  return answer;
}

function makeActions() {
  $("actions").replaceChildren(...ACTIONS.map((action) =>
    h("button", { class: "action", style: `--tone: ${COLOURS[action.tone]}`, onclick: () => show(action.run(state.tenant)) }, h("b", {}, action.title), h("span", {}, action.hint))));
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
  const tenant = state.tenant, flights = await flightsOf(tenant);
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
    const run = dice < 0.45 ? ACTIONS[0].run : dice < 0.7 ? ACTIONS[1].run : dice < 0.8 ? ACTIONS[3].run : dice < 0.985 ? ACTIONS[2].run : ACTIONS[5].run;
    run(tenant).catch(() => {});
  }
  setTimeout(drive, (1000 / Number($("rate").value)) * (0.5 + Math.random()));
}

function press(attribute, value) {
  for (const button of document.querySelectorAll(`[data-${attribute}]`)) button.setAttribute("aria-pressed", button.dataset[attribute] === value);
}

async function start() {
  $("origin").textContent = location.origin;
  state.airlines = await (await fetch("/ui/airlines")).json();
  makeAirlines(); makeServers(); makeActions(); drawWhy(); drawMatrix();
  $("play").title = "Pause the traffic that this page makes";
  $("play").onclick = () => { state.isPlaying = !state.isPlaying; $("play").setAttribute("aria-pressed", state.isPlaying); };
  $("rate").oninput = () => { $("rate-out").textContent = `${$("rate").value}/s`; };
  $("day").onchange = () => { state.flights.clear(); drawBoard(); };
  document.querySelectorAll("[data-filter]").forEach((button) => { button.onclick = () => { state.filter = button.dataset.filter; press("filter", state.filter); drawLog(); }; });
  document.querySelectorAll("[data-report]").forEach((button) => { button.onclick = () => { state.report = button.dataset.report; press("report", state.report); drawReport(); }; });
  requestAnimationFrame(frame);
  await poll();
  follow();
  choose("dl");
  drive();
}

start();
