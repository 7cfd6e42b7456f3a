"""The tables, as SQLModel classes. None names a schema: each tenant has its own."""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class Product(SQLModel, table=True):
    """What is sold, and how many of it are there."""

    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    stock: int = 0


class Order(SQLModel, table=True):
    """One that was placed. Named as a table that needs no quotes."""

    __tablename__ = "placed_order"

    id: int | None = Field(default=None, primary_key=True)
    product_id: int = Field(foreign_key="product.id")
    quantity: int


class NewOrder(SQLModel):
    """What a client sends."""

    product: str
    quantity: int = Field(gt=0)
