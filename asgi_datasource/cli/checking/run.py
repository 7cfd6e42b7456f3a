"""Asks all servers of a configuration at once, and judges what they tell."""

from __future__ import annotations

import asyncio
from typing import Final

from ...compiling import endpoint_settings
from ...config import EVERY_OTHER, PLACEHOLDER, Config, DataSourceConfig, Diagnostic, DiagnosticPath
from ...drivers.psycopg import ConnectionTemplate
from ...tenancy import Home
from .ask import ask_server, compare
from .facts import Facts, Target
from .judge import judge

MOST_DATABASES: Final = 10
"""How many tenants' databases of one datasource are asked; what is wrong in one of them is mostly wrong in all."""


async def check_servers(config: Config) -> list[Diagnostic]:
    """Ask every server that a configuration names.

    Args:
        config: A checked configuration, with its references looked up.

    Returns:
        What is wrong, without positions. It takes some seconds at most for each server that is silent.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_servers(name, datasource, config.datasources[name].search_path, homes, tenant))
            for name, datasource in config.datasources.items()
            for tenant, homes in _databases(config, name, datasource)
        ]
    return list(judge(config, [facts for task in tasks for facts in task.result()]))


def _databases(config: Config, name: str, datasource: DataSourceConfig) -> list[tuple[str | None, list[Home]]]:
    """The databases of a datasource, each with the tenants that live there; None is one for all of them."""
    homes = [
        Home(
            tenant_name,
            _filled(tenant.schema_name, tenant_name),
            _filled(tenant.role, tenant_name),
            tenant.row_security is not None,
        )
        for tenant_name, tenant in config.tenants.items()
        if tenant.datasource == name and tenant_name != EVERY_OTHER
    ]
    if PLACEHOLDER not in datasource.primary.url.get_secret_value():
        return [(None, homes)]
    return [(home.name, [home]) for home in homes[:MOST_DATABASES]]


def _filled(text: str | None, tenant: str) -> str | None:
    return None if text is None else text.replace(PLACEHOLDER, tenant)


async def _servers(
    name: str, datasource: DataSourceConfig, shared: tuple[str, ...], homes: list[Home], tenant: str | None
) -> list[Facts]:
    """Ask the servers of one database, and compare the replicas with the primary."""
    targets: list[Target] = []
    most_pools = 1 if tenant is None else datasource.pool.max_open_pools
    for node, server in {"primary": datasource.primary, **datasource.replicas}.items():
        path: DiagnosticPath = ("datasources", name, *((node,) if node == "primary" else ("replicas", node)), "url")
        url = server.url.get_secret_value()
        conninfo = url if tenant is None else ConnectionTemplate(url, where=f"{name}/{node}").fill(tenant)
        targets.append(Target(name, node, path, endpoint_settings(datasource.pool, conninfo), tenant, most_pools))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask_server(target, homes, shared, datasource.audit)) for target in targets]
    primary, *replicas = (task.result() for task in tasks)
    if primary.position is not None and primary.is_standby is False:
        async with asyncio.TaskGroup() as group:
            for replica in replicas:
                if replica.is_standby and replica.system_id == primary.system_id:
                    group.create_task(compare(primary, replica))
    return [primary, *replicas]
