"""SQLSpec on asyncpg: `provide_session()`, with `begin()` and `commit()`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from sqlspec import SQLSpec
from sqlspec.adapters.asyncpg import AsyncpgConfig, AsyncpgDriver

from benchmarks.sides.asgi import ASGIApp, Row, Scope, service, tenant_of
from benchmarks.sides.statements import (
    NUMBERED_LOCKED,
    NUMBERED_READ,
    NUMBERED_REPORT,
    NUMBERED_SET_TENANT,
    NUMBERED_WRITE,
)


async def _no_reset(_: object) -> None:
    """No setting outlives the transaction, so asyncpg's reset, a round trip, would be additional work."""


class _Sessions:
    def __init__(self, url: str, pool_size: int) -> None:
        self._sqlspec = SQLSpec()
        self._config = self._sqlspec.add_config(
            AsyncpgConfig(
                connection_config={
                    "dsn": url,
                    "min_size": pool_size,
                    "max_size": pool_size,
                    "reset": _no_reset,
                    "ssl": False,
                }
            )
        )

    async def open(self) -> None:
        async with self._sqlspec.provide_session(self._config) as session:
            await session.select_value("select 1")

    async def close(self) -> None:
        await self._sqlspec.close_pool(self._config)

    async def read(self, scope: Scope, item: int) -> Row:
        async with self._transaction(scope) as session:
            return await session.select_one(NUMBERED_READ, item)

    async def write(self, scope: Scope, item: int) -> Row:
        async with self._transaction(scope) as session:
            return await session.select_one(NUMBERED_WRITE, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._transaction(scope) as session:
            return {"count": len([await session.select_one(NUMBERED_WRITE, item) for item in items])}

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._transaction(scope) as session:
            return {"count": len([await session.select_one(NUMBERED_READ, item) for item in items])}

    async def change(self, scope: Scope, item: int) -> Row:
        async with self._transaction(scope) as session:
            await session.select_one(NUMBERED_LOCKED, item)
            return await session.select_one(NUMBERED_WRITE, item)

    async def report(self, scope: Scope) -> Row:
        async with self._transaction(scope) as session:
            return {"digits": [dict(row) for row in await session.select(NUMBERED_REPORT)]}

    @asynccontextmanager
    async def _transaction(self, scope: Scope) -> AsyncIterator[AsyncpgDriver]:
        async with self._sqlspec.provide_session(self._config) as session:
            await session.begin()
            try:
                await session.select_value(NUMBERED_SET_TENANT, tenant_of(scope))
                yield session
            except BaseException:
                await session.rollback()
                raise
            await session.commit()


def on_asyncpg(url: str, pool_size: int) -> ASGIApp:
    return service(_Sessions(url, pool_size))
