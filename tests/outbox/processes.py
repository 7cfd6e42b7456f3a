"""Relays in processes of their own: `asgi-datasource outbox relay`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.outbox.delivery import until
from tests.world import World

ROOT = Path(__file__).parent.parent.parent
START_LIMIT_S = 60.0


@dataclass
class Sink:
    """The file that relays of other processes deliver to."""

    file: Path

    def lines(self) -> list[tuple[int, str, str, str]]:
        """Process, key, payload and id of every delivery, in order."""
        if not self.file.exists():
            return []
        found = [line.split(" ") for line in self.file.read_text().splitlines()]
        return [(int(pid), key, payload, event_id) for pid, key, payload, event_id in found]


def write_config(world: World, folder: Path, **outbox: Any) -> Path:
    """A configuration file whose events go to the sink."""
    config = world.config(outbox={"publisher": {"callable": "tests.outbox.sink:record"}, **outbox})
    config["datasources"]["orders"]["admin"] = {"url": world.cluster.primary.url(dbname=world.dbname, user="postgres")}
    path = folder / "datasource.json"
    path.write_text(json.dumps(config))
    return path


@asynccontextmanager
async def relay_process(config: Path, sink: Sink) -> AsyncIterator[asyncio.subprocess.Process]:
    """A running `asgi-datasource outbox relay`; killed in the end, where it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "asgi_datasource", "outbox", "relay", "--config", str(config), "--format", "json"),
        cwd=ROOT,
        env={**os.environ, "ADS_SINK": str(sink.file), "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(START_LIMIT_S):
            while b"outbox relay" not in await process.stderr.readline():
                assert not process.stderr.at_eof(), "the relay has ended"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until_lines(sink: Sink, count: int) -> None:
    """Wait until as many events have arrived."""
    await until(lambda: len(sink.lines()) >= count, lambda: f"{len(sink.lines())} of {count} arrived")
