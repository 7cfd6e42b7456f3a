"""Litestar with advanced-alchemy: its session for each request, which commits before the response starts.

This module has no `from __future__ import annotations`: Litestar cannot resolve the names of local types.
"""

from typing import Any

from advanced_alchemy.extensions.litestar import AsyncSessionConfig, SQLAlchemyAsyncConfig, SQLAlchemyPlugin
from litestar import Litestar, Request, get, post
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.sides.asgi import TENANT_HEADER, ASGIApp
from benchmarks.sides.sqlalchemy_session import LOCKED, READ, SET_TENANT, WRITE, engine_for, report, run_one

HEADER = TENANT_HEADER.decode("ascii")


async def _begin(session: AsyncSession, request: Request[Any, Any, Any]) -> None:
    await session.execute(SET_TENANT, {"tenant": request.headers[HEADER]})


@get("/items/{item:int}")
async def read(item: int, db_session: AsyncSession, request: Request[Any, Any, Any]) -> dict[str, Any]:
    await _begin(db_session, request)
    return dict(await run_one(db_session, READ, item))


@post("/items/{item:int}", status_code=200)
async def write(item: int, db_session: AsyncSession, request: Request[Any, Any, Any]) -> dict[str, Any]:
    await _begin(db_session, request)
    return dict(await run_one(db_session, WRITE, item))


@post("/batch/{count:int}", status_code=200)
async def batch(count: int, db_session: AsyncSession, request: Request[Any, Any, Any]) -> dict[str, Any]:
    await _begin(db_session, request)
    return {"count": len([await run_one(db_session, WRITE, item) for item in range(1, count + 1)])}


@get("/reads/{count:int}")
async def reads(count: int, db_session: AsyncSession, request: Request[Any, Any, Any]) -> dict[str, Any]:
    await _begin(db_session, request)
    return {"count": len([await run_one(db_session, READ, item) for item in range(1, count + 1)])}


@post("/change/{item:int}", status_code=200)
async def change(item: int, db_session: AsyncSession, request: Request[Any, Any, Any]) -> dict[str, Any]:
    await _begin(db_session, request)
    await run_one(db_session, LOCKED, item)
    return dict(await run_one(db_session, WRITE, item))


@get("/report")
async def summary(db_session: AsyncSession, request: Request[Any, Any, Any]) -> dict[str, Any]:
    await _begin(db_session, request)
    return dict(await report(db_session))


@get("/plain")
async def plain() -> dict[str, Any]:
    return {"ok": True}


def app(url: str, pool_size: int) -> ASGIApp:
    config = SQLAlchemyAsyncConfig(
        engine_instance=engine_for(url, "asyncpg", pool_size),
        session_config=AsyncSessionConfig(expire_on_commit=False),
        before_send_handler="autocommit",
    )
    handlers = [read, write, batch, reads, change, summary, plain]
    made: Any = Litestar(handlers, plugins=[SQLAlchemyPlugin(config)], openapi_config=None)
    application: ASGIApp = made
    return application
