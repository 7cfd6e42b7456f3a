"""`tenant_context`: which tenant a job works for."""

from __future__ import annotations

import asyncio

import pytest

from asgi_datasource import DataError, current_tenant, tenant_context
from tests.world import World


async def test_a_session_without_a_name_is_the_contexts(world: World) -> None:
    async with world.registry() as registry:

        async def place() -> None:
            async with registry.session() as db:
                await db.execute("insert into orders (item) values (%s)", (f"of {current_tenant()}",))

        assert current_tenant() is None
        with tenant_context("acme"):
            await place()
            with tenant_context("globex"):
                await asyncio.gather(place_in_task := asyncio.ensure_future(place()))
                assert place_in_task.done()
            assert current_tenant() == "acme"
            async with registry.session("globex") as db:
                assert db.tenant.name == "globex"
        assert current_tenant() is None
        with pytest.raises(DataError, match="names no tenant"):
            async with registry.session():
                raise AssertionError("it was opened")
    assert await world.items("acme") == ["of acme"]
    assert await world.items("globex") == ["of globex"]


async def test_a_thread_works_for_the_tenant_too(world: World) -> None:
    with tenant_context("acme"):
        assert await asyncio.to_thread(current_tenant) == "acme"


async def test_an_unknown_tenant_is_noticed_when_a_session_is_opened(world: World) -> None:
    async with world.registry() as registry:
        with tenant_context("nobody"), pytest.raises(DataError, match="no such tenant"):
            async with registry.session():
                raise AssertionError("it was opened")
