"""The application on FastAPI."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from asgi_datasource import DataError, DataSession, DataSourceMiddleware, session
from tests.frameworks.apps import CONFIG, INSERT, ORIGIN, ORPHAN, items, kept, roles, text_of, use_late

Db = Annotated[DataSession, Depends(session)]

app = FastAPI()
app.add_middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["POST"], allow_headers=["X-Tenant"])
app.add_middleware(DataSourceMiddleware, config=CONFIG)


@app.post("/orders", status_code=201)
async def place(item: str, db: Db) -> None:
    await db.execute(INSERT, [item])


@app.get("/orders")
async def list_orders(db: Db) -> list[str]:
    return await items(db)


@app.post("/orphans", status_code=201)
async def orphan(db: Db) -> None:
    await db.execute(ORPHAN)


@app.post("/pin")
async def pin(item: str, db: Db) -> list[str]:
    return await roles(db, item)


@app.post("/sync", status_code=201)
def place_sync(item: str, db: Db) -> None:
    db.blocking.execute(INSERT, [item])


@app.post("/keep")
async def keep(db: Db) -> None:
    kept.append(db)


@app.get("/late", response_class=PlainTextResponse)
async def late() -> str:
    return await use_late()


@app.exception_handler(DataError)
async def data_error(request: Request, error: DataError) -> Response:
    return PlainTextResponse(text_of(error), error.http_status)
