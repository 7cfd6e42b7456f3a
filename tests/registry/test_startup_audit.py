"""The start-up audit: roles that bypass row security are refused, other gaps are logged."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import ConfigError, DataError, DataSourceRegistry, compile, session
from asgi_datasource.registry import startup_audit as vetting_module
from asgi_datasource.tenancy import Home, Tenant, home_of, tenant_settings
from asgi_datasource.testing import EmbeddedCluster, serve
from tests.apps import application
from tests.pools import until
from tests.world import World


def config(world: World, *, user: str = "app", role: str | None = None, **audit: Any) -> dict[str, Any]:
    url = world.cluster.nodes["primary"].url(dbname=world.dbname, user=user)
    document = world.config(replicas=(), urls={"primary": url})
    document["datasources"]["orders"]["audit"] = audit
    if role is not None:
        document["tenants"]["initech"]["role"] = role
    return document


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "asgi_datasource.tenancy"]


async def start(document: dict[str, Any]) -> DataSourceRegistry:
    made = compile(document)
    await made.open()
    await made.close()
    return made


async def test_an_ordinary_role_is_accepted(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await start(config(world))
    assert [text for text in logged(caplog) if "row security" in text and "shared.orders" in text] == []


async def test_a_superuser_is_refused_at_start_up(world: World) -> None:
    with pytest.raises(ConfigError, match=r"the role postgres is a superuser.*allow_roles"):
        await start(config(world, user="postgres"))


async def test_a_role_with_bypassrls_is_refused_as_login_and_as_tenant_role(world: World) -> None:
    name = f"{world.dbname}_sees_all"
    await world.sql(f"create role {name} bypassrls; grant {name} to app")
    try:
        with pytest.raises(ConfigError, match=f"the role {name} has BYPASSRLS"):
            await start(config(world, role=name))
        # Tenants without a role run as the login, which is audited as well.
        with pytest.raises(ConfigError, match="the role postgres is a superuser"):
            await start(config(world, user="postgres", role=name, allow_roles=[name]))
    finally:
        await world.sql(f"drop role {name}")


async def test_roles_for_future_tenants_are_refused_as_well(world: World) -> None:
    to_come = {"datasource": "orders", "row_security": {"app.tenant": "{tenant}"}, "schema": "of_{tenant}"}
    document = config(world, user="postgres")
    document["tenants"] = {"*": to_come}
    with pytest.raises(ConfigError, match="the role postgres is a superuser"):
        await start(document)
    document["tenants"] = {}
    document["tenants_from"] = {
        "datasource": "orders",
        "query": "select 'x' as name where false",
        "defaults": to_come,
    }
    with pytest.raises(ConfigError, match="the role postgres is a superuser"):
        await start(document)
    document["tenants_from"]["defaults"] = {"datasource": "orders", "schema": "of_{tenant}"}
    await start(document)


@pytest.mark.parametrize("audit", [{"allow_roles": ["postgres"]}, {"on_start": "warn"}, {"on_start": "off"}])
async def test_a_role_can_be_allowed_by_name_and_the_audit_reduced(
    world: World, audit: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await start(config(world, user="postgres", **audit))
    assert any("is a superuser" in text for text in logged(caplog)) == (audit == {"on_start": "warn"})


async def test_an_application_with_a_bypassing_role_does_not_start(world: World) -> None:
    app = application(compile(config(world, user="postgres")), [])
    with pytest.raises(Exception, match=r"did not start|startup"):
        async with serve(app):
            raise AssertionError("the application started")


async def test_a_refused_registry_can_be_opened_after_the_fix(world: World) -> None:
    await world.cluster.create_role("careless")
    await world.sql("alter role careless superuser")
    try:
        made = compile(config(world, user="careless"))
        with pytest.raises(ConfigError):
            await made.open()
        assert not made.is_open
        await world.sql("alter role careless nosuperuser")
        await world.sql("grant usage on schema shared to careless; grant select on shared.orders to careless")
        async with made, made.session("initech") as db:
            assert await db.read.fetch_value("select count(*) from orders") == 0
    finally:
        await world.sql("drop owned by careless; drop role careless")


async def test_other_gaps_are_logged_except_for_shared_tables(world: World, caplog: pytest.LogCaptureFixture) -> None:
    await world.sql("create table shared.open (id int); create table shared.countries (id int)", schema="shared")
    await world.sql("grant select on shared.open, shared.countries to app")
    await world.sql("alter table shared.orders no force row level security", schema="shared")
    await start(config(world, shared_tables=["countries", "shared.parents", "shared.children", "shared.slow"]))
    texts = " ".join(logged(caplog))
    assert "the table shared.open has no row security" in texts
    assert "shared.countries" not in texts
    assert "shared.parents" not in texts


async def test_a_reload_with_a_bypassing_role_is_refused_and_changes_nothing(world: World) -> None:
    async with compile(config(world)) as made:
        before = made.compiled
        with pytest.raises(ConfigError, match="is a superuser"):
            await made.reload(config(world, user="postgres"))
        assert made.compiled is before
        async with made.session("acme") as db:
            assert await db.read.fetch_value("select current_user::text") == "app"


async def test_a_server_that_is_down_at_start_up_is_audited_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vetting_module, "RETRY_S", 0.05)
    caplog.set_level(logging.WARNING)

    async def read(request: Request) -> Response:
        return JSONResponse(await session(request).fetch_value("select count(*) from orders"))

    with EmbeddedCluster() as cluster:
        async with World.create(cluster) as world:
            made = compile(config(world, user="postgres"))
            await cluster.nodes["primary"].stop()
            async with (
                serve(application(made, [Route("/", read)])) as server,
                httpx.AsyncClient(base_url=server.url, headers={"X-Tenant": "initech"}, timeout=20.0) as http,
            ):
                assert (await http.get("/")).status_code == 503
                await cluster.nodes["primary"].start()
                await until(lambda: made.compiled.admission.asks, "the server was not vetted")
                assert (await http.get("/")).status_code == 503
                with pytest.raises(DataError, match="is a superuser"):
                    async with made.session("initech"):
                        raise AssertionError("the session was opened")
    assert any("served without having been vetted" in text for text in logged(caplog))


# -- a database per tenant


@asynccontextmanager
async def databases(world: World, count: int) -> AsyncIterator[dict[str, Any]]:
    """A copy of the world's database per tenant, each with its own login."""
    names = [f"t{number}" for number in range(count)]
    made = [f"{world.dbname}_{name}" for name in names]
    for name in made:
        await world.cluster.create_database(name)
        await world.cluster.create_role(name, password="secret")
    url = world.cluster.nodes["primary"].url(dbname="PLACE", user=made[0])
    url = url.replace("PLACE", f"{world.dbname}_{{tenant}}").replace(made[0], f"{world.dbname}_{{tenant}}")
    try:
        yield {
            "version": 1,
            "datasources": {"own": {"primary": {"url": url}}},
            "tenancy": {"resolve": [{"header": "X-Tenant"}]},
            "tenants": {name: {"datasource": "own", "row_security": {"app.tenant": name}} for name in names},
        }
    finally:
        for name in made:
            await world.cluster.drop_database(name)
            await world.sql(f"drop role {name}")


async def test_a_sample_of_the_databases_is_audited_with_a_database_per_tenant(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "asgi_datasource.tenancy")
    monkeypatch.setattr(vetting_module, "MOST_DATABASES", 2)
    async with databases(world, 4) as document:
        await start(document)
        assert "own: 2 of its 4 databases that are known were vetted" in logged(caplog)
        await world.sql(f"alter role {world.dbname}_t2 bypassrls")
        with pytest.raises(ConfigError, match=f"the role {world.dbname}_t2 has BYPASSRLS"):
            await start(document)
        await world.sql(f"alter role {world.dbname}_t2 nobypassrls")
        # A missing database prevents neither the start nor the audit of the others.
        document["tenants"]["t3x"] = {"datasource": "own", "row_security": {"app.tenant": "x"}}
        monkeypatch.setattr(vetting_module, "MOST_DATABASES", 5)
        made = compile(document)
        async with made, made.session("t0") as db:
            assert await db.read.fetch_value("select current_user::text") == f"{world.dbname}_t0"
        assert "own: 4 of its 5 databases that are known were vetted" in logged(caplog)
        # Without schemas or row security inside the databases there is nothing to audit.
        caplog.clear()
        for name in document["tenants"]:
            document["tenants"][name] = {"datasource": "own"}
        await start(document)
        assert logged(caplog) == []


async def test_tenants_of_an_unavailable_catalog_are_audited_once_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vetting_module, "RETRY_S", 0.05)
    document = config(world, user="postgres")
    document["tenants"] = {}
    document["tenants_from"] = {
        "datasource": "orders",
        "query": "select * from late.tenants",
        "defaults": {"datasource": "orders", "schema": "shared", "row_security": {"app.tenant": "{tenant}"}},
        "refresh": "100ms",
    }
    async with compile(document) as made:
        assert not made.compiled.admission.asks
        await world.sql("create schema late; create table late.tenants as select 'hooli' as name")
        await until(lambda: made.compiled.admission.asks, "the tenants were not vetted")
        with pytest.raises(DataError, match="is a superuser"):
            async with made.session("hooli"):
                raise AssertionError("the session was opened")


@pytest.mark.parametrize("shared", [(), ("ext", 'od"d')])
@pytest.mark.parametrize("schema", [None, "acme", 'we"ird", "public'])
def test_the_home_of_a_tenant_follows_from_its_settings(schema: str | None, shared: tuple[str, ...]) -> None:
    for row_security, role in ((None, None), ({"app.tenant": "7"}, "reader")):
        _, settings = tenant_settings(schema=schema, shared_schemas=shared, row_security=row_security, role=role)
        home = home_of(Tenant("acme", "orders", settings=settings), shared)
        assert home == Home("acme", schema, role, row_security is not None)
