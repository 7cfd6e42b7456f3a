"""The circulation of connections: from waiter to waiter, idle for the next, and back to the pool."""

from __future__ import annotations

import asyncio

import pytest

from asgi_datasource.drivers.psycopg import PsycopgConnection, PsycopgServer, pool
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.testing import EmbeddedCluster
from tests.drivers.conftest import OpenServer
from tests.drivers.polling import until

PID = Statement("select pg_backend_pid()")


async def pid_of(connection: PsycopgConnection) -> object:
    result = (await connection.exchange([PID])).results[0]
    assert result is not None
    return result.scalar()


async def waiting_for(server: PsycopgServer, count: int) -> list[asyncio.Task[PsycopgConnection]]:
    """The given number of waiters, in order."""
    tasks = [asyncio.ensure_future(server.acquire(deadline=None)) for _ in range(count)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


async def test_a_returned_connection_is_lent_again_without_the_pool(open_server: OpenServer) -> None:
    server = await open_server(max_size=3)
    first = await server.acquire(deadline=None)
    server.release(first)
    asking = server.acquire(deadline=None)
    with pytest.raises(StopIteration) as answer:
        asking.send(None)
    assert answer.value.value is first, "without waiting"
    server.release(first)
    assert server.lendings == 2


async def test_waiters_are_served_in_order(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    served: list[int] = []

    async def borrow(number: int) -> None:
        borrowed = await server.acquire(deadline=None)
        served.append(number)
        server.release(borrowed)

    tasks = [asyncio.ensure_future(borrow(number)) for number in range(20)]
    await asyncio.sleep(0)
    server.release(connection)
    await asyncio.gather(*tasks)
    assert served == list(range(20))
    assert (server.borrowed, server.idle) == (0, 1)


async def test_a_connection_handed_to_a_cancelled_waiter_goes_to_the_next(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    first, second, third = await waiting_for(server, 3)
    # The waiter is cancelled after the connection was handed over, but before it runs.
    server.release(connection)
    first.cancel()
    # This waiter is cancelled before a connection is handed over.
    third.cancel()
    assert await second is connection
    await asyncio.wait({first, third})
    assert first.cancelled()
    assert third.cancelled()
    server.release(connection)
    assert (server.borrowed, server.idle) == (0, 1)


async def test_the_pool_grows_for_waiters_while_connections_are_handed_over(open_server: OpenServer) -> None:
    server = await open_server(min_size=1, max_size=4)
    seen: set[object] = set()

    async def work() -> None:
        for _ in range(10):
            connection = await server.acquire(deadline=None)
            seen.add(await pid_of(connection))
            server.release(connection)

    await asyncio.gather(*(work() for _ in range(12)))
    assert 1 <= len(seen) <= 4
    held = [await server.acquire(deadline=None) for _ in range(4)]
    assert len({await pid_of(connection) for connection in held}) == 4
    for connection in held:
        server.release(connection)
    await until(lambda: server.idle == server.size == 4)


async def test_unused_connections_go_back_to_the_pool_which_closes_them(
    cluster: EmbeddedCluster, open_server: OpenServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SWEEP_S", 0.1)
    server = await open_server(min_size=1, max_size=3, max_idle_s=0.1)
    held = [await server.acquire(deadline=None) for _ in range(3)]
    for connection in held:
        server.release(connection)

    async def is_one() -> bool:
        count = "select count(*) from pg_stat_activity where datname = %s and usename = 'app'"
        return bool(await cluster.primary.value(count, [database]) == 1)

    await until(is_one)
    assert (server.idle, server.size) == (1, 1)


@pytest.mark.parametrize("way", ["try_acquire", "acquire", "after a loss"])
async def test_a_connection_that_was_used_since_the_last_sweep_is_kept(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(pool, "SWEEP_S", 3600.0)
    server = await open_server(max_size=2)
    hand_over = server.pool.hand_over
    assert hand_over is not None
    for connection in [await server.acquire(deadline=None) for _ in range(2)]:
        server.release(connection)
    hand_over._return_unused()
    used = server.try_acquire() if way == "try_acquire" else await server.acquire(deadline=None)
    assert used is not None
    if way == "after a loss":
        hand_over.at_hand[0].cut("the test cuts it")
        assert hand_over.at_hand == []
    server.release(used)
    hand_over._return_unused()
    assert hand_over.at_hand == [used]


async def test_nobody_overtakes_those_who_wait(open_server: OpenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await open_server(max_size=1)
    held = await server.acquire(deadline=None)
    tasks = await waiting_for(server, 1)
    # A connection that psycopg_pool makes for those who wait is idle there for a moment.
    monkeypatch.setattr(type(server.pool.owned), "has_idle", True)
    tasks += await waiting_for(server, 1)
    assert server.waiting == 2
    server.release(held)
    for task in tasks:
        server.release(await task)


async def test_a_connection_past_max_lifetime_is_replaced_even_if_never_idle(open_server: OpenServer) -> None:
    server = await open_server(max_size=1, max_lifetime_s=0.5)
    connection = await server.acquire(deadline=None)
    first = await pid_of(connection)
    loop = asyncio.get_running_loop()

    async def is_another() -> bool:
        nonlocal connection
        # There is always a waiter when it is returned.
        (following,) = await waiting_for(server, 1)
        server.release(connection)
        connection = await following
        return await pid_of(connection) != first

    started = loop.time()
    await until(is_another)
    assert loop.time() - started > 0.3
    server.release(connection)


async def test_an_idle_connection_that_is_lost_is_replaced(cluster: EmbeddedCluster, open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    pid = await pid_of(connection)
    server.release(connection)
    await cluster.primary.sql("select pg_terminate_backend(%s, 5000)", [pid])
    await until(lambda: connection.closed)
    again = await server.acquire(deadline=None)
    assert await pid_of(again) != pid
    server.release(again)
    assert (server.borrowed, server.size) == (0, 1)


async def test_a_borrowed_connection_that_is_lost_is_replaced_for_a_waiter(
    cluster: EmbeddedCluster, open_server: OpenServer
) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    (following,) = await waiting_for(server, 1)
    await cluster.primary.sql("select pg_terminate_backend(%s, 5000)", [await pid_of(connection)])
    await until(lambda: connection.closed)
    server.release(connection)
    again = await following
    assert not again.closed
    server.release(again)


async def test_closing_ends_all_waits_and_takes_borrowed_connections_back(open_server: OpenServer) -> None:
    server = await open_server(max_size=1)
    connection = await server.acquire(deadline=None)
    tasks = await waiting_for(server, 2)
    await server.close(timeout_s=5.0)
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert ["the pool is closed" in str(error) for error in errors] == [True, True]
    assert connection.closed
    server.release(connection)
    assert server.borrowed == 0
