"""The application: reads go to the replica, an order and its stock are one transaction, and 201 means committed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import select

from asgi_datasource import DataSession, DataSourceMiddleware, DataSourceRegistry, compile, session
from sqlalchemy_app.models import NewOrder, Order, Product

CONFIG = Path(__file__).with_name("datasource.yaml")


def orm(db: Annotated[DataSession, Depends(session)]) -> AsyncSession:
    """The ORM's session on the request's own: for handlers that need nothing else."""
    return db.sqlalchemy


Orm = Annotated[AsyncSession, Depends(orm)]
Db = Annotated[DataSession, Depends(session)]


async def products(orm: Orm) -> list[Product]:
    """GET: one round trip to the replica."""
    return list(await orm.scalars(select(Product).order_by(Product.name)))


async def add_product(product: Product, orm: Orm) -> Product:
    """Flushed for its id; a name that is taken is answered with 409, by the library."""
    orm.add(product)
    await orm.flush()
    return product


async def place_order(wanted: NewOrder, db: Db) -> Order:
    """Two tables, one transaction: what raises here, or answers 4xx, has changed nothing."""
    product = await db.sqlalchemy.scalar(select(Product).where(Product.name == wanted.product).with_for_update())
    if product is None:
        raise HTTPException(404, "there is no such product")
    product.stock -= wanted.quantity
    order = Order(product_id=product.id, quantity=wanted.quantity)
    db.sqlalchemy.add(order)
    await db.sqlalchemy.flush()
    if product.stock < 0:
        raise HTTPException(409, "not enough of it is there")
    return order


async def report(db: Db) -> dict[str, Any]:
    """SQL by hand where it is shorter, on the same session."""
    orders = await db.sqlalchemy.scalar(select(func.count()).select_from(Order))
    sold = await db.fetch_value("select coalesce(sum(quantity), 0) from placed_order")
    return {"tenant": db.tenant.name, "orders": orders, "sold": sold}


def create_app(registry: DataSourceRegistry | None = None) -> FastAPI:
    """The application; `uvicorn --factory sqlalchemy_app.app:create_app`."""
    app = FastAPI()
    app.add_middleware(DataSourceMiddleware, registry=registry or compile(CONFIG))
    app.get("/products")(products)
    app.post("/products", status_code=201)(add_product)
    app.post("/orders", status_code=201)(place_order)
    app.get("/report")(report)
    return app
