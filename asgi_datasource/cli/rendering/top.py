"""The state of a process as tables on a terminal, with `rich`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...observability.texts import duration, number, rate

State = Mapping[str, Any]

_BAD: Final = "bold red"
_WARN: Final = "yellow"
_GOOD: Final = "green"
_SOFT: Final = "dim"
_BAR: Final = 10


def render_text(state: State, *, is_coloured: bool, width: int | None = None) -> str:
    """The state as text.

    Args:
        state: The document of the console.
        is_coloured: Whether escape sequences are written.
        width: Columns of the terminal; None takes those of the process's.
    """
    console = RichConsole(
        force_terminal=is_coloured, no_color=not is_coloured, width=width, highlight=False, emoji=False, markup=False
    )
    with console.capture() as captured:
        console.print(render_state(state))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def render_state(state: State, *, note: str | None = None) -> Group:
    """The state as something that `rich` prints; `note` is a line below the head."""
    parts: list[RenderableType] = [_head(state)]
    if note is not None:
        parts.append(Text(note, style=_BAD))
    parts += _attention(state["attention"])
    parts.append(_servers(state["datasources"]))
    parts += _transactions(state["transactions"])
    if state["decisions"]["rows"]:
        parts += [_decisions(state["decisions"], state["outcomes"]), _tenants(state["tenants"])]
    parts += _rest(state)
    return Group(*parts)


def _head(state: State) -> Text:
    process, tenants, is_ready = state["process"], state["served_tenants"], state["status"] == "ready"
    text = Text()
    text.append("ready" if is_ready else "NOT READY", style=_GOOD if is_ready else _BAD)
    text.append(f"  {process['host']} pid {process['pid']}, up {duration(process['up_s'])}")
    text.append(f"  {tenants['served']} of {tenants['known']} tenants served")
    text.append(f"  {state['transactions']['count']} connections in use")
    text.append(f"  {state['at'][11:19]} UTC", style=_SOFT)
    return text


def _attention(found: Sequence[Mapping[str, str]]) -> Iterator[RenderableType]:
    for one in found:
        is_alarm = one["severity"] == "alarm"
        yield Text.assemble((f"{one['severity']:6} ", _BAD if is_alarm else _WARN), one["text"])
    if not found:
        yield Text("nothing needs attention", style=_SOFT)


def _table(*heads: str) -> Table:
    """A table without lines; a head that begins with # is that of a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    for head in heads:
        table.add_column(head.lstrip("#"), justify="right" if head.startswith("#") else "left")
    return table


def _servers(datasources: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("\nSERVER", "\nROLE", "\nSTATE", "#\nLAG", "\nPOOL", "#IN\nUSE", "#\nIDLE", "#\nWAIT", "#\nSTMTS/S")
    for datasource in datasources:
        several = datasource["kind"] != "shared"
        for server in datasource["servers"]:
            pool = server["pool"]
            name = server["server"] if not several else f"{server['server']} {server['database']}"
            table.add_row(
                name,
                server["role"],
                _state_of(server),
                "" if server["lag_s"] is None else duration(server["lag_s"]),
                _bar(pool["borrowed"], pool["max_size"], is_full=pool["waiting"] > 0),
                f"{pool['borrowed']}/{pool['max_size']}",
                str(pool["idle"]),
                Text(str(pool["waiting"]), style=_BAD if pool["waiting"] else ""),
                "" if several else rate(server["statements_per_s"]),
            )
    return table


def _state_of(server: Mapping[str, Any]) -> Text:
    text = Text(server["state"], style={"up": _GOOD, "down": _BAD}.get(server["state"], ""))
    if server["breaker"] != "closed":
        text.append(f" breaker {server['breaker'].replace('_', ' ')}", style=_BAD)
    if server["foreign"]:
        text.append(" foreign", style=_BAD)
    if server["draining"]:
        text.append(" drained", style=_WARN)
    return text


def _bar(used: int, most: int, *, is_full: bool = False) -> Text:
    filled = min(_BAR, round(_BAR * used / max(1, most)))
    style = _BAD if is_full or used >= most else "blue"
    return Text.assemble(("█" * filled, style), ("░" * (_BAR - filled), _SOFT))


def _transactions(transactions: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not transactions["rows"]:
        return
    table = _table("#\nAGE", "\nROUTE", "\nTENANT", "\nSERVER", "\nREASON", "\nSTATE", "#\nPID", "\nBLOCKED BY")
    for one in transactions["rows"]:
        blocked = "; ".join(blocker["text"] for blocker in one["blocked_by"])
        state = one["state"] or ""
        if one["waits_for"]:
            state += f", {one['waits_for']}"
        table.add_row(
            Text(duration(one["age_s"]), style=_BAD if blocked else _WARN if one["age_s"] >= 5 else ""),
            one["route"] or "outside of requests",
            one["tenant"] or "",
            one["server"],
            one["reason"],
            Text(state, style=_WARN if state.startswith("idle") else ""),
            str(one["pid"]),
            Text(blocked, style=_BAD),
        )
    yield table


def _decisions(decisions: Mapping[str, Any], outcomes: Sequence[Mapping[str, Any]]) -> RenderableType:
    table = _table("\nDECISION", "\nDATASOURCE", "\nSERVER", "#\n1 MIN", "#\n5 MIN", "#\n15 MIN")
    for row in decisions["rows"]:
        name = Text(row["reason"], style=_WARN if row["fallback"] else "")
        table.add_row(name, row["datasource"], row["node"], *_spans(row))
    for row in outcomes:
        name = Text(row["outcome"].replace("_", " "), style=_BAD if row["outcome"] == "unknown" else "")
        table.add_row(name, row["datasource"], "", *_spans(row))
    return table


def _spans(row: Mapping[str, Any]) -> list[str]:
    return [number(row[span]) for span in ("last_min", "last_5_min", "last_15_min")]


def _tenants(tenants: Mapping[str, Any]) -> RenderableType:
    heads = ("\nTENANT", "\nLOAD", "#\nSHARE", "#\nCONNECTIONS", "#\nWAITING", "#\nSTMTS/S", "#\nFAILED", "#\nREFUSED")
    table = _table(*heads)
    for one in tenants["rows"]:
        table.add_row(
            one["tenant"] or "none",
            _bar(round(100 * one["share"]), 101),
            f"{100 * one['share']:.0f}%",
            f"{one['connections']:.2f}",
            f"{one['waiting']:.2f}",
            rate(one["statements"] / tenants["covered_s"]),
            Text(str(one["failed"]), style=_WARN if one["failed"] else ""),
            Text(str(one["refused"]), style=_BAD if one["refused"] else ""),
        )
    return table


def _rest(state: State) -> Iterator[RenderableType]:
    outbox, migrations = state["outbox"], state["migrations"]
    if outbox is not None:
        table = _table("\nOUTBOX", "\nSTATE", "#\nDEPTH", "#\nOLDEST", "#\nHELD", "#\nDEAD")
        for one in outbox["databases"]:
            table.add_row(
                one["name"],
                Text(one["status"], style=_GOOD if one["status"] == "ok" else _WARN),
                number(one["backlog"]),
                duration(one["oldest_s"]) if one["backlog"] else "",
                number(one["held"]),
                Text(number(one["dead"]), style=_BAD if one["dead"] else ""),
            )
        yield table
    if migrations is not None:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in migrations["counts"].items())
        at = "not looked at yet" if migrations["at"] is None else f"at {migrations['at'][11:19]} UTC"
        yield Text.assemble("\n", ("MIGRATIONS  ", "bold"), f"{counts} ", (at, _SOFT))
