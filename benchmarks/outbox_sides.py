"""The sides of `benchmarks.outbox`: each delivers events that lie in its table to a function that does nothing."""

from __future__ import annotations

import asyncio
import logging
import warnings
from abc import ABC, abstractmethod
from time import perf_counter
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from asgi_datasource import compile, load
from asgi_datasource.migrate import Migrator
from asgi_datasource.outbox.publishers.function import FunctionPublisher
from asgi_datasource.outbox.relay import Relay
from asgi_datasource.registry.outbox import relay_sites

BATCH: Final = 100
WORKERS: Final = 64
CONNECTIONS: Final = 16
"""Workers of faststream-outbox, each of which holds a connection."""
LIMIT_S: Final = 300.0

FILL: Final = (
    "insert into asgi_datasource.outbox (event_id, topic, key, data)"
    " select gen_random_uuid(), 't', n::text, '{\"number\": 1}' from generate_series(1, %s) n"
)
LEFT: Final = "select count(*) from asgi_datasource.outbox"


class Side(ABC):
    """One way of delivering.

    Args:
        url: The database, as its owner.
    """

    name: str

    def __init__(self, url: str) -> None:
        self.url = url
        self._seen = 0
        self._first = self._last = 0.0

    async def arrive(self, *_: Any, **__: Any) -> None:
        """The destination."""
        self._seen += 1
        self._last = perf_counter()
        if self._seen == 1:
            self._first = self._last

    async def sql(self, statement: str, *parameters: object) -> list[Any]:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            cursor = await connection.execute(statement.encode(), parameters or None)
            return await cursor.fetchall() if cursor.description else []

    @abstractmethod
    async def create(self) -> None:
        """Create the tables."""

    @abstractmethod
    async def fill(self, count: int) -> None:
        """Write that many events."""

    @abstractmethod
    async def deliver(self, count: int) -> None:
        """Deliver until that many have arrived and none is left."""

    async def rate(self, count: int) -> float:
        """Events a second, from the first arrival to the last."""
        await self.fill(count)
        self._seen = 0
        async with asyncio.timeout(LIMIT_S):
            await self.deliver(count)
        return (count - 1) / (self._last - self._first)

    async def arrived(self, count: int) -> None:
        while self._seen < count:
            await asyncio.sleep(0.002)


class Ours(Side):
    """A relay of asgi-datasource."""

    name = "asgi-datasource"

    def config(self) -> dict[str, Any]:
        return {
            "version": 1,
            "datasources": {"orders": {"primary": {"url": self.url}, "pool": {"min_size": 1, "max_size": 32}}},
            "outbox": {},
            "tenancy": {"resolve": [{"header": "X-Tenant"}]},
            "tenants": {"all": {"datasource": "orders", "schema": "public"}},
        }

    async def create(self) -> None:
        await Migrator(load(self.config())).apply()

    async def fill(self, count: int) -> None:
        await self.sql(FILL, count)

    async def deliver(self, count: int) -> None:
        registry = compile(self.config())
        relay = Relay(lambda: relay_sites(registry.compiled), FunctionPublisher(self.arrive))
        await relay.start()
        try:
            await self.arrived(count)
        finally:
            await relay.stop()
        [[left]] = await self.sql(LEFT)
        assert left == 0


class Loop(Side):
    """A bare loop over the same table: a batch is deleted in a transaction, which is open while it is delivered."""

    name = "delete in a transaction"
    _TAKE: Final = f"""
        with taken as (
            select lane, seq from asgi_datasource.outbox order by lane, seq limit {BATCH} for update skip locked
        )
        delete from asgi_datasource.outbox o using taken where o.lane = taken.lane and o.seq = taken.seq
        returning o.event_id, o.tenant, o.topic, o.key, o.data::text, o.headers::text, o.created_at
    """

    async def create(self) -> None:
        """The tables of `Ours`."""

    async def fill(self, count: int) -> None:
        await self.sql(FILL, count)

    async def deliver(self, count: int) -> None:
        async with await psycopg.AsyncConnection.connect(self.url) as connection:
            while self._seen < count:
                rows = await (await connection.execute(self._TAKE)).fetchall()
                for row in rows:
                    await self.arrive(row)
                await connection.commit()


class LeaseLoop(Loop):
    """A bare loop that marks a batch with an update, delivers it with no transaction open, and deletes it."""

    name = "lease by update"
    _LEASE: Final = f"""
        update bench_lease l set leased_until = clock_timestamp() + interval '1 minute'
        from (
            select id from bench_lease where leased_until < clock_timestamp() order by id limit {BATCH}
            for update skip locked
        ) free where l.id = free.id returning l.id, l.data::text
    """

    async def create(self) -> None:
        await self.sql(
            "create table bench_lease (id bigint generated always as identity primary key, data json,"
            " leased_until timestamptz not null default '-infinity')"
            " with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,"
            " autovacuum_vacuum_cost_delay = 0)"
        )

    async def fill(self, count: int) -> None:
        await self.sql("insert into bench_lease (data) select '{\"number\": 1}' from generate_series(1, %s)", count)

    async def deliver(self, count: int) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            while self._seen < count:
                rows = await (await connection.execute(self._LEASE)).fetchall()
                for row in rows:
                    await self.arrive(row)
                await connection.execute("delete from bench_lease where id = any(%s)", [[row[0] for row in rows]])


class Procrastinate(Side):
    """A worker of procrastinate whose task does nothing; finished jobs are deleted."""

    name = "procrastinate"

    async def create(self) -> None:
        async with self._app() as app:
            await app.schema_manager.apply_schema_async()

    def _app(self) -> Any:
        from procrastinate import App, PsycopgConnector

        logging.getLogger("procrastinate").setLevel(logging.ERROR)
        app = App(connector=PsycopgConnector(conninfo=self.url, min_size=4, max_size=10))
        self._task = app.task(name="arrive")(self._arrive)
        return app.open_async()

    async def _arrive(self, number: int) -> None:
        await self.arrive(number)

    async def fill(self, count: int) -> None:
        async with self._app():
            for first in range(0, count, 1000):
                await self._task.batch_defer_async(*({"number": 1} for _ in range(min(1000, count - first))))

    async def deliver(self, count: int) -> None:
        async with self._app() as app:
            await app.run_worker_async(
                wait=False, concurrency=WORKERS, install_signal_handlers=False, listen_notify=False,
                delete_jobs="always",
            )  # fmt: skip
        await self.arrived(count)


class FastStreamOutbox(Side):
    """A subscriber of faststream-outbox that does nothing, with batches for fetching and for deleting."""

    name = "faststream-outbox"

    def _engine(self) -> Any:
        from sqlalchemy import URL
        from sqlalchemy.ext.asyncio import create_async_engine

        parts = conninfo_to_dict(self.url)
        url = URL.create(
            "postgresql+asyncpg",
            str(parts["user"]),
            None if parts.get("password") is None else str(parts["password"]),
            str(parts["host"]),
            int(str(parts["port"])),
            str(parts["dbname"]),
        )
        return create_async_engine(url, pool_size=CONNECTIONS + 4)

    def _table(self) -> Any:
        from faststream_outbox import make_outbox_table
        from sqlalchemy import MetaData

        return make_outbox_table(MetaData(), table_name="faststream_outbox")

    async def create(self) -> None:
        from faststream_outbox import outbox_autovacuum_ddl

        engine, table = self._engine(), self._table()
        async with engine.begin() as connection:
            await connection.run_sync(table.metadata.create_all)
        for statement in outbox_autovacuum_ddl("faststream_outbox").split(";"):
            if statement.strip():
                await self.sql(statement)
        await engine.dispose()

    async def fill(self, count: int) -> None:
        from faststream_outbox import OutboxBroker
        from sqlalchemy.ext.asyncio import async_sessionmaker

        engine = self._engine()
        broker = OutboxBroker(engine, outbox_table=self._table(), logger=None)
        async with async_sessionmaker(engine)() as session, session.begin():
            await broker.publish({"number": 1}, queue="events", session=session)
        await engine.dispose()
        await self.sql(
            "insert into faststream_outbox (queue, payload, headers)"
            " select queue, payload, headers from faststream_outbox, generate_series(1, %s)",
            count - 1,
        )

    async def deliver(self, count: int) -> None:
        from faststream_outbox import OutboxBroker

        engine = self._engine()
        broker = OutboxBroker(engine, outbox_table=self._table(), logger=None)

        @broker.subscriber(
            "events",
            max_workers=CONNECTIONS,
            fetch_batch_size=BATCH,
            min_fetch_interval=0.01,
            max_fetch_interval=0.05,
            terminal_flush_batch_size=BATCH,
        )
        async def take(body: dict[str, int]) -> None:
            await self.arrive(body)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await broker.start()
            try:
                await self.arrived(count)
                while (await self.sql("select count(*) from faststream_outbox"))[0][0]:
                    await asyncio.sleep(0.01)
            finally:
                await broker.stop()
                await engine.dispose()
