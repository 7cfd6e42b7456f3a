"""The private names of psycopg_pool in use, tested on the installed release: a new release fails here first.

Each private name in `drivers/psycopg/owned_pool.py` has a test of its expected behaviour.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from time import monotonic

import psycopg_pool
import pytest
from psycopg_pool import PoolTimeout

from asgi_datasource.drivers.psycopg import owned_pool
from asgi_datasource.drivers.psycopg.connection import PsycopgConnection
from asgi_datasource.drivers.psycopg.owned_pool import OwnedPool
from tests.drivers.polling import until

PRIVATE = {
    "_expire_at",
    "_lock",
    "_maybe_grow_pool",
    "_min_size",
    "_nconns",
    "_nconns_min",
    "_pool",
    "_waiting",
}


@pytest.fixture
async def pool(url: str) -> AsyncIterator[OwnedPool]:
    async with OwnedPool(url, connection_class=PsycopgConnection, min_size=1, max_size=2, open=False) as pool:
        await pool.wait(10.0)
        yield pool


def test_each_private_name_is_listed_here() -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(Path(owned_pool.__file__).read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert used == PRIVATE


def test_no_other_module_uses_a_private_name() -> None:
    folder = Path(owned_pool.__file__).parent
    for path in folder.glob("*.py"):
        if path.name != "owned_pool.py":
            text = path.read_text()
            assert not [name for name in PRIVATE - {"_pool", "_waiting", "_lock"} if f".{name}" in text], path.name
            assert "owned._" not in text, path.name


def test_the_installed_release_is_in_the_tested_range() -> None:
    assert tuple(int(part) for part in psycopg_pool.__version__.split(".")[:2]) == (3, 3)


async def test_pool_attribute_holds_the_idle_connections(pool: OwnedPool) -> None:
    assert pool.has_idle
    connection = await pool.getconn(5.0)
    assert not pool.has_idle
    assert pool.put_at_once(connection) is None
    assert list(pool._pool) == [connection]


async def test_a_connection_is_returned_without_waiting_unless_the_lock_is_taken(pool: OwnedPool) -> None:
    connection = await pool.getconn(5.0)
    async with pool._lock:
        rest = pool.put_at_once(connection)
        assert rest is not None
        assert not pool.has_idle
    await asyncio.wait_for(rest, 10.0)
    assert pool.has_idle


async def test_a_connection_is_replaced_at_expire_at(pool: OwnedPool) -> None:
    connection = await pool.getconn(5.0)
    assert monotonic() < pool.expires_at(connection) < inf
    pool.expire(connection)
    assert pool.put_at_once(connection) is None
    await until(lambda: connection.closed and pool.has_idle)
    assert connection not in pool._pool


async def test_waiting_holds_the_waiters_and_cancelled_ones_have_an_error(pool: OwnedPool) -> None:
    lent = [await pool.getconn(5.0) for _ in range(2)]
    with pytest.raises(PoolTimeout):
        await pool.getconn(0.05)
    assert len(pool._waiting) == 1
    assert pool._waiting[0].error is not None
    pool.forget_who_left()
    assert len(pool._waiting) == 0
    waits = asyncio.create_task(pool.getconn(5.0))
    await until(lambda: len(pool._waiting) == 1)
    pool.forget_who_left()
    assert len(pool._waiting) == 1
    pool.put_at_once(lent.pop())
    lent.append(await asyncio.wait_for(waits, 10.0))
    for connection in lent:
        pool.put_at_once(connection)


async def test_the_pool_grows_for_waiters_and_after_a_lost_connection_only_to_min_size(url: str) -> None:
    async with OwnedPool(url, connection_class=PsycopgConnection, min_size=0, max_size=3, open=False) as pool:
        first, second = await pool.getconn(5.0), await pool.getconn(5.0)
        assert pool._nconns == pool.size == 2
        pool.put_at_once(first)
        first.cut("the test cuts it")
        await pool.check()
        await asyncio.sleep(0.2)
        assert pool._nconns <= 2
        pool.put_at_once(second)


async def test_shedding_closes_all_idle_connections(url: str) -> None:
    async with OwnedPool(url, connection_class=PsycopgConnection, min_size=2, max_size=3, open=False) as pool:
        await pool.wait(10.0)
        lent = await pool.getconn(5.0)
        await pool.shed()
        assert (pool._min_size, pool._nconns_min, pool._nconns) == (0, 0, 1)
        assert not pool.has_idle
        pool.put_at_once(lent)
        again = await pool.getconn(5.0)
        assert again is lent
        pool.put_at_once(again)
