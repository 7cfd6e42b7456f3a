"""A running server reloads its configuration on SIGHUP and after a change of its files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from asgi_datasource import DataSourceRegistry, compile
from asgi_datasource.registry import config_watcher
from tests.drivers.polling import until
from tests.world import World

ROOT = Path(__file__).parents[2]


class Server:
    """A real uvicorn in a separate process, and its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []
        self.http: httpx.AsyncClient

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())

    def says(self, pattern: str) -> bool:
        return re.search(pattern, "".join(self.log), re.DOTALL) is not None

    @property
    def address(self) -> str | None:
        found = re.search(r"running on (http://\S+)", "".join(self.log))
        return None if found is None else found.group(1)

    async def where(self) -> dict[str, Any]:
        response = await self.http.get("/where")
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def serves(self, schema: str) -> None:
        async def is_so() -> bool:
            return (await self.where())["schema"] == f'"{schema}"'

        await until(is_so)


@asynccontextmanager
async def serving(config: Path) -> AsyncIterator[Server]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.registry.reload_app", str(config), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    server = Server(process)
    reading = asyncio.create_task(server.read_log())
    try:
        await until(lambda: server.address is not None or process.returncode is not None)
        assert server.address is not None, "".join(server.log)
        headers = {"X-Tenant": "acme"}
        async with httpx.AsyncClient(base_url=server.address, headers=headers, timeout=20.0) as server.http:
            yield server
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) in (0, -signal.SIGTERM), "".join(server.log)
        await reading


class Mount:
    """A directory as Kubernetes mounts a ConfigMap: the file is a symbolic link into a directory that is swapped."""

    def __init__(self, folder: Path, world: World, **sections: Any) -> None:
        self._folder = folder
        self._world = world
        self._sections = sections
        self._version = 0
        self.file = folder / "datasource.json"
        self.write("acme")
        self.file.symlink_to("..data/datasource.json")

    def write(self, schema: str) -> None:
        config = self._world.config(replicas=("r1",), **self._sections)
        config["tenants"]["acme"]["schema"] = schema
        # The test moves acme to this schema.
        del config["tenants"]["globex"]
        self.write_text(json.dumps(config))

    def write_text(self, text: str) -> None:
        self._version += 1
        version = self._folder / f"..{self._version}"
        version.mkdir()
        (version / "datasource.json").write_text(text)
        link = self._folder / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self._folder / "..data")


@pytest.mark.parametrize("by", ["SIGHUP", "watch"])
async def test_a_running_server_reloads_its_configuration(world: World, tmp_path: Path, by: str) -> None:
    mount = Mount(tmp_path, world, reload={"on_sighup": True} if by == "SIGHUP" else {"watch": "100ms"})

    def ask() -> None:
        if by == "SIGHUP":
            os.kill(server.process.pid, signal.SIGHUP)

    async with serving(mount.file) as server:
        before = await server.where()
        backends = {pid for node in ("primary", "r1") for pid, _ in await world.backends(node)}
        assert before["schema"] == '"acme"'
        waiting = asyncio.create_task(server.http.get("/twice"))

        # /twice waits between its two reads while the tenant's schema changes.
        async def is_held() -> bool:
            return bool((await server.http.get("/held")).json())

        await until(is_held)
        mount.write("globex")
        ask()
        await server.serves("globex")
        after = await server.where()
        assert after["process"] == before["process"]
        assert {pid for node in ("primary", "r1") for pid, _ in await world.backends(node)} >= backends
        assert server.says(r"pools: 0 opened, 0 retired, 2 kept")
        assert not waiting.done()
        await server.http.get("/go-on")
        assert (await waiting).json() == ["acme", "acme"]
        # An invalid file is refused with all its errors, and nothing changes.
        mount.write_text('{"version": 1, "datasources": {"orders": {"primry": {}}}, "tenents": {}}')
        ask()
        await until(lambda: server.says(r"was refused \([^)]+\), and nothing has changed: .*ADS020.*primry.*tenents"))
        await server.serves("globex")
        mount.write("acme")
        ask()
        await server.serves("acme")
        assert len(re.findall("was refused", "".join(server.log))) == 1


async def test_without_configuration_signals_and_files_are_ignored(world: World, tmp_path: Path) -> None:
    mount = Mount(tmp_path, world)
    before = signal.getsignal(signal.SIGHUP)
    async with compile(mount.file) as registry:
        compiled = registry.compiled
        assert signal.getsignal(signal.SIGHUP) is before
        mount.write("globex")
        await asyncio.sleep(0.3)
        assert registry.compiled is compiled


@asynccontextmanager
async def watching(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **reload: Any
) -> AsyncIterator[tuple[DataSourceRegistry, Path, dict[str, Any]]]:
    """A registry that watches a file which is overwritten in place."""
    monkeypatch.setattr(config_watcher, "SETTLE_S", 0.02)
    file = tmp_path / "datasource.json"
    config = world.config(replicas=(), reload=reload or {"watch": "20ms"})
    config["datasources"]["orders"]["primary"] = {"url": {"file": "secret"}}
    (tmp_path / "secret").write_text(world.url())
    file.write_text(json.dumps(config))
    async with compile(file) as registry:
        yield registry, file, config


async def test_a_rotated_secret_is_used(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with watching(world, tmp_path, monkeypatch) as (registry, _, _config):
        before = registry.compiled.servers
        (tmp_path / "secret").write_text(world.url() + "?application_name=rotated")
        await until(lambda: registry.compiled.servers != before)
        async with registry.session(tenant="acme") as db:
            assert await db.fetch_value("select current_setting('application_name')") == "rotated"


async def test_unchanged_files_are_ignored_and_refused_ones_are_not_retried(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def logged(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    async with watching(world, tmp_path, monkeypatch) as (registry, file, config):
        compiled = registry.compiled
        caplog.set_level("INFO", logger="asgi_datasource.registry")
        for _ in range(3):
            await asyncio.sleep(0.1)
            file.write_text(file.read_text())
        assert registry.compiled is compiled
        file.write_text("{")
        await until(lambda: logged("was refused") == 1)
        await asyncio.sleep(0.3)
        assert (logged("was refused"), registry.compiled is compiled) == (1, True)
        # The fixed file equals the first one, but another content was read in between.
        config["errors"] = {"debug": True}
        file.write_text(json.dumps(config))
        await until(lambda: registry.compiled is not compiled)
        assert registry.compiled.errors.shows_details
        # A manual reload in between: changes are relative to the last content read.
        config["errors"] = {"debug": False}
        file.write_text(json.dumps(config))
        await registry.reload()
        assert not registry.compiled.errors.shows_details
        config["reload"] = {}
        file.write_text(json.dumps(config))
        await until(lambda: registry.compiled.reload.watch_s is None)
        last = registry.compiled
        config["errors"] = {"debug": True}
        file.write_text(json.dumps(config))
        await asyncio.sleep(0.3)
        assert registry.compiled is last, "the files are not watched any more"


async def test_a_change_before_the_first_check_is_detected(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "datasource.json"
    config = world.config(replicas=(), reload={"watch": "50ms"})
    file.write_text(json.dumps(config))
    registry = compile(file)
    config["errors"] = {"debug": True}
    file.write_text(json.dumps(config))
    async with registry:
        await until(lambda: registry.compiled.errors.shows_details)


async def test_an_existing_signal_handler_is_called_as_well(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        async with watching(world, tmp_path, monkeypatch, on_sighup=True) as (registry, _, _config):
            other = compile(tmp_path / "datasource.json")
            async with other:
                compiled = registry.compiled, other.compiled
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda: registry.compiled is not compiled[0] and other.compiled is not compiled[1])
                assert heard == [signal.SIGHUP]
            # A closed registry ignores the signal; the other one reloads.
            compiled = registry.compiled, other.compiled
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: registry.compiled is not compiled[0])
            assert other.compiled is compiled[1]
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(heard) == 3)
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


async def test_many_signals_cause_one_further_reload(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(world, tmp_path, monkeypatch, on_sighup=True) as (registry, file, config):
        caplog.set_level("INFO", logger="asgi_datasource.registry")
        for _ in range(50):
            registry._reloader._hung_up()
        await asyncio.sleep(0)
        config["errors"] = {"debug": True}
        file.write_text(json.dumps(config))
        registry._reloader._hung_up()
        await until(lambda: registry.compiled.errors.shows_details)
        await until(lambda: registry._reloader._asked is None or registry._reloader._asked.done())
    assert caplog.text.count("the configuration was reloaded") <= 3


async def test_unsupported_reload_settings_are_logged(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with compile(world.config(replicas=(), reload={"watch": "1s"})):
        assert "reload: the configuration did not come from a file" in caplog.text
    file = tmp_path / "datasource.json"
    file.write_text(json.dumps(world.config(replicas=(), reload={"on_sighup": True})))

    async def open_and_close() -> None:
        async with compile(file):
            pass

    thread = threading.Thread(target=asyncio.run, args=(open_and_close(),))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "signals reach only the main thread" in caplog.text
