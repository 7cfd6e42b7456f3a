"""The process that strace or valgrind observes: `python -m benchmarks.counted_child URL [instructions]`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from benchmarks.counted import CASES, FEW, MANY, MARK, REQUESTS, WARM_UP, build_quiet, request
from benchmarks.drive import started


async def main(url: str, *, instructions: bool) -> None:
    for name, (side, method, path) in CASES.items():
        async with started(build_quiet(side, url)) as app:
            for _ in range(WARM_UP):
                await request(app, method, path)
            if instructions:
                control("-i", "on")
                for calls in (FEW, MANY):
                    control("-z")
                    for _ in range(calls):
                        await request(app, method, path)
                    control("-d")
                control("-i", "off")
                continue
            for _ in range(REQUESTS):
                os.access(MARK + name, os.F_OK)
                await request(app, method, path)
                os.access(MARK, os.F_OK)


def control(*arguments: str) -> None:
    """Tell callgrind, which observes this process."""
    subprocess.run(("callgrind_control", *arguments, str(os.getpid())), check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], instructions=sys.argv[2:] == ["instructions"]))
