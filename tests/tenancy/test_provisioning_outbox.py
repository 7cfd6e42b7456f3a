"""Tenants that are created later publish as the others do; one that moves leaves no event behind."""

from __future__ import annotations

import pytest

from asgi_datasource import DataError, DataErrorKind, load
from asgi_datasource.outbox import new_tenants
from asgi_datasource.outbox.entry import new_id
from asgi_datasource.outbox.new_tenants import TenantOutbox
from tests.tenancy.provisioning_site import Site, ok


async def test_the_role_of_a_new_tenant_may_publish(site: Site) -> None:
    site.set(outbox={"relay": "off"})
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
