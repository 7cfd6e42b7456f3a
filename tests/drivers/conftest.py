"""Connections and servers for the driver's tests: each with a new database, on asyncio and uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import uvloop

from asgi_datasource.drivers.psycopg import PsycopgConnection, PsycopgServer
from asgi_datasource.drivers.settings import ServerSettings
from asgi_datasource.routing import Role
from asgi_datasource.testing import EmbeddedCluster, FaultProxy
from tests.kept_databases import empty_database

Connect = Callable[..., Awaitable[PsycopgConnection]]
OpenServer = Callable[..., Awaitable[PsycopgServer]]


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def database(cluster: EmbeddedCluster) -> AsyncIterator[str]:
    """The name of an empty database on the shared cluster."""
    async with empty_database(cluster) as name:
        yield name


@pytest.fixture
async def url(cluster: EmbeddedCluster, database: str) -> str:
    return cluster.primary.url(database)


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Connect]:
    """Makes connections to the fresh database, or to another one."""
    made: list[PsycopgConnection] = []

    async def make(target: str = url, **options: Any) -> PsycopgConnection:
        connection = await PsycopgConnection.connect(target, **options)
        made.append(connection)
        return connection

    yield make
    for connection in made:
        await connection.close()


@pytest.fixture
async def connection(connect: Connect) -> PsycopgConnection:
    return await connect()


@pytest.fixture
async def open_server(url: str) -> AsyncIterator[OpenServer]:
    """Opens servers on the fresh database, or on another one; closes them after the test."""
    opened: list[PsycopgServer] = []

    async def make(conninfo: str = url, *, role: Role = Role.PRIMARY, **options: Any) -> PsycopgServer:
        server = PsycopgServer("primary", "orders", role, ServerSettings(conninfo=conninfo, **options))
        opened.append(server)
        await server.open()
        return server

    yield make
    for server in opened:
        await server.close(timeout_s=5.0)


@pytest.fixture
async def server(open_server: OpenServer) -> PsycopgServer:
    return await open_server()


@pytest.fixture
async def proxy(cluster: EmbeddedCluster) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(cluster.primary.host, cluster.primary.port) as running:
        yield running


@pytest.fixture
async def proxy_url(url: str, proxy: FaultProxy) -> str:
    """The fresh database through the proxy."""
    return at_port(url, proxy.port)


def at_port(url: str, port: int) -> str:
    """The same database at another port of this machine."""
    from psycopg.conninfo import make_conninfo

    return make_conninfo(url, host="127.0.0.1", port=port)
