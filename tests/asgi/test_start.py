"""A configuration, or an application, that cannot be served ends the server at its start, on each of them."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

import pytest

from asgi_datasource import ConfigError, DataSourceMiddleware
from asgi_datasource.testing.ports import reserve_port
from tests.asgi_call import Call

LIMIT_S = 120.0

WRONG = """
version: 1
datasources: {d: {primary: {url: "postgresql://app@127.0.0.1:1/x"}, pool: {max_sise: 3}}}
tenancy: {resolve: [{header: X-Tenant}], exempt: [/healthz]}
tenants: {a: {datasource: e}}
"""

# As README has it, so that the framework makes the middleware within the server's first call.
IN_THE_FRAMEWORK = """
from starlette.applications import Starlette
from starlette.middleware import Middleware
from asgi_datasource import DataSourceMiddleware

app = Starlette(middleware=[Middleware(DataSourceMiddleware, config="datasource.yaml")])
"""

AROUND_AN_APPLICATION_THAT_CANNOT_BE_BUILT = """
from starlette.applications import Starlette
from starlette.middleware import Middleware
from asgi_datasource import DataSourceMiddleware


class Auth:
    def __init__(self, app, key): self.app = app


right = {
    "version": 1,
    "datasources": {"d": {"primary": {"url": "postgresql://app@127.0.0.1:1/x"}}},
    "tenancy": {"resolve": [{"fixed": "t"}]},
    "tenants": {"t": {"datasource": "d"}},
}
app = DataSourceMiddleware(Starlette(middleware=[Middleware(Auth)]), config=right)
"""


COMMANDS = {
    "uvicorn": "uvicorn main:app --port {port}",
    "hypercorn": "hypercorn main:app --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi main:app --port {port}",
    "gunicorn": "gunicorn main:app -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}",
}
"""How each server is started."""


async def start(folder: Path, command: str, source: str) -> tuple[int, str]:
    """Start a server and wait for its end; its exit status and what it has printed."""
    port, reservation = reserve_port()
    reservation.close()
    program, *arguments = command.format(port=port).split()
    folder.mkdir()
    (folder / "main.py").write_text(source)
    (folder / "datasource.yaml").write_text(WRONG)
    root = str(Path(__file__).parents[2])
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / program),
        *arguments,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "PYTHONPATH": root},
        stdout=PIPE,
        stderr=STDOUT,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, printed.decode()


async def test_a_wrong_configuration_ends_every_server_with_all_diagnostics(tmp_path: Path) -> None:
    told = await asyncio.gather(
        *(start(tmp_path / name, command, IN_THE_FRAMEWORK) for name, command in COMMANDS.items())
    )
    for name, (status, printed) in zip(COMMANDS, told, strict=True):
        # hypercorn's own status is 0 here; that it has ended at all is what counts.
        assert status or name == "hypercorn", (name, printed)
        for diagnostic in ("datasources.d.pool.max_sise", "tenants.a.datasource"):
            assert diagnostic in printed, (name, printed)


async def test_an_application_that_cannot_be_built_ends_a_server_that_insists_on_lifespan(tmp_path: Path) -> None:
    command = COMMANDS["uvicorn"] + " --lifespan on"
    status, printed = await start(tmp_path / "uvicorn", command, AROUND_AN_APPLICATION_THAT_CANNOT_BE_BUILT)
    assert status, printed
    assert "missing 1 required positional argument: 'key'" in printed


async def test_without_lifespan_each_request_raises_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "datasource.yaml").write_text(WRONG)

    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("it was called")

    middleware = DataSourceMiddleware(app, config=tmp_path / "datasource.yaml")
    depths = []
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"max_sise(.|\n)*tenants\.a\.datasource") as caught:
            await Call().run(middleware)
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1
