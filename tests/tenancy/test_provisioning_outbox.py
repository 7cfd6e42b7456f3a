"""Tenants that are created later publish as the others do; one that moves leaves no event behind, and repeats none."""

from __future__ import annotations

import pytest

from asgi_datasource import DataError, DataErrorKind, load
from asgi_datasource.migrate import Migrator, Verdict
from asgi_datasource.outbox import new_tenants
from asgi_datasource.outbox.entry import new_id
from asgi_datasource.outbox.new_tenants import TenantOutbox
from tests.tenancy.provisioning_site import Site, ok


async def migrate(site: Site) -> None:
    assert (await Migrator(load(site.config)).apply()).verdict is Verdict.AT_HEAD


async def test_the_role_of_a_new_tenant_may_publish(site: Site) -> None:
    site.set(outbox={"relay": "off"})
    assert "its outbox part lacks 0001_outbox: run migrate apply first" in site.command("create", "acme").err
    ok(site.command("drop", "acme", "--yes", "acme"))
    await migrate(site)
    async with site.registry() as registry:
        role = f"{site.prefix}_acme"
        await registry.provision("acme", role=role)
        async with registry.session(tenant="acme") as db:
            assert await db.fetch_value("select current_user::text") == role
            await db.outbox.publish("orders.placed")
            assert await db.inbox.once("mailer", new_id()) is True
    assert await site.sql("select tenant, topic from asgi_datasource.outbox", "one") == [("acme", "orders.placed")]
    ok(site.command("drop", "acme", "--yes", "acme"))
    assert await site.sql(f"select 1 from pg_roles where rolname = '{role}'") == []


async def test_the_database_of_a_new_tenant_has_an_outbox(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.set(outbox={"relay": "off"})
    async with site.registry() as registry:
        tenant = await registry.provision("solo", datasource="own")
        async with registry.session(tenant="solo") as db:
            await db.outbox.publish("orders.placed")
    assert await site.sql("select tenant from asgi_datasource.outbox", "solo") == [("solo",)]

    monkeypatch.setattr(new_tenants, "DRAIN_LIMIT_S", 0.0)
    outbox = TenantOutbox(load(site.config))
    with pytest.raises(DataError, match="1 events are not delivered") as caught:
        await outbox.drain(tenant)
    assert caught.value.kind is DataErrorKind.CONFLICT
    await site.sql("delete from asgi_datasource.outbox", "solo")
    await outbox.drain(tenant)


async def test_a_tenant_that_has_moved_processes_no_event_again(site: Site) -> None:
    site.set(outbox={"relay": "off"})
    await migrate(site)
    ok(site.command("create", "acme"))
    ok(site.command("create", "globex"))
    events = [new_id() for _ in range(3)]
    async with site.registry() as registry:
        for event in events[:2]:
            async with registry.session(tenant="acme") as db:
                assert await db.inbox.once("mailer", event) is True
        async with registry.session(tenant="globex") as db:
            assert await db.inbox.once("mailer", events[2]) is True
    ok(site.command("move", "acme", "--to", "two"))
    async with site.registry() as registry, registry.session(tenant="acme") as db:
        assert db.datasource.name == "two"
        assert [await db.inbox.once("mailer", event) for event in events[:2]] == [False, False]
    assert await site.sql("select distinct tenant from asgi_datasource.inbox", "two") == [("acme",)]


async def test_all_that_a_database_of_a_tenant_has_processed_is_taken_along(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_tenants, "_ROWS_A_QUERY", 2)
    site.set(outbox={"relay": "off"})
    async with site.registry() as registry:
        solo, duo = [await registry.provision(name, datasource="own") for name in ("solo", "duo")]
    await site.sql(
        "insert into asgi_datasource.inbox (consumer, event_id, tenant)"
        " select 'c' || n % 2, gen_random_uuid(), case when n > 2 then 'solo' end from generate_series(1, 5) n",
        "solo",
    )
    outbox = TenantOutbox(load(site.config))
    for _ in range(2):
        await outbox.carry(solo, duo)
    rows = "select consumer, event_id, tenant, processed_at from asgi_datasource.inbox order by 1, 2"
    assert await site.sql(rows, "duo") == await site.sql(rows, "solo")
