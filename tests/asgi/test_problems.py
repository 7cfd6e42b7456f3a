"""How errors are rendered: by the application's handlers, by `errors.handler`, by the page for browsers."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, DataSourceMiddleware, Problem, session
from asgi_datasource.asgi.missing_tenant_page import accepts_html, render_page
from asgi_datasource.tenancy.ways import Way
from tests.asgi_call import Call
from tests.world import World

FIREFOX = (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")


async def place(request: Request) -> Response:
    await session(request).execute("insert into orders (item) values ('tea')")
    return Response(status_code=201)


async def orphan(request: Request) -> Response:
    await session(request).execute("insert into children (parent) values (99)")
    return Response(status_code=201)


ROUTES = [Route("/", place, methods=["GET", "POST"]), Route("/orphan", orphan, methods=["POST"])]


async def data_error(request: Request, error: DataError) -> Response:
    assert isinstance(request.app, Starlette)
    return PlainTextResponse(f"own: {error.kind}", error.http_status)


def by_status(request: Request, error: Any) -> Response:
    return PlainTextResponse(f"own: {error.detail}", error.status_code, error.headers)


def inside(registry: Any, **options: Any) -> Any:
    return Starlette(routes=ROUTES, middleware=[Middleware(DataSourceMiddleware, registry=registry)], **options)


def outside(registry: Any, **options: Any) -> Any:
    app = CORSMiddleware(Starlette(routes=ROUTES, **options), allow_origins=["*"])
    return DataSourceMiddleware(app, registry=registry)


def in_fastapi(registry: Any, exception_handlers: dict[Any, Any]) -> Any:
    app = FastAPI(exception_handlers=exception_handlers)
    app.router.routes.extend(ROUTES)
    app.add_middleware(DataSourceMiddleware, registry=registry)
    return app


def named(name: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"x-tenant", name)]


def headers_of(call: Call) -> dict[bytes, bytes]:
    return dict(call.sent[0]["headers"])


@pytest.mark.parametrize("make", [inside, outside, in_fastapi])
async def test_every_error_reaches_the_handlers_of_the_application(world: World, make: Any) -> None:
    async with world.registry() as registry:
        app = make(registry, exception_handlers={DataError: data_error})
        for status, body, call in [
            (400, b"own: tenant", Call("GET", headers=[])),
            (404, b"own: tenant", Call("GET", headers=named(b"nobody"))),
            (409, b"own: constraint", Call(path="/orphan")),
            (201, b"", Call()),
            (409, b"own: constraint", Call()),
        ]:
            await call.run(app)
            assert (call.status, call.body) == (status, body)
            assert (headers_of(call).get(b"vary") == b"X-Tenant") is (call.scope["method"] == "GET")


async def succeed(request: Request, error: Any) -> Response:
    return PlainTextResponse("all is well")


@pytest.mark.parametrize("path", ["/orphan", "/"])
async def test_no_handler_answers_a_failure_as_a_success(
    world: World, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed COMMIT, and an error that leaves the application: the problem document is sent in their place."""
    async with world.registry() as registry:
        app = inside(registry, exception_handlers={409: succeed})
        await Call().run(app)
        call = await Call(path=path).run(app)
        assert call.status == 409
        assert b"urn:asgi-datasource:problem:constraint" in call.body
        assert "status 200, as if the request had succeeded" in caplog.text


async def test_handlers_of_a_status_get_every_error_of_that_status(world: World) -> None:
    async with world.registry(errors={"status": {"tenant": 503}}) as registry:
        app = inside(registry, exception_handlers={503: by_status, 409: by_status})
        call = await Call(headers=[]).run(app)
        assert (call.status, call.body) == (503, b"own: The tenant could not be served")
        assert headers_of(call)[b"retry-after"] == b"1"
        await Call().run(app)
        for path in ("/", "/orphan"):
            call = await Call(path=path).run(app)
            assert (call.status, call.body) == (409, b"own: The data breaks a rule; nothing was changed")


async def test_a_request_over_its_bound_reaches_the_handlers(world: World) -> None:
    inner: list[Call] = []

    async def twice(request: Request) -> Response:
        if not inner:
            inner.append(Call("GET"))
            await inner[0].run(app)
        return Response()

    async with world.registry(routes=[{"match": "/", "max_in_flight": 1}]) as registry:
        middleware = [Middleware(DataSourceMiddleware, registry=registry)]
        app = Starlette(routes=[Route("/", twice)], middleware=middleware, exception_handlers={DataError: data_error})
        assert (await Call("GET").run(app)).status == 200
    assert (inner[0].status, inner[0].body) == (503, b"own: resource")


def render(scope: Any, problem: Problem) -> Any:
    """What `errors.handler` names."""
    match scope["path"]:
        case "/triple":
            return problem.status, {"X-Kind": problem.error.kind.value}, f"{problem.title} [{problem.reference}]"
        case "/redirect":
            return RedirectResponse("/choose")
        case "/broken":
            raise KeyError
        case "/orphan":
            return PlainTextResponse("all is well")
        case _:
            return None


async def render_later(scope: Any, problem: Problem) -> Any:
    """The same, async."""
    return HTMLResponse(f"<h1>{problem.error.constraint}</h1>", problem.status)


async def test_a_function_of_the_configuration_renders_errors(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async with world.registry(errors={"handler": f"{__name__}:render"}) as registry:
        app = inside(registry)
        with caplog.at_level(logging.INFO, "asgi_datasource.problems"):
            triple = await Call(path="/triple", headers=[]).run(app)
            assert (triple.status, headers_of(triple)[b"x-kind"]) == (400, b"tenant")
            assert triple.body.decode().rpartition(" [")[2][:-1] in caplog.text
            assert (await Call(path="/redirect", headers=[]).run(app)).status == 307
            # It has nothing to say, fails, or would report success for what was rolled back.
            for path, headers, status in [("/", [], 400), ("/broken", [], 400), ("/orphan", named(b"acme"), 409)]:
                call = await Call(path=path, headers=headers).run(app)
                assert call.status == status
                assert headers_of(call)[b"content-type"] == b"application/problem+json"
        assert caplog.text.count("errors.handler failed") == 2
        # The application's own handlers come first.
        own = inside(registry, exception_handlers={DataError: data_error})
        assert (await Call(path="/triple", headers=[]).run(own)).body == b"own: tenant"
    async with world.registry(errors={"handler": f"{__name__}:render_later"}) as registry:
        call = await Call(path="/orphan").run(inside(registry))
        assert (call.status, call.body) == (409, b"<h1>children_parent_fkey</h1>")


RESOLVERS = [
    {"header": "X-Tenant"},
    {"subdomain_of": "app.example.com"},
    {"domain": {"secret-customer.example": "acme"}},
    {"path_prefix": "/t", "paths": ["/t", "/<u>"]},
    {"query": "tenant"},
    {"cookie": "tenant"},
    {"jwt_claim": {"claim": "org.id", "algorithms": ["HS256"], "key": "top-secret-top-secret-top-secret"}},
    {"callable": f"{__name__}:resolve"},
]


def resolve(scope: Any) -> None:
    """A resolver that finds nothing."""


async def test_a_browser_is_told_how_to_name_a_tenant(world: World) -> None:
    def get(*headers: tuple[bytes, bytes], method: str = "GET") -> Call:
        return Call(method, headers=headers)

    async with world.registry(tenancy={"resolve": RESOLVERS}) as registry:
        app = inside(registry)
        page = await get(FIREFOX).run(app)
        assert page.status == 400
        headers = headers_of(page)
        assert headers[b"content-type"] == b"text/html; charset=utf-8"
        assert b"Accept" in headers[b"vary"]
        assert headers[b"cache-control"].startswith(b"no-store")
        text = page.body.decode()
        for way in (
            "X-Tenant: NAME",
            "NAME.app.example.com",
            "/t/NAME/",
            "?tenant=NAME",
            "tenant=NAME",
            "Authorization: Bearer TOKEN",
            "(below <code>/t</code>, <code>/&lt;u&gt;</code>)",
        ):
            assert way in text
        for hidden in ("secret", "acme", "org.id", "resolve"):
            assert hidden not in text
        assert (await get(FIREFOX, method="HEAD").run(app)).body == b""
        # Neither a program, nor another error, gets the page; a cache must tell the first of them from a browser.
        program = await get((b"accept", b"*/*")).run(app)
        assert (program.body[:1], b"Accept" in headers_of(program)[b"vary"]) == (b"{", True)
        unknown = await get(FIREFOX, *named(b"nobody")).run(app)
        assert (unknown.status, unknown.body[:1]) == (404, b"{")
    for tenancy in ({"missing_page": False}, {"hide_unknown": True}):
        async with world.registry(tenancy={"resolve": RESOLVERS, **tenancy}) as registry:
            assert (await get(FIREFOX).run(inside(registry))).body[:1] == b"{"


@pytest.mark.parametrize(
    ("accept", "is_wanted"),
    [
        (b"text/html", True),
        (b"*/*", False),
        (b"", False),
        (b"text/html;q=0", False),
        (b"text/html;q=x", False),
        (b"TEXT/HTML; q=0.5, application/json;q=0.4", True),
        (b"text/html;q=0.4, application/json", False),
        (b"application/problem+json, text/html;q=0.9", False),
    ],
)
def test_html_is_sent_where_it_is_asked_for_by_name(accept: bytes, is_wanted: bool) -> None:
    assert accepts_html({"headers": [(b"accept", accept)]}) is is_wanted


def test_the_page_escapes_what_the_configuration_says() -> None:
    page = render_page([Way("A cookie", "<script>=NAME")], "<b>").decode()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<ul>" not in render_page((), "1").decode()


def test_a_problem_says_what_the_library_would_answer() -> None:
    problem = Problem(DataError(DataErrorKind.CONFLICT, "x"), 409, {"title": "T", "reference": "r"}, ())
    assert (problem.title, problem.reference, problem.body) == ("T", "r", b'{"title": "T", "reference": "r"}')
