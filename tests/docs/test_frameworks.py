"""The samples of the page about frameworks: each application serves requests, and `manage.py datasource` runs."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.asgi_call import Call
from tests.docs.samples import ROOT, samples
from tests.world import World

PAGE = "docs/frameworks.md"


def sample(mark: str) -> str:
    """The sample of the page that contains this text."""
    return next(found.text for found in samples("python", PAGE) if mark in found.text)


async def post(app: Any, tenant: bytes = b"acme", **call: Any) -> Call:
    return await Call(
        "POST", "/orders", headers=[(b"x-tenant", tenant), (b"content-type", b"application/json")], **call
    ).run(app)


@pytest.fixture
def folder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the configuration."""
    [tenancy] = [yaml.safe_load(found.text)["tenancy"] for found in samples("yaml", PAGE)]
    # Written as JSON, which is YAML.
    (tmp_path / "datasource.yaml").write_text(json.dumps(world.config(replicas=(), tenancy=tenancy)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("mark", "refused"),
    [
        ("from starlette.app", b"Sorry: tenant"),
        ("app = FastAPI()", b'{"type": "urn:asgi-datasource:problem:tenant"'),
        ("app = Litestar(", b'{"sorry":"tenant"}'),
        ("app = cors(Quart(", b'{"sorry":"tenant"}'),
    ],
    ids=["starlette", "fastapi", "litestar", "quart"],
)
async def test_the_applications_of_the_page(
    world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, mark: str, refused: bytes
) -> None:
    # Frameworks look types up in the module, and Quart its folder.
    (folder / "sample.py").write_text(sample(mark))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "sample", raising=False)
    module = importlib.import_module("sample")
    app = module.app
    origin = [(b"origin", b"https://shop.example"), (b"access-control-request-method", b"POST")]
    async with Lifespan(app):
        placed = await post(app, query_string=b"item=tea", body=b'{"item": "tea"}')
        assert (placed.status, json.loads(placed.body)) == (201, {"item": "tea"})
        report = await Call("GET", "/report").run(app)
        assert json.loads(report.body) in (["tea"], [{"item": "tea"}])
        assert (await post(app, b"nobody", body=b"{}")).body.startswith(refused)
        preflight = await Call("OPTIONS", "/orders", headers=origin).run(app)
        assert dict(preflight.sent[0]["headers"])[b"access-control-allow-origin"] == b"https://shop.example"
        if "FastAPI" in mark:
            assert (await Call("GET", "/openapi.json", headers=[]).run(app)).status == 200
            exec(sample("dependency_overrides"), vars(module))
            faked = await post(app, query_string=b"item=milk")
            assert json.loads(faked.body) == {"item": "fake milk"}
    assert await world.items() == ["tea"]


class Lifespan:
    """Runs the lifespan of an application around the block."""

    def __init__(self, app: Any) -> None:
        import asyncio

        self._app = app
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._sent: asyncio.Queue[Any] = asyncio.Queue()

    async def __aenter__(self) -> None:
        import asyncio

        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._inbox.get, self._sent.put))
        await self._say("startup")

    async def __aexit__(self, *_: object) -> None:
        await self._say("shutdown")
        await self._task

    async def _say(self, word: str) -> None:
        self._inbox.put_nowait({"type": f"lifespan.{word}"})
        assert (await self._sent.get())["type"] == f"lifespan.{word}.complete"


DRIVE = """
import asyncio, json, sys
from asgi import application
from django.core.management import execute_from_command_line
from tests.asgi_call import Call
from tests.docs.test_frameworks import Lifespan

async def main():
    async with Lifespan(application):
        found = []
        for method, path, headers in [
            ("POST", "/orders", [(b"x-tenant", b"acme")]),
            ("POST", "/orders", [(b"x-tenant", b"acme")]),
            ("GET", "/report", [(b"x-tenant", b"acme")]),
            ("GET", "/nowhere", [(b"x-tenant", b"nobody"), (b"origin", b"https://shop.example")]),
        ]:
            call = await Call(method, path, headers=headers).run(application)
            names = {name.lower() for name, _ in call.sent[0]["headers"]}
            found.append([call.status, call.body.decode(), b"access-control-allow-origin" in names])
    print(json.dumps(found))

asyncio.run(main())
execute_from_command_line(sys.argv)
"""


def test_the_project_of_django(folder: Path, world: World) -> None:
    for name in ("settings", "asgi", "urls"):
        (folder / f"{name}.py").write_text(sample(f"# {name}.py"))
    [command] = [found.text for found in samples("console", PAGE)]
    arguments = shlex.split(command)[3:]
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, *arguments],
        cwd="/",
        env={"PYTHONPATH": f"{folder}:{ROOT}", "DJANGO_SETTINGS_MODULE": "settings", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    served, explained = done.stdout.split("\n", 1)
    placed, twice, report, refused = json.loads(served)
    assert placed == [201, '{"item": "tea"}', False]
    assert (twice[0], json.loads(twice[1])["kind"]) == (409, "constraint")
    assert report == [200, '[{"item": "tea"}]', False]
    assert (refused[0], json.loads(refused[1])["kind"], refused[2]) == (404, "tenant", True)
    assert explained.startswith("GET /orders → primary")
