"""Hand-written psqlpy (a driver in Rust): `pool.acquire()` and `connection.transaction()`."""

from __future__ import annotations

from collections.abc import Iterable

import psqlpy

from benchmarks.sides.asgi import ASGIApp, Row, Scope, service, tenant_of
from benchmarks.sides.statements import (
    NUMBERED_LOCKED,
    NUMBERED_READ,
    NUMBERED_REPORT,
    NUMBERED_SET_TENANT,
    NUMBERED_WRITE,
)


class _Pooled:
    def __init__(self, url: str, pool_size: int) -> None:
        self._url, self._size = url, pool_size

    async def open(self) -> None:
        self._pool = psqlpy.ConnectionPool(dsn=self._url, max_db_pool_size=self._size)

    async def close(self) -> None:
        self._pool.close()

    async def read(self, scope: Scope, item: int) -> Row:
        return await self._one(scope, NUMBERED_READ, item)

    async def write(self, scope: Scope, item: int) -> Row:
        return await self._one(scope, NUMBERED_WRITE, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        return await self._several(scope, NUMBERED_WRITE, items)

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        return await self._several(scope, NUMBERED_READ, items)

    async def change(self, scope: Scope, item: int) -> Row:
        async with self._pool.acquire() as connection, connection.transaction() as transaction:
            await transaction.fetch_val(NUMBERED_SET_TENANT, [tenant_of(scope)])
            await transaction.fetch_row(NUMBERED_LOCKED, [item])
            return (await transaction.fetch_row(NUMBERED_WRITE, [item])).result()

    async def report(self, scope: Scope) -> Row:
        async with self._pool.acquire() as connection, connection.transaction() as transaction:
            await transaction.fetch_val(NUMBERED_SET_TENANT, [tenant_of(scope)])
            return {"digits": (await transaction.fetch(NUMBERED_REPORT)).result()}

    async def _several(self, scope: Scope, statement: str, items: Iterable[int]) -> Row:
        async with self._pool.acquire() as connection, connection.transaction() as transaction:
            await transaction.fetch_val(NUMBERED_SET_TENANT, [tenant_of(scope)])
            return {"count": len([await transaction.fetch_row(statement, [item]) for item in items])}

    async def _one(self, scope: Scope, statement: str, item: int) -> Row:
        async with self._pool.acquire() as connection, connection.transaction() as transaction:
            await transaction.fetch_val(NUMBERED_SET_TENANT, [tenant_of(scope)])
            return (await transaction.fetch_row(statement, [item])).result()


def pooled(url: str, pool_size: int) -> ASGIApp:
    return service(_Pooled(url, pool_size))
