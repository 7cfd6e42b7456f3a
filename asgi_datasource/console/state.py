"""The state of this process as one document: what the page shows, and `asgi-datasource top` reads."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Final, cast

from ..drivers.protocol import Server
from ..observability.activity import OTHERS, SLOT_S, SLOTS, Activity, Held
from ..observability.names import DB_NAMESPACE
from ..observability.texts import duration
from ..registry.registry import DataSourceRegistry
from .attention import FALLBACKS, find_attention
from .backends import Answer, Blocker, ask_backends, can_tell
from .servers import describe_datasources

MOST_TRANSACTIONS: Final = 50
"""Most connections in use that are listed, the oldest first."""
ASKED_FROM_S: Final = 0.2
"""Age from which on the server is asked what a transaction waits for."""
MOST_TENANTS: Final = 15
TENANTS_S: Final = 300.0
"""Seconds over which the load of tenants is taken."""
KEPT_S: Final = 1.0
"""Seconds for which a state is kept: any number of viewers costs no more than one."""
OUTBOX_KEPT_S: Final = 15.0
"""Seconds for which the answer of the databases about the outbox is kept, where this process has no relay."""
_SPANS: Final = (("last_min", 60.0), ("last_5_min", 300.0), ("last_15_min", 900.0))


class StateCollector:
    """Collects the state of a registry.

    Args:
        registry: The registry.
    """

    def __init__(self, registry: DataSourceRegistry) -> None:
        self._registry = registry
        self._activity = registry.observe()
        self.process_id = secrets.token_hex(4)
        """Tells this process from others behind the same address."""
        self._started_at = datetime.now(UTC)
        self._lock: asyncio.Lock | None = None
        self._state: dict[str, Any] | None = None
        self._collected_at = 0.0
        self._outbox: dict[str, Any] | None = None
        self._outbox_at: float | None = None

    async def collect(self) -> dict[str, Any]:
        """The state now, at most `KEPT_S` old (`schemas/console/v1.json`)."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if self._state is None or monotonic() - self._collected_at > KEPT_S:
                self._state = await self._collect()
                self._collected_at = monotonic()
            return self._state

    def forget(self) -> None:
        """Something was changed: the next state is collected anew."""
        self._state = None

    async def _collect(self) -> dict[str, Any]:
        registry, activity = self._registry, self._activity
        compiled = registry.compiled
        health = registry.health()
        outbox, transactions = await asyncio.gather(self._ask_outbox(), self._transactions())
        now = datetime.now(UTC)
        state: dict[str, Any] = {
            "version": 1,
            "at": now.isoformat(timespec="milliseconds"),
            "process": {
                "id": self.process_id,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "up_s": round((now - self._started_at).total_seconds(), 1),
            },
            "status": health.document["status"],
            "reasons": list(health.reasons),
            "served_tenants": health.document["tenants"],
            "datasources": describe_datasources(compiled, activity),
            "transactions": transactions,
            "decisions": _decisions(activity),
            "outcomes": _outcomes(activity),
            "tenants": _tenants(activity),
            "outbox": outbox,
            "migrations": self._migrations(),
            "configuration": {"files": [str(path) for path in registry.files]},
        }
        state["attention"] = find_attention(state)
        return state

    # -- transactions

    async def _transactions(self) -> dict[str, Any]:
        activity = self._activity
        now = activity.clock()
        held = sorted(activity.in_flight.values(), key=lambda one: one.since)
        shown = held[:MOST_TRANSACTIONS]
        asked: dict[Server, list[int]] = {}
        for one in shown:
            pid, server = one.connection.backend_pid, _server_of(one)
            if pid and now - one.since >= ASKED_FROM_S and can_tell(server):
                asked.setdefault(server, []).append(pid)
        answers = dict(
            zip(asked, await asyncio.gather(*(ask_backends(one, pids) for one, pids in asked.items())), strict=True)
        )
        ours = {(_server_of(one), one.connection.backend_pid): one for one in held}
        rows = [_transaction(one, now, answers.get(_server_of(one)), ours) for one in shown]
        return {
            "count": len(held),
            "rows": rows,
            "unanswered": [
                {"server": server.full_name, "why": answer.failure}
                for server, answer in answers.items()
                if answer.failure is not None
            ],
        }

    # -- outbox and migrations

    async def _ask_outbox(self) -> dict[str, Any] | None:
        registry = self._registry
        if registry.compiled.outbox is None:
            return None
        is_kept = self._outbox_at is not None and monotonic() - self._outbox_at < OUTBOX_KEPT_S
        if registry.relay is None and is_kept:
            return self._outbox
        if not registry.is_open:
            return None
        health = await registry.outbox_health()
        self._outbox = None if health is None else {"relay": registry.relay is not None, **health.as_json()}
        self._outbox_at = monotonic()
        return self._outbox

    def _migrations(self) -> dict[str, Any] | None:
        registry = self._registry
        if registry.compiled.migrating is None:
            return None
        look = None if registry.skew is None else registry.skew.last
        held_back = len(registry.compiled.admission.tenants_behind)
        if look is None:
            return {"at": None, "counts": {}, "schemas": [], "failure": None, "held_back": held_back}
        return {
            "at": look.at.isoformat(timespec="seconds"),
            "counts": {standing.value: count for standing, count in look.counts.items()},
            "schemas": [
                {
                    "name": one.name,
                    "standing": one.standing.value,
                    "version": one.version,
                    "head": one.head,
                    "reason": one.reason,
                }
                for one in look.schemas
            ],
            "failure": look.failure,
            "held_back": held_back,
        }

    async def look_at_schemas(self) -> None:
        """Look at the schemas of all tenants now.

        Raises:
            DataError: There are no migrations; or a database cannot be reached.
        """
        skew = self._registry.skew
        if skew is not None:
            await skew.refresh()
        self.forget()


def _server_of(held: Held) -> Server:
    return cast("Server", held.pool)


def _transaction(
    one: Held, now: float, answer: Answer | None, ours: Mapping[tuple[Server, int], Held]
) -> dict[str, Any]:
    server, pid = _server_of(one), one.connection.backend_pid
    backend = None if answer is None else answer.backends.get(pid)
    blockers = () if backend is None else backend.blockers
    return {
        "server": server.full_name,
        "database": server.attributes.get(DB_NAMESPACE),
        "tenant": one.tenant,
        "route": one.route,
        "reason": one.reason,
        "age_s": round(now - one.since, 3),
        "pid": pid,
        "state": _state_of(one) if backend is None else backend.state,
        "waits_for": None if backend is None else backend.waits_for,
        "blocked_by": [
            {
                "pid": blocker.pid,
                "application": blocker.application,
                "state": blocker.state,
                "age_s": None if blocker.age_s is None else round(blocker.age_s, 3),
                "text": _describe(blocker, ours.get((server, blocker.pid))),
            }
            for blocker in blockers
        ],
    }


def _state_of(held: Held) -> str:
    """The state of a backend as this process knows it, in PostgreSQL's words."""
    if held.connection.has_failed_transaction:
        return "idle in transaction (aborted)"
    return "idle in transaction" if held.connection.is_in_transaction else "active"


def _describe(blocker: Blocker, ours: Held | None) -> str:
    """A backend that blocks, in words."""
    if not blocker.pid:
        return "a prepared transaction"
    if ours is not None:
        who = f"{ours.route or 'a session outside of requests'} of {ours.tenant or 'no tenant'}"
        return f"pid {blocker.pid} ({who}, this process)"
    age = None if blocker.age_s is None else duration(blocker.age_s)
    known = ", ".join(text for text in (blocker.application, blocker.state, age) if text)
    return f"pid {blocker.pid}{f' ({known})' if known else ''}"


# -- activity


def _decisions(activity: Activity) -> dict[str, Any]:
    """Decisions by datasource, reason and node, with the course of each reason."""
    counts = {name: activity.decisions(seconds) for name, seconds in _SPANS}
    keys = sorted(counts["last_15_min"], key=lambda key: (str(key[0]), str(key[3]), str(key[1])))
    rows = [
        {
            "datasource": key[0],
            "reason": key[3],
            "fallback": key[3] in FALLBACKS,
            "node": key[1],
            **{name: counts[name][key] for name, _ in _SPANS},
        }
        for key in keys
    ]
    slots = activity.recent(SLOT_S * SLOTS)
    last = slots[-1].number
    courses: dict[tuple[Any, Any], list[int]] = {}
    for slot in slots:
        for (datasource, _, _, reason), count in slot.decisions.items():
            course = courses.setdefault((datasource, reason), [0] * SLOTS)
            course[SLOTS - 1 - (last - slot.number)] += count
    return {
        "slot_s": SLOT_S,
        "rows": rows,
        "courses": [
            {"datasource": datasource, "reason": reason, "counts": course}
            for (datasource, reason), course in sorted(courses.items(), key=lambda item: tuple(map(str, item[0])))
        ],
    }


def _outcomes(activity: Activity) -> list[dict[str, Any]]:
    counts = {name: activity.outcomes(seconds) for name, seconds in _SPANS}
    return [
        {"datasource": key[0], "outcome": key[1], **{name: counts[name][key] for name, _ in _SPANS}}
        for key in sorted(counts["last_15_min"])
    ]


def _tenants(activity: Activity) -> dict[str, Any]:
    loads = activity.tenants(TENANTS_S)
    whole_s = sum(load.busy_s for load in loads.values())
    kept = activity.recent(TENANTS_S)
    covered_s = max(SLOT_S, min(TENANTS_S, (kept[-1].number - kept[0].number + 1) * SLOT_S))
    others = loads.pop(OTHERS, None)
    rows = [
        {
            "tenant": tenant,
            "statements": load.statements,
            "failed": load.failed,
            "refused": load.refused,
            "connections": round(load.busy_s / covered_s, 3),
            "waiting": round(load.waited_s / covered_s, 3),
            "share": round(load.busy_s / whole_s, 4) if whole_s else 0.0,
        }
        for tenant, load in list(loads.items())[:MOST_TENANTS]
    ]
    return {
        "covered_s": covered_s,
        "active": len(loads),
        "more_statements": sum(load.statements for load in list(loads.values())[MOST_TENANTS:])
        + (0 if others is None else others.statements),
        "refused_last_min": sum(load.refused for slot in activity.recent(60.0) for load in slot.tenants.values()),
        "rows": rows,
    }
