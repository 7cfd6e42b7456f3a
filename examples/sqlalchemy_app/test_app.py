"""Tests of the shop, on a real primary and a real replica: the fixtures come with `asgi-datasource[testing]`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fastapi import FastAPI

from asgi_datasource import DataSourceRegistry
from asgi_datasource.testing import AppClient, TestKit

sys.path.insert(0, str(Path(__file__).parents[1]))

from sqlalchemy_app.app import CONFIG, create_app


@pytest.fixture(scope="session")
def ads_config() -> Path:
    return CONFIG


@pytest.fixture
def ads_tenant() -> str:
    return "acme"


@pytest.fixture
def ads_app(ads_registry: DataSourceRegistry) -> FastAPI:
    return create_app(ads_registry)


async def test_an_order_takes_from_the_stock(ads_client: AppClient) -> None:
    assert (await ads_client.post("/products", json={"name": "tea", "stock": 5})).status_code == 201
    assert (await ads_client.post("/orders", json={"product": "tea", "quantity": 2})).status_code == 201
    # The cookie of the last write makes this read see it, although a replica may answer.
    assert [product["stock"] for product in (await ads_client.get("/products")).json()] == [3]
    assert (await ads_client.get("/report")).json() == {"tenant": "acme", "orders": 1, "sold": 2}


async def test_what_is_refused_has_changed_nothing(ads_client: AppClient) -> None:
    await ads_client.post("/products", json={"name": "tea", "stock": 5})
    assert (await ads_client.post("/orders", json={"product": "tea", "quantity": 9})).status_code == 409
    assert (await ads_client.post("/orders", json={"product": "coffee", "quantity": 1})).status_code == 404
    assert (await ads_client.post("/products", json={"name": "tea", "stock": 1})).status_code == 409
    assert [product["stock"] for product in (await ads_client.get("/products")).json()] == [5]
    assert (await ads_client.get("/report")).json()["orders"] == 0


async def test_a_tenant_sees_its_own_alone(ads_client: AppClient) -> None:
    await ads_client.post("/products", json={"name": "tea", "stock": 5})
    assert (await ads_client.get("/products", tenant="globex")).json() == []
    assert (await ads_client.get("/products", tenant="initech")).status_code == 404


async def test_a_commit_that_fails_is_not_201(ads_client: AppClient, ads: TestKit) -> None:
    with ads.fail_commit():
        assert (await ads_client.post("/products", json={"name": "tea", "stock": 5})).status_code == 503
    assert (await ads_client.get("/products")).json() == []
    await ads.catch_up()
    with ads.assert_round_trips(1):
        await ads_client.get("/products")
    ads.assert_route(node="r1")
