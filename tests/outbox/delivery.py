"""Helpers for tests of delivery: a destination that records, events that are written, and waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from asgi_datasource import DataSourceRegistry
from asgi_datasource.outbox.circuit import Circuit
from asgi_datasource.outbox.database_relay import RelaySettings
from asgi_datasource.outbox.entry import OutboxEntry
from asgi_datasource.outbox.protocols import Refused, Unreachable
from asgi_datasource.outbox.publishers.keyed import KeyedPublisher
from asgi_datasource.outbox.relay import Relay
from asgi_datasource.registry.outbox import relay_sites
from tests.world import World

WAIT_S: Final = 20.0
OUTBOX: Final[dict[str, Any]] = {"outbox": {"relay": "off"}}


class Destination(KeyedPublisher):
    """Records what it gets.

    Attributes:
        entries: Every delivery, in order.
        refuses: Whether it refuses an entry.
        is_away: Whether it is away.
        gate: What each delivery waits for.
    """

    def __init__(self) -> None:
        self.entries: list[OutboxEntry] = []
        self.tries: list[OutboxEntry] = []
        self.refuses: Callable[[OutboxEntry], bool] = lambda _: False
        self.is_away = False
        self.gate: asyncio.Event | None = None
        self.arrived = asyncio.Event()

    async def send(self, entry: OutboxEntry) -> None:
        self.tries.append(entry)
        self.arrived.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.is_away:
            raise Unreachable("it is away")
        if self.refuses(entry):
            raise Refused("not this one")
        self.entries.append(entry)

    @property
    def payloads(self) -> list[bytes]:
        """The payloads, in order of arrival."""
        return [entry.data for entry in self.entries]

    async def has(self, count: int) -> None:
        """Wait until it has this many."""
        await until(lambda: len(self.entries) >= count, lambda: f"{len(self.entries)} of {count} arrived")


async def until(condition: Callable[[], bool], what: Callable[[], str] | str = "it did not happen") -> None:
    """Wait until something is so."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + WAIT_S
    while not condition():
        assert loop.time() < give_up_at, what if isinstance(what, str) else what()
        await asyncio.sleep(0.005)


@asynccontextmanager
async def relaying(
    registry: DataSourceRegistry,
    destination: Any,
    *,
    settings: RelaySettings | None = None,
    circuit: Circuit | None = None,
    **options: Any,
) -> AsyncIterator[Relay]:
    """A relay on the databases of a registry."""
    relay = Relay(lambda: relay_sites(registry.compiled), destination, settings=settings, circuit=circuit, **options)
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop()


async def write(world: World, rows: Sequence[tuple[str, str]], *, topic: str = "t") -> None:
    """Write events as an outsider, without any wake-up: (key, payload) each."""
    values = ",".join(f"(gen_random_uuid(),'acme','{topic}','{key}','{payload}'::json)" for key, payload in rows)
    await world.sql(f"insert into asgi_datasource.outbox (event_id, tenant, topic, key, data) values {values}")


async def left(world: World) -> int:
    """How many events lie in the outbox, held ones included."""
    rows = await world.sql(
        "select (select count(*) from asgi_datasource.outbox) + (select count(*) from asgi_datasource.outbox_held)"
    )
    return int(rows[0][0])


async def until_left(world: World, count: int) -> None:
    """Wait until as many events lie in the outbox."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + WAIT_S
    while (found := await left(world)) != count:
        assert loop.time() < give_up_at, f"{found} are left, not {count}"
        await asyncio.sleep(0.05)


async def held(world: World, columns: str = "data::text, state, attempts") -> list[tuple[Any, ...]]:
    """What is held, in order."""
    return await world.sql(f"select {columns} from asgi_datasource.outbox_held order by seq")
