"""Sessions that outlive a request: a tenant that is suspended, moved or dropped meanwhile is not served any more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from asgi_datasource import DataError, DataErrorKind, DataSession, DataSourceRegistry, compile, session
from asgi_datasource.testing import serve
from tests.apps import application
from tests.pools import assert_whole
from tests.world import World

SUSPEND: Any = "update catalog.customers set state = 'suspended' where name = 'acme'"
DROP: Any = "delete from catalog.customers where name = 'acme'"


@pytest.fixture
async def listed(world: World) -> AsyncIterator[DataSourceRegistry]:
    """A registry whose tenants are in a table."""
    await world.sql("create schema catalog; grant usage on schema catalog to app")
    await world.sql("create table catalog.customers (name text primary key, schema text, state text)")
    await world.sql("grant select on catalog.customers to app")
    await world.sql("insert into catalog.customers values ('acme', 'acme', 'active'), ('globex', 'globex', 'active')")
    document = world.config(replicas=())
    document["tenants"] = {}
    document["tenants_from"] = {
        "datasource": "orders",
        "query": "select * from catalog.customers",
        "defaults": {"datasource": "orders"},
        "refresh": "1h",
    }
    async with compile(document) as registry:
        yield registry


async def change(world: World, registry: DataSourceRegistry, statement: str) -> None:
    await world.sql(statement)
    assert registry.catalog is not None
    await registry.catalog.refresh()


async def read(db: DataSession) -> None:
    await db.read.fetch_all("select item from orders")


async def write(db: DataSession) -> None:
    await db.write.execute("insert into orders (item) values ('late')")


async def read_several(db: DataSession) -> None:
    async with db.transaction(read_only=True):
        await db.fetch_all("select item from orders")


async def stream(db: DataSession) -> None:
    async for _ in db.stream("select item from orders"):
        pass


async def borrow(db: DataSession) -> None:
    async with db.connection() as connection:
        await connection.execute("select 1")


@pytest.mark.parametrize("use", [read, write, read_several, stream, borrow])
@pytest.mark.parametrize(("statement", "status"), [(SUSPEND, 403), (DROP, 404)])
async def test_a_session_is_refused_once_its_tenant_is_not_served(
    world: World, listed: DataSourceRegistry, use: Any, statement: str, status: int
) -> None:
    async with listed.session("acme") as db:
        await read(db)
        await change(world, listed, statement)
        for _ in range(2):
            with pytest.raises(DataError, match="changed since the session was opened") as caught:
                await use(db)
            assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.TENANT, status)
    assert await world.items("acme") == []
    async with listed.session("globex") as db:
        await read(db)
    await assert_whole(listed, world)


async def test_a_transaction_that_is_open_ends_as_it_began(world: World, listed: DataSourceRegistry) -> None:
    async with listed.session("acme") as db:
        await db.write.execute("insert into orders (item) values ('before')")
        await change(world, listed, SUSPEND)
        await db.write.execute("insert into orders (item) values ('beside')")
        await db.commit()
        with pytest.raises(DataError, match="suspended"):
            await write(db)
    assert await world.items("acme") == ["before", "beside"]


async def test_a_tenant_that_is_served_again_goes_on(world: World, listed: DataSourceRegistry) -> None:
    async with listed.session("acme") as db:
        await read(db)
        await change(world, listed, SUSPEND)
        with pytest.raises(DataError):
            await read(db)
        await change(world, listed, "update catalog.customers set state = 'read_only' where name = 'acme'")
        await read(db)
        with pytest.raises(DataError, match="read only"):
            await write(db)
        await change(world, listed, "update catalog.customers set state = 'active' where name = 'acme'")
        await write(db)
    assert await world.items("acme") == ["late"]


async def test_a_tenant_whose_place_has_changed_is_found_there(world: World, listed: DataSourceRegistry) -> None:
    async with listed.session("acme") as db:
        await read(db)
        await change(world, listed, "update catalog.customers set schema = 'shared' where name = 'acme'")
        assert await db.read.fetch_value("select current_schemas(false)") == ["shared"]


async def test_a_websocket_is_closed_once_its_tenant_is_not_served(world: World, listed: DataSourceRegistry) -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        db = session(websocket)
        while True:
            await websocket.receive_text()
            await write(db)
            await db.commit()
            await db.write.execute("delete from orders")
            await db.commit()
            await websocket.send_text(str(db.tenant.name))

    app = application(listed, [WebSocketRoute("/ws", echo)])
    async with serve(app) as server:
        url = server.url.replace("http", "ws") + "/ws"
        async with (
            connect(url, additional_headers={"X-Tenant": "acme"}) as socket,
            connect(url, additional_headers={"X-Tenant": "globex"}) as other,
        ):
            for _ in range(2):
                await socket.send("x")
                assert await socket.recv() == "acme"
            await change(world, listed, SUSPEND)
            await socket.send("x")
            with pytest.raises(ConnectionClosed) as caught:
                await socket.recv()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (1008, "tenant")
            await other.send("x")
            assert await other.recv() == "globex"
    assert await world.items("acme") == []


async def test_an_application_may_answer_for_itself(world: World, listed: DataSourceRegistry) -> None:
    async def handler(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_text()
        with suppress(DataError):
            await read(session(websocket))
        await websocket.send_text("your account is closed")
        await websocket.close(4001)

    app = application(listed, [WebSocketRoute("/ws", handler)])
    async with serve(app) as server:
        url = server.url.replace("http", "ws") + "/ws"
        async with connect(url, additional_headers={"X-Tenant": "acme"}) as socket:
            await change(world, listed, DROP)
            await socket.send("x")
            assert await socket.recv() == "your account is closed"
            with pytest.raises(ConnectionClosed) as caught:
                await socket.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 4001
