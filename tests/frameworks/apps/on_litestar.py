"""The application on Litestar."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, MediaType, Request, Response, get, post
from litestar.config.cors import CORSConfig
from litestar.di import NamedDependency
from litestar.params import FromQuery

from asgi_datasource import DataError, DataSession
from asgi_datasource.litestar import DataSourcePlugin
from tests.frameworks.apps import CONFIG, INSERT, ORIGIN, ORPHAN, items, kept, roles, text_of, use_late


@post("/orders")
async def place(item: FromQuery[str], db: NamedDependency[DataSession]) -> None:
    await db.execute(INSERT, [item])


@get("/orders")
async def list_orders(db: NamedDependency[DataSession]) -> list[str]:
    return await items(db)


@post("/orphans")
async def orphan(db: NamedDependency[DataSession]) -> None:
    await db.execute(ORPHAN)


@post("/pin", status_code=200)
async def pin(item: FromQuery[str], db: NamedDependency[DataSession]) -> list[str]:
    return await roles(db, item)


@post("/sync", sync_to_thread=True)
def place_sync(item: FromQuery[str], db: NamedDependency[DataSession]) -> None:
    db.blocking.execute(INSERT, [item])


@post("/keep", status_code=200)
async def keep(db: NamedDependency[DataSession]) -> None:
    kept.append(db)


@get("/late", media_type=MediaType.TEXT)
async def late() -> str:
    return await use_late()


def data_error(request: Request[Any, Any, Any], error: DataError) -> Response[str]:
    return Response(text_of(error), status_code=error.http_status, media_type=MediaType.TEXT)


app = Litestar(
    [place, list_orders, orphan, pin, place_sync, keep, late],
    plugins=[DataSourcePlugin(CONFIG)],
    cors_config=CORSConfig(allow_origins=[ORIGIN], allow_headers=["X-Tenant"]),
    exception_handlers={DataError: data_error},
)
