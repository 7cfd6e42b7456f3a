"""Checks of servers: duplicates, URLs, pools, lag, and the budget of connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Severity
from .durations import format_duration
from .models import Config, DataSourceConfig
from .url import PLACEHOLDER, find_fault, server_of


def check_servers(config: Config) -> Iterator[Diagnostic]:
    """Pool sizes, URLs, and duplicate servers of a datasource."""
    for name, datasource in config.datasources.items():
        path: Path = ("datasources", name)
        pool = datasource.pool
        if pool.min_size > pool.max_size:
            message = f"min_size {pool.min_size} is more than max_size {pool.max_size}"
            here = (*path, "pool", "min_size")
            related: tuple[Path, ...] = ((*path, "pool", "max_size"),)
            edit = Edit(EditKind.REPLACE, here, pool.max_size)
            fix = "Lower min_size or raise max_size."
            yield Diagnostic(Code.CONTRADICTION, here, message, fix, related=related, edit=edit)
        first: dict[str, Path] = {}
        for where, url in _urls(path, datasource):
            if (PLACEHOLDER in url) != (PLACEHOLDER in datasource.primary.url.get_secret_value()):
                message = (
                    f"{PLACEHOLDER} stands in the URL of one server of this datasource, and not in that of another"
                )
                fix = "Put it into all of them, or into none."
                yield Diagnostic(Code.CONTRADICTION, where, message, fix, related=((*path, "primary", "url"),))
            yield from _check_url(where, url, datasource)
            server = server_of(url)
            if where[2] == "replicas" and "," in server_of(url, with_database=False) and find_fault(url) is None:
                message = "it leads to several servers, and how far behind each of them is cannot be known"
                fix = "Name each of them as a replica of its own."
                yield Diagnostic(Code.SEVERAL_SERVERS, where, message, fix, severity=Severity.WARNING)
            if server in first:
                other = first[server]
                message = f"the same server as {other[2]}{''.join(f'.{part}' for part in other[3:-1])}"
                fix = "Give each server once: a replica is another server than its primary."
                edit = Edit(EditKind.REMOVE, where[:-1])
                yield Diagnostic(Code.SAME_SERVER, where, message, fix, related=(other,), edit=edit)
            first.setdefault(server, where)
        if datasource.types and datasource.driver is not None:
            here = (*path, "types")
            message = f"psycopg converts these types, and the datasource has the driver {datasource.driver}"
            edit = Edit(EditKind.REMOVE, here)
            yield Diagnostic(Code.CONTRADICTION, here, message, "Take it out.", is_about_key=True, edit=edit)
        if datasource.admin is not None:
            yield from _check_url((*path, "admin", "url"), datasource.admin.url.get_secret_value(), datasource)


def _check_url(where: Path, url: str, datasource: DataSourceConfig) -> Iterator[Diagnostic]:
    fault = find_fault(url) if datasource.driver is None else None
    if fault is not None:
        edit = Edit(EditKind.REPLACE, where, "postgresql://app@db.internal:5432/orders")
        yield Diagnostic(Code.URL, where, fault[0], fault[1], edit=edit)


SHORTEST_LAG_S: Final = 0.2
"""Seconds. Servers are polled every 50 ms at most, and a replica that keeps up needs a quarter of the bound."""


def check_lags(config: Config) -> Iterator[Diagnostic]:
    """Values of `max_lag` that no replica can prove to meet, and tokens that expire before a replica catches up."""
    replicated = {name: datasource for name, datasource in config.datasources.items() if datasource.replicas}
    bounds: list[tuple[Path, float | None]] = [
        (("datasources", name, "routing", "max_lag"), datasource.routing.max_lag_s)
        for name, datasource in replicated.items()
    ]
    if replicated:
        bounds += [(("routes", index, "max_lag"), rule.max_lag_s) for index, rule in enumerate(config.routes)]
    for path, lag_s in bounds:
        if lag_s is not None and lag_s < SHORTEST_LAG_S:
            message = f"no replica can show that its data is younger than {format_duration(lag_s)}"
            fix = "Raise it to 200ms or more; consistency: strong of a route asks the primary."
            edit = Edit(EditKind.REPLACE, path, "200ms")
            yield Diagnostic(Code.LAG_TOO_SHORT, path, message, fix, severity=Severity.WARNING, edit=edit)
    if config.consistency.token == "off":  # noqa: S105 - a word of the configuration
        return
    ttl_s = config.consistency.ttl_s
    related: tuple[Path, ...] = (("consistency", "ttl"),)
    for name, datasource in replicated.items():
        lag_s = datasource.routing.max_lag_s
        if lag_s is None or lag_s > ttl_s:
            path = ("datasources", name, "routing", "max_lag")
            counts = format_duration(ttl_s)
            message = f"a client's token counts for {counts}, and replicas may be further behind than that"
            fix = f"Set max_lag to {counts} or less, or let tokens live longer."
            edit = Edit(EditKind.ADD if lag_s is None else EditKind.REPLACE, path, counts)
            yield Diagnostic(
                Code.OUTLIVED_TOKEN, path, message, fix, related=related, severity=Severity.HINT, edit=edit
            )


def check_budget(config: Config) -> Iterator[Diagnostic]:
    """Whether the pools of all processes fit into `budget.max_connections`."""
    budget = config.budget
    if budget is None or budget.max_connections is None:
        return
    allowed = budget.max_connections - budget.reserve
    wanted: dict[str, int] = {}
    pools: dict[str, list[Path]] = {}
    for name, datasource in config.datasources.items():
        for _, url in _urls(("datasources", name), datasource):
            server = server_of(url, with_database=False)
            wanted[server] = wanted.get(server, 0) + budget.processes * datasource.pool.max_size
            pools.setdefault(server, []).append(("datasources", name, "pool", "max_size"))
    reported: set[tuple[Path, ...]] = set()
    for server, connections in wanted.items():
        related = tuple(dict.fromkeys(pools[server]))
        if connections > allowed and related not in reported:
            reported.add(related)
            message = (
                f"{budget.processes} processes may open {connections} connections to one server, which has {allowed}"
                f" of {budget.max_connections} for them"
            )
            fits = max(1, allowed // (budget.processes * len(pools[server])))
            fix = f"Lower max_size to {fits} in each of its pools, or put a pooler in between."
            path: Path = ("budget", "max_connections")
            edit = Edit(EditKind.REPLACE, path, connections + budget.reserve)
            yield Diagnostic(Code.OVER_BUDGET, path, message, fix, related=related, edit=edit)


def _urls(path: Path, datasource: DataSourceConfig) -> Iterator[tuple[Path, str]]:
    yield (*path, "primary", "url"), datasource.primary.url.get_secret_value()
    for name, replica in datasource.replicas.items():
        yield (*path, "replicas", name, "url"), replica.url.get_secret_value()
