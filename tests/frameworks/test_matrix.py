"""Each framework on each server: the same checks over HTTP. Without `--whole`, a diagonal of the matrix."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from asgi_datasource.testing.ports import reserve_port
from tests.drivers.polling import until
from tests.frameworks import matrix
from tests.world import World

LIMIT_S = 150.0
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def running(framework: str, server: str, config: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the framework's application on a server of its own process."""
    port, reservation = reserve_port()
    reservation.close()
    command = matrix.SERVERS[server].format(app=f"tests.frameworks.apps.on_{framework}:app", port=port)
    program, *arguments = command.split()
    log = config.with_name(f"{framework}-{server}.log")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).parent / program),
            *arguments,
            cwd=config.parent,
            env={**os.environ, "HOME": str(config.parent), "PYTHONPATH": str(ROOT), "ADS_CONFIG": str(config)},
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as http:

            async def is_up() -> bool:
                assert process.returncode is None, log.read_text()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    return False
                writer.close()
                return True

            await until(is_up, timeout_s=LIMIT_S)
            # gunicorn accepts connections before its worker has loaded the application.
            await http.get("/orders", headers={"X-Tenant": "globex"}, timeout=LIMIT_S)
            yield http
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(LIMIT_S):
            await process.wait()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All cells with `--whole`, else those of the diagonal."""
    if "server" in metafunc.fixturenames:
        cells = [(framework, server) for framework in matrix.FRAMEWORKS for server in matrix.SERVERS]
        if not metafunc.config.getoption("whole"):
            cells = [cell for cell in cells if matrix.DIAGONAL[cell[0]] == cell[1]]
        metafunc.parametrize(("framework", "server"), cells)


@pytest.mark.timeout(400)
async def test_every_check_holds_on(
    framework: str, server: str, world: World, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    config = tmp_path / "datasource.json"
    config.write_text(json.dumps(world.config(replicas=("r1",))))
    found: dict[str, bool] = {}
    async with running(framework, server, config) as http:
        http.headers["X-Tenant"] = "acme"
        for name, check in matrix.CHECKS.items():
            try:
                await check(http, world)
            except Exception as error:
                print(f"{name}: {error!r}")
                found[name] = False
            else:
                found[name] = True
    if pytestconfig.getoption("write_matrix"):
        matrix.write(framework, server, found)
    assert found == matrix.read()["results"][framework][server]
    assert all(found.values())


def test_the_matrix_has_every_cell() -> None:
    results = matrix.read()["results"]
    assert {framework: set(row) for framework, row in results.items()} == {
        framework: set(matrix.SERVERS) for framework in matrix.FRAMEWORKS
    }
    assert set(matrix.DIAGONAL) == set(matrix.FRAMEWORKS)
    assert set(matrix.DIAGONAL.values()) == set(matrix.SERVERS)
