"""FastAPI: the recipe from its documentation (`Depends` on a generator), and the same routes with asgi_datasource.

This module has no `from __future__ import annotations`: FastAPI cannot resolve the name of a local dependency.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from benchmarks.sides.asgi import ASGIApp
from benchmarks.sides.statements import LOCKED as PLAIN_LOCKED
from benchmarks.sides.statements import READ as PLAIN_READ
from benchmarks.sides.statements import REPORT as PLAIN_REPORT
from benchmarks.sides.statements import WRITE as PLAIN_WRITE


def depends_yield(url: str, pool_size: int) -> ASGIApp:
    """A session for each request, from a dependency that begins and commits; SQLAlchemy with asyncpg."""
    return _recipe(url, pool_size, "asyncpg")


def depends_yield_psycopg(url: str, pool_size: int) -> ASGIApp:
    """The same with psycopg."""
    return _recipe(url, pool_size, "psycopg")


def _recipe(url: str, pool_size: int, driver: str) -> ASGIApp:
    from benchmarks.sides.sqlalchemy_session import LOCKED, READ, SET_TENANT, WRITE, engine_for, run_one
    from benchmarks.sides.sqlalchemy_session import report as run_report

    engine = engine_for(url, driver, pool_size)
    make_session = async_sessionmaker(engine, expire_on_commit=False)

    async def get_session(x_tenant: Annotated[str, Header()]) -> AsyncIterator[AsyncSession]:
        async with make_session() as session, session.begin():
            await session.execute(SET_TENANT, {"tenant": x_tenant})
            yield session

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/items/{item}")
    async def read(item: int, session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, Any]:
        return dict(await run_one(session, READ, item))

    @app.post("/items/{item}")
    async def write(item: int, session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, Any]:
        return dict(await run_one(session, WRITE, item))

    @app.post("/batch/{count}")
    async def batch(count: int, session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, Any]:
        for item in range(1, count + 1):
            await run_one(session, WRITE, item)
        return {"count": count}

    @app.get("/reads/{count}")
    async def reads(count: int, session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, Any]:
        return {"count": len([await run_one(session, READ, item) for item in range(1, count + 1)])}

    @app.post("/change/{item}")
    async def change(item: int, session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, Any]:
        await run_one(session, LOCKED, item)
        return dict(await run_one(session, WRITE, item))

    @app.get("/report")
    async def summary(session: Annotated[AsyncSession, Depends(get_session)]) -> dict[str, Any]:
        return dict(await run_report(session))

    @app.get("/plain")
    async def plain() -> dict[str, Any]:
        return {"ok": True}

    return app


def ours(url: str, pool_size: int) -> ASGIApp:
    """The same routes with `Depends(session)`."""
    from asgi_datasource import DataSession, DataSourceMiddleware, session
    from benchmarks.sides.ours import config

    app = FastAPI()

    @app.get("/items/{item}")
    async def read(item: int, db: Annotated[DataSession, Depends(session)]) -> dict[str, Any]:
        return dict(await db.fetch_one(PLAIN_READ, [item]) or {})

    @app.post("/items/{item}")
    async def write(item: int, db: Annotated[DataSession, Depends(session)]) -> dict[str, Any]:
        return dict(await db.fetch_one(PLAIN_WRITE, [item]) or {})

    @app.post("/batch/{count}")
    async def batch(count: int, db: Annotated[DataSession, Depends(session)]) -> dict[str, Any]:
        for item in range(1, count + 1):
            await db.execute(PLAIN_WRITE, [item])
        return {"count": count}

    @app.get("/reads/{count}")
    async def reads(count: int, db: Annotated[DataSession, Depends(session)]) -> dict[str, Any]:
        return {"count": len([await db.fetch_one(PLAIN_READ, [item]) for item in range(1, count + 1)])}

    @app.post("/change/{item}")
    async def change(item: int, db: Annotated[DataSession, Depends(session)]) -> dict[str, Any]:
        await db.fetch_one(PLAIN_LOCKED, [item])
        return dict(await db.fetch_one(PLAIN_WRITE, [item]) or {})

    @app.get("/report")
    async def summary(db: Annotated[DataSession, Depends(session)]) -> dict[str, Any]:
        return {"digits": [dict(row) for row in await db.fetch_all(PLAIN_REPORT, [])]}

    @app.get("/plain")
    async def plain() -> dict[str, Any]:
        return {"ok": True}

    app.add_middleware(DataSourceMiddleware, config=config(url, pool_size))
    return app
