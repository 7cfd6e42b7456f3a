"""The path that `match` in `routes` is compared with."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_datasource.sessions.policy import NO_RULE
from asgi_datasource.sessions.route_rules import CompiledRule, RouteRules, compile_pattern
from asgi_datasource.tenancy.path_prefix import route_path
from tests.apps import client
from tests.world import World


@pytest.mark.parametrize(
    ("path", "root", "wanted"),
    [
        ("/reports/hours", "", "/reports/hours"),
        ("/t/dl/reports/hours", "/t/dl", "/reports/hours"),
        ("/t/dl", "/t/dl", "/"),
        ("/t/dl/", "/t/dl", "/"),
        # Servers before version 2.3 of the ASGI specification do not include root_path in path.
        ("/reports/hours", "/api", "/reports/hours"),
        ("/apidocs", "/api", "/apidocs"),
    ],
)
def test_rules_match_the_path_after_root_path(path: str, root: str, wanted: str) -> None:
    assert route_path({"path": path, "root_path": root}) == wanted


def test_a_scope_without_root_path() -> None:
    assert route_path({"path": "/flights"}) == "/flights"


def rules(*matches: str) -> RouteRules:
    return RouteRules([CompiledRule(match, *compile_pattern(match), NO_RULE) for match in matches])


@pytest.mark.parametrize("match", ["/reports/**", "/reports/*", "/**"])
def test_a_decoded_line_break_evades_no_rule(match: str) -> None:
    found = rules(match)
    assert found.find("GET", "/reports/a\nb") is not None
    assert found.find("GET", "/reports/a\n") is not None
    assert rules("/reports").find("GET", "/reports\n") is None


@pytest.mark.parametrize(
    ("matches", "wanted"),
    [
        (["GET /x"], "GET /x"),
        (["POST /x", "GET /x", "/x"], "GET /x"),
        (["/x", "GET /x"], "/x"),
        (["* /x", "GET /x"], "* /x"),
        # One of its own, wherever that stands.
        (["GET /x", "HEAD /x"], "HEAD /x"),
        (["GET /x", "HEAD /**", "/x"], "HEAD /**"),
        (["HEAD /x", "GET /x"], "HEAD /x"),
        # A rule for all methods in front of it comes first, as ever.
        (["/x", "HEAD /x"], "/x"),
        (["POST /x"], None),
        (["GET /y"], None),
    ],
)
def test_head_follows_the_rule_of_get_unless_it_has_its_own(matches: list[str], wanted: str | None) -> None:
    found = rules(*matches).find("HEAD", "/x")
    assert (None if found is None else found.match) == wanted
    assert rules("HEAD /x").find("GET", "/x") is None


async def test_a_bound_of_get_holds_for_head(world: World) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def export(request: Request) -> Response:
        entered.set()
        await go_on.wait()
        return Response("rows")

    registry = world.registry(routes=[{"match": "GET /export", "max_in_flight": 1}])
    async with client(world, [Route("/export", export)], registry=registry) as http:
        first = asyncio.ensure_future(http.head("/export"))
        await entered.wait()
        for method in ("HEAD", "GET"):
            assert (await http.request(method, "/export")).status_code == 503
        go_on.set()
        assert (await first).status_code == 200
