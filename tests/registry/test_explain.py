"""`explain` predicts what a request gets: tenant, rule, server and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import AccessIntent, ConfigError, DataSourceRegistry, Reason, compile, session
from asgi_datasource.datasource.datasource import ReplicatedDataSource
from tests.apps import client
from tests.drivers.polling import until
from tests.world import World

SCHEMAS = Path(__file__).parents[2] / "schemas"
SECRET = "a secret that only the service knows"


def valid(name: str, document: Any) -> Any:
    """The document after a round trip through JSON, validated against the published schema."""
    document = json.loads(json.dumps(document))
    Draft202012Validator(json.loads((SCHEMAS / name / "v1.json").read_text())).validate(document)
    return document


async def first_statement(request: Request) -> Response:
    db = session(request)
    await db.fetch_value("select 1")
    route = db.last_route
    assert route is not None
    return JSONResponse([db.tenant.name, route.node, route.reason])


async def write(request: Request) -> Response:
    await session(request).write.execute("insert into orders (item) values (gen_random_uuid())")
    return await first_statement(request)


ROUTES: list[Any] = [
    Route("/write", write, methods=["POST"]),
    Route("/{path:path}", first_statement, methods=["GET", "POST", "DELETE"]),
]
RULES = [
    {"match": "POST /search", "intent": "read"},
    {"match": "GET /basket", "consistency": "strong"},
    {"match": "GET /eventual", "consistency": "eventual"},
    {"match": "GET /report", "read_only": True},
    {"match": "GET /audit", "read_only": True, "isolation": "serializable"},
    {"match": "GET /lock", "isolation": "repeatable read"},
    {"match": "POST /each", "propagation": "not_supported"},
    {"match": "GET /fresh/**", "max_lag": "60s"},
    {"match": "GET /never", "max_lag": "1ms"},
]


def config_of(world: World, **routing: Any) -> dict[str, Any]:
    config = world.config(
        routing={"check_interval": "100ms", **routing},
        routes=RULES,
        # Long enough for a replica to catch up on any machine.
        consistency={"token": "cookie", "secret": SECRET, "wait": "20s"},
    )
    config["tenancy"]["resolve"].append({"path_prefix": "/t"})
    config["tenancy"]["exempt"] = ["/healthz"]
    config["tenants"]["initech"]["state"] = "suspended"
    config["tenants"]["umbrella"]["state"] = "read_only"
    return config


async def knows(registry: DataSourceRegistry) -> None:
    """Wait until the replicas' positions are known, then stop polling so that the topology stays the same."""
    orders = registry.datasources["orders"]
    assert isinstance(orders, ReplicatedDataSource)
    await until(lambda: all(None not in (node.position, node.fresh_at) for node in orders.topology.replicas))
    orders._monitor.stop()


@pytest.mark.parametrize("balance", ["round_robin", "weighted", "least_busy"])
async def test_requests_go_to_the_explained_server_for_the_explained_reason(world: World, balance: str) -> None:
    registry = compile(config_of(world, balance=balance))
    async with client(world, ROUTES, registry=registry) as http:
        await http.get("/start")
        await knows(registry)
        seen: set[Reason] = set()
        for method, path in [
            ("GET", "/"),
            ("GET", "/orders"),
            ("POST", "/orders"),
            ("DELETE", "/orders/1"),
            ("POST", "/search"),
            ("GET", "/basket"),
            ("GET", "/report"),
            ("GET", "/audit"),
            ("GET", "/lock"),
            ("POST", "/each"),
            ("GET", "/fresh/a/b?c=d"),
            ("GET", "/never"),
            ("GET", "/t/globex/orders"),
            ("GET", "/t/globex/basket"),
            ("POST", "/write"),
            ("GET", "/orders"),
            ("GET", "/eventual"),
        ]:
            cookies = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
            headers = {} if path.startswith("/t/") else {"X-Tenant": "acme"}
            explained = await registry.explain(method, path, headers={**headers, "Cookie": cookies})
            assert explained.route is not None, (path, explained.refusal)
            del http.headers["X-Tenant"]
            response = await http.request(method, path, headers=headers)
            http.headers["X-Tenant"] = "acme"
            assert response.status_code == 200, response.text
            tenant, node, reason = response.json()
            if method != "GET" or path == "/lock":
                # The statement that reports the route runs in the transaction of the first one.
                reason = reason if reason not in ("transaction", "pinned") else "write"
            assert explained.tenant is not None
            assert (explained.tenant.name, explained.route.node, explained.route.reason.value) == (
                tenant,
                node,
                reason,
            ), path
            seen.add(explained.route.reason)
            valid("explain", explained.document())
        assert seen == {Reason.BALANCED, Reason.WRITE, Reason.STRONG, Reason.LAGGING, Reason.PROVED}


async def test_explain_offline_matches_by_the_exported_state(world: World) -> None:
    config = config_of(world, balance="least_busy")
    async with compile(config) as registry:
        orders = registry.datasources["orders"]
        assert isinstance(orders, ReplicatedDataSource)
        await knows(registry)
        orders.drain("r2")
        state = valid("state", registry.state())
        servers = state["datasources"]["orders"]["servers"]
        assert {name: explained["role"] for name, explained in servers.items()} == {
            "primary": "primary",
            "r1": "replica",
            "r2": "replica",
        }
        assert servers["r2"]["draining"] is True
        assert {"timeline", "lsn", "lag_s", "age_s", "rtt_s"} <= set(servers["r1"])
        elsewhere = compile(config)
        for request in ({}, {"token": "1:0/1"}, {"token": "9:0/1"}, {"sticky": "r1"}, {"is_pinned": True}):
            here = await registry.explain("GET", "/orders", tenant="acme", **request)
            there = await elsewhere.explain("GET", "/orders", tenant="acme", state=state, **request)
            assert there.route is not None
            assert here.document() == there.document()


async def test_a_refusal_is_explained(world: World) -> None:
    registry = compile(config_of(world))

    async def refused(method: str = "GET", path: str = "/x", **request: Any) -> tuple[int, str]:
        explained = await registry.explain(method, path, **request)
        assert explained.refusal is not None
        document = valid("explain", explained.document())
        assert document["outcome"] == "refused"
        return document["refusal"]["status"], document["refusal"]["message"]

    assert await refused() == (400, "the request names no tenant")
    assert await refused(tenant="nobody") == (404, "there is no such tenant")
    assert await refused(headers={"X-Tenant": "NO BODY"}) == (400, "the request's tenant is not a valid tenant name")
    assert await refused(tenant="initech") == (403, "the tenant is suspended")
    assert await refused("POST", tenant="umbrella") == (403, "the tenant is read only at the moment")
    assert (await registry.explain("GET", "/x", tenant="umbrella")).route is not None
    assert await refused(path="/report", tenant="acme", intent=AccessIntent.WRITE) == (
        500, "the transaction is read only",
    )  # fmt: skip
    exempt = await registry.explain("GET", "/healthz/live")
    assert exempt.is_exempt
    assert valid("explain", exempt.document())["outcome"] == "exempt"
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"}
    assert (await registry.explain("OPTIONS", "/x", headers=asked)).is_exempt
    assert await refused("OPTIONS", headers={"Origin": "https://shop.example"}) == (400, "the request names no tenant")


async def test_no_server_is_eligible(world: World) -> None:
    registry = compile(config_of(world, no_replica="fail"))
    down = {"version": 1, "datasources": {"orders": {"servers": {name: {"breaker": "open"} for name in ("r1", "r2")}}}}
    explained = await registry.explain("GET", "/x", tenant="acme", state=down)
    document = valid("explain", explained.document())
    assert (document["outcome"], document["refusal"]["status"]) == ("refused", 503)
    assert [server["verdict"] for server in document["servers"]] == ["down", "down", "spared"]


async def test_the_effect_of_a_token_is_explained(world: World) -> None:
    registry = compile(config_of(world))
    signer = registry.compiled.policy.tokens
    assert signer is not None
    async with registry, registry.session(tenant="acme") as db:
        await db.execute("insert into orders (item) values ('tea')")
    assert db.token is not None

    async def why(path: str = "/x", **request: Any) -> tuple[str | None, str]:
        explained = await registry.explain("GET", path, **{"tenant": "acme", **request})
        assert explained.token is not None
        return None if explained.token.position is None else str(explained.token.position), explained.token.why

    position, text = await why(token=db.token)
    assert text == f"the client has seen {position}"
    assert await why(headers={"Cookie": f"ads_token={db.token}"}) == (position, text)
    assert await why(token=position) == (position, text)
    assert await why("/eventual", token=db.token) == (
        None, f"{text}, but consistency: eventual does not ask for that",
    )  # fmt: skip
    assert await why(token=db.token, tenant="globex") == (
        None, "it is of another tenant or datasource, or older than consistency.ttl: it asks for nothing here",
    )  # fmt: skip
    # Another character of the signature: of the last one, only some bits count.
    other = "B" if db.token[-5] == "A" else "A"
    assert await why(token=db.token[:-5] + other + db.token[-4:]) == (
        None, "none of the secrets has signed it: it is ignored",
    )  # fmt: skip
    without = compile(world.config())
    explained = await without.explain("GET", "/x", tenant="acme", token=db.token)
    assert explained.token is not None
    assert explained.token.why == "consistency.token is off: it is not looked at"


@pytest.mark.parametrize(
    ("datasources", "message"),
    [
        ({"shop": {}}, "the state names a datasource 'shop'; the configuration has orders"),
        (
            {"orders": {"servers": {"r9": {}}}},
            "the state names a server 'r9' of 'orders'; the configuration has r1, r2",
        ),
        ({"orders": {"servers": {"r1": {"role": "primary"}}}}, "orders.r1 is the primary by the state, and not by the"),
    ],
)
async def test_a_state_with_other_servers_is_refused(world: World, datasources: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await compile(config_of(world)).explain(state={"version": 1, "datasources": datasources})


async def test_a_database_per_tenant_has_its_own_servers() -> None:
    registry = compile(
        {
            "version": 1,
            "datasources": {
                "each": {
                    "primary": {"url": "postgresql://app@db/{tenant}"},
                    "replicas": {"r1": {"url": "postgresql://app@r1/{tenant}"}},
                }
            },
            "tenancy": {"resolve": [{"header": "X-Tenant"}]},
            "tenants": {"*": {"datasource": "each"}},
        }
    )
    state = {"version": 1, "datasources": {"each": {"servers": {"r1": {"breaker": "open"}}}}}
    explained = await registry.explain("GET", "/x", headers={"X-Tenant": "acme"}, state=state)
    assert explained.route is not None
    assert (explained.route.node, explained.route.reason) == ("primary", Reason.UNHEALTHY)
