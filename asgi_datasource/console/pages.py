"""The pages: one of the state, one of a comparison before a reload, and one for a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

from ..config import ChangeWeight
from ..observability.texts import duration, number, rate, size
from ..registry.reload import ReloadPreview
from .actions import Done
from .attention import FALLBACKS
from .forgery import FIELD
from .html import Child, Html, tag, text

_ASSETS: Final = files("asgi_datasource.console") / "assets"
STYLE: Final = Html((_ASSETS / "page.css").read_text("utf-8"))
SCRIPT: Final = Html((_ASSETS / "page.js").read_text("utf-8"))

SECTIONS: Final = (
    ("attention", "Attention"),
    ("servers", "Servers and pools"),
    ("transactions", "Connections in use"),
    ("decisions", "Decisions"),
    ("tenants", "Tenants by load"),
    ("outbox", "Outbox"),
    ("migrations", "Migrations"),
    ("configuration", "Configuration"),
)
"""The sections by id; their keys are 1, 2, ..."""

State = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Forms:
    """What the forms of a page need.

    Attributes:
        token: The token against forgery.
        done: The last actions; None where the console has none.
    """

    token: str
    done: tuple[Done, ...] | None

    @property
    def are_shown(self) -> bool:
        """Whether the page has actions."""
        return self.done is not None

    def button(
        self, action: str, label: str, *, title: str | None = None, kind: str | None = None, **fields: str
    ) -> Html:
        """A form with one button."""
        hidden = [tag("input", type="hidden", name=name, value=value) for name, value in fields.items()]
        token = tag("input", type="hidden", name=FIELD, value=self.token)
        return tag("form", token, hidden, tag("button", label, title=title, class_=kind), method="post", action=action)


# -- pages


def render_page(state: State, forms: Forms, *, nonce: str) -> str:
    """The page of the state."""
    links = [
        tag("a", tag("kbd", place), " ", title, href=f"#{name}") for place, (name, title) in enumerate(SECTIONS, 1)
    ]
    return _document(
        f"{_mark(state)}{state['process']['host']} · asgi-datasource",
        [
            tag("a", "Skip to the state", href="#state", class_="skip"),
            tag(
                "header",
                tag("h1", "asgi-datasource"),
                tag("nav", links, aria_label="Sections"),
                tag("p", tag("a", "Reload", href="./", id="again"), id="live", role="status"),
            ),
            tag("main", text(Html(render_fragment(state, forms))), id="state", tabindex="-1"),
            tag(
                "footer",
                "Keys: ",
                tag("kbd", "1"),
                " to ",
                tag("kbd", str(len(SECTIONS))),
                " go to a section, ",
                tag("kbd", "p"),
                " pauses, ",
                tag("kbd", "r"),
                " refreshes. This page shows and changes one process.",
            ),
        ],
        nonce=nonce,
        script=SCRIPT,
    )


def render_fragment(state: State, forms: Forms) -> str:
    """The part of the page that is refreshed."""
    parts = [
        _bar(state),
        _section("attention", _attention(state)),
        _section("servers", _servers(state["datasources"], forms)),
        _section("transactions", _transactions(state["transactions"])),
        _section("decisions", _decisions(state)),
        _section("tenants", _tenants(state["tenants"])),
        _section("outbox", _outbox(state["outbox"])),
        tag(
            "div",
            _section("migrations", _migrations(state["migrations"], forms)),
            _section("configuration", _configuration(state["configuration"], forms)),
            class_="stack",
            data_key="stack",
        ),
    ]
    return text(parts)


def render_comparison(preview: ReloadPreview, reference: str, forms: Forms, *, nonce: str) -> str:
    """The page of a comparison: what a reload would change, and the form that applies it."""
    rows = [
        tag(
            "tr",
            tag("td", _badge(change.weight.value, _WEIGHTS[change.weight])),
            tag("td", tag("code", change.key)),
            tag("td", change.message),
            tag("td", _affected(change.tenants, change.tenant_count)),
        )
        for change in preview.changes
    ]
    servers = [
        tag("li", tag("b", label), ": ", ", ".join(names))
        for label, names in (
            ("pools that are opened", preview.servers.opened),
            ("pools that close when they are not in use any more", preview.servers.retired),
            ("pools that stay", preview.servers.kept),
        )
        if names
    ]
    notes = [tag("li", note) for note in preview.notes]
    accept = tag(
        "label",
        tag("input", type="checkbox", name="accept", value="danger", required=True),
        " I accept the changes marked as danger",
    )
    form = tag(
        "form",
        tag("input", type="hidden", name=FIELD, value=forms.token),
        tag("input", type="hidden", name="reference", value=reference),
        tag("p", accept) if preview.has_danger else None,
        tag("p", tag("button", "Reload with these changes", class_="apply"), " ", tag("a", "Leave it", href="./")),
        method="post",
        action="reload",
    )
    changed = [
        _table("Weight", "Key", "Change", "Tenants", rows=rows),
        tag("ul", servers, notes),
        form,
    ]
    unchanged = [tag("p", "The files say what is in use: nothing would change."), tag("p", _back())]
    body = tag("section", tag("h2", "What a reload would change"), changed if rows else unchanged)
    return _document("Reload · asgi-datasource", [_header(), tag("main", body)], nonce=nonce)


def render_message(status: int, message: str, *, nonce: str) -> str:
    """A page with one message."""
    body = tag("section", tag("h2", str(status)), tag("p", message, role="alert", class_="message"), tag("p", _back()))
    return _document(f"{status} · asgi-datasource", [_header(), tag("main", body)], nonce=nonce)


def _header() -> Html:
    return tag("header", tag("h1", "asgi-datasource"), tag("nav", tag("a", "Console", href="./")))


def _back() -> Html:
    return tag("a", "Back to the console", href="./")


def _document(title: str, body: Child, *, nonce: str, script: Html | None = None) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", STYLE, nonce=nonce),
    )
    code = None if script is None else tag("script", script, nonce=nonce)
    return f"<!doctype html>{tag('html', head, tag('body', body, code), lang='en')}"


# -- parts


def _mark(state: State) -> str:
    """What the title of a tab begins with, so that an alarm is seen in another tab."""
    alarms = sum(one["severity"] == "alarm" for one in state["attention"])
    return f"({alarms}) " if alarms else ""


def _section(name: str, body: Child) -> Html:
    title = dict(SECTIONS)[name]
    return tag("section", tag("h2", title, id=name, tabindex="-1"), body, data_key=name)


def _table(*heads: str, rows: Sequence[Html], caption: str | None = None) -> Html:
    # A head that begins with # is that of a column of numbers.
    cells = [tag("th", head.lstrip("#"), scope="col", class_="n" if head.startswith("#") else None) for head in heads]
    return tag(
        "div",
        tag(
            "table",
            None if caption is None else tag("caption", caption),
            tag("thead", tag("tr", cells)),
            tag("tbody", rows),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption or " ".join(head.lstrip("#") for head in heads),
    )


def _badge(label: str, kind: str) -> Html:
    return tag("span", label, class_=f"badge {kind}")


def _cell(child: Child, **more: Any) -> Html:
    return tag("td", child, **more)


def _number(child: Child, *, kind: str = "") -> Html:
    return tag("td", child, class_=f"n {kind}".strip())


def _bar(state: State) -> Html:
    process, tenants = state["process"], state["served_tenants"]
    is_ready = state["status"] == "ready"
    facts = [
        ("process", f"{process['host']} · pid {process['pid']}"),
        ("up", duration(process["up_s"])),
        ("tenants", f"{number(tenants['served'])} of {number(tenants['known'])} served"),
        ("connections in use", number(state["transactions"]["count"])),
        ("at", f"{state['at'][11:19]} UTC"),
    ]
    return tag(
        "div",
        _badge("ready" if is_ready else "not ready", "good" if is_ready else "bad"),
        [tag("span", tag("small", label), " ", value, class_="fact", data_key=label) for label, value in facts],
        class_="bar",
        data_key="bar",
        data_process=process["id"],
        data_title=f"{_mark(state)}{process['host']} · asgi-datasource",
    )


def _attention(state: State) -> Child:
    found = state["attention"]
    if not found:
        return tag("p", "Nothing: every server is up, no request waits, no transaction is blocked.", class_="calm")
    return tag(
        "ul",
        [
            tag(
                "li",
                _badge(one["severity"], "bad" if one["severity"] == "alarm" else "warn"),
                " ",
                tag("a", one["text"], href=f"#{one['section']}"),
                data_key=one["text"][:60],
            )
            for one in found
        ],
        class_="attention",
    )


# -- servers


def _servers(datasources: Sequence[Mapping[str, Any]], forms: Forms) -> Child:
    rows: list[Html] = []
    for datasource in datasources:
        rows.append(_datasource_row(datasource, forms))
        several = datasource["kind"] != "shared"
        rows += [_server_row(server, forms, datasource["name"], several=several) for server in datasource["servers"]]
    heads = ("Server", "State", "#Lag", "Pool", "#In use", "#Idle", "#Waiting", "#Stmts/s", "")
    return _table(*heads, rows=rows)


def _datasource_row(datasource: Mapping[str, Any], forms: Forms) -> Html:
    name, routing = datasource["name"], datasource["routing"]
    facts: list[Child] = []
    if routing is not None:
        facts.append(routing["balance"].replace("_", " "))
        if routing["max_lag_s"] is not None:
            facts.append(f"max lag {duration(routing['max_lag_s']).replace('.0 s', ' s')}")
        facts.append(f"no replica: {routing['no_replica']}")
    if datasource["open_pools"] is not None:
        facts.append(f"a database for each tenant, {datasource['open_pools']} pools are open")
    if datasource["max_in_flight"] is not None:
        facts.append(f"{datasource['in_flight']} of {datasource['max_in_flight']} requests in flight")
    replicas = [
        tag("span", " ", replica["server"], " ", _drain(forms, name, replica["server"], replica), class_="fact")
        for replica in datasource["replicas"]
    ]
    return tag(
        "tr",
        tag("th", name, " ", tag("small", " · ".join(map(str, facts))), replicas, colspan="7", scope="rowgroup"),
        tag("th", rate(datasource["statements_per_s"]), class_="n"),
        tag("th"),
        class_="group",
        data_key=f"datasource {name}",
    )


def _server_row(server: Mapping[str, Any], forms: Forms, datasource: str, *, several: bool) -> Html:
    pool = server["pool"]
    name = f"{server['database']}, {server['name']}" if several else server["name"]
    lag = "" if server["lag_s"] is None else duration(server["lag_s"])
    lag_title = None if server["lag_bytes"] is None else f"{size(server['lag_bytes'])} of WAL"
    action: Child = ""
    if not several:
        action = _drain(forms, datasource, server["name"], server)
    return tag(
        "tr",
        tag("th", name, " ", tag("small", server["location"]), scope="row"),
        _cell(_server_state(server)),
        tag("td", lag, class_="n", title=lag_title),
        _cell(_meter(pool)),
        _number([pool["borrowed"], tag("small", f"/{pool['max_size']}")]),
        _number(pool["idle"]),
        _number(pool["waiting"], kind="bad" if pool["waiting"] else ""),
        _number("" if several else rate(server["statements_per_s"])),
        _cell(action),
        data_key=f"{server['server']} {server['database'] if several else ''}",
    )


def _server_state(server: Mapping[str, Any]) -> Child:
    found: list[Child] = [tag("span", server["role"], class_="role"), " "]
    kinds = {"up": "good", "down": "bad"}
    found.append(_badge(server["state"], kinds.get(server["state"], "plain")))
    if server["breaker"] != "closed":
        breaker = server["breaker"].replace("_", " ")
        found += [" ", _badge(f"breaker {breaker}", "bad")]
    if server["foreign"]:
        found += [" ", _badge("foreign", "bad")]
    if server["draining"]:
        found += [" ", _badge("drained", "warn")]
    facts = [
        None if server["down_s"] is None else f"for {duration(server['down_s'])}",
        f"{server['failures']} attempts failed" if server["failures"] else None,
        None if server["cause"] is None else server["cause"].removeprefix(f"{server['location']}: "),
    ]
    found.append(tag("small", " ", " · ".join(fact for fact in facts if fact), class_="cause"))
    return found


def _drain(forms: Forms, datasource: str, server: str, state: Mapping[str, Any]) -> Child:
    if not forms.are_shown:
        return ""
    if state["draining"]:
        title = f"Give {datasource}.{server} reads again"
        return forms.button("undrain", "Undrain", title=title, datasource=datasource, server=server)
    # A button that would be refused can be pressed: the answer has the reason, for those who see no title.
    title = state["refusal"] or f"Give {datasource}.{server} no new reads"
    kind = None if state["refusal"] is None else "refused"
    return forms.button("drain", "Drain", title=title, kind=kind, datasource=datasource, server=server)


_METER_WIDTH: Final = 96


def _meter(pool: Mapping[str, int]) -> Html:
    """The use of a pool as a picture; the numbers beside it say the same."""
    most = max(1, pool["max_size"])
    used = min(_METER_WIDTH, round(_METER_WIDTH * pool["borrowed"] / most))
    idle = min(_METER_WIDTH - used, round(_METER_WIDTH * pool["idle"] / most))
    kind = "full" if pool["waiting"] or pool["borrowed"] >= most else "used"
    return tag(
        "svg",
        tag("rect", class_="free", width=_METER_WIDTH, height=10, rx=2),
        tag("rect", class_="idle", width=used + idle, height=10, rx=2),
        tag("rect", class_=kind, width=used, height=10, rx=2),
        class_="meter",
        width=_METER_WIDTH,
        height=10,
        viewBox=f"0 0 {_METER_WIDTH} 10",
        aria_hidden="true",
    )


# -- connections in use


def _transactions(transactions: Mapping[str, Any]) -> Child:
    rows = [_transaction_row(one) for one in transactions["rows"]]
    if not rows:
        return tag("p", "No connection is in use.", class_="calm")
    more = transactions["count"] - len(rows)
    heads = ("#Age", "Route", "Tenant", "Server", "Reason", "State", "#Pid", "Blocked by")
    return [
        _table(*heads, rows=rows),
        tag("p", f"and {number(more)} younger ones", class_="calm") if more else None,
    ]


def _transaction_row(one: Mapping[str, Any]) -> Html:
    is_idle = one["state"].startswith("idle in transaction") if one["state"] else False
    blocked = [blocker["text"] for blocker in one["blocked_by"]]
    state = one["state"] or ""
    return tag(
        "tr",
        _number(duration(one["age_s"]), kind="bad" if blocked else "warn" if one["age_s"] >= 5 else ""),
        tag("th", one["route"] or tag("small", "outside of requests"), scope="row"),
        _cell(one["tenant"] or tag("small", "none")),
        _cell(one["server"]),
        _cell(tag("small", one["reason"])),
        _cell([_badge(state, "warn" if is_idle else "plain"), tag("small", f" {one['waits_for'] or ''}")]),
        _number(one["pid"]),
        tag("td", "; ".join(blocked), class_="bad" if blocked else None),
        data_key=f"{one['server']} {one['pid']}",
    )


# -- activity


def _decisions(state: State) -> Child:
    decisions, outcomes = state["decisions"], state["outcomes"]
    if not decisions["rows"]:
        return tag("p", "No statement in the last 15 minutes.", class_="calm")
    courses = {(one["datasource"], one["reason"]): one["counts"] for one in decisions["courses"]}
    grouped: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in decisions["rows"]:
        grouped.setdefault((row["datasource"], row["reason"]), []).append(row)
    rows = [
        tag(
            "tr",
            tag("th", _badge(reason, "warn" if reason in FALLBACKS else "plain"), scope="row"),
            _cell(tag("small", datasource)),
            _cell(_course(courses[datasource, reason], "warn" if reason in FALLBACKS else "used")),
            *[_number(number(sum(row[span] for row in found))) for span in ("last_min", "last_5_min", "last_15_min")],
            _cell(tag("small", " · ".join(f"{row['node']} {number(row['last_5_min'])}" for row in found))),
            data_key=f"{datasource} {reason}",
        )
        for (datasource, reason), found in grouped.items()
    ]
    ended = [
        tag(
            "tr",
            tag("th", _badge(one["outcome"].replace("_", " "), _OUTCOMES.get(one["outcome"], "plain")), scope="row"),
            _cell(tag("small", one["datasource"])),
            _cell(""),
            *[_number(number(one[span])) for span in ("last_min", "last_5_min", "last_15_min")],
            _cell(""),
            data_key=f"{one['datasource']} {one['outcome']} ended",
        )
        for one in outcomes
    ]
    return _table("Reason", "", "15 min", "#1 min", "#5 min", "#15 min", "By server, 5 min", rows=[*rows, *ended])


_OUTCOMES: Final = {"committed": "good", "rolled_back": "warn", "unknown": "bad"}


def _course(counts: Sequence[int], kind: str) -> Html:
    """The course of a count as a picture."""
    most = max(counts) or 1
    bars = "".join(
        f"M{place} 14h1v-{max(1, round(12 * count / most))}h-1z" for place, count in enumerate(counts) if count
    )
    return tag(
        "svg",
        tag("path", d=bars, class_=kind),
        class_="course",
        width=3 * len(counts) // 2,
        height=14,
        viewBox=f"0 0 {len(counts)} 14",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _tenants(tenants: Mapping[str, Any]) -> Child:
    if not tenants["rows"]:
        return tag("p", "No tenant in the last 5 minutes.", class_="calm")
    rows = [
        tag(
            "tr",
            tag("th", tag("small", "none") if one["tenant"] is None else one["tenant"], scope="row"),
            _cell(_share(one["share"])),
            _number(f"{100 * one['share']:.0f}%"),
            _number(f"{one['connections']:.2f}"),
            _number(f"{one['waiting']:.2f}", kind="warn" if one["waiting"] >= 0.1 else ""),
            _number(rate(one["statements"] / tenants["covered_s"])),
            _number(number(one["failed"]), kind="warn" if one["failed"] else ""),
            _number(number(one["refused"]), kind="bad" if one["refused"] else ""),
            data_key=f"tenant {one['tenant']}",
        )
        for one in tenants["rows"]
    ]
    more = tenants["active"] - len(rows)
    heads = ("Tenant", "", "#Share", "#Connections", "#Waiting", "#Stmts/s", "#Failed", "#Refused")
    return [
        _table(*heads, rows=rows),
        tag("p", f"and {number(more)} more with {number(tenants['more_statements'])} statements", class_="calm")
        if more > 0
        else None,
    ]


def _share(share: float) -> Html:
    width = round(_METER_WIDTH * share)
    return tag(
        "svg",
        tag("rect", class_="free", width=_METER_WIDTH, height=10, rx=2),
        tag("rect", class_="used", width=width, height=10, rx=2),
        class_="meter",
        width=_METER_WIDTH,
        height=10,
        viewBox=f"0 0 {_METER_WIDTH} 10",
        aria_hidden="true",
    )


# -- outbox, migrations, configuration


def _outbox(outbox: Mapping[str, Any] | None) -> Child:
    if outbox is None:
        return tag("p", "Not configured.", class_="calm")
    rows = [
        tag(
            "tr",
            tag("th", one["name"], scope="row"),
            _cell(_badge(one["status"], "good" if one["status"] == "ok" else "warn")),
            _number(number(one["backlog"])),
            _number(duration(one["oldest_s"]) if one["backlog"] else ""),
            _number(number(one["held"])),
            _number(number(one["dead"]), kind="bad" if one["dead"] else ""),
            _number(one["lanes"]),
            data_key=f"outbox {one['name']}",
        )
        for one in outbox["databases"]
    ]
    where = "the relay of this process" if outbox["relay"] else "asked from the databases every 15 s"
    heads = ("Database", "State", "#Depth", "#Oldest", "#Held", "#Dead", "#Lanes")
    return [_table(*heads, rows=rows), tag("p", where, class_="calm")]


def _migrations(migrations: Mapping[str, Any] | None, forms: Forms) -> Child:
    if migrations is None:
        return tag("p", "Not configured.", class_="calm")
    look = forms.button("look", "Look now", title="Read the versions of all schemas") if forms.are_shown else None
    if migrations["at"] is None:
        return tag("div", tag("span", "Not looked at yet."), look, class_="line")
    kinds = {"at_head": "good", "pending": "warn", "failed": "bad", "refused": "bad"}
    counts = [
        _badge(f"{count} {standing.replace('_', ' ')}", kinds.get(standing, "plain"))
        for standing, count in migrations["counts"].items()
    ]
    rows = [
        tag(
            "tr",
            tag("th", one["name"], scope="row"),
            _cell(_badge(one["standing"].replace("_", " "), kinds.get(one["standing"], "plain"))),
            _number(f"{one['version']} of {one['head']}"),
            _cell(one["reason"]),
            data_key=f"schema {one['name']}",
        )
        for one in migrations["schemas"]
    ]
    at = tag("small", f"looked at {migrations['at'][11:19]} UTC")
    return [
        tag("div", counts, at, look, class_="line"),
        _table("Schema", "State", "#Version", "Why", rows=rows) if rows else None,
    ]


def _configuration(configuration: Mapping[str, Any], forms: Forms) -> Child:
    paths = [tag("code", path) for path in configuration["files"]]
    if not paths:
        return [tag("p", "It did not come from files: there is nothing to read again.", class_="calm"), _done(forms)]
    compare = forms.button("compare", "Compare with the files", title="Shows what a reload would change")
    return [tag("div", paths, compare if forms.are_shown else None, class_="line"), _done(forms)]


def _done(forms: Forms) -> Child:
    if not forms.done:
        return None
    rows = [
        tag("li", tag("small", f"{done.at:%H:%M:%S} UTC "), done.text, data_key=f"{done.at:%H%M%S%f}")
        for done in forms.done
    ]
    return tag("ul", rows, class_="done", aria_label="Last actions")


_WEIGHTS: Final = {ChangeWeight.DANGER: "bad", ChangeWeight.NOTICE: "warn", ChangeWeight.PLAIN: "good"}


def _affected(tenants: Sequence[str], count: int) -> str:
    more = count - len(tenants)
    return f"{', '.join(tenants)}{f' and {more} more' if more > 0 else ''}"
