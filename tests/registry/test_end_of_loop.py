"""A registry that nobody closes ends with its event loop, also while its server cannot be reached."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio
from asgi_datasource import compile

async def main():
    registry = compile({"version": 1, "datasources": {"orders": {"primary": {"url": "postgresql://app@127.0.0.1:1/x"}}}})
    await registry.open()

asyncio.run(main())
print("ended")
"""


def test_the_process_ends_although_the_registry_was_never_closed() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == "ended\n", ended.stderr
    assert ended.returncode == 0
