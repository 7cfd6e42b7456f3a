// What all parts of the page use: elements, requests, and the words for reasons and outcomes.

export const REASONS = {
  balanced: "a read: the next replica in turn",
  sticky: "the request read from this replica before: one request sees one server",
  write: "a write: always the primary",
  pinned: "the request has written: its reads see it, on the primary",
  proved: "this replica has proved that it has what the client's token asks for",
  behind: "no replica has replayed the client's own write yet: the primary",
  not_proved: "it lags behind the client's token: its answer was dropped",
  transaction: "inside the request's open transaction",
  strong: "the route asks for the primary",
  failover: "the first choice did not answer: the next one",
  unhealthy: "no replica is up: the primary stands in, read only",
  no_replicas: "this datasource has no replicas",
};
export const TOKEN = "X-Datasource-Token";
export const GONE = "The desk does not answer. Is scripts/demo still running?";

export const $ = (id) => document.getElementById(id);
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key === "class") element.className = value;
    else if (key === "style") element.style.cssText = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null).map((child) => (typeof child === "object" ? child : document.createTextNode(child))));
  return element;
}
export const pick = (list) => list[Math.floor(Math.random() * list.length)];
export const number = (value) => value.toLocaleString("en");

export async function call(tenant, method, path, body, token) {
  const headers = { "X-Desk-Page": "1" };
  if (tenant) headers["X-Tenant"] = tenant;
  if (token) headers[TOKEN] = token;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const content = await response.json().catch(() => null);
  return {
    status: response.status, content, method, path, number: Number(response.headers.get("x-request-number")),
    token: response.headers.get(TOKEN), servedBy: response.headers.get("x-served-by"),
  };
}

export const pill = (status) => h("span", { class: `pill ${status >= 500 || !status ? "bad" : status >= 400 ? "warn" : ""}` }, status || "none");
const WORDS = { committed: "committed", rolled_back: "rolled back", unknown: "unknown" };
export const ending = (record) =>
  h("span", { class: `end ${record.outcome ?? ""}` }, WORDS[record.outcome] ?? without(record.steps));
function without(steps) {
  if (!steps.length) return "no SQL";
  if (steps.some((step) => step.intent === "write")) return "not begun";
  return steps.some(answered) ? "read only" : "no answer";
}

// A step that a server has answered, and whose answer was used.
export const answered = (step) => !step.is_failed && step.reason !== "not_proved";
const words = (reason) => ({ not_proved: "behind: dropped", no_replicas: "no replicas" })[reason] ?? reason;

export const hop = (step) =>
  h("span", { class: `hop ${step.is_failed ? "failed" : step.node} ${answered(step) ? "" : "dropped"}`, title: step.reasons.map((reason) => `${reason}: ${REASONS[reason] ?? ""}`).join("\n") },
    h("b", {}, step.node), h("span", {}, step.is_failed ? "no answer" : step.reasons.map(words).join(", ")));

export function merge(steps) {
  // What one request does in a row on one server is one thing to look at.
  const visits = [];
  for (const step of steps) {
    const last = visits[visits.length - 1];
    if (last && last.node === step.node && answered(last) && answered(step)) {
      if (!last.reasons.includes(step.reason)) last.reasons.push(step.reason);
    } else visits.push({ ...step, reasons: [step.reason] });
  }
  return visits;
}

const list = (nodes) => [...new Set(nodes)].map((node) => (node === "primary" ? "the primary" : node)).join(" and ");

export function story(record) {
  const words = tell(record);
  return words[0].toUpperCase() + words.slice(1);
}

function tell(record) {
  const steps = record.steps, good = steps.filter(answered);
  const failed = list(steps.filter((step) => step.is_failed).map((step) => step.node));
  const writes = steps.some((step) => step.intent === "write");
  if (record.status >= 500 || !record.status) {
    const why = failed ? `${failed} did not answer` : "the request failed";
    const status = record.status ? `with ${record.status}` : "with a broken connection";
    if (record.outcome === "unknown") return `${why} during COMMIT, and no server could tell its outcome: the client was answered ${status}.`;
    return writes
      ? `${why}: the client was answered ${status}. ${record.outcome === "rolled_back" ? "Everything was rolled back" : "Nothing was stored"}, and the client knows it.`
      : `${why}, and no other server could: the client was answered ${status}.`;
  }
  if (!steps.length) {
    if (record.status >= 400) return "Refused before any SQL ran: no connection was taken, no server was asked.";
    return "No SQL: no connection was taken.";
  }
  const over = failed ? `${failed} did not answer, so the next server took it; the client noticed nothing. ` : "";
  const dropped = list(steps.filter((step) => step.reason === "not_proved").map((step) => step.node));
  if (!good.length) return `${failed} did not answer: the client was answered with ${record.status}.`;
  if (!writes) {
    const { node, reason } = good[0];
    const nothing = record.status >= 400 ? ` It found nothing: ${record.status}.` : "";
    if (reason === "behind") return `${over}The client's token asks for its own write, which ${dropped ? `${dropped} had` : "the replicas had"} not replayed: the primary answered.${nothing}`;
    if (reason === "proved") return `${over}${node} proved, in the read's own round trip, that it has the client's write.${nothing}`;
    if (node === "primary") return `${over}${reason === "unhealthy" ? "No replica is up: the primary stands in for this read, read only." : `A read on the primary: ${REASONS[reason] ?? reason}.`}${nothing}`;
    if (good.length > 1) return `${over}${good.length} reads, one request, one server: ${good[good.length - 1].node}.${nothing}`;
    return `${over}A read: ${node}, ${(REASONS[reason] ?? reason).replace(/^a read: /, "")}.${nothing}`;
  }
  const pinned = good.some((step) => step.reason === "pinned");
  const before = good[0].intent === "read" ? `Read on ${good[0].node}, then the write on the primary` : "The write went to the primary";
  const after = pinned ? "; from there on the request reads the primary and sees its own write" : "";
  if (record.outcome === "rolled_back") {
    if (record.status === 422) return `Every statement worked, then COMMIT failed: the client got ${record.status} instead of a 2xx, and nothing is stored.`;
    return `${over}${before}${after}. Answered ${record.status}: everything was rolled back.`;
  }
  if (record.outcome === null) return `${over}${before}${after}. Answered ${record.status}.`;
  return `${over}${before}${after}. Committed before the first byte left.`;
}
