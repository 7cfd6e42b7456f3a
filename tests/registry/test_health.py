"""`registry.health()` and `HealthApp`: what fails, why and since when, from what the process knows."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from asgi_datasource import ConfigError, DataSourceRegistry, compile, session
from asgi_datasource.health import Health, HealthApp
from tests.apps import client
from tests.drivers.polling import until
from tests.faults.servers import proxy_of, through
from tests.pools import lent, until_at_rest
from tests.world import World

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas/health/v1.json").read_text())


def registry_of(world: World, rule: Any, **config: Any) -> DataSourceRegistry:
    return world.registry(replicas=("r1",), health={"ready": rule}, **config)


def checked(health: Health) -> dict[str, Any]:
    """The document, which follows the published schema, also as JSON."""
    document: dict[str, Any] = json.loads(json.dumps(dict(health.document)))
    Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(document)
    assert health.is_ready is (document["status"] == "ready")
    return document


async def test_the_failing_pool_is_named_with_its_cause_and_since_when(world: World) -> None:
    async with proxy_of(world.cluster.primary) as proxy:
        registry = registry_of(world, "every_primary", urls={"primary": through(proxy, world.url())})

        async def home(request: Request) -> Response:
            return Response(str(await session(request).fetch_value("select 1")))

        routes = [Mount("/health", HealthApp(registry)), Route("/", home)]
        async with client(world, routes, registry=registry) as http:
            del http.headers["X-Tenant"]
            assert (await http.get("/health/live")).json() == {"status": "live"}

            async def is_ready() -> bool:
                return (await http.get("/health/ready")).status_code == 200

            await until(is_ready)
            await until_at_rest(registry)
            before, round_trips = lent(registry), proxy.round_trips
            answer = await http.get("/health/ready")
            assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
            assert checked(registry.health())["reasons"] == []
            assert (await http.head("/health/ready")).content == b""
            # Nothing was asked, although nothing else runs.
            assert (lent(registry), proxy.round_trips) == (before, round_trips)

            stopped_at = datetime.now(UTC).replace(microsecond=0)
            await proxy.stop()

            async def is_down() -> bool:
                return (await http.get("/health/ready")).status_code == 503

            await until(is_down)
            document = (await http.get("/health/ready")).json()
            [reason] = document["reasons"]
            assert reason.startswith("orders.primary is down since ")
            assert "Connection refused" in reason
            primary = next(one for one in document["datasources"]["orders"]["servers"] if one["role"] == "primary")
            assert datetime.fromisoformat(primary["since"]) >= stopped_at
            checked(registry.health())
            assert "password" not in json.dumps(document)
            # The process lives, and the wrong things are answered without a tenant as well.
            assert (await http.get("/health/live")).status_code == 200
            assert (await http.get("/health/other")).status_code == 404
            assert (await http.post("/health/ready")).status_code == 405
            assert (await http.get("/")).status_code == 400

            await proxy.start()
        assert registry.health().reasons == ("the registry is not open: the application is starting, or is shut down",)


async def test_the_rules(world: World) -> None:
    async with proxy_of(world.cluster.primary) as proxy:
        await proxy.stop()
        urls = {"primary": through(proxy, world.url())}
        for rule, is_ready in (("every_primary", False), ("any_server", True), ({"tenants": "50%"}, False)):
            async with registry_of(world, rule, urls=urls) as registry:
                orders = registry.datasources["orders"]
                await until(lambda servers=orders.servers: not servers["primary"].is_up and servers["r1"].was_reached)  # type: ignore[misc]
                health = registry.health()
                assert health.is_ready is is_ready, health.reasons
                assert checked(health)["tenants"] == {"known": 4, "served": 0}


async def test_tenants_of_a_datasource_that_is_up_count(world: World) -> None:
    async with proxy_of(world.cluster.primary) as proxy:
        document = world.config(replicas=(), health={"ready": {"tenants": "75%"}})
        document["datasources"]["other"] = {"primary": {"url": through(proxy, world.url())}}
        document["tenants"]["globex"]["datasource"] = "other"
        document["tenants"]["asleep"] = {"datasource": "other", "schema": "asleep", "state": "suspended"}
        registry = compile(document)
        await proxy.stop()
        async with registry:
            await until(lambda: not registry.datasources["other"].servers["primary"].is_up)
            await until(lambda: registry.datasources["orders"].servers["primary"].was_reached)
            assert checked(registry.health())["tenants"] == {"known": 4, "served": 3}
            assert registry.health().is_ready
            document["health"] = {"ready": {"tenants": "76%"}}
            await registry.reload(document)
            health = registry.health()
            assert health.reasons[0] == "3 of 4 tenants are served, 4 are needed"
            assert health.reasons[1].startswith("other.primary is down since ")
    with pytest.raises(ConfigError, match=r"expected every_primary, any_server, or \{tenants: 90%\}"):
        world.registry(health={"ready": {"tenants": 90}})
