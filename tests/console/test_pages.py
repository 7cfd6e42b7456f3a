"""The console in a real Chromium, of an application on real servers; and `top` in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Scope

from asgi_datasource import DataSourceMiddleware, DataSourceRegistry, compile, session
from asgi_datasource.cli import main
from asgi_datasource.console import Console
from asgi_datasource.testing import serve
from scripts.browser import Browser, Page
from tests.world import World

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas/console/v1.json").read_text())
HOSTILE = "<img src=x onerror=alert(1)>"
KEY = "the operators' key"


async def read(request: Request) -> Response:
    db = session(request)
    await db.fetch_value("select count(*) from orders where item <> %s", [request.query_params.get("item", "")])
    assert db.last_route is not None
    return JSONResponse({}, headers={"X-Node": db.last_route.node})


async def write(request: Request) -> Response:
    await session(request).execute("update parents set id = id where id = 1")
    return JSONResponse({})


class Operators:
    """Lets those pass who ask by the address, as long as it is open, and those with a token."""

    is_open = True

    async def __call__(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        if headers.get(b"authorization") == f"Bearer {KEY}".encode():
            return True
        return self.is_open and headers[b"host"].startswith(b"127.0.0.1")


@dataclass
class Shop:
    """An application with a console at `/ops`, whose configuration is a file."""

    world: World
    path: Path
    registry: DataSourceRegistry
    guard: Operators
    http: httpx.AsyncClient
    url: str

    async def nodes(self, count: int = 8) -> set[str]:
        """The servers of some reads."""
        return {(await self.http.get("/orders", headers={"X-Tenant": "acme"})).headers["X-Node"] for _ in range(count)}

    async def state(self) -> dict[str, Any]:
        found = (await self.http.get("/ops/state.json")).json()
        Draft202012Validator(SCHEMA).validate(found)
        return found

    async def has_alarm(self) -> None:
        """Wait until there is an alarm: a state is kept for a second."""
        async with asyncio.timeout(20):
            while not any(one["severity"] == "alarm" for one in (await self.state())["attention"]):
                await asyncio.sleep(0.1)


def config_of(world: World, **more: Any) -> dict[str, Any]:
    return world.config(tenancy={"resolve": [{"header": "X-Tenant"}], "exempt": ["/ops"]}, **more)


@asynccontextmanager
async def opened(world: World, folder: Path) -> AsyncIterator[Shop]:
    path = folder / "datasource.json"
    path.write_text(json.dumps(config_of(world)))
    registry, guard = compile(path), Operators()
    routes = [
        Route("/orders", read),
        Route("/parents", write, methods=["PUT"]),
        Mount("/ops", Console(registry, guard=guard)),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(DataSourceMiddleware, registry=registry)])
    async with serve(app) as server, httpx.AsyncClient(base_url=server.url, timeout=20.0) as http:
        yield Shop(world, path, registry, guard, http, server.url)


@pytest.fixture
async def shop(world: World, tmp_path: Path) -> AsyncIterator[Shop]:
    async with opened(world, tmp_path) as running:
        yield running


@asynccontextmanager
async def blocked(shop: Shop) -> AsyncIterator[None]:
    """A request that another application's transaction blocks."""
    url = shop.world.url()
    async with await psycopg.AsyncConnection.connect(url, application_name=HOSTILE) as other:
        await other.execute("insert into acme.parents values (1)")
        await other.commit()
        await other.execute("update acme.parents set id = id")
        waiting = asyncio.create_task(shop.http.put("/parents", headers={"X-Tenant": "acme"}))
        try:
            await shop.has_alarm()
            yield
        finally:
            await other.rollback()
            assert (await waiting).status_code == 200


async def test_an_operator_sees_what_blocks_and_drains_a_server_by_keyboard(shop: Shop, browser: Browser) -> None:
    assert await shop.nodes() == {"r1", "r2"}
    async with browser.page() as page:
        async with blocked(shop):
            await page.go(f"{shop.url}/ops")
            seen = await page.text()
            for words in ("orders", "replica", "balanced", "acme", "PUT /parents", "idle in transaction", "alarm"):
                assert words in seen
            # The name of another application is text.
            assert re.search(rf"is blocked for up to .* by pid \d+ \({re.escape(HOSTILE)}, idle in transaction, ", seen)
            assert await page.run("document.images.length") == 0
            assert (await page.run("document.title")).startswith("(1) ")
        # It refreshes itself, in place: the focus stays where it was.
        drain = "form[action=drain] input[value=r1] ~ button"
        await page.run(f"window.marked = document.querySelector('{drain}'), marked.focus()")
        await page.press("r")
        await page.until("!document.title.startsWith('(')")
        assert await page.run(f"marked === document.activeElement && marked === document.querySelector('{drain}')")
        assert "Nothing: every server is up" in await page.text("main")
        # A section by its number, then by Tab to the button of the first replica.
        await page.press("2")
        assert await page.run("document.activeElement.id") == "servers"
        for _ in range(12):
            await page.press("Tab")
            if await page.run("document.activeElement.title") == "Give orders.r1 no new reads":
                break
        await page.press("Enter", loads=True)
        assert "orders.r1 is drained: it gets no new reads" in await page.text("main")
        assert await shop.nodes() == {"r2"}
        await page.click("form[action=undrain] button")
        assert await shop.nodes() == {"r1", "r2"}
        await page.click("form[action=drain] input[value=primary] ~ button")
        assert "orders.primary takes the writes" in await page.text("[role=alert]")
        # What was refused is the only failed request; the policy was never violated.
        assert [one for one in page.complaints if "409" not in one] == []


async def test_the_page_follows_the_colours_of_the_system_and_says_when_it_is_not_current(
    shop: Shop, browser: Browser
) -> None:
    async def lightness(page: Page, scheme: Any) -> list[int]:
        await page.prefer(scheme)
        code = "[getComputedStyle(document.documentElement).backgroundColor, getComputedStyle(document.body).color]"
        return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in await page.run(code)]

    async with browser.page(width=700) as page:
        await page.go(f"{shop.url}/ops/")
        back, ink = await lightness(page, "light")
        assert back > 700 > 150 > ink
        back, ink = await lightness(page, "dark")
        assert back < 150 < 600 < ink
        # Nothing is wider than a narrow window; tables scroll by themselves.
        assert await page.run("document.documentElement.scrollWidth <= innerWidth")
        await page.press("p")
        assert await page.text("#live") == "Paused"
        # The guard's refusal of a later request is told.
        shop.guard.is_open = False
        await page.press("r")
        await page.until("document.getElementById('live').textContent === 'Not current: the console answers 403'")


async def test_a_reload_is_shown_before_it_is_applied(shop: Shop, browser: Browser) -> None:
    shop.registry.drain("orders", "r2")
    changed = config_of(shop.world, routing={"max_lag": "5s"})
    tenants = changed["tenants"]
    tenants["acme"], tenants["globex"] = tenants["globex"], tenants["acme"]
    async with browser.page() as page:
        await page.go(f"{shop.url}/ops/")
        await page.click("form[action=compare] button")
        assert "nothing would change" in await page.text("main")
        shop.path.write_text(json.dumps(changed))
        await page.go(f"{shop.url}/ops/")
        await page.click("form[action=compare] button")
        shown = await page.text("main")
        assert "moves from schema 'acme' to 'globex'" in shown
        assert "datasources.orders.routing.max_lag" in shown
        assert shop.registry.tenant("acme").schema == "acme"
        # The form cannot be sent without the consent; nor can it be forged.
        await page.run("document.querySelector('[name=accept]').required = false")
        await page.click("form[action=reload] button")
        assert "confirm that below the changes" in await page.text("[role=alert]")
        # Files that change after they were shown are not applied.
        await page.go(f"{shop.url}/ops/")
        await page.click("form[action=compare] button")
        shop.path.write_text(json.dumps({**changed, "transactions": {"deadline": "9s"}}))
        await page.run("document.querySelector('[name=accept]').click()")
        await page.click("form[action=reload] button")
        assert "its files have changed since" in await page.text("[role=alert]")
        shop.path.write_text("{")
        await page.go(f"{shop.url}/ops/")
        await page.click("form[action=compare] button")
        assert "datasource.json" in await page.text("[role=alert]")
        shop.path.write_text(json.dumps(changed))
        await page.go(f"{shop.url}/ops/")
        await page.click("form[action=compare] button")
        await page.run("document.querySelector('[name=accept]').click()")
        await page.click("form[action=reload] button")
        assert "the configuration was reloaded, 3 changes" in await page.text("main")
    assert shop.registry.tenant("acme").schema == "globex"
    # Who was drained stays drained, and the new configuration is recorded.
    before = await shop.state()
    assert await shop.nodes() == {"r1"}
    counts = shop.registry.observe().decisions(60)
    assert sum(counts.values()) == sum(row["last_min"] for row in before["decisions"]["rows"]) + 8


async def test_nothing_secret_is_shown(shop: Shop) -> None:
    planted = "planted-secret"
    await shop.http.get("/orders", params={"item": planted}, headers={"X-Tenant": "acme", "X-Key": planted})
    async with blocked(shop):
        bodies = [(await shop.http.get(path)).text for path in ("/ops/", "/ops/fragment", "/ops/state.json")]
    password = psycopg.conninfo.conninfo_to_dict(shop.world.url())["password"]
    for body in bodies:
        assert "acme" in body
        assert "update parents" not in body
        for secret in (planted, str(password)):
            assert secret not in body


async def test_top_prints_the_state_of_a_live_process(
    shop: Shop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.nodes(4)
    monkeypatch.setenv("OPERATORS_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "160")
    address = shop.url.replace("127.0.0.1", "localhost") + "/ops/"

    async def top(*options: str) -> tuple[int, str, str]:
        status = await asyncio.to_thread(main, ["top", address, "--once", *options])
        return status, *capsys.readouterr()

    status, out, err = await top()
    assert (status, out) == (2, "")
    assert "answers 403. Its guard wants more: give --token-env NAME" in err
    async with blocked(shop):
        status, out, err = await top("--token-env", "OPERATORS_KEY")
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"ready  {os.uname().nodename} pid {os.getpid()}, up ")
    assert re.search(
        r"^alarm  PUT /parents of acme on orders\.primary is blocked for up to [\d.]+ m?s by pid", out, re.M
    )
    assert re.search(r"^orders\.r1 +replica +up .* 0/5 ", out, re.M)
    assert re.search(r"^balanced +orders +r[12] +\d+ +\d+ +\d+$", out, re.M)
    assert re.search(r"^acme +[█░]+ +\d+% ", out, re.M)
    assert "\x1b" not in out
    status, out, _ = await top("--header", f"Authorization: Bearer {KEY}", "--format", "json")
    assert json.loads(out)["process"]["pid"] == os.getpid()
