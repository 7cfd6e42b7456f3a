"""`db.listen`: notifications over a connection of its own, which is made anew when it is lost.

`tests/faults/test_failover.py` listens through a failover.
"""

from __future__ import annotations

import asyncio

import pytest

from asgi_datasource import DataError, DataErrorKind, SessionClosed
from asgi_datasource.sessions.listener import Listener, Notification
from tests.drivers.polling import until
from tests.pools import borrowed
from tests.world import World

BACKENDS = "select pid from pg_stat_activity where application_name = 'asgi-datasource listen'"


async def following(listener: Listener) -> tuple[str, str, bool]:
    """Channel, payload and gap of the next notification."""
    async with asyncio.timeout(20):
        one = await anext(listener)
    return one.channel, one.payload, one.has_gap


async def backends(world: World) -> list[int]:
    return [row[0] for row in await world.sql(f"{BACKENDS} and datname = current_database()")]


async def test_notifications_arrive_with_the_commit_and_after_a_lost_connection(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        async with db.listen("orders", 'od"d') as notifications:
            async with registry.session("globex") as other:
                await other.execute("select pg_notify('orders', %s)", ["1"])
                await other.execute('notify "od""d"')
            assert await following(notifications) == ("orders", "1", False)
            assert await following(notifications) == ('od"d', "", False)
            # The session's own statements go on meanwhile.
            await db.execute("insert into orders (item) values ('tea')")
            [backend] = await backends(world)
            await world.sql(f"select pg_terminate_backend({backend})")
            async with asyncio.timeout(20):
                assert await anext(notifications) == Notification("orders", "", 0, has_gap=True)
            assert await following(notifications) == ('od"d', "", True)
            await world.sql("select pg_notify('orders', 'again')")
            assert await following(notifications) == ("orders", "again", False)
        with pytest.raises(StopAsyncIteration):
            await anext(notifications)

        async def is_gone() -> bool:
            return not await backends(world)

        await until(is_gone)
    assert borrowed(registry) == 0
    assert await world.items() == ["tea"]


async def test_listening_ends_with_the_session(world: World) -> None:
    async with world.registry() as registry:
        async with registry.session("acme") as db:
            notifications = db.listen("orders")
            waiting = asyncio.create_task(following(notifications))

            async def listens() -> bool:
                return bool(await backends(world))

            await until(listens)
        with pytest.raises(SessionClosed):
            await waiting
        with pytest.raises(SessionClosed):
            db.listen("orders")
        async with registry.session("acme", timeout=0.3) as db:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2), db.listen("orders") as notifications:
                    await anext(notifications)


async def test_listen_is_refused_where_it_would_be_lost(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        for text in ("listen orders", "/* all */ LISTEN orders"):
            with pytest.raises(DataError, match=r"db\.listen\('channel'\)") as caught:
                await db.execute(text)
            assert caught.value.kind is DataErrorKind.QUERY
        for names in ((), ("",), ("x" * 64,), ("a\0",)):
            with pytest.raises(DataError, match="name of a channel"):
                db.listen(*names)
        assert await db.fetch_value("select count(*) from pg_listening_channels()") == 0
    async with world.registry(pool={"pooler": "transaction"}) as registry, registry.session("acme") as db:
        with pytest.raises(DataError, match="behind a pooler") as caught:
            await anext(db.listen("orders"))
        assert caught.value.kind is DataErrorKind.CONFIG
