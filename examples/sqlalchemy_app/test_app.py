"""Tests of the shop, on a real primary and a real replica: the fixtures come with `asgi-datasource[testing]`."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from asgi_datasource import compile
from asgi_datasource.testing import serve
from asgi_datasource.testing.migrated import MigrationOptions
from asgi_datasource.testing.plugin import Database

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy_app.app import CONFIG, create_app


@pytest.fixture(scope="session")
def pg_cluster_options() -> dict[str, int]:
    return {"replicas": 1}


@pytest.fixture(scope="session")
def pg_migrations() -> MigrationOptions:
    return {"folder": CONFIG.with_name("migrations"), "tenants": {"acme": "acme", "globex": "globex"}}


@pytest.fixture
async def shop(pg_migrated: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the served application, whose tenants have their tables and nothing in them."""
    [replica_url] = pg_migrated.replica_urls.values()
    environ = {"ORDERS_URL": pg_migrated.url, "ORDERS_R1_URL": replica_url, "TOKEN_SECRET": "s" * 32}
    registry = compile(CONFIG, environ=environ)
    async with (
        registry,
        serve(create_app(registry)) as server,
        httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "acme"}) as client,
    ):
        yield client


async def test_an_order_takes_from_the_stock(shop: httpx.AsyncClient) -> None:
    assert (await shop.post("/products", json={"name": "tea", "stock": 5})).status_code == 201
    assert (await shop.post("/orders", json={"product": "tea", "quantity": 2})).status_code == 201
    # The cookie of the last write makes this read see it, although a replica may answer.
    assert [product["stock"] for product in (await shop.get("/products")).json()] == [3]
    assert (await shop.get("/report")).json() == {"tenant": "acme", "orders": 1, "sold": 2}


async def test_what_is_refused_has_changed_nothing(shop: httpx.AsyncClient) -> None:
    await shop.post("/products", json={"name": "tea", "stock": 5})
    assert (await shop.post("/orders", json={"product": "tea", "quantity": 9})).status_code == 409
    assert (await shop.post("/orders", json={"product": "coffee", "quantity": 1})).status_code == 404
    assert (await shop.post("/products", json={"name": "tea", "stock": 1})).status_code == 409
    assert [product["stock"] for product in (await shop.get("/products")).json()] == [5]
    assert (await shop.get("/report")).json()["orders"] == 0


async def test_a_tenant_sees_its_own_alone(shop: httpx.AsyncClient) -> None:
    await shop.post("/products", json={"name": "tea", "stock": 5})
    assert (await shop.get("/products", headers={"X-Tenant": "globex"})).json() == []
    assert (await shop.get("/products", headers={"X-Tenant": "initech"})).status_code == 404
