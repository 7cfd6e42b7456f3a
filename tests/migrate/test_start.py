"""The start of the application, tenants behind it, and new tenants."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asgi_datasource import ConfigError, DataError, DataSourceMiddleware, DataSourceRegistry, compile, session
from asgi_datasource.migrate import Verdict
from asgi_datasource.tenancy import Admission, Tenant, TenantDirectory
from asgi_datasource.testing.binaries import find_binaries
from tests.migrate.site import Site

FILES = {
    "shared__0001_plans.sql": "create table plans (id int primary key);",
    "tenant__0001_orders.sql": "create table orders (id int, item text);",
}
NEXT = {"tenant__0002_note.sql": "alter table orders add column note text;"}
TABLE = {
    "tenants": {},
    "tenants_from": {"datasource": "orders", "defaults": {"datasource": "orders", "schema": "t_{tenant}"}},
    "tenancy": {"resolve": [{"header": "X-Tenant"}]},
}


def client(registry: DataSourceRegistry) -> httpx.AsyncClient:
    async def count(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(await session(request).fetch_value("select count(*) from orders")))

    app = Starlette(routes=[Route("/", count)], middleware=[Middleware(DataSourceMiddleware, registry=registry)])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://app")


async def status(http: httpx.AsyncClient, tenant: str) -> int:
    return (await http.get("/", headers={"X-Tenant": tenant})).status_code


async def test_the_application_does_not_start_while_migrations_are_pending(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme", "globex"])
    with pytest.raises(ConfigError, match=r"3 schemas are behind .*: orders \(shared\), acme, globex\. Run asgi-data"):
        await compile(site.config).open()
    site.set(at_startup="off")
    async with compile(site.config):
        pass
    site.set(at_startup="apply")
    async with compile(site.config) as registry, client(registry) as http:
        assert await status(http, "acme") == 200
    site.set(at_startup="check")
    async with compile(site.config):
        pass
    site.write(**{"tenant__0002_bad.sql": "select 1 / 0;"})
    site.set(at_startup="apply")
    with pytest.raises(ConfigError, match="0002_bad failed for acme"):
        await compile(site.config).open()


async def test_eight_starts_at_once_apply_each_migration_once(site: Site) -> None:
    site.write(**FILES, **{"tenant__0002_count.sql": "insert into public.runs values (current_schema);"})
    await site.sql("create table public.runs (schema text)")
    await site.add_schemas(["acme", "globex", "initech"])
    site.set(at_startup="apply")
    registries = [compile(site.config) for _ in range(8)]
    await asyncio.gather(*(registry.open() for registry in registries))
    await asyncio.gather(*(registry.close() for registry in registries))
    assert await site.sql("select count(*), count(distinct schema) from public.runs") == [(3, 3)]


async def test_a_tenant_that_is_behind_is_refused_the_others_are_served_and_no_request_asks(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme", "globex", "initech"])
    await site.apply()
    site.write(**NEXT, **{"tenant__0003_item.sql": "-- phase: contract\nalter table orders drop column item;"})
    await site.apply(tenants=["acme"])
    await site.sql("drop schema initech cascade; create schema initech; create table initech.orders (id int)")
    site.set(behind="refuse")
    async with compile(site.config) as registry, client(registry) as http:
        assert registry.skew is not None
        refused = await http.get("/", headers={"X-Tenant": "globex"})
        assert (refused.status_code, refused.headers.get("retry-after") is not None) == (503, True)
        assert [await status(http, name) for name in ("acme", "globex", "initech", "acme")] == [200, 503, 503, 200]
        assert registry.skew.looks == 1
        assert (await site.apply(expand_only=True, tenants=["globex"])).verdict is Verdict.AT_HEAD
        assert site.command("repair", "--forget", "--tenant", "initech").code == 0
        assert not await registry.skew.refresh()
        assert [await status(http, name) for name in ("acme", "globex", "initech")] == [200, 200, 503]
        await site.sql("drop table initech.orders")
        await site.apply()
        assert await registry.skew.refresh()
        assert await status(http, "initech") == 200
        assert not registry.compiled.admission.asks


async def test_a_shared_part_that_is_behind_keeps_the_application_from_starting(site: Site) -> None:
    site.write(**FILES)
    await site.add_schemas(["acme"])
    await site.apply()
    site.write(**{"shared__0002_more.sql": "create table more (id int);"})
    site.set(behind="refuse")
    with pytest.raises(ConfigError, match=r"1 schemas are behind .* orders \(shared\)"):
        await compile(site.config).open()


async def test_a_server_that_is_down_does_not_keep_the_application_from_starting(site: Site) -> None:
    site.write(**FILES)
    site.url = "postgresql://postgres@127.0.0.1:9/none"
    site.configure()
    async with compile(site.config) as registry:
        assert registry.is_open


async def test_a_new_tenant_is_at_the_head_when_it_is_served(site: Site) -> None:
    site.write(**FILES, **NEXT)
    site.configure(**TABLE)
    await site.apply()
    created = site.command_of("tenants", "create", "acme")
    assert created.code == 0, created.err
    assert "create acme: migrate" in created.err
    async with compile(site.config) as registry:
        await registry.provision("globex")
        async with client(registry) as http:
            assert [await status(http, name) for name in ("acme", "globex")] == [200, 200]
    assert (await site.plan()).verdict is Verdict.AT_HEAD
    assert await site.ledger() == [
        ("", 1, "applied"),
        *((f"t_{n}", v, "applied") for n in ("acme", "globex") for v in (1, 2)),
    ]

    assert site.command_of("tenants", "drop", "acme", "--yes", "acme").code == 0
    assert site.command_of("tenants", "create", "acme").code == 0
    assert (await site.plan()).verdict is Verdict.AT_HEAD


async def test_a_new_tenant_waits_for_a_migration_that_fails_and_goes_on_after_the_fix(site: Site) -> None:
    site.write(**FILES)
    site.configure(**TABLE)
    first = site.command_of("tenants", "create", "acme")
    assert (first.code, "its shared part lacks 0001_plans: run migrate apply first" in first.err) == (2, True)
    await site.apply()
    site.write(**{"tenant__0002_bad.sql": "select 1 / 0;"})
    second = site.command_of("tenants", "create", "acme")
    assert (second.code, "0002_bad" in second.err) == (2, True), second.err
    site.write(**{"tenant__0002_bad.sql": "select 1;"})
    assert site.command_of("tenants", "create", "acme").code == 0
    assert (await site.plan()).verdict is Verdict.AT_HEAD


async def test_a_database_of_a_tenants_own_has_the_shared_and_the_tenant_files(site: Site) -> None:
    site.write(**FILES, **NEXT)
    own = site.url.replace(site.dbname, f"{site.dbname}_{{tenant}}")
    site.configure(
        datasources={
            "orders": {"primary": {"url": site.url}},
            "own": {"primary": {"url": own}, "admin": {"url": site.url}},
        },
        **{**TABLE, "tenants_from": {"datasource": "orders", "defaults": {"datasource": "own"}}},
    )
    for name in ("acme", "globex"):
        created = site.command_of("tenants", "create", name)
        assert created.code == 0, created.err
    site.write(**{"tenant__0003_more.sql": "create table more (id int);", "shared__0002_x.sql": "create table x ();"})
    report = await site.apply()
    assert {one.name: one.applied for one in report.schemas} == {
        "orders (shared)": ["0001_plans", "0002_x"],
        "own (shared)": ["0002_x"],
        "acme": ["0003_more"],
        "globex": ["0003_more"],
    }
    for name in ("acme", "globex"):
        assert site.command_of("tenants", "drop", name, "--yes", name).code == 0


async def test_a_tenant_that_moves_takes_its_rows_with_it(site: Site) -> None:
    site.write(**FILES)
    other = f"{site.dbname}_two"
    await site.cluster.create_database(other)
    two = site.url.replace(site.dbname, other)
    site.configure(
        **TABLE,
        datasources={"orders": {"primary": {"url": site.url}}, "two": {"primary": {"url": two}}},
        provisioning={"programs": str(find_binaries(18).bin_dir)},
    )
    try:
        await site.apply()
        assert site.command_of("tenants", "create", "acme").code == 0
        moved = site.command_of("tenants", "move", "acme", "--to", "two")
        assert moved.code == 0, moved.err
        report = await site.plan()
        assert (report.verdict, [one.name for one in report.schemas]) == (
            Verdict.AT_HEAD,
            ["orders (shared)", "two (shared)", "acme"],
        )
    finally:
        await site.cluster.drop_database(other)


def test_the_error_of_a_tenant_behind_is_one_that_a_client_may_repeat() -> None:
    admission = Admission(TenantDirectory())
    admission.hold_back({"acme": "behind"}, {})
    with pytest.raises(DataError, match="behind") as caught:
        admission.check_served(Tenant("acme", "orders"))
    assert (caught.value.http_status, caught.value.is_retryable) == (503, True)
