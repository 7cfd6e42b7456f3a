"""Queries all servers of a configuration concurrently and evaluates the facts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ...config import EVERY_OTHER, PLACEHOLDER, Config, DataSourceConfig, Diagnostic, DiagnosticPath
from ...drivers import load_driver
from ...registry.compiler import server_settings
from ...tenancy import Home, Tenant, by_database, home_of, homes_to_come, sample
from .evaluation import evaluate
from .facts import Facts, Target
from .queries import compare, query_server
from .tenants import find_tenants

MOST_DATABASES: Final = 10
"""Most databases of tenants that are queried for one datasource; a problem in one of them is usually in all."""


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of all queries.

    Attributes:
        problems: The problems, without positions.
        notes: What was left out, because there is too much of it.
    """

    problems: tuple[Diagnostic, ...]
    notes: tuple[str, ...]


async def check_servers(config: Config) -> Checked:
    """Query every server of a configuration; servers that do not answer take a few seconds.

    Args:
        config: A valid configuration with resolved references.
    """
    population = await find_tenants(config)
    notes = list(population.notes)
    databases = {
        name: _databases(config, name, datasource, population.tenants, notes)
        for name, datasource in config.datasources.items()
        if datasource.driver is None
    }
    notes += [
        f"{name} was not checked: its driver is {datasource.driver}"
        for name, datasource in config.datasources.items()
        if datasource.driver is not None
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_servers(config, name, homes, tenant))
            for name, chosen in databases.items()
            for tenant, homes in chosen
        ]
    found = evaluate(config, [facts for task in tasks for facts in task.result()])
    return Checked((*population.problems, *found), tuple(notes))


def _databases(
    config: Config, name: str, datasource: DataSourceConfig, tenants: Sequence[Tenant], notes: list[str]
) -> list[tuple[Tenant | None, list[Home]]]:
    """The databases of a datasource, each with its tenants, and with one of them for the URL."""
    shared = datasource.search_path
    here = [tenant for tenant in tenants if tenant.datasource == name]
    to_come = homes_to_come(config).get(name, [])
    if PLACEHOLDER not in datasource.primary.url.get_secret_value():
        return [(None, [*(home_of(tenant, shared) for tenant in here), *to_come])]
    known = by_database(here)
    chosen = sample(list(known.values()), MOST_DATABASES)
    others = config.tenants.get(EVERY_OTHER)
    if len(chosen) < len(known):
        notes.append(f"{len(chosen)} of the {len(known):,} known databases of {name} were checked")
    elif others is not None and others.datasource == name:
        notes.append(f"any tenant may have a database on {name}: only the {len(known)} known ones were checked")
    return [(sharing[0], [*(home_of(tenant, shared) for tenant in sharing), *to_come]) for sharing in chosen]


async def _servers(config: Config, name: str, homes: list[Home], tenant: Tenant | None) -> list[Facts]:
    """Query the servers of one database and compare the replicas with the primary."""
    datasource, has_outbox = config.datasources[name], config.outbox is not None
    targets: list[Target] = []
    most_pools = 1 if tenant is None else datasource.pool.max_open_pools
    for node, server in {"primary": datasource.primary, **datasource.replicas}.items():
        path: DiagnosticPath = ("datasources", name, *((node,) if node == "primary" else ("replicas", node)), "url")
        conninfo = server.url.get_secret_value()
        if tenant is not None:
            template = load_driver().make_template(conninfo, where=f"{name}/{node}")
            conninfo = template.fill(tenant.database or tenant.name or "")
        tenant_name = None if tenant is None else tenant.name
        targets.append(Target(name, node, path, server_settings(datasource.pool, conninfo), tenant_name, most_pools))
    shared = datasource.search_path
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(query_server(target, homes, shared, datasource.audit, has_outbox=has_outbox))
            for target in targets
        ]
    primary, *replicas = (task.result() for task in tasks)
    if primary.position is not None and primary.is_standby is False:
        async with asyncio.TaskGroup() as group:
            for replica in replicas:
                if replica.is_standby and replica.system_id == primary.system_id:
                    group.create_task(compare(primary, replica))
    return [primary, *replicas]
