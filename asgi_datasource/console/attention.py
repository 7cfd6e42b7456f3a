"""What needs attention, from a state that was collected: the first thing that one reads at night. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..observability.texts import duration

BLOCKED_S: Final = 1.0
"""Seconds from which on a transaction that another one blocks is an alarm."""
IDLE_S: Final = 5.0
"""Seconds from which on a transaction that waits for the application is noticed."""
LONG_S: Final = 30.0
"""Seconds from which on a connection that stays borrowed is noticed."""
FALLBACKS: Final = frozenset({"behind", "lagging", "unhealthy", "failover", "stale_ok"})
"""Reasons of decisions that are not as configured: a replica that should have answered could not."""

ALARM: Final = "alarm"
NOTICE: Final = "notice"

Found = tuple[str, str, str]


def find_attention(state: Mapping[str, Any]) -> list[dict[str, str]]:
    """What needs attention, alarms first.

    Args:
        state: The document of the console, without this part.
    """
    found = [
        *_health(state),
        *_servers(state["datasources"]),
        *_transactions(state["transactions"]),
        *_activity(state),
        *_outbox(state["outbox"]),
        *_migrations(state["migrations"]),
    ]
    found.sort(key=lambda one: one[0] != ALARM)
    return [{"severity": severity, "section": section, "text": text} for severity, section, text in found]


def _health(state: Mapping[str, Any]) -> Iterator[Found]:
    for reason in state["reasons"]:
        yield ALARM, "servers", f"not ready: {reason}"


def _servers(datasources: list[Mapping[str, Any]]) -> Iterator[Found]:
    for datasource in datasources:
        for replica in datasource["replicas"]:
            if replica["draining"]:
                yield NOTICE, "servers", f"{datasource['name']}.{replica['server']} is drained in every database"
        max_lag_s: float | None = None if datasource["routing"] is None else datasource["routing"]["max_lag_s"]
        for server in datasource["servers"]:
            yield from _server(server, max_lag_s)


def _server(server: Mapping[str, Any], max_lag_s: float | None) -> Iterator[Found]:
    name, pool = server["server"], server["pool"]
    if server["state"] == "down":
        for_s = "" if server["down_s"] is None else f" for {duration(server['down_s'])}"
        cause = "" if server["cause"] is None else f": {server['cause']}"
        yield ALARM, "servers", f"{name} is down{for_s}{cause}"
    if server["foreign"]:
        yield ALARM, "servers", f"{name} answers, but is no replica of the primary: it gets no reads"
    if server["draining"]:
        yield NOTICE, "servers", f"{name} is drained: it gets no new reads"
    # By the age of its data, as the choice of a server does: the lag is only what the last check has found.
    if max_lag_s is not None and server["age_s"] is not None and server["age_s"] > max_lag_s:
        text = f"{name} lags {duration(server['age_s'])}, routing.max_lag is {duration(max_lag_s)}: it gets no reads"
        yield NOTICE, "servers", text
    if pool["waiting"]:
        text = f"{name}: {pool['waiting']} wait for a connection, {pool['borrowed']} of {pool['max_size']} are in use"
        yield ALARM, "servers", text
    elif pool["borrowed"] >= pool["max_size"]:
        yield NOTICE, "servers", f"{name}: all {pool['max_size']} connections are in use"


def _transactions(transactions: Mapping[str, Any]) -> Iterator[Found]:
    for failure in transactions["unanswered"]:
        yield NOTICE, "transactions", f"{failure['server']} does not tell what its backends wait for: {failure['why']}"
    for one in transactions["rows"]:
        who = f"{one['route'] or 'a session outside of requests'} of {one['tenant'] or 'no tenant'} on {one['server']}"
        if one["blocked_by"] and one["age_s"] >= BLOCKED_S:
            blockers = ", ".join(blocker["text"] for blocker in one["blocked_by"])
            yield ALARM, "transactions", f"{who} is blocked for up to {duration(one['age_s'])} by {blockers}"
        elif one["state"] in ("idle in transaction", "idle in transaction (aborted)") and one["age_s"] >= IDLE_S:
            yield NOTICE, "transactions", f"{who}: {one['state']} for up to {duration(one['age_s'])}"
        elif one["age_s"] >= LONG_S:
            yield NOTICE, "transactions", f"{who} has held a connection for {duration(one['age_s'])}"


def _activity(state: Mapping[str, Any]) -> Iterator[Found]:
    for outcome in state["outcomes"]:
        if outcome["outcome"] == "unknown" and outcome["last_15_min"]:
            text = f"{outcome['datasource']}: {outcome['last_15_min']} COMMITs have an unknown outcome (15 min)"
            yield ALARM, "decisions", text
    refused = state["tenants"]["refused_last_min"]
    if refused:
        yield ALARM, "tenants", f"{refused} requests got no connection in the last minute"
    fallbacks: dict[tuple[str, str], int] = {}
    for row in state["decisions"]["rows"]:
        if row["fallback"] and row["last_min"]:
            key = row["datasource"], row["reason"]
            fallbacks[key] = fallbacks.get(key, 0) + row["last_min"]
    for (datasource, reason), count in fallbacks.items():
        yield NOTICE, "decisions", f"{datasource}: {count} statements went elsewhere in the last minute ({reason})"


def _outbox(outbox: Mapping[str, Any] | None) -> Iterator[Found]:
    for reason in () if outbox is None else outbox["reasons"]:
        yield NOTICE, "outbox", f"outbox: {reason}"


def _migrations(migrations: Mapping[str, Any] | None) -> Iterator[Found]:
    if migrations is None:
        return
    if migrations["failure"] is not None:
        yield NOTICE, "migrations", f"the schemas could not be looked at: {migrations['failure']}"
    counts = migrations["counts"]
    for standing, severity in (("failed", ALARM), ("refused", ALARM), ("pending", NOTICE)):
        if counts.get(standing):
            yield severity, "migrations", f"migrations: {counts[standing]} schemas are {standing}"
    if migrations["held_back"]:
        yield ALARM, "migrations", f"{migrations['held_back']} tenants are held back: their schemas are behind"
