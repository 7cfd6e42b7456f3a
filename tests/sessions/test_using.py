"""`db.using(name)`: several datasources in one request, each with its own pin, route and transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import (
    ConfigError,
    DataError,
    DataErrorKind,
    DataSourceRegistry,
    SessionClosed,
    compile,
    session,
)
from asgi_datasource.testing import EmbeddedCluster
from tests.apps import client
from tests.pools import borrowed
from tests.world import World

INSERT = "insert into orders (item) values (%s)"


@pytest.fixture
async def other(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    """A second database with the same tables."""
    async with World.create(cluster) as made:
        yield made


def document_of(world: World, other: World, **sections: Any) -> dict[str, Any]:
    document = world.config(replicas=("r1",), **sections)
    document["datasources"]["analytics"] = {
        "primary": {"url": other.url()},
        "replicas": {"r1": {"url": other.url("r1")}},
        "pool": {"min_size": 1, "max_size": 5},
    }
    document["tenants"]["acme"]["datasources"] = {"analytics": {"schema": "globex"}}
    return document


def registry_of(world: World, other: World, **sections: Any) -> DataSourceRegistry:
    return compile(document_of(world, other, **sections))


async def test_each_datasource_has_its_own_isolation_pin_and_route(world: World, other: World) -> None:
    await other.sql("insert into orders (item) values ('analysed')", schema="globex")
    await world.cluster.caught_up()
    async with registry_of(world, other) as registry, registry.session("acme") as db:
        analytics = db.using("analytics")
        assert analytics is db.using("analytics")
        assert analytics.using("orders") is db
        assert analytics.using("analytics") is analytics
        assert (analytics.tenant.name, analytics.datasource.name) == ("acme", "analytics")
        await db.execute(INSERT, ["tea"])
        assert await analytics.read.fetch_all("select item from orders") == [{"item": "analysed"}]
        assert (db.pin.is_set, analytics.pin.is_set) == (True, False)
        assert analytics.last_route is not None
        assert (analytics.last_route.node, str(analytics.last_route.reason)) == ("r1", "balanced")
        assert await db.read.fetch_value("select count(*) from orders") == 1
        for name in ("nowhere", "orders "):
            with pytest.raises(DataError, match="only: orders, analytics") as caught:
                db.using(name)
            assert caught.value.kind is DataErrorKind.CONFIG
    with pytest.raises(SessionClosed):
        await analytics.fetch_all("select 1")
    with pytest.raises(SessionClosed):
        db.using("analytics")
    assert borrowed(registry) == 0
    assert (await world.items(), await other.items("globex")) == (["tea"], ["analysed"])


async def test_a_second_writer_is_refused_and_a_single_one_shares_the_fate_of_the_request(
    world: World, other: World
) -> None:
    async with registry_of(world, other) as registry:
        with pytest.raises(DataError, match="multiple_writers: allow") as caught:
            async with registry.session("acme") as db:
                await db.execute(INSERT, ["tea"])
                await db.using("analytics").execute(INSERT, ["tea"])
        assert caught.value.kind is DataErrorKind.QUERY
        # The sibling alone writes: committed with the session, dropped with it.
        async with registry.session("acme") as db:
            await db.read.fetch_all("select 1")
            await db.using("analytics").execute(INSERT, ["kept"])
        with pytest.raises(RuntimeError):
            async with registry.session("acme") as db:
                await db.using("analytics").execute(INSERT, ["dropped"])
                raise RuntimeError
        # A failure of its COMMIT fails the session.
        with pytest.raises(DataError) as caught:
            async with registry.session("acme") as db:
                await db.using("analytics").execute("insert into children (parent) values (0)")
        assert caught.value.kind is DataErrorKind.CONSTRAINT
        async with registry.session("acme") as db:
            await db.using("analytics").execute(INSERT, ["undone"])
            await db.rollback()
            await db.using("analytics").execute(INSERT, ["midway"])
            await db.commit()
            db.using("analytics").set_rollback_only("it is its own")
            await db.using("analytics").execute(INSERT, ["doomed"])
        assert borrowed(registry) == 0
    assert await world.items() == []
    assert await other.items("globex") == ["kept", "midway"]


async def test_several_writers_where_they_are_allowed(world: World, other: World) -> None:
    ran: list[str] = []

    async def write(request: Request) -> Response:
        db = session(request)
        fails = request.query_params.get("fails")
        analytics = db.using("analytics")
        db.after_commit(lambda: ran.append("orders"))
        analytics.after_commit(lambda: ran.append("analytics"))
        await db.execute(INSERT, ["tea"])
        await analytics.execute(INSERT, ["tea"])
        analytics.sqlalchemy.get_bind()
        if fails == "commit of the first":
            await analytics.execute("insert into children (parent) values (0)")
        if fails == "commit of the last":
            await db.execute("insert into children (parent) values (0)")
        return Response(status_code=500 if fails == "status" else 201)

    registry = registry_of(world, other, transactions={"multiple_writers": "allow"})
    async with client(world, [Route("/", write, methods=["POST"])], registry=registry) as http:
        for fails, status in (("status", 500), ("commit of the first", 409)):
            assert (await http.post("/", params={"fails": fails})).status_code == status
            assert (await world.items(), await other.items("globex"), ran) == ([], [], [])
        # Not atomic: what was committed first stays, and the answer says that a part of it did.
        answer = await http.post("/", params={"fails": "commit of the last"})
        assert answer.status_code == 409
        assert (await world.items(), await other.items("globex"), ran) == ([], ["tea"], ["analytics"])
        await other.sql("delete from orders", schema="globex")
        ran.clear()
        assert (await http.post("/")).status_code == 201
        assert (await world.items(), await other.items("globex")) == (["tea"], ["tea"])
        assert sorted(ran) == ["analytics", "orders"]
        assert borrowed(registry) == 0


async def test_the_deadline_ends_the_statement_of_a_sibling(world: World, other: World) -> None:
    async def sleep(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT, ["tea"])
        await db.using("analytics").fetch_all("select pg_sleep(30)")
        return Response()

    registry = registry_of(world, other, transactions={"deadline": "400ms", "multiple_writers": "allow"})
    async with client(world, [Route("/", sleep, methods=["POST"])], registry=registry) as http:
        assert (await http.post("/")).status_code == 504
        assert borrowed(registry) == 0
    assert await world.items() == []


async def test_a_route_on_another_datasource_and_its_token(world: World, other: World) -> None:
    async def write(request: Request) -> Response:
        db = session(request)
        await db.execute(INSERT, ["report"])
        own = await db.using("orders").read.fetch_value("select current_schema()")
        return JSONResponse([db.datasource.name, own], status_code=201)

    async def read(request: Request) -> Response:
        analytics = session(request).using("analytics")
        items = [row["item"] for row in await analytics.fetch_all("select item from orders")]
        assert analytics.last_route is not None
        return JSONResponse([items, str(analytics.last_route.reason)])

    registry = registry_of(
        world,
        other,
        routes=[{"match": "POST /reports", "datasource": "analytics"}],
        consistency={"token": "header", "secret": "a secret of the test, long enough"},
    )
    routes = [Route("/reports", write, methods=["POST"]), Route("/items", read)]
    async with client(world, routes, registry=registry) as http:
        written = await http.post("/reports")
        assert (written.status_code, written.json()) == (201, ["analytics", "acme"])
        token = {"X-Datasource-Token": written.headers["X-Datasource-Token"]}
        items, reason = (await http.get("/items", headers=token)).json()
        # The sibling of a later request sees it, by the same token.
        assert items == ["report"]
        assert reason in ("proved", "behind")
        # A tenant without that datasource is told so.
        answer = await http.post("/reports", headers={"X-Tenant": "globex"})
        assert answer.status_code == 500
    explained = await registry.explain("POST", "/reports", tenant="acme")
    assert explained.tenant is not None
    assert explained.tenant.datasource == "analytics"
    assert await other.items("globex") == ["report"]


async def test_a_request_without_a_tenant_has_all_datasources(world: World, other: World) -> None:
    document = document_of(world, other, tenancy={"default": "orders"})
    document["tenants"] = {}
    async with compile(document) as registry, registry.session() as db:
        assert await db.using("analytics").read.fetch_value("select current_database()") == other.dbname
        assert await db.read.fetch_value("select current_database()") == world.dbname
        with pytest.raises(DataError, match="there is no datasource 'nowhere'"):
            db.using("nowhere")


def test_wrong_datasources_are_refused(world: World, other: World) -> None:
    document = document_of(world, other)
    for tenant, places, message in (
        ("acme", {"analitics": {}}, "Did you mean 'analytics'"),
        ("acme", {"orders": {}}, "the tenant's own datasource"),
        ("*", {"analytics": {"schema": "{tenant}"}}, "only listed tenants"),
    ):
        wrong = {
            **document,
            "tenants": {**document["tenants"], tenant: {"datasource": "orders", "schema": "t_{tenant}"}},
        }
        wrong["tenants"][tenant]["datasources"] = places
        with pytest.raises(ConfigError, match=message):
            compile(wrong)
    with pytest.raises(ConfigError, match="Did you mean 'analytics'"):
        compile({**document, "routes": [{"match": "/x", "datasource": "analitycs"}]})
