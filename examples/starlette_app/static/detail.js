// One request, in a dialog: its SQL with BEGIN and settings, its spans, and why it went to no other server.

import { $, ending, h, hop, merge, pill, story } from "./common.js";

export async function open(number) {
  const response = await fetch(`/ui/requests/${number}`).catch(() => null);
  if (!response?.ok) {
    show([h("p", {}, response?.status === 404 ? "The desk keeps its last 500 requests: this one is gone." : "The desk does not answer.")], h("span", {}, `Request ${number}`));
    return;
  }
  const record = await response.json();
  const title = h("span", {}, h("span", { class: "code" }, `${(record.tenant ?? "–").toUpperCase()}  ${record.method} ${record.path}`), " ", pill(record.status));
  show([
    h("p", { class: "line" }, ...(record.steps.length ? merge(record.steps).map(hop) : [h("span", { class: "muted" }, "no server")]), ending(record), h("span", { class: "muted" }, `${record.ms.toFixed(1)} ms`)),
    h("p", {}, story(record)),
    ...tokens(record.token),
    ...(record.spans.length ? [h("h3", {}, "SQL"), ...sql(record), h("h3", {}, "Spans"), tree(record)] : []),
    ...(record.choices.length ? [h("h3", {}, "Why this server, and not another ", h("span", { class: "muted" }, "as asgi-datasource explain tells it")), ...record.choices.map(choice)] : []),
  ], title);
}

function show(content, title) {
  $("detail-h").replaceChildren(title);
  $("detail-body").replaceChildren(...content);
  $("detail-body").scrollTop = 0;
  if (!$("detail").open) $("detail").showModal();
}

function tokens({ sent, received }) {
  const line = (word, token, hint) => (token ? [h("p", { class: "token" }, h("b", {}, word), " ", h("code", {}, token), " ", h("span", { class: "muted" }, hint))] : []);
  return [
    ...line("Token of the request", sent, "the position that its reads must see"),
    ...line("Token of the answer", received, "the position of its COMMIT, for the client's next requests"),
  ];
}

function sql(record) {
  // A round trip by itself, or a transaction: what is sent together stands together.
  const settings = record.settings.map(([name, value]) => `set_config('${name}', '${value.replaceAll("'", "''")}', true)`).join(", ");
  const blocks = [];
  let inside = 0;
  for (const span of record.spans) {
    const { node, reason } = span.attributes;
    if (span.depth <= inside) inside = 0;
    if (span.begin !== null) {
      blocks.push({ node, head: "a transaction: BEGIN, the settings and the first statement in one round trip", lines: [span.begin, settings && `select ${settings}`], outcome: span.attributes["transaction.outcome"] });
      inside = span.depth;
    } else if (span.text !== null || span.attributes["db.operation.name"] === "COMMIT") {
      if (!inside) blocks.push({ node, head: "one round trip, READ ONLY, with the settings", lines: [settings && `select ${settings}`] });
      blocks[blocks.length - 1].lines.push(tidy(span.text ?? "commit") + (span.is_failed ? "   -- failed" : ""));
    }
  }
  if (!blocks.length) return [h("p", { class: "muted" }, "None reached a server.")];
  return blocks.map(({ node, head, lines, outcome }) => {
    if (outcome === "rolled_back" && !lines.includes("commit   -- failed")) lines.push("rollback");
    return h("div", { class: "sql" }, h("p", {}, h("span", { class: `hop ${node}` }, h("b", {}, node)), " ", h("span", { class: "muted" }, head)),
      h("pre", { tabindex: "0" }, lines.filter(Boolean).map((line) => `${line};`).join("\n")));
  });
}

function tidy(text) {
  // The indentation of the source, without its depth.
  const lines = text.replace(/^\s*\n|\s+$/g, "").split("\n");
  const depth = Math.min(...lines.slice(1).filter((line) => line.trim()).map((line) => line.match(/^ */)[0].length), 99);
  return lines.map((line, index) => (index || line.startsWith(" ".repeat(depth)) ? line.slice(depth) : line.trimStart())).join("\n").trim();
}

function tree(record) {
  const whole = Math.max(record.ms, ...record.spans.map((span) => span.start_ms + (span.ms ?? 0)), 0.1);
  const row = (name, depth, start, ms, kind, attributes) =>
    h("li", {}, h("details", {},
      h("summary", {}, h("span", { class: "name", style: `--depth: ${depth}` }, name),
        h("span", { class: "track", "aria-hidden": "true" }, h("i", { class: kind, style: `left: ${(100 * start) / whole}%; width: ${Math.max(0.5, (100 * ms) / whole)}%` })),
        h("span", { class: "num" }, ms.toFixed(2))),
      h("dl", {}, ...Object.entries(attributes).flatMap(([key, value]) => [h("dt", {}, key), h("dd", {}, String(value))]))));
  return h("ol", { class: "spans" },
    row(`${record.method} ${record.path}`, 0, 0, record.ms, "request", { status: record.status, tenant: record.tenant }),
    ...record.spans.map((span) => row(span.name, span.depth, span.start_ms, span.ms ?? 0, span.is_failed ? "bad" : span.attributes.node ?? "", span.attributes)));
}

function choice({ intent, node, reason, is_failed, expected, runs, token, servers }) {
  const other = expected && expected.node !== node;
  const verdict = (server) => (server.node === node && is_failed ? "no answer" : server.node === node ? (reason === "not_proved" ? "not proved" : "chosen") : other && server.node === expected.node ? "tried before" : server.verdict.replaceAll("_", " "));
  const why = (server) => {
    if (server.node === node) return is_failed ? "it did not answer" : reason === "not_proved" ? "it was asked in the read's own round trip, and has not replayed what the token asks for" : other ? `${reason}: it answered` : server.why;
    if (other && server.node === expected.node) return "its turn, on the state at the start of the request";
    return server.verdict === "chosen" ? "" : server.why;
  };
  return h("div", { class: "choice" },
    h("p", {}, h("span", { class: intent }, `A ${intent}`), h("span", { class: "muted" }, `${runs ? `, ${runs}` : ", in the transaction of the request"}${token ? `; ${token.why}` : ""}`)),
    h("table", {}, h("tbody", {}, ...servers.map((server) =>
      h("tr", { class: server.node === node ? "chosen" : "" },
        h("td", {}, h("span", { class: `hop ${is_failed && server.node === node ? "failed" : server.node}` }, h("b", {}, server.node))),
        h("td", {}, verdict(server)), h("td", { class: "muted" }, why(server)), h("td", { class: "muted code" }, server.seen.replace(`${server.node} `, "")))))));
}
