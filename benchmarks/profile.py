"""The profile of one read and one write, one request at a time, by function.

cProfile exaggerates the time of short functions; the order and the numbers of calls are reliable.
"""

from __future__ import annotations

import cProfile
import pstats
from pathlib import Path
from typing import Any, Final, cast

from benchmarks.drive import call, receive_nothing, request_scope, send_nowhere, started
from benchmarks.server import Server
from benchmarks.sides import OURS, build
from benchmarks.sides.asgi import ITEMS

NAME: Final = "profile"
SHOWN: Final = 25
WARM_UP: Final = 100


async def run(server: Server, *, quick: bool) -> str:
    """Return the profile as text."""
    calls = 50 if quick else 3000
    told: list[str] = []
    async with started(build(OURS, server.url(), 1)) as app:
        for kind, method in (("one read", "GET"), ("one write", "POST")):
            for _ in range(WARM_UP):
                await call(app, method, "/items/1")
            scopes = [request_scope(method, f"/items/{1 + number % ITEMS}") for number in range(calls)]
            profile = cProfile.Profile()
            profile.enable()
            for scope in scopes:
                await app(scope, receive_nothing, send_nowhere)
            profile.disable()
            told.append(_table(profile, kind, calls))
    return "\n\n".join(told)


def _table(profile: cProfile.Profile, kind: str, requests: int) -> str:
    found = cast(
        "dict[tuple[str, int, str], tuple[int, int, float, float, Any]]", cast("Any", pstats.Stats(profile)).stats
    )
    whole = sum(own for _, _, own, _, _ in found.values())
    lines = [f"{kind}: us of a request by itself, share, calls of a request"]
    for (file, _, name), (_, count, own, _, _) in sorted(found.items(), key=lambda item: -item[1][2])[:SHOWN]:
        where = f"{Path(file).parent.name}/{Path(file).name}" if "/" in file else file
        lines.append(f"{own / requests * 1e6:8.1f} {own / whole:6.1%} {count / requests:6.2f}  {where}:{name}")
    return "\n".join(lines)
