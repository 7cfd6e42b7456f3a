"""The shop: an order and its event are one transaction. `uvicorn --factory outbox_app.shop:create_app`."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asgi_datasource import DataSourceMiddleware, DataSourceRegistry, compile, session

CONFIG = Path(__file__).with_name("datasource.yaml")


async def place_order(request: Request) -> JSONResponse:
    """Two round trips: the INSERT, and COMMIT with the event."""
    db, wanted = session(request), await request.json()
    order = await db.fetch_one(
        "insert into orders (item, email) values (%s, %s) returning id, item, email", [wanted["item"], wanted["email"]]
    )
    await db.outbox.publish("orders.placed", key=str(order["id"]), payload=order)
    return JSONResponse(order, status_code=201)


def create_app(registry: DataSourceRegistry | None = None) -> Starlette:
    """The application; its lifespan runs the relay."""
    return Starlette(
        routes=[Route("/orders", place_order, methods=["POST"])],
        middleware=[Middleware(DataSourceMiddleware, registry=registry or compile(CONFIG))],
    )
