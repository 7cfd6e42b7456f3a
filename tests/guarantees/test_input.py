"""Invalid input is answered with a problem document and reaches no SQL."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import ConfigError, DataSourceMiddleware, DataSourceRegistry, session
from tests.apps import application, client
from tests.world import World

HOSTILE = {
    "a quote": "acme'; drop schema acme; --",
    "double quotes": 'acme", "public',
    "NUL": "acme\x00",
    "10 kB": "a" * 10_000,
    "dots": "../acme",
    "slashes": "acme/globex",
    "a newline": "acme\nglobex",
    "upper case": "ACME",
    "percent": "acme%s",
    "latin-1": "acm\u00e9",
    "braces": "{tenant}",
    "only spaces": "   ",
}


async def names(request: Request) -> Response:
    return JSONResponse(await session(request).fetch_value("select current_setting('search_path')"))


def borrowed(registry: DataSourceRegistry) -> list[int]:
    return [endpoint.borrowed for datasource in registry for endpoint in datasource.servers.values()]


async def call(registry: DataSourceRegistry, headers: list[tuple[bytes, bytes]], path: str = "/") -> dict[str, Any]:
    """Call the application directly, with headers that an HTTP client refuses to send."""
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
    }
    await application(registry, [Route("/", names)])(scope, receive, send)
    return {"status": sent[0]["status"], "headers": dict(sent[0]["headers"]), "body": json.loads(sent[1]["body"])}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
async def test_an_invalid_tenant_name_is_a_problem_and_runs_no_sql(world: World, name: str) -> None:
    async with world.registry() as registry:
        answer = await call(registry, [(b"x-tenant", name.encode("utf-8"))])
        assert answer["status"] == 400
        assert answer["headers"][b"content-type"] == b"application/problem+json"
        assert answer["body"]["kind"] == "tenant"
        assert name.strip() == "" or name not in json.dumps(answer["body"])
        assert borrowed(registry) == [0, 0, 0]


async def test_a_repeated_tenant_header_is_refused(world: World) -> None:
    async with world.registry() as registry:
        answer = await call(registry, [(b"x-tenant", b"acme"), (b"x-tenant", b"globex")])
        assert answer["status"] == 400
        assert "more than once" in answer["body"]["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 400), ({"X-Tenant": ""}, 400), ({"X-Tenant": "nobody"}, 404), ({"X-Tenant": "acme"}, 200)],
    ids=["missing", "empty", "unknown", "known"],
)
async def test_missing_tenant_is_400_and_unknown_tenant_is_404(
    world: World, headers: dict[str, str], status: int
) -> None:
    async with client(world, [Route("/", names)]) as http:
        http.headers.pop("X-Tenant")
        answer = await http.get("/", headers=headers)
    assert answer.status_code == status
    if status != 200:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status
        assert answer.json()["reference"]


async def test_the_statuses_can_be_configured(world: World) -> None:
    tenancy = {"resolve": [{"header": "X-Tenant"}], "missing": 401, "unknown": 403}
    async with client(world, [Route("/", names)], registry=world.registry(tenancy=tenancy)) as http:
        assert (await http.get("/", headers={"X-Tenant": "nobody"})).status_code == 403
        http.headers.pop("X-Tenant")
        assert (await http.get("/")).status_code == 401


async def test_a_problem_answers_head_without_a_body(world: World) -> None:
    async with client(world, [Route("/", names)]) as http:
        answer = await http.head("/", headers={"X-Tenant": "nobody"})
    assert answer.status_code == 404
    assert answer.content == b""
    assert int(answer.headers["content-length"]) > 0


async def test_exempt_paths_pass_without_tenant_and_session(world: World) -> None:
    async def health(request: Request) -> Response:
        try:
            session(request)
        except Exception as error:
            return Response(str(error))
        return Response("has a session")

    tenancy = {"resolve": [{"header": "X-Tenant"}], "exempt": ["/healthz"]}
    routes = [Route(path, health) for path in ("/healthz", "/healthz/deep", "/healthzz")]
    async with client(world, routes, registry=world.registry(tenancy=tenancy)) as http:
        http.headers.pop("X-Tenant")
        assert "no session in this request" in (await http.get("/healthz")).text
        assert (await http.get("/healthz/deep")).status_code == 200
        assert (await http.get("/healthzz")).status_code == 400


def test_an_invalid_configuration_is_reported_with_every_key_and_its_fix(world: World) -> None:
    config = world.config()
    config["datasources"]["orders"]["pool"] = {"max_size": "many", "min_sise": 1}
    config["tenants"]["acme"]["datasource"] = "ordres"
    config["transactions"] = {"retry": "often"}
    with pytest.raises(ConfigError) as caught:
        DataSourceMiddleware(lambda scope, receive, send: None, config=config)  # type: ignore[arg-type, return-value]
    message = str(caught.value)
    for part in (
        "datasources.orders.pool.max_size",
        "min_sise",
        "min_size",
        "tenants.acme.datasource",
        "'orders'",
        "transactions.retry",
    ):
        assert part in message, message


@pytest.mark.parametrize("arguments", [{}, {"config": {}, "registry": object()}])
def test_the_middleware_takes_a_configuration_or_a_registry(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="config= or registry="):
        DataSourceMiddleware(lambda scope, receive, send: None, **arguments)  # type: ignore[arg-type, return-value]


async def test_every_kind_of_resolver(world: World) -> None:
    tenancy = {
        "resolve": [
            {"header": "X-Tenant"},
            {"path_prefix": "/t"},
            {"subdomain_of": "desk.test"},
            {"callable": "tests.guarantees.test_input:from_query"},
        ]
    }
    routes = [Route("/", names, name="home"), Route("/deep/path", lambda r: Response(str(r.url_for("home"))))]
    async with client(world, routes, registry=world.registry(tenancy=tenancy)) as http:
        http.headers.pop("X-Tenant")

        async def path_of(answer: Any) -> Any:
            return (await answer).json()

        assert await path_of(http.get("/", headers={"X-Tenant": "acme"})) == '"acme"'
        assert await path_of(http.get("/t/globex/")) == '"globex"'
        assert await path_of(http.get("/", headers={"Host": "Globex.Desk.Test:8000"})) == '"globex"'
        assert await path_of(http.get("/?tenant=acme")) == '"acme"'
        assert (await http.get("/", headers={"Host": "a.b.desk.test"})).status_code == 400
        assert (await http.get("/")).status_code == 400
        url = httpx.URL((await http.get("/t/acme/deep/path")).text)
        assert url.path == "/t/acme/"


async def from_query(scope: Any) -> str | None:
    """A resolver function of an application."""
    name = dict(pair.split(b"=") for pair in scope["query_string"].split(b"&") if pair).get(b"tenant")
    return None if name is None else name.decode()
