"""Hand-written SQLAlchemy 2: `AsyncSession` and `session.begin()`, with asyncpg or psycopg."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.sides.asgi import ASGIApp, Row, Scope, service, tenant_of
from benchmarks.sides.statements import NAMED_LOCKED, NAMED_READ, NAMED_REPORT, NAMED_SET_TENANT, NAMED_WRITE

READ: Final = text(NAMED_READ)
WRITE: Final = text(NAMED_WRITE)
LOCKED: Final = text(NAMED_LOCKED)
REPORT: Final = text(NAMED_REPORT)
SET_TENANT: Final = text(NAMED_SET_TENANT)


def engine_for(url: str, driver: str, pool_size: int) -> AsyncEngine:
    """An engine with exactly `pool_size` connections and default settings otherwise."""
    dialect = url.replace("postgresql://", f"postgresql+{driver}://", 1)
    return create_async_engine(dialect, pool_size=pool_size, max_overflow=0)


async def run_one(session: AsyncSession, statement: TextClause, item: int) -> Row:
    """Run one statement in an open session; returns its row as a mapping."""
    row = (await session.execute(statement, {"id": item})).mappings().one()
    return dict(row)


async def report(session: AsyncSession) -> Row:
    """Run the report in an open session."""
    return {"digits": [dict(row) for row in (await session.execute(REPORT)).mappings()]}


class _Sessions:
    def __init__(self, url: str, driver: str, pool_size: int) -> None:
        self._engine = engine_for(url, driver, pool_size)
        self._session = async_sessionmaker(self._engine, expire_on_commit=False)

    async def open(self) -> None:
        async with self._engine.connect():
            pass

    async def close(self) -> None:
        await self._engine.dispose()

    async def read(self, scope: Scope, item: int) -> Row:
        return await self._one(scope, READ, item)

    async def write(self, scope: Scope, item: int) -> Row:
        return await self._one(scope, WRITE, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._session() as session, session.begin():
            await session.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            count = 0
            for item in items:
                await run_one(session, WRITE, item)
                count += 1
            return {"count": count}

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._session() as session, session.begin():
            await session.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return {"count": len([await run_one(session, READ, item) for item in items])}

    async def change(self, scope: Scope, item: int) -> Row:
        async with self._session() as session, session.begin():
            await session.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            await run_one(session, LOCKED, item)
            return await run_one(session, WRITE, item)

    async def report(self, scope: Scope) -> Row:
        async with self._session() as session, session.begin():
            await session.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return await report(session)

    async def _one(self, scope: Scope, statement: TextClause, item: int) -> Row:
        async with self._session() as session, session.begin():
            await session.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return await run_one(session, statement, item)


def on_asyncpg(url: str, pool_size: int) -> ASGIApp:
    return service(_Sessions(url, "asyncpg", pool_size))


def on_psycopg(url: str, pool_size: int) -> ASGIApp:
    return service(_Sessions(url, "psycopg", pool_size))
