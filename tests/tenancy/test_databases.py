"""A database for each tenant: opened on first use, closed for others, never while it is in use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import ConfigError, DataError, DataErrorKind, DataSourceRegistry, Reason, compile, session
from asgi_datasource.datasource.database_fleet import Fleet
from asgi_datasource.drivers.psycopg import ConnectionTemplate
from asgi_datasource.testing import EmbeddedCluster
from tests.apps import application
from tests.pools import until

NAMES = ("acme", "globex", "initech", "umbrella")


@pytest.fixture(scope="module")
def databases(cluster: EmbeddedCluster) -> Iterator[EmbeddedCluster]:
    """A database for each of the names, with a table that names its tenant."""

    async def make() -> None:
        for name in NAMES:
            await cluster.create_database(f"fleet_{name}")
            await run(cluster, f"fleet_{name}", f"create table owner as select '{name}'::text as name")
            await run(cluster, f"fleet_{name}", "grant select, insert on owner to app")
        await cluster.caught_up()

    async def drop() -> None:
        for name in NAMES:
            await cluster.drop_database(f"fleet_{name}")

    asyncio.run(make())
    yield cluster
    asyncio.run(drop())


async def run(cluster: EmbeddedCluster, dbname: str, statement: str) -> list[Any]:
    import psycopg

    url = cluster.nodes["primary"].url(dbname=dbname, user="postgres")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []


def config(cluster: EmbeddedCluster, *, replicas: tuple[str, ...] = (), **pool: Any) -> dict[str, Any]:
    def url(node: str) -> str:
        return cluster.nodes[node].url(dbname="PLACE").replace("PLACE", "fleet_{tenant}")

    return {
        "version": 1,
        "datasources": {
            "own": {
                "primary": {"url": url("primary")},
                "replicas": {name: {"url": url(name)} for name in replicas},
                "pool": {"min_size": 1, "max_size": 2, "acquire_timeout": "3s", **pool},
            }
        },
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {
            "*": {"datasource": "own"},
            "renamed": {"datasource": "own", "database": "acme", "aliases": ["acme"]},
        },
    }


def registry(cluster: EmbeddedCluster, **more: Any) -> DataSourceRegistry:
    return compile(config(cluster, **more))


def fleet_of(made: DataSourceRegistry) -> Fleet:
    return made.compiled.fleets["own"]


async def owner(made: DataSourceRegistry, name: str) -> str:
    async with made.session(name) as db:
        return str(await db.read.fetch_value("select name from owner"))


async def test_each_tenant_has_its_own_database(databases: EmbeddedCluster) -> None:
    async with registry(databases, replicas=("r1",)) as made:
        assert fleet_of(made).open_pools == 0
        for name in NAMES:
            assert await owner(made, name) == name
        assert await owner(made, "renamed") == "acme"
        async with made.session("acme") as db:
            await db.execute("insert into owner values ('twice')")
            assert db.last_route is not None
            assert (db.last_route.node, db.last_route.reason) == ("primary", Reason.WRITE)
        assert await run(databases, "fleet_globex", "select name from owner") == [("globex",)]
        await run(databases, "fleet_acme", "delete from owner where name = 'twice'")
        # Reads have gone to the replica's pools, and one write to a primary's.
        assert fleet_of(made).open_pools == len(NAMES) + 1


@pytest.mark.parametrize("cap", [1, 2, 3])
async def test_no_more_pools_are_open_than_may_be(databases: EmbeddedCluster, cap: int) -> None:
    async with registry(databases, max_open_pools=cap, max_size=1) as made:
        fleet = fleet_of(made)
        for _ in range(3):
            for name in NAMES:
                assert await owner(made, name) == name
                assert fleet.open_pools <= cap
        # As many connections as pools: a server needs a moment to end those of closed ones.
        async with asyncio.timeout(10):
            while await backends(databases) > cap:
                await asyncio.sleep(0.01)


async def backends(cluster: EmbeddedCluster) -> int:
    rows = await run(cluster, "postgres", "select count(*) from pg_stat_activity where datname like 'fleet%'")
    return int(rows[0][0])


async def test_the_pool_that_was_used_longest_ago_is_closed(databases: EmbeddedCluster) -> None:
    async with registry(databases, max_open_pools=2) as made:
        for name in ("acme", "globex", "acme", "initech"):
            await owner(made, name)
        assert {endpoint.dbname for endpoint in fleet_of(made)._open} == {"fleet_acme", "fleet_initech"}


async def test_a_pool_in_use_is_never_closed_and_whoever_needs_room_waits(databases: EmbeddedCluster) -> None:
    async with registry(databases, max_open_pools=1) as made:
        async with made.session("acme") as db:
            await db.execute("select 1")
            waiting = asyncio.ensure_future(owner(made, "globex"))
            await until(lambda: bool(fleet_of(made)._waiting), "nobody waits for room")
            assert await db.fetch_value("select name from owner") == "acme"
            assert not waiting.done()
        assert await waiting == "globex"
        # The session has nothing of it any more: a later statement opens the pool anew.
        assert await owner(made, "acme") == "acme"


async def test_a_session_between_two_reads_holds_no_pool(databases: EmbeddedCluster) -> None:
    async with registry(databases, max_open_pools=1) as made, made.session("acme") as db:
        assert await db.read.fetch_value("select name from owner") == "acme"
        assert await owner(made, "globex") == "globex"
        assert await db.read.fetch_value("select name from owner") == "acme"


async def test_without_room_in_time_the_answer_is_503(databases: EmbeddedCluster) -> None:
    async with registry(databases, max_open_pools=1, acquire_timeout="200ms") as made, made.session("acme") as db:
        await db.execute("select 1")
        with pytest.raises(DataError, match="no room for another pool") as caught:
            await owner(made, "globex")
        assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.RESOURCE, 503)


async def test_a_pool_that_nobody_uses_is_closed(databases: EmbeddedCluster) -> None:
    async with registry(databases, close_idle_after="100ms") as made:
        assert await owner(made, "acme") == "acme"
        await until(lambda: fleet_of(made).open_pools == 0, "an idle pool is still open")
        assert await owner(made, "acme") == "acme"
        async with made.session("globex") as db:
            await db.execute("select 1")
            await until(lambda: fleet_of(made).open_pools == 1, "the idle pool is still open")
            assert await db.fetch_value("select name from owner") == "globex"


async def test_tenants_that_come_and_go_at_once_never_meet(databases: EmbeddedCluster) -> None:
    async with registry(databases, max_open_pools=2) as made:

        async def ask(number: int) -> None:
            name = NAMES[number % len(NAMES)]
            assert await owner(made, name) == name

        await asyncio.gather(*(ask(number) for number in range(60)))
        assert fleet_of(made).open_pools <= 2


async def test_a_database_that_is_not_there_is_no_tenant(databases: EmbeddedCluster) -> None:
    async def read(request: Request) -> Response:
        return JSONResponse(await session(request).fetch_value("select name from owner"))

    from asgi_datasource.testing import serve

    app = application(registry(databases, max_open_pools=2, acquire_timeout="5s"), [Route("/", read)])
    async with AsyncExitStack() as stack:
        import httpx

        server = await stack.enter_async_context(serve(app))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url, timeout=20.0))
        answers = await asyncio.gather(
            *(http.get("/", headers={"X-Tenant": f"nobody-{number}"}) for number in range(20)),
            *(http.get("/", headers={"X-Tenant": name}) for name in NAMES),
        )
        assert [answer.status_code for answer in answers] == [404] * 20 + [200] * len(NAMES)
        assert [answer.json() for answer in answers[20:]] == list(NAMES)


async def test_closing_the_registry_closes_every_pool(databases: EmbeddedCluster) -> None:
    made = registry(databases)
    async with made:
        await asyncio.gather(*(owner(made, name) for name in NAMES))
    async with asyncio.timeout(10):
        while await backends(databases):
            await asyncio.sleep(0.01)
    with pytest.raises(DataError, match="not open"):
        await fleet_of(made).member("acme").primary.acquire(deadline=None)
    async with made:
        assert await owner(made, "acme") == "acme"


async def test_a_reload_keeps_a_fleet_that_is_the_same_and_closes_one_that_is_not(databases: EmbeddedCluster) -> None:
    made = registry(databases)
    async with made:
        assert await owner(made, "acme") == "acme"
        before = fleet_of(made)
        await made.reload(config(databases))
        assert fleet_of(made) is before
        await made.reload(config(databases, max_open_pools=7))
        assert fleet_of(made) is not before
        await until(lambda: before.open_pools == 0, "a pool of the retired fleet is still open")
        assert await owner(made, "acme") == "acme"


# -- the template


@pytest.mark.parametrize(
    "name",
    [
        "acme",
        "a b",
        "a'b",
        "a\\b",
        "x host=evil.test",
        "x' host='evil.test",
        "x?host=evil.test",
        "x/../y",
        "postgresql://evil.test/x",
        "host=evil.test",
        "a=b",
        "%2F",
        "\u00fc",
        "{tenant}",
    ],
)
@pytest.mark.parametrize(
    "template",
    ["postgresql://app:pw@db.test:5433/{tenant}?application_name=x", "host=db.test dbname={tenant} user=app"],
)
def test_a_name_never_leaves_its_place_in_the_url(template: str, name: str) -> None:
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(ConnectionTemplate(template, where="here").fill(name))
    assert (parts["host"], parts["dbname"], parts["user"]) == ("db.test", name, "app")


@pytest.mark.parametrize("name", ["x" * 64, "\u00fc" * 32, "a\x00b"])
def test_a_name_that_no_database_can_have_is_no_tenant(name: str) -> None:
    with pytest.raises(DataError) as caught:
        ConnectionTemplate("postgresql://db.test/{tenant}", where="here").fill(name)
    assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.TENANT, 404)


@pytest.mark.parametrize("name", ["a.b", "a,b", "/tmp", "a b", "-a", "a-", ""])
def test_a_name_in_the_host_is_one_label(name: str) -> None:
    template = ConnectionTemplate("postgresql://{tenant}.db.test/orders", where="here")
    with pytest.raises(DataError):
        template.fill(name)
    assert "host=acme.db.test" in template.fill("acme")


def test_a_template_elsewhere_is_refused() -> None:
    for url in ("postgresql://app:{tenant}@db.test/orders", "postgresql://db.test/orders?options={tenant}"):
        with pytest.raises(ConfigError, match="cannot stand in"):
            ConnectionTemplate(url, where="here")


def test_tenants_that_nothing_tells_apart_are_refused() -> None:
    document = {
        "version": 1,
        "datasources": {"orders": {"primary": {"url": "postgresql://db.test/orders"}}},
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {"*": {"datasource": "orders"}},
    }
    with pytest.raises(ConfigError, match="stands nowhere"):
        compile(document)
    document["tenants"] = {"*": {"datasource": "orders", "schema": "t_{tenant}", "row_security": {"app.t": "{tenant}"}}}
    made = compile(document)
    assert made.tenant("acme").settings == (("search_path", '"t_acme"'), ("app.t", "acme"))
    with pytest.raises(DataError) as caught:
        made.tenant("x" * 62)
    assert caught.value.http_status == 404
