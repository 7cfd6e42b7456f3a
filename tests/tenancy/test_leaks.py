"""No tenant sees another one's row: the short form of `scripts/soak`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from asgi_datasource.testing import EmbeddedCluster
from tests.tenancy.leaks import assert_no_leak, run_requests
from tests.tenancy.places import in_databases, in_schemas, names, on_shared_tables, run

REQUESTS = 250
MANY_REQUESTS = 5000
TENANTS = 200
OPEN_POOLS = 20

Some = Callable[[int], bool]


@pytest.fixture
def some(whole: bool) -> Callable[[int], bool]:
    """Whether the request of a number is still to be sent."""
    return lambda number: number < (MANY_REQUESTS if whole else REQUESTS)


async def test_two_hundred_tenants_on_one_pool_of_four(cluster: EmbeddedCluster, some: Some) -> None:
    async with on_shared_tables(cluster, TENANTS) as registry:
        watch = await run_requests(registry, names(TENANTS), seed=1, go_on=some)
        await assert_no_leak(watch, registry)


async def test_the_same_through_pgbouncer(cluster: EmbeddedCluster, some: Some) -> None:
    async with on_shared_tables(cluster, TENANTS, bouncer_size=4) as registry:
        watch = await run_requests(registry, names(TENANTS), seed=2, go_on=some)
        await assert_no_leak(watch, registry)


async def test_the_same_with_a_schema_each(cluster: EmbeddedCluster, some: Some) -> None:
    async with in_schemas(cluster, TENANTS) as registry:
        watch = await run_requests(registry, names(TENANTS), seed=3, go_on=some)
        await assert_no_leak(watch, registry)


async def test_the_same_with_a_database_each_and_few_of_them_open(whole: bool, some: Some) -> None:
    tenants, open_pools = (TENANTS, OPEN_POOLS) if whole else (TENANTS // 4, OPEN_POOLS // 4)
    with EmbeddedCluster(settings={"max_connections": 200}) as single:
        async with in_databases(single, tenants, cap=open_pools) as registry:
            watch = await run_requests(registry, names(tenants), seed=4, go_on=some)
            await assert_no_leak(watch, registry)
            assert registry.compiled.fleets["place"].open_pools <= open_pools


async def test_a_leak_would_be_seen(cluster: EmbeddedCluster) -> None:
    async with on_shared_tables(cluster, 5) as registry:
        await run(cluster, "leaks_rows", "alter table s.rows disable row level security")
        watch = await run_requests(registry, names(5), seed=5, go_on=lambda number: number < 40)
        assert watch.strangers


async def test_what_is_left_would_be_seen(cluster: EmbeddedCluster, some: Some) -> None:
    async with on_shared_tables(cluster, 20, reset="never") as registry:
        watch = await run_requests(registry, names(20), seed=6, go_on=some)
        assert watch.strangers
