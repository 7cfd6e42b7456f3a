"""`scripts/soak`: 200 tenants, random requests, failures and cancellations for as long as told; exits 1 on a leak."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

from asgi_datasource import DataSourceRegistry
from asgi_datasource.testing import EmbeddedCluster
from tests.tenancy.leaks import assert_no_leak, run_requests
from tests.tenancy.places import in_databases, in_schemas, names, on_shared_tables

TENANTS: Final = 200
OPEN_POOLS: Final = 20

Place = Callable[[EmbeddedCluster], AbstractAsyncContextManager[DataSourceRegistry]]

PLACES: Final[dict[str, Place]] = {
    "shared": lambda cluster: on_shared_tables(cluster, TENANTS),
    "pgbouncer": lambda cluster: on_shared_tables(cluster, TENANTS, bouncer_size=4),
    "schemas": lambda cluster: in_schemas(cluster, TENANTS),
    "databases": lambda cluster: in_databases(cluster, TENANTS, cap=OPEN_POOLS),
}


async def soak(place: str, seconds: float, seed: int) -> bool:
    """Run one of the places; True when nothing leaked."""
    replicas = 0 if place in ("databases", "pgbouncer") else 1
    with EmbeddedCluster(replicas=replicas, settings={"max_connections": 300, "max_locks_per_transaction": 512}) as one:
        async with PLACES[place](one) as registry:
            ends_at = time.monotonic() + seconds
            watch = await run_requests(registry, names(TENANTS), seed=seed, go_on=lambda _: time.monotonic() < ends_at)
            told = ", ".join(f"{count} {what}" for what, count in sorted(watch.outcomes.items()))
            print(f"{place}: {watch.rows} rows read, {len(watch.strangers)} of strangers; requests: {told}", flush=True)
            try:
                await assert_no_leak(watch, registry)
            except AssertionError as error:
                print(f"{place}: LEAK (seed {seed}): {error}", file=sys.stderr)
                return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the places one after the other."""
    parser = argparse.ArgumentParser("scripts/soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each place; 60 unless told")
    parser.add_argument("--only", action="append", choices=list(PLACES), help="one of the places")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="makes the same requests again")
    options = parser.parse_args(arguments)
    # Every request that fails on purpose says so.
    logging.disable(logging.ERROR)
    outcomes = [asyncio.run(soak(place, options.seconds, options.seed)) for place in options.only or PLACES]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
