"""Hand-written asyncpg: `pool.acquire()` and `connection.transaction()`."""

from __future__ import annotations

from collections.abc import Iterable

import asyncpg

from benchmarks.sides.asgi import ASGIApp, Row, Scope, service, tenant_of
from benchmarks.sides.statements import (
    NUMBERED_LOCKED,
    NUMBERED_READ,
    NUMBERED_REPORT,
    NUMBERED_SET_TENANT,
    NUMBERED_WRITE,
)


async def _no_reset(connection: asyncpg.Connection) -> None:
    """No setting outlives the transaction, so asyncpg's reset, a round trip, would be additional work."""


class _Pooled:
    def __init__(self, url: str, pool_size: int) -> None:
        self._url, self._size = url, pool_size

    async def open(self) -> None:
        self._pool = await asyncpg.create_pool(
            self._url, min_size=self._size, max_size=self._size, reset=_no_reset, ssl=False
        )

    async def close(self) -> None:
        await self._pool.close()

    async def read(self, scope: Scope, item: int) -> Row:
        return await self._one(scope, NUMBERED_READ, item)

    async def write(self, scope: Scope, item: int) -> Row:
        return await self._one(scope, NUMBERED_WRITE, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchval(NUMBERED_SET_TENANT, tenant_of(scope))
            count = 0
            for item in items:
                await connection.fetchrow(NUMBERED_WRITE, item)
                count += 1
            return {"count": count}

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchval(NUMBERED_SET_TENANT, tenant_of(scope))
            return {"count": len([await connection.fetchrow(NUMBERED_READ, item) for item in items])}

    async def change(self, scope: Scope, item: int) -> Row:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchval(NUMBERED_SET_TENANT, tenant_of(scope))
            await connection.fetchrow(NUMBERED_LOCKED, item)
            row: Row = await connection.fetchrow(NUMBERED_WRITE, item)
            return row

    async def report(self, scope: Scope) -> Row:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchval(NUMBERED_SET_TENANT, tenant_of(scope))
            return {"digits": [dict(row) for row in await connection.fetch(NUMBERED_REPORT)]}

    async def _one(self, scope: Scope, statement: str, item: int) -> Row:
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.fetchval(NUMBERED_SET_TENANT, tenant_of(scope))
            row: Row = await connection.fetchrow(statement, item)
            return row


def pooled(url: str, pool_size: int) -> ASGIApp:
    return service(_Pooled(url, pool_size))
