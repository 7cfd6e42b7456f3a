"""Who may act for a tenant, what a tenant's state allows, and how a refusal looks."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from asgi_datasource import AccessIntent, DataError, DataErrorKind, compile, session
from asgi_datasource.tenancy import MAX_NAME_LENGTH
from asgi_datasource.testing import serve
from tests.apps import application, client
from tests.world import World

asked: list[tuple[str, str]] = []


def may_act(scope: Any, tenant: str) -> bool:
    """A membership as an application decides it: by a header here."""
    member_of = dict(scope["headers"]).get(b"x-member-of", b"").decode()
    asked.append((member_of, tenant))
    return tenant in member_of.split(",")


async def may_act_later(scope: Any, tenant: str) -> bool:
    return may_act(scope, tenant)


async def read(request: Request) -> Response:
    return JSONResponse(await session(request).read.fetch_value("select count(*) from orders"))


async def write(request: Request) -> Response:
    await session(request).execute("insert into orders (item) values ('tea')")
    return Response(status_code=201)


async def untouched(request: Request) -> Response:
    return Response("no sql")


ROUTES = [Route("/", read), Route("/", write, methods=["POST"]), Route("/none", untouched)]
FUNCTIONS = ["may_act", "may_act_later"]


def tenancy(function: str, **more: Any) -> dict[str, Any]:
    return {
        "resolve": [{"header": "X-Tenant"}, {"path_prefix": "/t"}],
        "authorize": f"tests.tenancy.test_admission:{function}",
        **more,
    }


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_whoever_may_not_act_for_a_tenant_gets_403(world: World, function: str) -> None:
    asked.clear()
    registry = world.registry(tenancy=tenancy(function))
    async with client(world, ROUTES, registry=registry) as http:
        for path, headers in (("/", {"X-Tenant": "acme"}), ("/t/acme/", {"X-Tenant": ""})):
            refused = await http.get(path, headers={**headers, "X-Member-Of": "globex"})
            assert (refused.status_code, refused.json()["kind"]) == (403, "tenant")
            allowed = await http.get(path, headers={**headers, "X-Member-Of": "globex,acme"})
            assert (allowed.status_code, allowed.json()) == (200, 0)
        assert (await http.get("/", headers={"X-Tenant": "nobody", "X-Member-Of": "nobody"})).status_code == 404
    assert {tenant for _, tenant in asked} == {"acme"}


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_hidden_tenant_is_answered_as_one_that_is_not_there(world: World, function: str) -> None:
    asked.clear()
    registry = world.registry(tenancy=tenancy(function, hide_unknown=True))
    async with client(world, ROUTES, registry=registry) as http:
        answers = [
            await http.get("/", headers={"X-Tenant": name, "X-Member-Of": "globex"}) for name in ("acme", "nobody")
        ]
        hidden, unknown = (looks(answer) for answer in answers)
        assert hidden == unknown
        assert hidden[0] == 404
        # Both have been asked about, so neither answer is quicker than the other.
        assert [tenant for _, tenant in asked] == ["acme", "nobody"]
        assert (await http.get("/", headers={"X-Tenant": "nobody", "X-Member-Of": "nobody"})).status_code == 404
        assert (await http.get("/", headers={"X-Tenant": "acme", "X-Member-Of": "acme"})).status_code == 200


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_hidden_tenant_is_the_default_where_unknown_ones_are(world: World, function: str) -> None:
    asked.clear()
    await world.sql("insert into orders (item) values ('of the default')", schema="shared")
    config = world.config(tenancy=tenancy(function, hide_unknown=True, default="orders"), replicas=())
    config["datasources"]["orders"]["search_path"] = ["globex"]

    async def whose(request: Request) -> Response:
        db = session(request)
        return JSONResponse([db.tenant.name, await db.read.fetch_value("select count(*) from orders")])

    async with client(world, [Route("/", whose)], registry=compile(config)) as http:
        answers = [
            await http.get("/", headers={"X-Tenant": name, "X-Member-Of": "globex"}) for name in ("acme", "nobody")
        ]
        assert [(answer.status_code, answer.json()) for answer in answers] == [(200, [None, 0])] * 2
        assert [tenant for _, tenant in asked] == ["acme", "nobody"]
        assert (await http.get("/", headers={"X-Tenant": "acme", "X-Member-Of": "acme"})).json()[0] == "acme"
        assert (await http.get("/", headers={"X-Tenant": "nobody", "X-Member-Of": "nobody"})).json()[0] is None
        assert (await http.get("/", headers={"X-Tenant": ""})).json()[0] is None
        # Nor does its state tell that there is one.
        config["tenants"]["acme"]["state"] = "suspended"
    async with client(world, [Route("/", whose)], registry=compile(config)) as http:
        assert (await http.get("/", headers={"X-Tenant": "acme", "X-Member-Of": "globex"})).json()[0] is None
        assert (await http.get("/", headers={"X-Tenant": "acme", "X-Member-Of": "acme"})).status_code == 403


async def test_whoever_may_not_act_for_a_tenant_does_not_have_it_looked_for(world: World) -> None:
    """A look-up in the catalog takes time: only a request that may act for the tenant waits for it."""
    await world.sql("create schema catalog; create table catalog.tenants (name text, aliases text[]);")
    await world.sql("grant usage on schema catalog to app; grant select on catalog.tenants to app")
    config = world.config(tenancy=tenancy("may_act", hide_unknown=True), replicas=())
    config["tenants"] = {}
    query = "select name, name as schema, aliases from catalog.tenants"
    config["tenants_from"] = {"datasource": "orders", "query": query, "defaults": {"datasource": "orders"}}
    registry = compile(config)
    async with client(world, ROUTES, registry=registry) as http:

        async def ask(tenant: str, member_of: str) -> int:
            return (await http.get("/none", headers={"X-Tenant": tenant, "X-Member-Of": member_of})).status_code

        assert registry.catalog is not None
        await world.sql("insert into catalog.tenants values ('acme', '{shop,store}')")
        assert await ask("acme", "globex") == await ask("nobody", "globex") == 404
        assert registry.catalog.questions == 0
        assert await ask("acme", "acme") == 200
        # One that turns out to be an alias is asked about by its name as well.
        await world.sql("insert into catalog.tenants values ('globex', '{books}')")
        assert await ask("books", "books") == 404
        assert await ask("books", "books,globex") == await ask("books", "globex") == 200
        # A membership in an unknown tenant grants nothing.
        assert await ask("nobody", "nobody") == 404
    assert registry.compiled.admission.directory.map.find("nobody") is None


def looks(answer: httpx.Response) -> tuple[int, dict[str, str], dict[str, Any]]:
    """All of an answer that does not differ from one to the next anyway."""
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    body = answer.json()
    assert len(body.pop("reference")) == 16
    return answer.status_code, headers, body


async def test_the_function_learns_the_tenants_own_name_not_the_alias(world: World) -> None:
    asked.clear()
    config = world.config(tenancy=tenancy("may_act"))
    config["tenants"]["acme"]["aliases"] = ["acme-inc"]
    async with client(world, ROUTES, registry=compile(config)) as http:
        answer = await http.get("/none", headers={"X-Tenant": "acme-inc", "X-Member-Of": "acme"})
        assert answer.status_code == 200
    assert asked == [("acme", "acme")]


async def test_a_websocket_asks_too(world: World) -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(str(session(websocket).tenant.name))
        await websocket.close()

    app = application(world.registry(tenancy=tenancy("may_act_later")), [WebSocketRoute("/ws", echo)])
    async with serve(app) as server:
        url = server.url.replace("http", "ws") + "/ws"
        with pytest.raises(InvalidStatus) as caught:
            async with connect(url, additional_headers={"X-Tenant": "acme", "X-Member-Of": "globex"}):
                raise AssertionError("it was let in")
        assert caught.value.response.status_code == 403
        async with connect(url, additional_headers={"X-Tenant": "acme", "X-Member-Of": "acme"}) as socket:
            assert await socket.recv() == "acme"


# -- states


@pytest.mark.parametrize(
    ("state", "reads", "writes", "without_sql"),
    [
        ("active", 200, 201, 200),
        ("read_only", 200, 403, 200),
        ("moving", 200, 503, 200),
        ("suspended", 403, 403, 403),
    ],
)
async def test_a_tenants_state_decides_what_is_served(
    world: World, state: str, reads: int, writes: int, without_sql: int
) -> None:
    config = world.config()
    config["tenants"]["acme"]["state"] = state
    async with client(world, ROUTES, registry=compile(config)) as http:
        assert (await http.get("/")).status_code == reads
        assert (await http.get("/none")).status_code == without_sql
        answer = await http.post("/")
        assert answer.status_code == writes
        assert ("retry-after" in answer.headers) == (writes == 503)
    assert await world.items() == (["tea"] if state == "active" else [])


@pytest.mark.parametrize(("state", "status"), [("read_only", 403), ("moving", 503)])
async def test_no_way_to_write_is_left_open(world: World, state: str, status: int) -> None:
    config = world.config()
    config["tenants"]["acme"]["state"] = state
    insert = "insert into orders (item) values ('tea')"
    async with compile(config) as registry, registry.session("acme") as db:
        with pytest.raises(DataError) as caught:
            await db.execute(insert)
        assert (caught.value.kind, caught.value.http_status) == (DataErrorKind.TENANT, status)
        with pytest.raises(DataError, match="tenant"):
            await db.write.fetch_all("select 1")
        with pytest.raises(DataError, match="tenant"):
            async with db.transaction():
                await db.executemany("insert into orders (item) values (%s)", [("a",), ("b",)])
        with pytest.raises(DataError, match="tenant"):
            async with db.connection(AccessIntent.WRITE):
                raise AssertionError("a connection was lent")
        with pytest.raises(DataError, match="tenant"):
            async for _ in db.write.stream("select 1"):
                raise AssertionError("a row was read")
        with pytest.raises(DataError) as caught:
            await db.read.execute(insert)
        assert caught.value.kind is DataErrorKind.READ_ONLY
        assert await db.read.fetch_value("select count(*) from orders") == 0
    assert await world.items() == []


async def test_a_suspended_tenant_has_no_session_either(world: World) -> None:
    config = world.config()
    config["tenants"]["acme"]["state"] = "suspended"
    async with compile(config) as registry:
        with pytest.raises(DataError, match="suspended"):
            async with registry.session("acme"):
                raise AssertionError("it was let in")


async def test_the_longest_name_is_looked_up_and_a_longer_one_is_no_name(world: World) -> None:
    config = world.config(replicas=(), tenancy={"resolve": [{"header": "X-Tenant"}], "pattern": "[a-z]+"})
    admission = compile(config).compiled.admission
    for name, status in (("a" * MAX_NAME_LENGTH, 404), ("a" * (MAX_NAME_LENGTH + 1), 400)):
        with pytest.raises(DataError) as caught:
            await admission.find(name)
        assert caught.value.http_status == status
