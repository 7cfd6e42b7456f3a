"""Who gets into the console, and whose forms it takes; without servers."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.authentication import AuthCredentials
from starlette.responses import RedirectResponse
from starlette.types import Scope

from asgi_datasource import ConfigError, DataSourceRegistry, compile
from asgi_datasource.console import Console
from tests.asgi_call import Call
from tests.docs.samples import samples

ORIGIN = (b"origin", b"http://testserver")
HOST = (b"host", b"testserver")
FORM = (b"content-type", b"application/x-www-form-urlencoded")


def make_registry(**routing: Any) -> DataSourceRegistry:
    servers = {"primary": {"url": "host=db"}, "replicas": {"r1": {"url": "host=db1"}, "r2": {"url": "host=db2"}}}
    return compile(
        {"version": 1, "datasources": {"orders": {**servers, "routing": routing}}, "tenancy": {"default": "orders"}}
    )


def everybody(scope: Scope) -> bool:
    return True


def draining(registry: DataSourceRegistry) -> list[str]:
    return [node.name for node in registry.datasources["orders"].topology.replicas if node.is_draining]


async def get(console: Console, path: str = "/", method: str = "GET") -> Call:
    return await Call(method, path, headers=(HOST,)).run(console)


def header(call: Call, name: bytes) -> str:
    return next(value.decode() for key, value in call.sent[0]["headers"] if key == name)


async def form_of(console: Console) -> tuple[bytes, str]:
    """The cookie of a page, and the token of its forms."""
    page = await get(console)
    cookie = header(page, b"set-cookie").partition(";")[0]
    return cookie.encode(), page.body.decode().partition('name="token" value="')[2].partition('"')[0]


async def post(console: Console, action: str, *headers: tuple[bytes, bytes], **fields: str) -> Call:
    return await Call("POST", f"/{action}", headers=(HOST, FORM, *headers), body=urlencode(fields).encode()).run(
        console
    )


def test_a_console_without_a_guard_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs a guard: give Console\(guard=\.\.\.\) a function of the ASGI scope"):
        Console(make_registry())


async def test_the_guard_decides_before_anything_else() -> None:
    registry, seen = make_registry(), []

    async def only_operators(scope: Scope) -> bool:
        seen.append(scope["path"])
        return (b"x-operator", b"yes") in scope["headers"]

    console = Console(registry, guard=only_operators)
    for path in ("/", "/fragment", "/state.json", "/nothing", "/drain"):
        refused = await get(console, path)
        assert (refused.status, refused.body) == (403, b"forbidden")
    assert seen == ["/", "/fragment", "/state.json", "/nothing", "/drain"]
    shown = await Call("GET", "/", headers=((b"x-operator", b"yes"),)).run(console)
    assert shown.status == 200
    assert b"orders" in shown.body


@pytest.mark.parametrize("answer", [None, "yes", 1])
async def test_only_true_lets_a_request_pass(answer: Any) -> None:
    console = Console(make_registry(), guard=lambda scope: answer)
    assert (await get(console)).status == 403


async def test_a_guard_may_answer_itself() -> None:
    console = Console(make_registry(), guard=lambda scope: RedirectResponse("/login"))
    answer = await get(console)
    assert (answer.status, header(answer, b"location")) == (307, "/login")


async def test_a_form_needs_the_page_s_origin_and_its_token() -> None:
    registry = make_registry()
    console = Console(registry, guard=everybody)
    cookie, token = await form_of(console)
    _, others = await form_of(Console(registry, guard=everybody))
    own, form = (b"cookie", cookie), {"datasource": "orders", "server": "r1"}
    forged = [
        ([own, (b"origin", b"http://evil.example")], token),
        ([own, (b"origin", b"null")], token),
        ([own, (b"origin", b"http://[")], token),
        ([own, (b"sec-fetch-site", b"cross-site"), ORIGIN], token),
        ([own, (b"sec-fetch-site", b"same-site"), ORIGIN], token),
        ([own], token),
        ([own, ORIGIN], ""),
        ([own, ORIGIN], others),
        ([ORIGIN], token),
        ([(b"cookie", b"ads_console=stolen"), ORIGIN], token),
    ]
    for headers, sent in forged:
        answer = await post(console, "drain", *headers, token=sent, **form)
        assert (answer.status, draining(registry)) == (403, []), headers
    assert (await get(console, "/drain")).status == 405
    assert (await post(console, "drain", own, ORIGIN, token=token, **form)).status == 303
    assert draining(registry) == ["r1"]
    assert b"orders.r1 is drained: it gets no new reads" in (await get(console)).body
    renamed = Console(registry, guard=everybody, origins=["https://ops.example.com"])
    cookie, token = await form_of(renamed)
    headers = [(b"cookie", cookie), (b"origin", b"https://ops.example.com")]
    assert (await post(renamed, "undrain", *headers, token=token, **form)).status == 303
    assert draining(registry) == []


async def test_what_cannot_be_drained_is_refused_with_its_reason() -> None:
    registry = make_registry(no_replica="fail")
    console = Console(registry, guard=everybody)
    cookie, token = await form_of(console)

    async def drain(server: str) -> tuple[int, str]:
        headers = (b"cookie", cookie), ORIGIN
        answer = await post(console, "drain", *headers, token=token, datasource="orders", server=server)
        return answer.status, answer.body.decode()

    status, page = await drain("primary")
    assert status == 409
    assert "orders.primary takes the writes, and orders has no other server for them" in page
    assert (await drain("r1"))[0] == 303
    status, page = await drain("r2")
    assert status == 409
    assert "orders.r2 is the last replica in use" in page
    assert "there is no" not in page
    assert "no server &#x27;&lt;b&gt;&#x27;, only: primary, r1, r2" in (await drain("<b>"))[1]
    assert draining(registry) == ["r1"]


async def test_a_read_only_console_has_no_actions() -> None:
    registry = make_registry()
    console = Console(registry, guard=everybody, read_only=True)
    page = await get(console)
    assert b"<form" not in page.body
    assert (await post(console, "drain", ORIGIN, datasource="orders", server="r1")).status == 404
    assert draining(registry) == []


async def test_nothing_but_its_own_style_and_script_may_run() -> None:
    console = Console(make_registry(), guard=everybody)
    policies = set()
    for _ in range(2):
        page = await get(console)
        policy = header(page, b"content-security-policy")
        nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
        assert page.body.decode().count(f'nonce="{nonce}"') == 2
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        policies.add(policy)
    assert len(policies) == 2
    large = await post(console, "drain", ORIGIN, padding="x" * 20_000)
    assert large.status == 413
    assert (await get(console, "/", "HEAD")).body == b""


async def test_the_sample_of_the_page_runs() -> None:
    names: dict[str, Any] = {}
    exec(samples("python", "docs/console.md")[0].text, names)
    config = {
        "version": 1,
        "datasources": {"orders": {"primary": {"url": "host=db"}}},
        "tenancy": {"default": "orders"},
    }
    app = names["application"](config)
    assert (await Call("GET", "/ops/").run(app)).status == 403
    operator = AuthCredentials(["operator"])
    assert (await Call("GET", "/ops/", auth=operator, headers=(HOST,)).run(app)).status == 200
    moved = await Call("GET", "/ops", auth=operator, headers=(HOST,)).run(app)
    assert (moved.status, header(moved, b"location")) == (307, "http://testserver/ops/")


async def test_a_replica_of_all_databases_is_drained_at_once() -> None:
    servers = {"primary": {"url": "host=db dbname={tenant}"}, "replicas": {"r1": {"url": "host=db1 dbname={tenant}"}}}
    config = {"version": 1, "datasources": {"orders": servers}, "tenants": {"acme": {"datasource": "orders"}}}
    registry = compile(config)
    fleet = registry.compiled.fleets["orders"]
    before = fleet.member("acme")
    registry.drain("orders", "r1")
    known = [before, fleet.member("globex")]
    assert [member.topology.replicas[0].is_draining for member in known] == [True, True]
    with pytest.raises(ConfigError, match="has no server 'r2', only: primary, r1"):
        registry.drain("orders", "r2")
    console = Console(registry, guard=everybody)
    assert b"orders.r1 is drained in every database" in (await get(console)).body
    # Another size of the pool makes another fleet, which takes over what was drained.
    await registry.reload({**config, "datasources": {"orders": {**servers, "pool": {"max_size": 3}}}})
    again = registry.compiled.fleets["orders"]
    assert again is not fleet
    assert again.member("acme").topology.replicas[0].is_draining
    registry.undrain("orders", "r1")
    assert not again.member("acme").topology.replicas[0].is_draining
