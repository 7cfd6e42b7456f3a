"""The same service by SQLAlchemy's ORM: on asgi_datasource, and on an engine of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asgi_datasource import DataSourceMiddleware, session
from benchmarks.sides.asgi import ASGIApp, Row, Scope, service, tenant_of
from benchmarks.sides.ours import config
from benchmarks.sides.sqlalchemy_session import REPORT, engine_for
from benchmarks.sides.statements import NAMED_SET_TENANT

SET_TENANT: Final = text(NAMED_SET_TENANT)


class Base(DeclarativeBase):
    """The benchmark's tables."""


class Item(Base):
    """One row of the tenant."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    qty: Mapped[int]


async def read(orm: AsyncSession, item: int) -> Row:
    """Load one object by its key."""
    found = await orm.get_one(Item, item)
    return {"id": found.id, "name": found.name, "qty": found.qty}


async def write(orm: AsyncSession, item: int) -> Row:
    """Load one object, change it, and flush: two statements."""
    found = await orm.get_one(Item, item)
    found.qty += 1
    await orm.flush()
    return {"id": found.id, "qty": found.qty}


async def change(orm: AsyncSession, item: int) -> Item:
    """Change one object by one statement, which returns it."""
    return (await orm.scalars(update(Item).where(Item.id == item).values(qty=Item.qty + 1).returning(Item))).one()


async def report(orm: AsyncSession) -> Row:
    """The report, as text."""
    return {"digits": [dict(row) for row in (await orm.execute(REPORT)).mappings()]}


class _Ours:
    async def open(self) -> None:
        """Do nothing: the middleware opens the pool."""

    async def close(self) -> None:
        """Do nothing: the middleware closes the pool."""

    async def read(self, scope: Scope, item: int) -> Row:
        return await read(session(scope).sqlalchemy, item)

    async def write(self, scope: Scope, item: int) -> Row:
        return await write(session(scope).sqlalchemy, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        return {"count": len([await change(session(scope).sqlalchemy, item) for item in items])}

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        return {"count": len([await read(session(scope).sqlalchemy, item) for item in items])}

    async def change(self, scope: Scope, item: int) -> Row:
        return await self.write(scope, item)

    async def report(self, scope: Scope) -> Row:
        return await report(session(scope).sqlalchemy)


class _Engine:
    def __init__(self, url: str, driver: str, pool_size: int) -> None:
        self._engine = engine_for(url, driver, pool_size)
        self._session = async_sessionmaker(self._engine, expire_on_commit=False)

    async def open(self) -> None:
        async with self._engine.connect():
            pass

    async def close(self) -> None:
        await self._engine.dispose()

    async def read(self, scope: Scope, item: int) -> Row:
        async with self._session() as orm, orm.begin():
            await orm.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return await read(orm, item)

    async def write(self, scope: Scope, item: int) -> Row:
        async with self._session() as orm, orm.begin():
            await orm.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return await write(orm, item)

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._session() as orm, orm.begin():
            await orm.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return {"count": len([await change(orm, item) for item in items])}

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        async with self._session() as orm, orm.begin():
            await orm.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return {"count": len([await read(orm, item) for item in items])}

    async def change(self, scope: Scope, item: int) -> Row:
        return await self.write(scope, item)

    async def report(self, scope: Scope) -> Row:
        async with self._session() as orm, orm.begin():
            await orm.execute(SET_TENANT, {"tenant": tenant_of(scope)})
            return await report(orm)


def on_ours(url: str, pool_size: int) -> ASGIApp:
    return DataSourceMiddleware(service(_Ours()), config=config(url, pool_size))


def on_asyncpg(url: str, pool_size: int) -> ASGIApp:
    return service(_Engine(url, "asyncpg", pool_size))


def on_psycopg(url: str, pool_size: int) -> ASGIApp:
    return service(_Engine(url, "psycopg", pool_size))
