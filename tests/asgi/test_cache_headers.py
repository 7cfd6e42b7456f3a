"""A shared cache serves no tenant's response to another tenant: `Vary`, or `private` for unknown dependencies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataSourceMiddleware, compile, session
from asgi_datasource.asgi.cache_headers import CacheHeaders
from asgi_datasource.tenancy import Reads
from tests.apps import client
from tests.asgi_call import Call
from tests.tenancy.test_tokens import SECRET, token
from tests.world import World

Headers = list[tuple[bytes, bytes]]


def headers_of(reads: Reads, *headers: tuple[bytes, bytes]) -> Headers:
    rules = CacheHeaders.of(reads)
    assert rules is not None
    message = {"type": "http.response.start", "status": 200, "headers": list(headers)}
    given = list(headers)
    found: Headers = rules.add_to(message)["headers"]
    assert message["headers"] == given, "the application's own message was changed"
    return found


TENANT = Reads(("X-Tenant", "Cookie"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((), [(b"vary", b"X-Tenant, Cookie")]),
        (((b"vary", b"Origin"),), [(b"vary", b"Origin, X-Tenant, Cookie")]),
        (((b"vary", b"Cookie"),), [(b"vary", b"Cookie, X-Tenant")]),
        (((b"vary", b"cookie , X-TENANT"),), [(b"vary", b"cookie , X-TENANT")]),
        (((b"vary", b"*"),), [(b"vary", b"*")]),
        (((b"vary", b""),), [(b"vary", b"X-Tenant, Cookie")]),
        (((b"Vary", b"Origin"),), [(b"Vary", b"Origin, X-Tenant, Cookie")]),
        (((b"vary", b"Origin"), (b"x", b"y"), (b"vary", b"Cookie")), [
            (b"vary", b"Origin"), (b"x", b"y"), (b"vary", b"Cookie, X-Tenant")
        ]),
        (((b"cache-control", b"public"),), [(b"cache-control", b"public"), (b"vary", b"X-Tenant, Cookie")]),
    ],
)  # fmt: skip
def test_vary_names_the_headers_that_identify_the_tenant(given: Headers, wanted: Headers) -> None:
    assert headers_of(TENANT, *given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], [b"private"]),
        ([b"max-age=60"], [b"max-age=60, private"]),
        ([b"no-cache"], [b"no-cache, private"]),
        ([b""], [b"private"]),
        # The application's policy for shared caches is kept.
        ([b"public, max-age=60"], [b"public, max-age=60"]),
        ([b"S-MaxAge = 60"], [b"S-MaxAge = 60"]),
        ([b"private"], [b"private"]),
        ([b"no-store"], [b"no-store"]),
        ([b'private="set-cookie"'], [b'private="set-cookie"']),
        ([b"max-age=60", b"Public"], [b"max-age=60", b"Public"]),
        ([b'x="public, y"'], [b'x="public, y", private']),
    ],
)
def test_a_response_is_private_if_its_dependencies_are_unknown(given: list[bytes], wanted: list[bytes]) -> None:
    found = headers_of(Reads(is_known=False), *((b"cache-control", value) for value in given))
    assert found == [(b"cache-control", value) for value in wanted]


def test_other_messages_pass_unchanged() -> None:
    rules = CacheHeaders.of(TENANT)
    assert rules is not None
    for message in ({"type": "http.response.body", "body": b"x"}, {"type": "http.response.trailers", "headers": []}):
        assert rules.add_to(message) is message
    assert rules.add_to({"type": "http.response.start", "status": 204})["headers"] == [(b"vary", b"X-Tenant, Cookie")]


def test_headers_that_can_be_read_once_are_kept() -> None:
    rules = CacheHeaders.of(TENANT)
    assert rules is not None
    given = iter([(b"content-type", b"text/plain")])
    found = rules.add_to({"type": "http.response.start", "status": 200, "headers": given})["headers"]
    assert found == [(b"content-type", b"text/plain"), (b"vary", b"X-Tenant, Cookie")]


# -- for each resolver


def resolve_by_code(scope: Any) -> str:
    return "acme"


class Declared:
    """A resolver in code that declares the headers it reads."""

    reads = Reads(("X-Org",))

    def __call__(self, scope: Any) -> str:
        return "acme"


def may_act(scope: Any, tenant: str) -> bool:
    return True


HOST = {"trusted_proxies": ["unix"], "trusted_headers": ["x-forwarded-host"]}
JWT = {"claim": "tenant", "algorithms": ["HS256"], "key": SECRET}
WAYS: list[tuple[list[dict[str, Any]], dict[str, Any], str | None, str | None]] = [
    ([{"header": "X-Tenant"}], {}, "X-Tenant", None),
    ([{"cookie": "tenant"}, {"fixed": "acme"}], {}, "Cookie", None),
    ([{"jwt_claim": JWT}, {"fixed": "acme"}], {}, "Authorization", None),
    ([{"jwt_claim": {**JWT, "header": "X-Token"}}, {"fixed": "acme"}], {}, "X-Token", None),
    ([{"jwt_claim": {**JWT, "cookie": "session"}}, {"fixed": "acme"}], {}, "Cookie", None),
    ([{"fixed": "acme"}], {}, None, None),
    ([{"query": "tenant"}, {"path_prefix": "/t"}, {"fixed": "acme"}], {}, None, None),
    ([{"subdomain_of": "app.test"}, {"domain": {}}, {"fixed": "acme"}], {}, None, None),
    ([{"subdomain_of": "app.test"}, {"fixed": "acme"}], HOST, "X-Forwarded-Host", None),
    ([{"fixed": "acme"}], {**HOST, "trusted_hosts": ["shop.test"]}, "X-Forwarded-Host", None),
    ([{"header": "X-Tenant", "paths": ["/api"]}, {"cookie": "c"}, {"fixed": "acme"}], {}, "X-Tenant, Cookie", None),
    ([{"header": "X-Tenant"}, {"header": "x-tenant", "paths": ["/api"]}], {}, "X-Tenant", None),
    ([{"header": "X-Tenant"}, {"fixed": "acme"}], {"agree": True}, "X-Tenant", None),
    ([{"callable": "tests.asgi.test_cache_headers:resolve_by_code"}], {}, None, "private"),
    ([{"scope": "user.tenant"}, {"header": "X-Tenant"}], {}, "X-Tenant", "private"),
    ([{"fixed": "acme"}], {"authorize": "tests.asgi.test_cache_headers:may_act"}, None, "private"),
]


async def plain(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def application(resolve: list[dict[str, Any]], tenancy: dict[str, Any], **more: Any) -> DataSourceMiddleware:
    document = {
        "version": 1,
        "datasources": {
            "d": {"primary": {"url": "postgresql://app@127.0.0.1:1/x"}, "audit": {"on_start": "off"}},
        },
        "tenancy": {"resolve": resolve, "exempt": ["/healthz"], **tenancy},
        "tenants": {"acme": {"datasource": "d", "schema": "acme"}},
    }
    return DataSourceMiddleware(plain, document, **more)


async def answer(app: DataSourceMiddleware, method: str = "GET", path: str = "/") -> dict[bytes, bytes]:
    headers = [(b"x-tenant", b"acme"), (b"host", b"shop.test")]
    call = await Call(method, path, headers=headers).run(app)
    assert call.status == 200
    return dict(call.sent[0]["headers"])


@pytest.mark.parametrize(("resolve", "tenancy", "vary", "control"), WAYS)
async def test_each_resolver_declares_the_headers_it_reads(
    resolve: list[dict[str, Any]], tenancy: dict[str, Any], vary: str | None, control: str | None
) -> None:
    app = application(resolve, tenancy)
    async with app.registry:
        for method in ("GET", "HEAD"):
            found = await answer(app, method)
            assert found.get(b"vary", b"").decode() == (vary or "")
            assert found.get(b"cache-control", b"").decode() == (control or "")
        # Shared caches do not store these; and an exempt path has no tenant.
        assert await answer(app, "POST") == {}
        assert await answer(app, path="/healthz") == {}


@pytest.mark.parametrize(
    ("resolver", "wanted"), [(resolve_by_code, {b"cache-control": b"private"}), (Declared(), {b"vary": b"X-Org"})]
)
async def test_a_resolver_in_code_can_declare_the_headers_it_reads(
    resolver: Callable[[Any], str], wanted: dict[bytes, bytes]
) -> None:
    app = application([], {}, resolvers=[resolver])
    async with app.registry:
        assert await answer(app) == wanted


async def test_a_reload_changes_the_cache_headers(world: World) -> None:
    app = application([{"header": "X-Tenant"}], {})
    async with app.registry:
        assert await answer(app) == {b"vary": b"X-Tenant"}
        document = world.config(replicas=())
        document["tenancy"] = {"resolve": [{"fixed": "acme"}]}
        await app.registry.reload(document)
        assert await answer(app) == {}


# -- for every kind of response


async def read(request: Request) -> Response:
    rows = await session(request).read.fetch_all("select item from orders")
    return JSONResponse(rows, headers={"Cache-Control": "public, max-age=60"})


async def fail(request: Request) -> Response:
    await session(request).write.execute("insert into children (parent) values (1)")
    return Response("not sent", headers={"Cache-Control": "public"})


async def retried(request: Request) -> Response:
    db = session(request)
    await db.write.execute("select 1")
    if not hasattr(request.app.state, "is_retried"):
        request.app.state.is_retried = True
        await db.write.execute("do $$ begin raise exception using errcode = '40001'; end $$")
    return Response("twice")


async def conflict(request: Request, error: Exception) -> Response:
    return Response("conflict", 409)


@pytest.mark.parametrize("is_handled", [False, True])
async def test_every_kind_of_response_has_the_cache_headers(world: World, is_handled: bool) -> None:
    registry = world.registry(transactions={"retry": 1})
    routes = [Route("/", read), Route("/fail", fail), Route("/retried", retried)]
    handlers = {DataError: conflict} if is_handled else {}
    async with client(world, routes, registry=registry, exception_handlers=handlers) as http:
        for path, status in (("/", 200), ("/fail", 409), ("/retried", 200), ("/nowhere", 404)):
            found = await http.get(path)
            assert (found.status_code, found.headers["vary"]) == (status, "X-Tenant"), path


async def test_vary_has_the_headers_of_tenant_and_token(world: World) -> None:
    consistency = {"token": "both", "secret": "0123456789abcdef"}
    async with client(world, [Route("/", read)], registry=world.registry(consistency=consistency)) as http:
        found = await http.get("/")
        assert [name.strip().lower() for name in found.headers["vary"].split(",")] == [
            *("cookie", "x-datasource-token", "x-tenant"),
        ]


class SharedCache(httpx.AsyncBaseTransport):
    """A cache by RFC 9111: its key is the URL and the headers in `Vary`; it stores public responses."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self._stored: list[tuple[str, dict[str, str | None], bytes, httpx.Headers]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        for url, values, body, headers in self._stored:
            if url == str(request.url) and all(request.headers.get(name) == value for name, value in values.items()):
                return httpx.Response(200, headers=headers, content=body)
        found = await self._inner.handle_async_request(request)
        body = await found.aread()
        if "public" in found.headers.get("cache-control", ""):
            names = [name.strip() for name in found.headers.get("vary", "").split(",") if name.strip()]
            values = {name: request.headers.get(name) for name in names}
            self._stored.append((str(request.url), values, body, found.headers))
        return httpx.Response(found.status_code, headers=found.headers, content=body)

    async def aclose(self) -> None:
        await self._inner.aclose()


@pytest.mark.parametrize(
    ("way", "of"),
    [
        ({"header": "X-Tenant"}, lambda name: {"X-Tenant": name}),
        ({"cookie": "tenant"}, lambda name: {"Cookie": f"tenant={name}"}),
        ({"jwt_claim": JWT}, lambda name: {"Authorization": f"Bearer {token(tenant=name)}"}),
    ],
)
async def test_a_shared_cache_separates_tenants(
    world: World, way: dict[str, Any], of: Callable[[str], dict[str, str]]
) -> None:
    for name in ("acme", "globex"):
        await world.sql(f"insert into orders (item) values ('of {name}')", schema=name)
    registry = compile(world.config(replicas=(), tenancy={"resolve": [way]}))
    async with (
        client(world, [Route("/", read)], registry=registry) as http,
        httpx.AsyncClient(transport=SharedCache(), base_url=http.base_url) as cached,
    ):
        for name in ("acme", "globex", "acme", "globex"):
            assert (await cached.get("/", headers=of(name))).json() == [{"item": f"of {name}"}]
