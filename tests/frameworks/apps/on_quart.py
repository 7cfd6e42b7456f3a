"""The application on Quart."""

from __future__ import annotations

from typing import Any

from quart import Quart, request
from quart_cors import cors

from asgi_datasource import DataError, current_session
from asgi_datasource.quart import DataSourceExtension
from tests.frameworks.apps import CONFIG, INSERT, ORIGIN, ORPHAN, items, kept, roles, text_of, use_late

app = cors(Quart(__name__), allow_origin=[ORIGIN], allow_headers=["X-Tenant"])
DataSourceExtension(app, CONFIG)


@app.post("/orders")
async def place() -> Any:
    await current_session().execute(INSERT, [request.args["item"]])
    return "", 201


@app.get("/orders")
async def list_orders() -> Any:
    return await items(current_session())


@app.post("/orphans")
async def orphan() -> Any:
    await current_session().execute(ORPHAN)
    return "", 201


@app.post("/pin")
async def pin() -> Any:
    return await roles(current_session(), request.args["item"])


@app.post("/sync")
def place_sync() -> Any:
    current_session().blocking.execute(INSERT, [request.args["item"]])
    return "", 201


@app.post("/keep")
async def keep() -> Any:
    kept.append(current_session())
    return ""


@app.get("/late")
async def late() -> Any:
    return await use_late()


@app.errorhandler(DataError)
async def data_error(error: DataError) -> Any:
    return text_of(error), error.http_status
