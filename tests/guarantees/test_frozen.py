"""Promise 8: the registry is built once and read without locks, with 100,000 tenants as with ten."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asgi_datasource import DataError, DataSourceRegistry, Role, Tenant, compile
from tests.world import World

URL = "postgresql://app:secret@127.0.0.1:1/orders"


def registry_of(tenants: dict[str, Any], **sections: Any) -> DataSourceRegistry:
    return compile(
        {
            "version": 1,
            "datasources": {
                "orders": {"primary": {"url": URL}, "replicas": {"r1": {"url": URL.replace(":1/", ":2/")}}},
                "spare": {"primary": {"url": URL.replace(":1/", ":3/")}, "search_path": ["shared", "extensions"]},
            },
            "tenants": tenants,
            **sections,
        }
    )


def test_each_of_a_hundred_thousand_tenants_keeps_its_own_entry() -> None:
    registry = registry_of(
        {
            f"t{number}": {"datasource": "orders", "schema": f"s{number}"}
            if number % 2
            else {"datasource": "spare", "row_security": {"app.tenant": str(number)}}
            for number in range(100_000)
        }
    )
    assert len(registry.known_tenants) == 100_000
    assert registry.tenant("t77777") == Tenant(
        "t77777", "orders", registry.tenant("t77777").strategy, (("search_path", '"s77777"'),)
    )
    assert registry.tenant("t500").settings == (("search_path", '"shared", "extensions"'), ("app.tenant", "500"))
    assert registry.for_tenant("t77777").name == "orders"
    assert registry.for_tenant("t500").name == "spare"


def test_the_maps_are_immutable() -> None:
    registry = registry_of({"acme": {"datasource": "orders", "schema": "acme"}})
    with pytest.raises(TypeError):
        registry.known_tenants["evil"] = registry.tenant("acme")  # type: ignore[index]
    with pytest.raises(TypeError):
        registry.datasources["orders"] = registry.for_tenant("acme")  # type: ignore[index]
    with pytest.raises(AttributeError):
        registry.tenant("acme").datasource = "spare"  # type: ignore[misc]


def test_iteration_yields_the_datasources_and_their_servers() -> None:
    registry = registry_of({})
    assert {ds.name: {name: endpoint.role for name, endpoint in ds.servers.items()} for ds in registry} == {
        "orders": {"r1": Role.REPLICA, "primary": Role.PRIMARY},
        "spare": {"primary": Role.PRIMARY},
    }


def test_an_unknown_tenant_gets_the_default_datasource_only_if_one_is_configured() -> None:
    without = registry_of({})
    for name, status in (("nobody", 404), (None, 400)):
        with pytest.raises(DataError) as caught:
            without.for_tenant(name)
        assert caught.value.http_status == status
    with_default = registry_of({}, tenancy={"default": "spare"})
    assert with_default.for_tenant("nobody").name == "spare"
    assert with_default.for_tenant(None).name == "spare"
    assert with_default.tenant(None).name is None


async def test_concurrent_first_requests_open_the_registry_once(world: World) -> None:
    registry = world.registry()

    async def first() -> int:
        async with registry.session(tenant="acme") as db:
            return int(await db.read.fetch_value("select 1"))

    try:
        assert await asyncio.gather(*(first() for _ in range(10))) == [1] * 10
        await registry.open()
        assert registry.is_open
    finally:
        await registry.close()
        await registry.close()
    assert not registry.is_open


async def test_acquire_routes_a_plain_connection_and_sets_the_pin(world: World) -> None:
    from asgi_datasource import AccessIntent, ReadAfterWritePin

    async with world.registry() as registry:
        datasource = registry.for_tenant("acme")
        pin = ReadAfterWritePin()
        acme = registry.tenant("acme")
        async with registry.acquire(datasource, AccessIntent.READ, pin, tenant=acme) as connection:
            assert await (await connection.execute("select pg_is_in_recovery()")).fetchone() == (True,)
        assert not pin.is_set
        async with registry.acquire(datasource, AccessIntent.WRITE, pin, tenant=acme) as connection:
            await connection.execute("insert into orders (item) values ('tea')")
        assert pin.is_set
        async with registry.acquire(datasource, AccessIntent.READ, pin, tenant=acme) as connection:
            assert await (await connection.execute("select pg_is_in_recovery()")).fetchone() == (False,)
            assert await (await connection.execute("select item from orders")).fetchall() == [("tea",)]
    assert await world.items() == ["tea"]
