"""The datasources and their servers, as this process knows them; nothing is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..datasource.datasource import DataSource, ReplicatedDataSource
from ..drivers.protocol import Server
from ..observability.activity import Activity
from ..observability.names import DB_NAMESPACE
from ..registry.drains import why_not
from ..registry.runtime_config import RuntimeConfig
from ..routing import Node, Role

MOST_SERVERS: Final = 60
"""Most servers of a datasource with a database for each tenant that are listed, those with a problem first."""
RATE_S: Final = 60.0
"""Seconds over which the rate of statements is taken."""


def describe_datasources(compiled: RuntimeConfig, activity: Activity) -> list[dict[str, Any]]:
    """Every datasource with its servers, as plain values.

    Args:
        compiled: The current configuration.
        activity: Counts the statements of each server.
    """
    rates: dict[tuple[object, object], float] = {}
    for (datasource, node, *_), count in activity.decisions(RATE_S).items():
        rates[datasource, node] = rates.get((datasource, node), 0.0) + count / RATE_S
    found = [_describe_one(compiled, name, one, rates) for name, one in compiled.datasources.items()]
    for name, fleet in compiled.fleets.items():
        nodes = {
            server: node
            for member in fleet.members
            for node in (member.topology.primary, *member.topology.replicas)
            if (server := member.servers[node.name]).is_open
        }
        servers = [_describe_server(server, nodes.get(server), {}, None) for server in fleet.open_servers]
        servers.sort(key=lambda one: (one["state"] == "up", -one["pool"]["waiting"], -one["pool"]["borrowed"]))
        refusals = {replica: why_not(compiled, name, replica) for replica in fleet.replicas}
        found.append(
            {
                "name": name,
                "kind": "database_per_tenant",
                "routing": None,
                "in_flight": None,
                "max_in_flight": None,
                "open_pools": fleet.open_pools,
                "replicas": [
                    {"server": replica, "draining": replica in fleet.drained, "refusal": refusal}
                    for replica, refusal in refusals.items()
                ],
                "statements_per_s": _sum(rates, name),
                "servers": servers[:MOST_SERVERS],
            }
        )
    return found


def _sum(rates: Mapping[tuple[object, object], float], name: str) -> float:
    return round(sum(rate for (datasource, _), rate in rates.items() if datasource == name), 2)


def _describe_one(
    compiled: RuntimeConfig, name: str, datasource: DataSource, rates: Mapping[tuple[object, object], float]
) -> dict[str, Any]:
    topology, limit = datasource.topology, datasource.concurrency_limit
    nodes = {node.name: node for node in (topology.primary, *topology.replicas)}
    can_drain = isinstance(datasource, ReplicatedDataSource)
    order = ["primary", *(one for one in datasource.servers if one != "primary")]
    return {
        "name": name,
        "kind": "shared",
        "routing": {
            "balance": topology.policy.balance.value,
            "no_replica": topology.policy.no_replica.value,
            "max_lag_s": topology.policy.max_lag_s,
        },
        "in_flight": None if limit is None else limit.in_flight.count,
        "max_in_flight": None if limit is None else limit.limit,
        "open_pools": None,
        "replicas": [],
        "statements_per_s": _sum(rates, name),
        "servers": [
            _describe_server(
                datasource.servers[one],
                nodes.get(one),
                rates,
                why_not(compiled, name, one) if can_drain else "its driver has no drain",
            )
            for one in order
        ],
    }


def _describe_server(
    server: Server, node: Node | None, rates: Mapping[tuple[object, object], float], refusal: str | None
) -> dict[str, Any]:
    now = asyncio.get_running_loop().time()
    breaker = server.breaker
    is_down = not server.is_up
    known: dict[str, Any] = dict.fromkeys(("lag_s", "lag_bytes", "age_s", "rtt_s"))
    if node is not None and node.role is Role.REPLICA:
        known = {
            "lag_s": node.lag_s,
            "lag_bytes": node.lag_bytes,
            "age_s": None if node.fresh_at is None else max(0.0, now - node.fresh_at),
            "rtt_s": node.rtt_s,
        }
    return {
        "server": server.full_name,
        "name": server.name,
        "database": server.attributes.get(DB_NAMESPACE),
        "location": server.location,
        "role": server.role.value,
        "version": server.server_version,
        "state": _state_of(server),
        "cause": server.last_error if is_down else None,
        "down_s": None if not is_down or breaker.opened_at is None else max(0.0, now - breaker.opened_at),
        "breaker": breaker.health.value,
        "failures": breaker.failures,
        "foreign": node is not None and node.is_foreign,
        "draining": node is not None and node.is_draining,
        "refusal": refusal,
        **known,
        "statements_per_s": round(rates.get((server.datasource, server.name), 0.0), 2),
        "pool": {
            "max_size": server.settings.max_size,
            "borrowed": server.borrowed,
            "idle": server.idle,
            "waiting": server.waiting,
        },
    }


def _state_of(server: Server) -> str:
    if not server.is_up:
        return "down"
    if not server.is_open:
        return "closed"
    if not server.was_reached:
        return "connecting" if server.settings.min_size else "unused"
    return "up"


def all_servers(datasources: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The servers of all datasources."""
    return [server for datasource in datasources for server in datasource["servers"]]
