"""The health of a process: whether it is ready for requests, and what fails, from what it knows of its servers.

Nothing is asked and nothing awaited: a probe cannot load a database, and is answered while all of them are down.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ..config import ANY_SERVER
from ..drivers.protocol import Server
from ..routing import Role
from ..tenancy import Tenant, TenantState
from .runtime_config import RuntimeConfig

MAX_LISTED: Final = 100
"""Most servers of a datasource with a database per tenant that the document names; those that are down come first."""


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a process.

    Attributes:
        is_ready: Whether it is ready for requests, by the rule `health.ready`.
        reasons: Why it is not; empty if it is.
        document: All of it, as plain data (`schemas/health/v1.json`).
    """

    is_ready: bool
    reasons: tuple[str, ...]
    document: Mapping[str, Any]


class TenantCount:
    """Numbers of tenants by datasource, counted once for each state of the directory: there may be 100,000."""

    def __init__(self) -> None:
        self._names: Mapping[str, Tenant] | None = None
        self._counts: Counter[str] = Counter()

    def of(self, names: Mapping[str, Tenant]) -> Counter[str]:
        """The tenants that are not suspended, by datasource."""
        if names is not self._names:
            self._names = names
            self._counts = Counter(
                tenant.datasource for tenant in names.values() if tenant.state is not TenantState.SUSPENDED
            )
        return self._counts


def describe_health(
    compiled: RuntimeConfig, count: TenantCount, *, is_open: bool, outbox: Mapping[str, Any] | None = None
) -> Health:
    """The health of a process now.

    Args:
        compiled: The configuration.
        count: Counts the tenants.
        is_open: Whether the registry is open.
        outbox: The state of the process's relay; None without one. It does not decide whether the process is ready,
            since events only wait.
    """
    datasources: dict[str, dict[str, Any]] = {}
    for name, datasource in compiled.datasources.items():
        datasources[name] = {"servers": _describe_all(datasource.servers.values())}
    for name, fleet in compiled.fleets.items():
        servers = sorted(_describe_all(fleet.open_servers), key=lambda one: one["state"] != "down")
        datasources[name] = {"servers": servers[:MAX_LISTED], "open_pools": fleet.open_pools}
    known, served = _count_tenants(compiled, count)
    rule = compiled.ready_rule
    if not is_open:
        reasons = ["the registry is not open: the application is starting, or is shut down"]
    elif isinstance(rule, int):
        needed = math.ceil(known * rule / 100)
        reasons = [] if served >= needed else [f"{served} of {known} tenants are served, {needed} are needed"]
        reasons += [] if not reasons else _failures(datasources, [Role.PRIMARY.value])
    elif rule == ANY_SERVER:
        reasons = [
            reason
            for name in compiled.datasources
            if not any(_is_fine(one) for one in datasources[name]["servers"])
            for reason in _failures({name: datasources[name]}, [Role.PRIMARY.value, Role.REPLICA.value])
        ]
    else:
        primaries = {name: datasources[name] for name in compiled.datasources}
        reasons = _failures(primaries, [Role.PRIMARY.value])
    document = {
        "version": 1,
        "status": "not_ready" if reasons else "ready",
        "rule": rule if isinstance(rule, str) else {"tenants": f"{rule}%"},
        "reasons": reasons,
        "tenants": {"known": known, "served": served},
        "datasources": datasources,
        "outbox": outbox,
    }
    return Health(not reasons, tuple(reasons), document)


def _describe_all(servers: Iterable[Server]) -> list[dict[str, Any]]:
    return [_describe(server) for server in servers]


def _describe(server: Server) -> dict[str, Any]:
    state, cause, since = "up", None, None
    if not server.is_up:
        state, cause = "down", server.last_error
        opened_at = server.breaker.opened_at
        if opened_at is not None:
            since = time.time() - (asyncio.get_running_loop().time() - opened_at)
    elif not server.is_open:
        state = "closed"
    elif not server.was_reached:
        # Without connections to be kept open, the first one is made for the first request.
        state = "connecting" if server.settings.min_size else "unused"
    return {
        "server": server.full_name,
        "role": server.role.value,
        "state": state,
        "cause": cause,
        "since": None if since is None else datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds"),
        "pool": {
            "max_size": server.settings.max_size,
            "borrowed": server.borrowed,
            "idle": server.idle,
            "waiting": server.waiting,
        },
    }


def _is_fine(server: Mapping[str, Any]) -> bool:
    return server["state"] in ("up", "unused")


def _failures(datasources: Mapping[str, Mapping[str, Any]], roles: Iterable[str]) -> list[str]:
    """What is wrong with the servers of these roles."""
    found: list[str] = []
    for datasource in datasources.values():
        for server in datasource["servers"]:
            if server["role"] in roles and not _is_fine(server):
                cause = "" if server["cause"] is None else f": {server['cause']}"
                since = "" if server["since"] is None else f" since {server['since']}"
                found.append(f"{server['server']} is {server['state']}{since}{cause}")
    return found


def _count_tenants(compiled: RuntimeConfig, count: TenantCount) -> tuple[int, int]:
    """How many tenants there are, and how many of them have a primary that is up."""
    admission = compiled.admission
    names = admission.directory.map.names
    counts = count.of(names)
    known = sum(counts.values())
    lost = {
        name
        for name, datasource in compiled.datasources.items()
        if not _is_fine(_describe(datasource.servers["primary"]))
    } | set(admission.datasources_held_back)
    served = sum(number for name, number in counts.items() if name not in lost)
    for name, fleet in compiled.fleets.items():
        if name not in lost:
            down = sum(1 for server in fleet.open_servers if server.role is Role.PRIMARY and not server.is_up)
            served -= min(down, counts[name])
    held_back = (names.get(name) for name in admission.tenants_behind)
    served -= sum(1 for tenant in held_back if tenant is not None and tenant.datasource not in lost)
    return known, max(0, served)
