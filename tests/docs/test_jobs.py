"""The recipes for jobs, with real workers of arq, Celery and procrastinate, each in its own process."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from arq import create_pool
from arq.connections import RedisSettings
from celery import Celery
from psycopg.conninfo import conninfo_to_dict

from asgi_datasource import compile
from asgi_datasource.testing.ports import reserve_port
from tests.docs.samples import load, samples
from tests.world import World

LIMIT_S = 60


def recipe(mark: str) -> str:
    """The sample of the page that contains this text."""
    [found] = [sample.text for sample in samples("python", "docs/jobs.md") if mark in sample.text]
    return found


@pytest.fixture
async def shop(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An order of acme and one of globex with the same number; the configuration is in the working directory."""
    for schema in ("acme", "globex"):
        await world.sql(
            "alter table orders add receipt_sent bool, add due timestamptz, add reminded bool", schema=schema
        )
        await world.sql("insert into orders (item, due) values ('tea', now() - interval '1 day')", schema=schema)
    (tmp_path / "datasource.yaml").write_text(json.dumps(world.config(replicas=())))
    monkeypatch.chdir(tmp_path)
    return world


async def receipts(world: World) -> dict[str, bool | None]:
    """Whether the receipt of each tenant's order was sent."""
    rows = {schema: await world.sql("select receipt_sent from orders", schema=schema) for schema in ("acme", "globex")}
    return {schema: sent for schema, [(sent,)] in rows.items()}


@asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[int]:
    """A real Redis; yields its port."""
    program = shutil.which("redis-server")
    assert program is not None, "these tests need Redis: apt-get install redis-server"
    port, reservation = reserve_port()
    reservation.close()
    arguments = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder))
    process = await asyncio.create_subprocess_exec(program, *arguments, stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        writer.close()
        yield port
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def worker(folder: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker, started like from a shell."""
    with (folder / "worker.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, cwd=folder, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(LIMIT_S):
                        await process.wait()
                finally:
                    if process.returncode is None:
                        process.kill()


async def test_the_loop_over_all_tenants(shop: World, tmp_path: Path) -> None:
    path = tmp_path / "reminders.py"
    path.write_text(recipe("remind_all"))
    async with shop.registry(replicas=()) as registry:
        await load(path).remind(registry, "acme")
    assert await shop.sql("select reminded from orders") == [(True,)]
    assert await shop.sql("select reminded from orders", schema="globex") == [(None,)]


async def test_arq(shop: World, tmp_path: Path) -> None:
    async with redis(tmp_path) as port:
        settings = (
            f"from arq.connections import RedisSettings\nWorkerSettings.redis_settings = RedisSettings(port={port})"
        )
        (tmp_path / "arq_jobs.py").write_text(f"{recipe('WorkerSettings')}\n{settings}\n")
        queue = await create_pool(RedisSettings(port=port))
        try:
            job = await queue.enqueue_job("send_receipt", "acme", 1)
            assert job is not None
            async with worker(tmp_path, "arq", "arq_jobs.WorkerSettings", "--burst") as process:
                await job.result(timeout=LIMIT_S, poll_delay=0.05)
                assert await asyncio.wait_for(process.wait(), LIMIT_S) == 0
        finally:
            await queue.aclose()
    assert await receipts(shop) == {"acme": True, "globex": None}


def send_with_celery(url: str) -> None:
    """Send a job for each tenant, and wait for both; pending results would call the broker on garbage collection."""
    with Celery(broker=url, backend=url) as app:
        for tenant in ("acme", "globex"):
            app.send_task("send_receipt", (tenant, 1)).get(timeout=LIMIT_S)
    gc.collect()


async def test_celery(shop: World, tmp_path: Path) -> None:
    async with redis(tmp_path) as port:
        url = f"redis://127.0.0.1:{port}/0"
        settings = f"app.conf.update(broker_url={url!r}, result_backend={url!r})"
        (tmp_path / "celery_jobs.py").write_text(f"{recipe('Celery')}\n{settings}\n")
        # Forked processes are the default.
        arguments = (
            "celery",
            "-A",
            "celery_jobs",
            "worker",
            "--concurrency",
            "1",
            "--without-gossip",
            "--without-mingle",
        )
        async with worker(tmp_path, *arguments):
            await asyncio.to_thread(send_with_celery, url)
    assert await receipts(shop) == {"acme": True, "globex": True}


async def test_procrastinate(shop: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, Any] = conninfo_to_dict(shop.cluster.primary.url(dbname=shop.dbname, user="postgres"))
    for variable, part in (
        ("HOST", "host"),
        ("PORT", "port"),
        ("USER", "user"),
        ("DATABASE", "dbname"),
        ("PASSWORD", "password"),
    ):
        monkeypatch.setenv(f"PG{variable}", str(parts[part]))
    path = tmp_path / "procrastinate_jobs.py"
    path.write_text(recipe("PsycopgConnector"))
    module = load(path)
    async with module.jobs.open_async():
        await module.jobs.schema_manager.apply_schema_async()
        await module.send_receipt.defer_async(tenant="acme", order=1)
    await asyncio.wait_for(module.work(wait=False, install_signal_handlers=False), LIMIT_S)
    assert await receipts(shop) == {"acme": True, "globex": None}
    statuses = await shop.sql("select status::text from public.procrastinate_jobs")
    assert statuses == [("succeeded",)]
    await enqueue_with_the_transaction(shop, module, tmp_path)


async def enqueue_with_the_transaction(shop: World, module: ModuleType, folder: Path) -> None:
    """A job that a transaction has enqueued exists when it is committed, and only then."""
    for objects in ("tables", "sequences"):
        await shop.sql(f"grant all on all {objects} in schema public to app")
    document = shop.config(replicas=())
    document["datasources"]["orders"]["search_path"] = ["public"]
    path = folder / "enqueue.py"
    path.write_text(recipe("configure(connection=connection)"))
    place_order = load(path).place_order
    async with module.jobs.open_async(), compile(document) as registry:
        with pytest.raises(RuntimeError):
            async with registry.session("globex") as db:
                await place_order(db, "milk", module.send_receipt)
                raise RuntimeError
        async with registry.session("globex") as db:
            number = await place_order(db, "milk", module.send_receipt)
    jobs = await shop.sql("select args from public.procrastinate_jobs where status = 'todo'")
    assert jobs == [({"tenant": "globex", "order": number},)]
    await asyncio.wait_for(module.work(wait=False, install_signal_handlers=False), LIMIT_S)
    sent = await shop.sql("select item from orders where receipt_sent", schema="globex")
    assert sent == [("milk",)]


async def test_apscheduler(shop: World, tmp_path: Path) -> None:
    path = tmp_path / "scheduled.py"
    path.write_text(recipe("AsyncIOScheduler"))
    await shop.sql("alter table orders add due timestamptz, add reminded bool", schema="shared")
    async with shop.registry(replicas=()) as registry:
        scheduler = load(path).scheduler_of(registry)
        ran: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        scheduler.add_listener(lambda _: ran.set_result(None), EVENT_JOB_EXECUTED)
        scheduler.start()
        try:
            async with registry.session("globex") as db:
                # Another process is at work on this tenant.
                await db.lock("reminders")
                scheduler.modify_job("remind_each", next_run_time=datetime.now(UTC))
                await asyncio.wait_for(ran, LIMIT_S)
        finally:
            scheduler.shutdown()
    assert await shop.sql("select reminded from orders") == [(True,)]
    assert await shop.sql("select reminded from orders", schema="globex") == [(None,)]
