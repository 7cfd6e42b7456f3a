"""An unclosed registry does not keep its event loop alive, even while its server is unreachable."""

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


def test_the_process_ends_although_the_registry_was_not_closed() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == "ended\n", ended.stderr
    assert ended.returncode == 0
