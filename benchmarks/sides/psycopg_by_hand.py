"""Hand-written psycopg 3: `pool.connection()`, whose block is the transaction."""

from __future__ import annotations

from collections.abc import Iterable

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from benchmarks.sides.asgi import ASGIApp, Row, Scope, service, tenant_of
from benchmarks.sides.statements import LOCKED, READ, REPORT, SET_TENANT, WRITE


class _Statements:
    """The bodies of the handlers, inside a transaction that psycopg begins with the first statement."""

    @staticmethod
    async def one(connection: psycopg.AsyncConnection[DictRow], scope: Scope, statement: str, item: int) -> Row:
        await connection.execute(SET_TENANT, (tenant_of(scope),))
        cursor = await connection.execute(statement, (item,))  # type: ignore[arg-type] # a constant
        row = await cursor.fetchone()
        if row is None:
            raise LookupError(item)
        return row

    @staticmethod
    async def many(connection: psycopg.AsyncConnection[DictRow], scope: Scope, items: Iterable[int]) -> Row:
        await connection.execute(SET_TENANT, (tenant_of(scope),))
        count = 0
        for item in items:
            count += (await connection.execute(WRITE, (item,))).rowcount
        return {"count": count}

    @staticmethod
    async def several(connection: psycopg.AsyncConnection[DictRow], scope: Scope, items: Iterable[int]) -> Row:
        await connection.execute(SET_TENANT, (tenant_of(scope),))
        return {"count": len([await (await connection.execute(READ, (item,))).fetchone() for item in items])}

    @classmethod
    async def change_one(cls, connection: psycopg.AsyncConnection[DictRow], scope: Scope, item: int) -> Row:
        await cls.one(connection, scope, LOCKED, item)
        row = await (await connection.execute(WRITE, (item,))).fetchone()
        return row or {}

    @staticmethod
    async def whole(connection: psycopg.AsyncConnection[DictRow], scope: Scope) -> Row:
        await connection.execute(SET_TENANT, (tenant_of(scope),))
        return {"digits": await (await connection.execute(REPORT, ())).fetchall()}


class _Pooled(_Statements):
    def __init__(self, url: str, pool_size: int) -> None:
        self._url, self._size = url, pool_size

    async def open(self) -> None:
        self._pool = AsyncConnectionPool[psycopg.AsyncConnection[DictRow]](
            self._url, min_size=self._size, max_size=self._size, kwargs={"row_factory": dict_row}, open=False
        )
        await self._pool.open(wait=True)

    async def close(self) -> None:
        await self._pool.close()

    async def read(self, scope: Scope, item: int) -> Row:
        async with self._pool.connection() as connection:
            return await self.one(connection, scope, READ, item)

    async def write(self, scope: Scope, item: int) -> Row:
        async with self._pool.connection() as connection:
            return await self.one(connection, scope, WRITE, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._pool.connection() as connection:
            return await self.many(connection, scope, items)

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._pool.connection() as connection:
            return await self.several(connection, scope, items)

    async def change(self, scope: Scope, item: int) -> Row:
        async with self._pool.connection() as connection:
            return await self.change_one(connection, scope, item)

    async def report(self, scope: Scope) -> Row:
        async with self._pool.connection() as connection:
            return await self.whole(connection, scope)


class _Single(_Statements):
    """One connection without a pool: the lower bound, which a server with concurrent requests cannot use."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> None:
        self._connection = await psycopg.AsyncConnection[DictRow].connect(
            self._url, autocommit=True, row_factory=dict_row
        )

    async def close(self) -> None:
        await self._connection.close()

    async def read(self, scope: Scope, item: int) -> Row:
        return await self._run(scope, READ, item)

    async def write(self, scope: Scope, item: int) -> Row:
        return await self._run(scope, WRITE, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        await self._connection.execute("begin")
        row = await self.many(self._connection, scope, items)
        await self._connection.execute("commit")
        return row

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        await self._connection.execute("begin")
        row = await self.several(self._connection, scope, items)
        await self._connection.execute("commit")
        return row

    async def change(self, scope: Scope, item: int) -> Row:
        await self._connection.execute("begin")
        row = await self.change_one(self._connection, scope, item)
        await self._connection.execute("commit")
        return row

    async def report(self, scope: Scope) -> Row:
        await self._connection.execute("begin")
        row = await self.whole(self._connection, scope)
        await self._connection.execute("commit")
        return row

    async def _run(self, scope: Scope, statement: str, item: int) -> Row:
        await self._connection.execute("begin")
        row = await self.one(self._connection, scope, statement, item)
        await self._connection.execute("commit")
        return row


def pooled(url: str, pool_size: int) -> ASGIApp:
    return service(_Pooled(url, pool_size))


def single(url: str, pool_size: int) -> ASGIApp:
    return service(_Single(url))
