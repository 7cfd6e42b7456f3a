"""One start in a fresh process; prints its costs as a JSON object.

    python -m benchmarks.boot_child TENANTS FILE_OF_FEW FILE    from JSON files
    python -m benchmarks.boot_child TENANTS                     from mappings

The small document is compiled first, so that imports, models and allocator arenas exist before the measurement: the
result is the additional cost of the tenants.
"""

from __future__ import annotations

import gc
import json
import random
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Final

from asgi_datasource.config import load
from asgi_datasource.registry.registry import DataSourceRegistry, compile

FEW: Final = 10
LOOK_UPS: Final = 200_000


def document(tenants: int) -> dict[str, Any]:
    """A configuration with `count` tenants; one half in schemas, the other half under row security."""
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
    """The work of a start: read, validate, compile."""
    return compile(load(source))


def look_up_ns(registry: DataSourceRegistry, names: Sequence[str]) -> float:
    """The time of one look-up, including the loop's own cost, which is the same on both sides."""
    for_tenant = registry.for_tenant
    times = max(1, LOOK_UPS // len(names))
    before = process_time()
    for _ in range(times):
        for name in names:
            for_tenant(name)
    return (process_time() - before) / (times * len(names)) * 1e9


def memory_mb() -> tuple[float, float]:
    """Memory of this process, current and peak; without /proc, the peak for both."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
        return peak, peak
    # Not ru_maxrss: on Linux it starts with the peak of the parent process.
    sizes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
    return int(sizes["VmRSS"]) * 1024 / 1e6, int(sizes["VmHWM"]) * 1024 / 1e6


def main(tenants: int, sources: Sequence[Path | Mapping[str, Any]]) -> dict[str, float]:
    few = boot(sources[0])
    gc.collect()
    memory, peak = memory_mb()
    started, cpu_started = perf_counter(), process_time()
    many = boot(sources[1])
    seconds, cpu_seconds = perf_counter() - started, process_time() - cpu_started
    gc.collect()
    memory_now, peak_now = memory_mb()
    result = {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "memory_mb": memory_now - memory,
        "peak_mb": peak_now - peak,
    }
    names = [f"tenant-{number}" for number in range(tenants)]
    hot = names[:FEW]
    random.Random(1).shuffle(names)
    look_up_ns(few, hot)
    return {
        **result,
        "look_up_few_ns": look_up_ns(few, hot),
        "look_up_ns": look_up_ns(many, hot),
        "look_up_spread_ns": look_up_ns(many, names),
    }


if __name__ == "__main__":
    count = int(sys.argv[1])
    files = [Path(argument) for argument in sys.argv[2:]]
    print(json.dumps(main(count, files or [document(FEW), document(count)])))
