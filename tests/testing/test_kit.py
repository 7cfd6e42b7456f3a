"""The fixtures of the user's application, for each plugin that runs async tests, and under pytest-xdist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.testing.test_plugin import Project

PROJECT = {
    "datasource.yaml": """
        version: 1
        datasources:
          orders:
            primary: {url: "${ORDERS_URL}"}
            replicas: {r1: {url: "${ORDERS_R1_URL}"}}
            routing: {check_interval: 50ms}
        tenancy: {resolve: [{header: X-Tenant}]}
        tenants: {acme: {datasource: orders, schema: acme}, globex: {datasource: orders, schema: globex}}
        consistency: {token: cookie, secret: {file: secrets/not-there}}
        migrate: {folder: migrations}
    """,
    "migrations/tenant/0001_orders.sql": "create table orders (id bigint generated always as identity, item text);",
    "shop.py": """
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        from asgi_datasource import DataSourceMiddleware, session

        started = []

        async def orders(request):
            if request.method == "POST":
                await session(request).execute("insert into orders (item) values ('tea')")
                return JSONResponse({}, status_code=201)
            return JSONResponse(await session(request).fetch_value("select count(*) from orders"))

        async def lifespan_of(app):
            started.append("up")
            yield
            started.append("down")

        from contextlib import asynccontextmanager

        app = Starlette(
            routes=[Route("/orders", orders, methods=["GET", "POST"])],
            middleware=[Middleware(DataSourceMiddleware, config="datasource.yaml")],
            lifespan=asynccontextmanager(lifespan_of),
        )
    """,
    "pytest.ini": """
        [pytest]
        ads_app = shop:app
        asyncio_mode = strict
        asyncio_default_fixture_loop_scope = function
        filterwarnings =
            error
            ignore:Using `httpx` with
    """,
    "conftest.py": """
        import pytest

        @pytest.fixture
        def ads_tenant():
            return "acme"

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
    """,
    "test_asyncio.py": """
        import asyncio

        import pytest
        import shop

        pytestmark = pytest.mark.asyncio

        async def test_requests_are_committed_on_servers_of_the_test(ads_client, ads):
            assert shop.started[-1] == "up"
            assert (await ads_client.post("/orders")).status_code == 201
            ads.assert_route(node="primary", reason="write")
            assert (await ads_client.get("/orders", tenant="globex")).json() == 0
            await ads.catch_up()
            with ads.assert_round_trips(1):
                assert (await ads_client.get("/orders")).json() == 1
            ads.assert_route(node="r1")
            with pytest.raises(AssertionError, match="not to node=primary; those before"):
                ads.assert_route(node="primary")
            with pytest.raises(AssertionError, match="1 round trips, not 2"), ads.assert_round_trips(2):
                await ads_client.get("/orders")
            assert [each.status_code for each in await asyncio.gather(*[ads_client.get("/orders")] * 1)] == [200]

        async def test_a_database_is_fresh_and_stale_reads_are_not_the_clients_own(ads_client, ads):
            assert shop.started[-2:] == ["down", "up"]
            assert (await ads_client.get("/orders")).json() == 0
            await ads.catch_up()
            with ads.pause_replay("r1"):
                await ads_client.post("/orders")
                assert (await ads_client.get("/orders")).json() == 1
                ads.assert_route(node="primary")
                ads_client.http.cookies.clear()
                assert (await ads_client.get("/orders")).json() == 0
                ads.assert_route(node="r1")

        async def test_a_commit_that_fails_is_no_success(ads_client, ads):
            with ads.fail_commit():
                assert (await ads_client.post("/orders")).status_code == 503
            assert (await ads_client.get("/orders")).json() == 0
            with ads.fail_commit(applied=True):
                assert (await ads_client.post("/orders")).status_code == 201
            assert (await ads_client.get("/orders")).json() == 1
            with pytest.raises(AssertionError, match="nothing that contains commit was sent"), ads.fail_commit():
                await ads_client.get("/orders")

        async def test_a_session_is_rolled_back(ads_session, ads_registry, ads_database):
            await ads_session.execute("insert into orders (item) values ('tea')")
            assert await ads_session.fetch_value("select count(*) from orders") == 1
            async with ads_registry.session("acme") as other:
                assert await other.fetch_value("select count(*) from orders") == 0
            assert ads_session.tenant.name == "acme"
    """,
    "test_anyio.py": """
        import pytest

        pytestmark = pytest.mark.anyio

        async def test_a_session_and_a_client(ads_session, ads_client):
            await ads_session.execute("insert into orders (item) values ('tea')")
            assert (await ads_client.get("/orders")).json() == 0
    """,
    "test_without_a_loop.py": """
        import unittest

        import pytest
        from starlette.testclient import TestClient

        def test_starlettes_client(ads_app, ads):
            with TestClient(ads_app, headers={"X-Tenant": "acme"}) as client:
                with ads.fail_commit():
                    assert client.post("/orders").status_code == 503
                assert client.post("/orders").status_code == 201
                assert client.get("/orders").json() == 1
            assert str(ads.routes[1]) == "orders.primary (write)"

        def test_data_of_a_test(ads_database, ads_session):
            ads_database.execute("insert into acme.orders (item) values ('tea')")
            with pytest.raises(RuntimeError, match="ads_session is open while an async test runs"):
                ads_session.fetch_value

        class TestShop(unittest.IsolatedAsyncioTestCase):
            @pytest.fixture(autouse=True)
            def _fixtures(self, ads_client, ads_session):
                self.client, self.session = ads_client, ads_session

            async def asyncSetUp(self):
                await self.session.execute("insert into orders (item) values ('tea')")

            async def test_it(self):
                self.assertEqual(await self.session.fetch_value("select count(*) from orders"), 1)
                self.assertEqual((await self.client.get("/orders")).json(), 0)
    """,
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_fixtures_serve_every_kind_of_test(project: Project) -> None:
    for name, text in PROJECT.items():
        project.add(name, text)
    done = project.run("-n", "1", asyncio="pytest_asyncio")
    assert "8 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
