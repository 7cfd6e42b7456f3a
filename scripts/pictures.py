"""`scripts/screenshots`: pictures of the console, of a real application in real trouble."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import random
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import httpx
import psycopg

from asgi_datasource.cli import main as main_of_top
from asgi_datasource.testing import EmbeddedCluster, serve
from examples.starlette_app import changes, dataset, demo
from scripts.browser import Browser, Page

DOCS: Final = Path(__file__).parent.parent / "docs"
APPLICATION: Final = Path(demo.__file__).parent
DAY: Final = "2013-08-28"
AIRLINES: Final = ("ua", "dl", "dl", "dl", "dl", "aa", "aa", "b6", "ev", "mq", "wn", "us", "9e")


async def read(http: httpx.AsyncClient) -> None:
    """Requests of all airlines, without end."""
    while True:
        headers = {"X-Tenant": random.choice(AIRLINES)}  # noqa: S311
        path = random.choice(("/flights", "/flights", "/reports/hours", "/reports/summary"))  # noqa: S311
        with contextlib.suppress(httpx.HTTPError):
            found = await http.get(path, params={"date": DAY, "limit": 3}, headers=headers)
            if path == "/flights" and found.status_code == 200 and found.json() and random.random() < 0.3:  # noqa: S311
                note = {"body": "Gate changed to B12"}
                await http.post(f"/flights/{found.json()[0]['id']}/notes", json=note, headers=headers)
        await asyncio.sleep(random.uniform(0, 0.08))  # noqa: S311


@asynccontextmanager
async def locked(cluster: EmbeddedCluster, http: httpx.AsyncClient) -> AsyncIterator[None]:
    """A person at a terminal has changed flights and not committed: requests wait for that."""
    flights = (await http.get("/flights", params={"date": DAY, "limit": 3}, headers={"X-Tenant": "dl"})).json()
    url = cluster.primary.url("airlines", user="postgres")
    async with await psycopg.AsyncConnection.connect(url, application_name="psql") as person:
        await person.execute("update dl.flights set tailnum = tailnum where id = %s", [flights[0]["id"]])
        waiting = [
            asyncio.create_task(
                http.post(f"/flights/{flights[0]['id']}/cancel", json={"reason": "fog"}, headers={"X-Tenant": "dl"})
            )
            for _ in range(2)
        ]
        try:
            yield
        finally:
            await person.rollback()
            await asyncio.gather(*waiting, return_exceptions=True)


async def picture(page: Page, scheme: Literal["dark", "light"], path: Path) -> None:
    """Take the page as it is."""
    await page.prefer(scheme)
    path.write_bytes(await page.screenshot(format="webp", quality=50))  # noqa: ASYNC240 - nothing else runs here


def change(path: Path) -> None:
    """Change a configuration: another size of a pool, a replica less, a bound of the lag, and a tenant less."""
    text = path.read_text("utf-8")
    for before, after in (
        ("max_size: 10", "max_size: 6"),
        ('      r2: {url: "${AIRLINES_R2_URL}"}\n', ""),
        ("    search_path: [ref]              #", "    routing: {max_lag: 5s}\n    search_path: [ref]  #"),
        ("  f9: {", "  # f9: {"),
    ):
        if before not in text:
            raise ValueError(f"{path}: there is no {before!r} to change")
        text = text.replace(before, after, 1)
    path.write_text(text, encoding="utf-8")


async def run(folder: Path, seconds: float) -> None:
    """Start everything, wait for some traffic, and take the pictures."""
    with EmbeddedCluster(replicas=2) as cluster, Browser() as browser, TemporaryDirectory() as copies:
        await demo.fill(cluster, dataset.subset(), demo.Console())
        os.environ |= {**demo.environment(cluster), changes.URL: "http://127.0.0.1:9/ui/changes"}
        os.environ[changes.SECRET] = "whsec_" + base64.b64encode(bytes(32)).decode()
        # A copy of the application, whose configuration may be changed.
        copy = Path(shutil.copytree(APPLICATION, Path(copies) / APPLICATION.name))
        sys.path.insert(0, copies)
        app = import_module(f"{APPLICATION.name}.app").app
        async with (
            serve(app) as server,
            httpx.AsyncClient(base_url=server.url, timeout=20) as http,
            browser.page(width=1240) as page,
        ):
            readers = [asyncio.create_task(read(http)) for _ in range(6)]
            await asyncio.sleep(seconds)
            await cluster.nodes["r2"].stop("immediate")
            await page.go(f"{server.url}/ui/ops/")
            await asyncio.sleep(6)
            async with locked(cluster, http):
                await page.until("document.getElementById('state').innerText.includes('is blocked for up to')")
                await picture(page, "light", folder / "console-light.webp")
                await picture(page, "dark", folder / "console-dark.webp")
                await asyncio.to_thread(main_of_top, ["top", f"{server.url}/ui/ops", "--once", "--color", "never"])
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
            change(copy / "datasource.yaml")
            await page.go(f"{server.url}/ui/ops/")
            await page.click("form[action=compare] button")
            await picture(page, "light", folder / "console-reload.webp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the pictures; `top` is printed, for the page about it."""
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("--folder", type=Path, default=DOCS, help="where they are written; default: docs")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of traffic; default: 60")
    options = parser.parse_args(arguments)
    os.environ.setdefault("COLUMNS", "150")
    asyncio.run(run(options.folder, options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
