"""The PostgreSQL server of a run, embedded or external, with a database for the benchmarks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from benchmarks.sides.statements import APP_PASSWORD, APP_ROLE, SET_UP

DATABASE: Final = "ads_bench"
REPORTED_SETTINGS: Final = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")


@dataclass(frozen=True, slots=True)
class Server:
    """The addresses of the benchmarks' database."""

    host: str
    port: int
    settings: dict[str, str]
    replica_port: int | None = None

    @property
    def replica_url(self) -> str | None:
        """The service's URL on the replica; None without one."""
        return None if self.replica_port is None else self.url(self.replica_port)

    def url(self, port: int | None = None) -> str:
        """The service's URL, with a role that is subject to row security; `port` is that of a proxy before it."""
        return f"postgresql://{APP_ROLE}:{APP_PASSWORD}@{self.host}:{port or self.port}/{DATABASE}"


@asynccontextmanager
async def benchmark_server(admin_url: str | None, *, replicas: int = 0) -> AsyncIterator[Server]:
    """Provide a server with a new database for the run.

    Args:
        admin_url: A superuser's URL; None starts an embedded server.
        replicas: Replicas of an embedded server.
    """
    if admin_url is not None:
        yield await _prepare(admin_url)
        return
    from asgi_datasource.testing import EmbeddedCluster

    async with EmbeddedCluster(replicas, settings={"max_connections": 500}) as cluster:
        server = await _prepare(cluster.primary.url(user="postgres"))
        if replicas:
            await cluster.caught_up()
            server = replace(server, replica_port=cluster.nodes["r1"].port)
        yield server


async def _prepare(admin_url: str) -> Server:
    parts = urlsplit(admin_url)
    async with await psycopg.AsyncConnection.connect(admin_url, autocommit=True) as admin:
        await admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(DATABASE)))
        await admin.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(APP_ROLE)))
        await admin.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
        settings = {
            name: str(
                (await (await admin.execute(sql.SQL("show {}").format(sql.Identifier(name)))).fetchone() or ("",))[0]
            )
            for name in REPORTED_SETTINGS
        }
    async with await psycopg.AsyncConnection.connect(admin_url, dbname=DATABASE, autocommit=True) as admin:
        for statement in SET_UP:
            await admin.execute(sql.SQL(statement))  # constants of this module
    return Server(parts.hostname or "127.0.0.1", parts.port or 5432, settings)
