"""One boot in a fresh process: `python -m benchmarks.boot_child FORM TENANTS` prints what it took as a JSON object.

The small document boots first, so that imports, models and allocator arenas are there before the clock and the memory
are read: what is measured is what the tenants add.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

from asgi_datasource.registry import DataSourceRegistry, compile

from asgi_datasource.config import load

FEW: Final = 10
LOOK_UPS: Final = 200_000


def document(tenants: int) -> dict[str, Any]:
    """A config of so many tenants; one half in schemas, the other under row security."""
    return {
        "version": 1,
        "datasources": {
            "schemas": {"primary": {"url": "postgresql://app@127.0.0.1:1/schemas"}},
            "shared": {"primary": {"url": "postgresql://app@127.0.0.1:1/shared"}},
        },
        "tenancy": {"resolve": [{"header": "X-Tenant"}]},
        "tenants": {
            f"tenant-{number}": (
                {"datasource": "schemas", "schema": f"tenant_{number}"}
                if number % 2
                else {"datasource": "shared", "row_security": {"app.tenant": str(number)}}
            )
            for number in range(tenants)
        },
    }


def boot(source: Path | Mapping[str, Any]) -> DataSourceRegistry:
    """What a start does: read, check, compile."""
    return compile(load(source))


def look_up_ns(registry: DataSourceRegistry, names: Sequence[str]) -> float:
    """One look-up, the loop's own cost included (it is the same on both sides)."""
    for_tenant = registry.for_tenant
    times = max(1, LOOK_UPS // len(names))
    before = process_time()
    for _ in range(times):
        for name in names:
            for_tenant(name)
    return (process_time() - before) / (times * len(names)) * 1e9


def resident_mb() -> float:
    """Memory of this process now; its peak so far where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return peak_mb()
    return pages * resource.getpagesize() / 1e6


def peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(form: str, tenants: int) -> dict[str, float]:
    sources: dict[int, Path | Mapping[str, Any]] = {number: document(number) for number in (FEW, tenants)}
    with tempfile.TemporaryDirectory() as folder:
        if form == "json":
            for number, mapping in list(sources.items()):
                path = Path(folder) / f"datasource-{number}.json"
                path.write_text(json.dumps(mapping), encoding="utf-8")
                sources[number] = path
            del mapping
        few = boot(sources[FEW])
        gc.collect()
        memory, peak = resident_mb(), peak_mb()
        started = perf_counter()
        many = boot(sources[tenants])
        seconds = perf_counter() - started
        gc.collect()
        names = [f"tenant-{number}" for number in range(tenants)]
        random.Random(1).shuffle(names)
        result = {
            "seconds": seconds,
            "memory_mb": resident_mb() - memory,
            "peak_mb": max(0.0, peak_mb() - peak),
        }
        hot = [f"tenant-{number}" for number in range(FEW)]
        look_up_ns(few, hot)
        return {
            **result,
            "look_up_few_ns": look_up_ns(few, hot),
            "look_up_ns": look_up_ns(many, hot),
            "look_up_spread_ns": look_up_ns(many, names),
        }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
