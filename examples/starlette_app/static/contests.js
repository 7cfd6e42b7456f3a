// Experiments of several requests each: read your own write from lagging replicas, and get at another airline's flight.

import { call, h, pick, pill, TOKEN } from "./common.js";
import { open } from "./detail.js";

const line = ({ answer, words, isGood, note }) =>
  h("li", { class: isGood ? "good" : "wrong" },
    h("span", { class: "mark", "aria-hidden": "true" }, isGood ? "✓" : "✗"),
    h("button", { class: "link", title: "Its SQL, spans, and why it went there", onclick: () => open(answer.number) }, words),
    pill(answer.status), h("span", { class: "muted" }, note));
const served = (answer) => answer.servedBy?.split(", ").filter((one) => !one.includes("not_proved"))[0] ?? "nobody";

// ---------------------------------------------------------------------------------------------------- tokens

export async function readOwnWrite(tenant, flights, servers, control) {
  const flight = pick(flights), body = `Seen by ${crypto.randomUUID().slice(0, 8)}`, path = `/flights/${flight.id}`;
  const has = (answer) => JSON.stringify(answer.content).includes(body);
  const standbys = Object.entries(servers ?? {}).filter(([, one]) => one.up && !one.is_primary);
  const paused = standbys.filter(([, one]) => !one.paused).map(([name]) => name);
  await Promise.all(paused.map((name) => control(name, "pause")));
  const results = [];
  let token = null;
  try {
    const written = await call(tenant, "POST", `${path}/notes`, { body });
    token = written.token;
    results.push({ answer: written, words: "1. Write a note", isGood: written.status === 201 && token !== null, note: "the answer carries the position of COMMIT" });
    if (token === null) return report("The write failed: there is nothing to read.", token, results);
    const mine = await call(tenant, "GET", path, undefined, token);
    results.push({ answer: mine, words: "2. Read, with the token", isGood: has(mine), note: `${served(mine)}: ${has(mine) ? "sees the note" : "does not see the note"}` });
    const other = await call(tenant, "GET", path);
    results.push({ answer: other, words: "3. Read, without it", isGood: true, note: `${served(other)}: ${has(other) ? "sees the note" : "does not have it yet"}` });
  } finally {
    await Promise.all(paused.map((name) => control(name, "resume")));
  }
  // The replicas catch up now: soon one of them proves that it has the note.
  let later;
  for (let tries = 0; tries < 60 && !later?.servedBy?.includes("(proved)"); tries += 1) {
    later = await call(tenant, "GET", path, undefined, token);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
  results.push({ answer: later, words: "4. A moment later, with it", isGood: has(later), note: `${served(later)}: ${has(later) ? "sees the note" : "does not see the note"}` });
  const lag = paused.length ? `Meanwhile the replay of ${paused.join(" and ")} was paused. ` : "";
  return report(`${lag}${results.every(({ isGood }) => isGood) ? "The client has read its own write each time." : "A read has missed the client's own write!"}`, token, results);
}

function report(words, token, results) {
  return [
    h("p", {}, words),
    h("ol", { class: "contest" }, ...results.map(line)),
    ...(token ? [h("p", { class: "token" }, h("b", {}, TOKEN), " ", h("code", {}, token))] : []),
  ];
}

// ---------------------------------------------------------------------------------------------------- isolation

const APART = { database: "another database", schema: "another schema", rows: "row security in the same tables" };

export async function askForStrangers(tenant, airlines, flightsOf) {
  const me = airlines.find((one) => one.tenant === tenant);
  // One that shares the tables, where there is one: that is the hardest.
  const neighbours = airlines.filter((one) => one.tenant !== tenant && one.isolation === me.isolation && one.schema === me.schema);
  const other = pick(neighbours.length ? neighbours : airlines.filter((one) => one.tenant !== tenant));
  const theirs = pick(await flightsOf(other.tenant)), mine = pick(await flightsOf(tenant));
  const [them, us] = [other.tenant.toUpperCase(), tenant.toUpperCase()];
  const owner = await call(other.tenant, "GET", `/flights/${theirs.id}`);
  // A server that is down refuses as well, with 503.
  const isRefused = (answer) => answer.status >= 400;
  const isAbsent = (answer) => isRefused(answer) || answer.status === 200 && !answer.content.some((one) => one.id === theirs.id || one.carrier !== us);
  const ways = [
    ["read it", () => call(tenant, "GET", `/flights/${theirs.id}`), isRefused],
    ["search for it", () => call(tenant, "POST", "/flights/search", { flight_no: theirs.flight_no, limit: 500 }), isAbsent],
    ["add a note to it", () => call(tenant, "POST", `/flights/${theirs.id}/notes`, { body: `${us} was here` }), isRefused],
    ["cancel it", () => call(tenant, "POST", `/flights/${theirs.id}/cancel`, { reason: `${us} wants it` }), isRefused],
    ["rebook to it", () => call(tenant, "POST", `/flights/${mine.id}/rebook`, { to: theirs.id, passengers: 1 }), isRefused],
    ["name both airlines", () => call(`${tenant},${other.tenant}`, "GET", `/flights/${theirs.id}`), isRefused],
    ["inject SQL as a name", () => call(`${other.tenant}'; reset role --`, "GET", `/flights/${theirs.id}`), isRefused],
  ];
  const results = [{ answer: owner, words: `${them} itself reads it`, isGood: owner.status === 200, note: served(owner) }];
  for (const [words, ask, isHeld] of ways) {
    const answer = await ask();
    const held = isHeld(answer);
    results.push({ answer, words: `${us}: ${words}`, isGood: held, note: held ? (answer.status === 200 ? "only its own flights" : answer.content?.title ?? "refused") : "it got through!" });
  }
  const after = (await call(other.tenant, "GET", `/flights/${theirs.id}`)).content;
  const traces = [`${us} was here`, `${us} wants it`].some((words) => JSON.stringify(after).includes(words)) || after.rebookings.some((one) => one.from_flight === mine.id);
  const isHeld = !traces && results.every(({ isGood }) => isGood);
  const between = me.datasource !== other.datasource ? "database" : me.schema !== other.schema ? "schema" : "rows";
  return [
    h("p", { class: "verdict" }, isHeld ? `${us} got nothing of ${them}'s flight ${theirs.flight_no}, in ${ways.length} ways. ` : `${us} got at ${them}'s flight! `,
      h("span", { class: "muted" }, `Between the two: ${APART[between]}.`)),
    h("ol", { class: "contest" }, ...results.map(line)),
  ];
}
