"""One start with tenants from a table or from its snapshot: `python -m benchmarks.tenants_child COUNT URL SNAPSHOT`.

A start with few tenants comes first, so that imports, models, a connection and allocator arenas exist before the
measurement: the result is the additional cost of the tenants.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from time import perf_counter, process_time
from typing import Any

from asgi_datasource.registry.registry import DataSourceRegistry, compile
from benchmarks.boot_child import FEW, look_up_ns, memory_mb

_TABLE = (
    "select 'tenant-' || n as name, case when n % 2 = 1 then 'tenant_' || n end as schema,"
    " case when n % 2 = 0 then jsonb_build_object('app.tenant', n::text) end as row_security"
    " from generate_series(0, {count} - 1) n"
)
NOWHERE = "postgresql://app@127.0.0.1:1/none"


def document(url: str, count: int, snapshot: str) -> dict[str, Any]:
    """The configuration for the first `count` tenants of the table, or of the snapshot if the table cannot be read."""
    return {
        "version": 1,
        "datasources": {"shop": {"primary": {"url": url}, "audit": {"on_start": "off"}}},
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants_from": {
            "datasource": "shop",
            "query": _TABLE.format(count=count),
            "defaults": {"datasource": "shop"},
            "timeout": "60s",
            "refresh": "1h",
            "snapshot": snapshot,
        },
    }


async def started(url: str, count: int, snapshot: str) -> DataSourceRegistry:
    registry = compile(document(url, count, snapshot))
    await registry.open()
    if len(registry.known_tenants) != count:
        raise RuntimeError(f"{len(registry.known_tenants)} tenants instead of {count}")
    return registry


async def main(count: int, url: str, snapshot: str) -> dict[str, float]:
    logging.disable(logging.ERROR)
    result: dict[str, float] = {}
    few = await started(url, FEW, f"{snapshot}.few")
    look_up_ns(few, [f"tenant-{number}" for number in range(FEW)])
    for source, where in (("table", url), ("snapshot", NOWHERE)):
        gc.collect()
        memory, peak = memory_mb()
        began, cpu_began = perf_counter(), process_time()
        many = await started(where, count, snapshot)
        seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
        gc.collect()
        memory_now, peak_now = memory_mb()
        result |= {
            f"{source}_seconds": seconds,
            f"{source}_cpu_seconds": cpu_seconds,
            f"{source}_memory_mb": memory_now - memory,
            f"{source}_peak_mb": peak_now - peak,
        }
        hot = [f"tenant-{number}" for number in range(FEW)]
        result["look_up_few_ns"] = look_up_ns(few, hot)
        result["look_up_ns"] = look_up_ns(many, hot)
        await many.close()
        del many
    await few.close()
    return result


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))))
