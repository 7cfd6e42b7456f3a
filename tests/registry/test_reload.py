"""Reload while requests are served: the configuration is swapped atomically, and running requests end with the
old one.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import ConfigError, DataSourceRegistry, compile, session
from tests.apps import client
from tests.drivers.polling import until
from tests.faults.traffic import traffic
from tests.world import World


class Gate:
    """A handler that reads, waits for the test, and reads again."""

    def __init__(self) -> None:
        self.is_reached = asyncio.Event()
        self.is_open = asyncio.Event()

    async def read_twice(self, request: Request) -> Response:
        db = session(request)
        before = await db.fetch_value("select current_database()")
        self.is_reached.set()
        await self.is_open.wait()
        return JSONResponse([before, await db.fetch_value("select current_database()")])

    async def read_later(self, request: Request) -> Response:
        db = session(request)
        self.is_reached.set()
        await self.is_open.wait()
        return JSONResponse([await db.fetch_value("select current_database()")])


async def where(request: Request) -> Response:
    db = session(request)
    answer = {"database": await db.fetch_value("select current_database()"), "schema": db.tenant.settings[0][1]}
    assert db.last_route is not None
    return JSONResponse(answer, headers={"X-Node": db.last_route.node})


async def write(request: Request) -> Response:
    await session(request).execute("insert into orders (item) values (gen_random_uuid())")
    return JSONResponse({}, status_code=201)


class Shop:
    """An application whose configuration is a file."""

    def __init__(self, world: World, path: Path) -> None:
        self.world = world
        self.path = path
        self.gate = Gate()
        self.registry: DataSourceRegistry
        self.http: httpx.AsyncClient

    def write(self, **config: Any) -> None:
        self.path.write_text(json.dumps(self.world.config(**config)), encoding="utf-8")

    @asynccontextmanager
    async def serve(self, **config: Any) -> AsyncIterator[Shop]:
        self.write(**config)
        self.registry = compile(self.path)
        routes = [
            Route("/where", where),
            Route("/write", write, methods=["POST"]),
            Route("/twice", self.gate.read_twice),
            Route("/later", self.gate.read_later),
        ]
        async with client(self.world, routes, registry=self.registry) as self.http:
            yield self

    async def answer(self, path: str = "/where", **headers: str) -> Any:
        response = await self.http.get(path, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    async def backends(self, node: str = "r1") -> list[int]:
        """The application's backends on one replica of this world's database."""
        rows = await self.world.sql(
            "select pid from pg_stat_activity where usename = 'app' and datname = current_database() order by pid",
            node=node,
        )
        return [row[0] for row in rows]


def swapped(world: World) -> dict[str, Any]:
    """The world's configuration with the schemas of two tenants swapped."""
    config = world.config()
    tenants = config["tenants"]
    tenants["acme"], tenants["globex"] = tenants["globex"], tenants["acme"]
    return config


@pytest.fixture
def shop(world: World, tmp_path: Path) -> Shop:
    return Shop(world, tmp_path / "datasource.json")


async def test_tenants_and_rules_change_while_all_pools_stay_open(shop: Shop) -> None:
    async with shop.serve() as running:
        assert (await running.answer())["schema"] == '"acme"'
        servers, backends = running.registry.compiled.servers, await running.backends()
        config = swapped(shop.world)
        config["tenants"]["hooli"] = {"datasource": "orders", "schema": "shared", "row_security": {"app.tenant": "43"}}
        shop.path.write_text(json.dumps(config), encoding="utf-8")
        reloaded = await running.registry.reload()
        assert set(reloaded.kept) == {"orders.primary", "orders.r1", "orders.r2"}
        assert (reloaded.opened, reloaded.retired) == ((), ())
        assert (await running.answer())["schema"] == '"globex"'
        assert (await running.answer(**{"X-Tenant": "hooli"}))["schema"] == '"shared"'
        assert running.registry.compiled.servers == servers
        assert set(backends) <= set(await running.backends())


async def test_a_request_ends_on_its_old_servers_whose_pools_are_then_closed(shop: Shop) -> None:
    async with World.create(shop.world.cluster) as other, shop.serve(replicas=("r1",)) as running:
        waiting = asyncio.create_task(running.answer("/twice"))
        await running.gate.is_reached.wait()
        urls = {"primary": other.url(), "r1": other.url("r1")}
        shop.write(replicas=("r1",), urls=urls)
        reloaded = await running.registry.reload()
        assert set(reloaded.opened) == set(reloaded.retired) == {"orders.primary", "orders.r1"}
        assert (await running.answer())["database"] == other.dbname
        # Idle, but the request may still need a connection.
        await until(lambda: not_any(running.backends))
        assert not waiting.done()
        running.gate.is_open.set()
        assert await waiting == [shop.world.dbname] * 2
        assert running.registry._retired == set()
        await until(lambda: not_any(running.backends))


async def test_a_request_without_a_statement_yet_uses_the_new_server(shop: Shop) -> None:
    async with World.create(shop.world.cluster) as other, shop.serve(replicas=("r1",)) as running:
        waiting = asyncio.create_task(running.answer("/later"))
        await running.gate.is_reached.wait()
        shop.write(replicas=("r1",), urls={"primary": other.url(), "r1": other.url("r1")})
        await running.registry.reload()
        assert running.registry._retired == set()
        running.gate.is_open.set()
        assert await waiting == [other.dbname]


async def not_any(ask: Any) -> bool:
    return not await ask()


async def test_a_replica_is_removed_and_added_under_load_without_an_error(shop: Shop) -> None:
    async with (
        shop.serve() as running,
        traffic(running.http, "/where") as readers,
        traffic(running.http, "/write", method="POST", clients=2) as writers,
    ):
        await readers.reaches("r1", "r2")
        for _ in range(3):
            shop.write(replicas=("r2",))
            await running.registry.reload()
            await readers.reaches("r2")
            shop.write(replicas=("r1", "r2"))
            await running.registry.reload()
            await readers.reaches("r1", "r2")
        await writers.goes_on(5)
    assert (readers.failures, writers.failures) == ([], [])


async def test_an_invalid_configuration_is_refused_with_all_errors_and_changes_nothing(shop: Shop) -> None:
    async with shop.serve() as running:
        compiled = running.registry.compiled
        shop.path.write_text('{"version": 1, "datasources": {"orders": {"primry": {}}}, "tenents": {}}')
        with pytest.raises(ConfigError, match=r"datasource\.json.*primary(.|\n)*tenants"):
            await running.registry.reload()
        assert running.registry.compiled is compiled
        assert (await running.answer())["schema"] == '"acme"'
        shop.write()
        await running.registry.reload()
        assert running.registry.compiled is not compiled


async def test_a_mapping_replaces_the_file_until_the_next_reload(shop: Shop) -> None:
    async with shop.serve() as running:
        await running.registry.reload(swapped(shop.world))
        assert (await running.answer())["schema"] == '"globex"'
        await running.registry.reload()
        assert (await running.answer())["schema"] == '"acme"'


async def test_reload_without_a_file_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="not compiled from a file"):
        await world.registry().reload()


async def test_concurrent_reloads_are_serialized_and_a_cancelled_one_completes(shop: Shop) -> None:
    async with shop.serve() as running:
        shop.write(pool={"max_size": 7})
        reloads = [asyncio.create_task(running.registry.reload()) for _ in range(4)]
        await asyncio.sleep(0)
        reloads[0].cancel()
        results = await asyncio.gather(*reloads, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(not result.opened for result in results[1:] if not isinstance(result, BaseException))
        assert {endpoint.settings.max_size for endpoint in running.registry.compiled.servers} == {7}
        assert (await running.answer())["schema"] == '"acme"'


async def test_close_also_closes_retired_pools(world: World) -> None:
    registry = world.registry(replicas=("r1",))
    async with registry:
        kept = registry.for_tenant("acme")
        async with registry.session(tenant="acme") as db:
            await db.execute("select 1")
        await registry.reload(world.config(replicas=("r1",), pool={"max_size": 3}))
        assert registry.for_tenant("acme") is not kept
        async with registry.session(tenant="acme") as db:
            await db.execute("select 1")
    assert await world.backends() == []
    assert not any(server.is_open for server in kept.servers.values())


async def test_a_reload_is_logged_with_its_effect(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    async with shop.serve() as running:
        caplog.set_level(logging.INFO, logger="asgi_datasource.registry")
        shop.write(replicas=("r1",))
        await running.registry.reload()
    assert "pools: 0 opened, 1 retired, 2 kept" in caplog.text
