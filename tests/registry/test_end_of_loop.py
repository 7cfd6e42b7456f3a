"""An unclosed registry does not keep its event loop alive, even while its server is unreachable."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
from typing import Any

import psycopg
import pytest

from asgi_datasource import ConfigError, DataSourceMiddleware, DataSourceRegistry, compile, session
from asgi_datasource.testing import EmbeddedCluster
from tests.asgi_call import Call
from tests.drivers.polling import until

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


APPLICATION_NAME = "a registry that nobody closes"


def config_of(cluster: EmbeddedCluster) -> dict[str, Any]:
    url = cluster.primary.url("postgres", application_name=APPLICATION_NAME)
    return {
        "version": 1,
        "datasources": {"d": {"primary": {"url": url}, "replicas": {"r1": {"url": cluster.replicas["r1"].url()}}}},
        "tenancy": {"default": "d", "resolve": [{"header": "X-Tenant"}]},
    }


def backends(cluster: EmbeddedCluster) -> int:
    with psycopg.connect(cluster.primary.url("postgres", user="postgres")) as connection:
        connection.execute("select pg_sleep(0.05)")
        found = connection.execute(
            "select count(*) from pg_stat_activity where application_name = %s", [APPLICATION_NAME]
        ).fetchone()
    assert found is not None
    return int(found[0])


async def use(registry: DataSourceRegistry) -> None:
    async with registry.session() as db:
        assert await db.write.fetch_value("select 1") == 1
        assert await db.read.fetch_value("select 2") == 2


def test_event_loops_that_end_leave_no_connection(cluster: EmbeddedCluster) -> None:
    registry = compile(config_of(cluster))
    for _ in range(5):
        asyncio.run(use(registry))
        assert backends(cluster) == 0


CLOSED_UNDER_IT = """
import asyncio, json, sys
from asgi_datasource import compile

registry = compile(json.loads(sys.argv[1]))

async def use():
    async with registry.session() as db:
        return [await db.write.fetch_value("select 1"), await db.read.fetch_value("select 2")]

for _ in range(2):
    loop = asyncio.new_event_loop()
    print(loop.run_until_complete(use()))
    loop.close()
print(asyncio.run(use()))
loop = asyncio.new_event_loop()
print(loop.run_until_complete(use()))
loop.close()
asyncio.run(registry.close())
print(registry)
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_registry_starts_anew_after_its_event_loop_was_closed_under_it(cluster: EmbeddedCluster) -> None:
    """As of a set-up step in a loop of its own, in front of a server's: gunicorn's `--preload`."""
    command = [sys.executable, "-c", CLOSED_UNDER_IT, json.dumps(config_of(cluster))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(5)]
        assert lines[:4] == ["[1, 2]"] * 4
        assert "closed" in lines[4]
        asyncio.run(until(lambda: backends(cluster) == 0))
        process.communicate(timeout=20)


async def test_use_in_another_event_loop_is_refused_with_the_reason(cluster: EmbeddedCluster) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it was called")

    refusals: list[ConfigError] = []

    async def elsewhere() -> None:
        for attempt in (use(registry), Call().run(DataSourceMiddleware(app, registry=registry))):
            with pytest.raises(ConfigError, match="open in another event loop") as caught:
                await attempt
            refusals.append(caught.value)

    async with compile(config_of(cluster)) as registry:
        await use(registry)
        thread = threading.Thread(target=asyncio.run, args=(elsewhere(),))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(refusals) == 2
        await use(registry)


async def test_without_asyncio_the_refusal_says_so(cluster: EmbeddedCluster) -> None:
    """A server that runs the application under trio drives its coroutines without an event loop of asyncio."""
    opening = compile(config_of(cluster)).open()
    told: list[BaseException] = []

    def drive() -> None:
        try:
            opening.send(None)
        except ConfigError as error:
            told.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "needs asyncio" in str(told[0])


async def test_a_registry_that_nothing_refers_to_any_more_closes(cluster: EmbeddedCluster) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await session(scope).write.fetch_value("select 1") == 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def once() -> None:
        call = Call(headers=())
        await call.run(DataSourceMiddleware(app, config=config_of(cluster)))
        assert call.sent[0]["status"] == 200

    for _ in range(3):
        await once()

    async def is_closed() -> bool:
        gc.collect()
        return await asyncio.to_thread(backends, cluster) == 0

    await until(is_closed)


async def test_a_registry_that_is_closed_leaves_no_task(cluster: EmbeddedCluster) -> None:
    before = asyncio.all_tasks()
    registry = compile(config_of(cluster))
    await registry.open()
    async with registry.session() as db:
        await db.fetch_value("select 1")
    await registry.close()
    await until(lambda: not asyncio.all_tasks() - before)
