"""Tenants from a table: loaded at the start, refreshed, and looked up one by one for unknown names.

A new map replaces the present one by one assignment; a request uses the same map until its end. One dedicated
connection of the process runs all queries and listens: it waits in no pool's queue.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal

from ..concurrency.expiring_set import ExpiringSet
from ..config import CatalogConfig
from ..config.hostnames import lies_within
from ..drivers.protocol import Connection, Result, Server
from ..drivers.statements import Statement
from ..errors import DataError, DataErrorKind
from .catalog_rows import COLUMNS, RowReader
from .catalog_snapshot import SnapshotWriter, read_snapshot
from .compiler import TenantCompiler
from .directory import TenantDirectory, TenantMap
from .place_index import PlaceIndex

logger = logging.getLogger("asgi_datasource.tenancy")

TABLE: Final = "asgi_datasource.tenants"
"""The table that `asgi-datasource tenants` maintains."""

CHANNEL: Final = "asgi_datasource_tenants"
"""The channel that the table's trigger notifies."""

TABLE_QUERY: Final = f"select * from {TABLE}"  # noqa: S608 - constants
"""All columns, because a table of an earlier version lacks some of `COLUMNS`; and all rows, because the names and
places of tenants that are not ready are taken."""

ROWS_A_ROUND_TRIP: Final = 1000
"""Rows fetched and compiled at a time; other tasks run in between."""

NOTIFY_INTERVAL_S: Final = 1.0
"""Minimum pause, in seconds, between a load and one that a notification triggers. Every role that may connect may send
notifications, and each load computes a digest of all rows on the server."""

RETRY_FIRST_S: Final = 0.5
"""Pause after a load that failed; it doubles up to `refresh`."""

ABSENT_FOR: Final = 5
"""Lifetime of an entry of the negative cache, in `miss_interval`s."""

MOST_ABSENT: Final = 10_000
"""The size of the negative cache: names without a tenant."""

MOST_ASKING: Final = 1_000
"""Most unknown names that wait for the next look-up; requests with further ones are refused at once."""

_BEGIN: Final = Statement("begin transaction isolation level repeatable read read only", prepare=False)
_END: Final = Statement("rollback", prepare=False)


_Wanted = tuple[Literal["name", "domain"], str]
"""A lookup: of a name or alias, or of a host."""


class CatalogState(StrEnum):
    """The source of the present map."""

    UNKNOWN = "unknown"
    """Nothing is loaded yet."""
    SNAPSHOT = "snapshot"
    """The snapshot file."""
    LOADED = "loaded"
    """The last query of the table."""


@dataclass(frozen=True, slots=True)
class CatalogPlan:
    """The configuration of a catalog.

    Attributes:
        config: The document's `tenants_from`.
        compiler: Creates the tenants.
        fixed: The tenants of the document, which take precedence over those of the table.
        own_hosts: Domains that no tenant of the table may have.
        place_index: The places in use; None disables the check.
    """

    config: CatalogConfig
    compiler: TenantCompiler
    fixed: TenantMap
    own_hosts: frozenset[str] = frozenset()
    place_index: PlaceIndex | None = None


class Catalog:
    """Synchronises a directory with a table.

    Args:
        plan: The configuration.
        directory: Receives the tenants.
        server: The server with the table.
    """

    def __init__(self, plan: CatalogPlan, directory: TenantDirectory, server: Server) -> None:
        config = plan.config
        self._plan = plan
        self._config = config
        self._directory = directory
        self._server = server
        self._query = config.query or TABLE_QUERY
        self._channel = config.notify or (CHANNEL if config.query is None else None)
        self._snapshot = None if config.snapshot is None else Path(config.snapshot)
        self.state = CatalogState.UNKNOWN
        self.loads = 0
        """Number of full loads."""
        self.questions = 0
        """Number of queries for unknown names."""
        self._digest: tuple[Any, ...] | None = None
        self._columns: frozenset[str] = frozenset()
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self._is_due = asyncio.Event()
        self._loaded_at = float("-inf")
        self._keeping: asyncio.Task[None] | None = None
        self._absent: ExpiringSet[_Wanted] = ExpiringSet(most=MOST_ABSENT, keep_s=ABSENT_FOR * config.miss_interval_s)
        self._asking: dict[_Wanted, list[asyncio.Future[None]]] = {}
        self._answering: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Catalog {self.state.value}, {len(self._directory.map.names)} tenants>"

    # -- opening and closing

    async def open(self) -> None:
        """Load the tenants, from the table or else from the snapshot, and start refreshing them. Never raises."""
        self._directory.learn_from(self)
        try:
            await self._load()
        except Exception as error:  # noqa: BLE001 - whatever it was, the application starts, and it is tried again
            logger.error("the tenants cannot be loaded: %s", error if isinstance(error, DataError) else repr(error))
            self._read_snapshot()
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Stop refreshing. The directory keeps its content."""
        self._directory.learn_from(None)
        tasks = [task for task in (self._keeping, self._answering) if task is not None]
        self._keeping = self._answering = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._answer_all()
        self._drop_connection()

    def take_over(self, previous: Catalog) -> None:
        """If nothing could be loaded, use the rows of the previous catalog, provided that it had the same query."""
        if self.state is not CatalogState.UNKNOWN or previous.state is CatalogState.UNKNOWN:
            return
        if previous._query == self._query and previous._config.datasource == self._config.datasource:
            self._columns = previous._columns
            self.state = CatalogState.SNAPSHOT
            # Without the tenants of the previous document, and those whose datasource no longer exists.
            known, listed = previous._directory.map, previous._plan.fixed
            names = {
                name: tenant
                for name, tenant in known.names.items()
                if name not in listed.names and self._plan.compiler.knows(tenant.datasource)
            }
            aliases = {alias: name for alias, name in known.aliases.items() if name in names}
            domains = {host: name for host, name in known.domains.items() if name in names}
            self._swap(TenantMap(names, aliases, domains, known.taken))

    async def refresh(self) -> None:
        """Reload the tenants now, if the rows have changed.

        Raises:
            DataError: The datasource does not answer, or the query is wrong.
        """
        await self._load()

    # -- refreshing

    async def _keep(self) -> None:
        """Reload by the interval, and at notifications; after a failure sooner."""
        loop = asyncio.get_running_loop()
        pause_s = RETRY_FIRST_S
        while True:
            # Jitter avoids simultaneous queries of all processes.
            wait_s = self._config.refresh_s * random.uniform(0.9, 1.1)  # noqa: S311 - not for security
            is_well = self.state is CatalogState.LOADED and (self._channel is None or self._connection is not None)
            if not is_well:
                wait_s = min(wait_s, pause_s)
                pause_s = min(pause_s * 2, self._config.refresh_s)
            try:
                async with asyncio.timeout_at(loop.time() + wait_s):
                    await self._is_due.wait()
                # One load serves all notifications of the pause; a later one triggers the next load.
                pause = min(NOTIFY_INTERVAL_S, self._config.refresh_s)
                await asyncio.sleep(max(0.0, self._loaded_at + pause - loop.time()))
            except TimeoutError:
                pass
            try:
                await self._load()
                pause_s = RETRY_FIRST_S
            except DataError as error:
                logger.warning("the tenants cannot be refreshed: %s", error)
            except Exception:
                # Keep refreshing after any error.
                logger.exception("the tenants cannot be refreshed")
                self._drop_connection()

    def _notified(self, _: object) -> None:
        # The load that follows clears the negative cache, if any row has changed.
        self._is_due.set()

    def _connection_lost(self) -> None:
        # Notifications may have been missed: reload.
        self._is_due.set()

    async def _load(self) -> None:
        """Read the rows if their digest has changed since the last load."""
        async with self._lock:
            self._is_due.clear()
            deadline = asyncio.get_running_loop().time() + self._config.timeout_s
            connection = await self._connect(deadline)
            try:
                await self._read(connection, deadline)
            except BaseException:
                self._drop_connection()
                raise
            finally:
                self._loaded_at = asyncio.get_running_loop().time()
                if self._channel is None:
                    self._drop_connection()

    async def _read(self, connection: Connection, deadline: float) -> None:
        digest_question = Statement(_digest_query(self._query), prepare=False)
        shape = Statement(f"select * from ({self._query}) t limit 0", prepare=False)  # noqa: S608 - the document's
        [_, found, empty] = await self._ask(connection, [_BEGIN, digest_question, shape], deadline)
        digest = tuple(found.rows(None)[0].values())
        if digest == self._digest and self.state is CatalogState.LOADED:
            await self._ask(connection, [_END], deadline)
            return
        # Other columns may hold values that cannot be converted to Python.
        columns = [column for column in empty.columns if column in COLUMNS]
        reader = self._reader(columns)
        chosen = _select(columns, self._query)
        declare = Statement(f"declare ads_tenants no scroll cursor for {chosen}", prepare=False)
        fetch = Statement(f"fetch forward {ROWS_A_ROUND_TRIP} from ads_tenants", prepare=False)
        [_, first] = await self._ask(connection, [declare, fetch], deadline)
        writer = self._write_snapshot(columns)
        try:
            rows = first.tuples()
            while rows:
                reader.add(rows)
                writer = _add_or_abandon(writer, rows)
                if len(rows) < ROWS_A_ROUND_TRIP:
                    break
                [answer] = await self._ask(connection, [fetch], deadline)
                rows = answer.tuples()
            await self._ask(connection, [_END], deadline)
            if writer is not None:
                writer = await asyncio.to_thread(_commit_or_abandon, writer)
        finally:
            if writer is not None:
                writer.abandon()
        self._columns = frozenset(columns)
        self._digest = digest
        self.loads += 1
        self.state = CatalogState.LOADED
        self._absent.clear()
        self._swap(reader.map())

    def _swap(self, found: TenantMap) -> None:
        """Replace the present map."""
        fixed = self._plan.fixed
        names = {**found.names, **fixed.names}
        aliases = {alias: name for alias, name in found.aliases.items() if alias not in names}
        self._directory.map = TenantMap(
            names,
            {**aliases, **fixed.aliases},
            {**found.domains, **fixed.domains},
            {**found.taken, **fixed.taken},
        )

    def _reader(self, columns: Sequence[str]) -> RowReader:
        plan = self._plan
        try:
            return RowReader(
                columns, plan.compiler, self._config.defaults, own_hosts=plan.own_hosts, place_index=plan.place_index
            )
        except ValueError as error:
            raise DataError(DataErrorKind.CONFIG, f"tenants_from.query: {error}") from None

    # -- unknown names

    async def learn(self, name: str) -> None:
        """Look a name or alias up; lookups at the same time share a query.

        Raises:
            DataError: CONNECTION: the datasource does not answer, so that the tenant is not known. RESOURCE: too many
                other names wait to be looked up.
        """
        await self._learn(("name", name))

    async def learn_domain(self, host: str) -> None:
        """Look up a host, unless no tenant may have it."""
        has_domains = "domains" in self._columns or self.state is CatalogState.UNKNOWN
        if has_domains and not lies_within(host, self._plan.own_hosts):
            await self._learn(("domain", host))

    async def _learn(self, wanted: _Wanted) -> None:
        loop = asyncio.get_running_loop()
        if self.state is CatalogState.UNKNOWN:
            raise DataError(DataErrorKind.CONNECTION, "the tenants are not known yet: the catalog does not answer")
        if not _is_text(wanted[1]):
            return
        if wanted in self._absent:
            return
        waiting = self._asking.get(wanted)
        if waiting is None:
            if len(self._asking) >= MOST_ASKING:
                # The name may be a tenant's: it is neither unknown, nor one that "*" or the default may serve.
                message = f"the tenant is not known yet, and {MOST_ASKING} other names wait to be looked up"
                raise DataError(DataErrorKind.RESOURCE, message)
            waiting = self._asking[wanted] = []
        answered: asyncio.Future[None] = loop.create_future()
        waiting.append(answered)
        if self._answering is None:
            self._answering = loop.create_task(self._answer())
        await answered

    async def _answer(self) -> None:
        """Look up all waiting names in one query, and those that arrive meanwhile in the next, an interval later."""
        loop = asyncio.get_running_loop()
        try:
            while self._asking:
                await asyncio.sleep(max(0.0, self._asked_at + self._config.miss_interval_s - loop.time()))
                self._asked_at = loop.time()
                asked, self._asking = self._asking, {}
                failure: DataError | None = None
                try:
                    await self._ask_for(list(asked))
                except DataError as error:
                    logger.warning("unknown tenants cannot be asked for: %s", error)
                    failure = _no_answer()
                except Exception:
                    # After any error, resolve the waiters and continue with the next names.
                    logger.exception("unknown tenants cannot be asked for")
                    self._drop_connection()
                    failure = _no_answer()
                finally:
                    for futures in asked.values():
                        _resolve(futures, failure)
        finally:
            self._answering = None

    async def _ask_for(self, wanted: Sequence[_Wanted]) -> None:
        loop = asyncio.get_running_loop()
        names = [text for kind, text in wanted if kind == "name"]
        hosts = [text for kind, text in wanted if kind == "domain"]
        condition = "t.name::pg_catalog.text operator(pg_catalog.=) any(%(names)s)"
        if "aliases" in self._columns:
            condition += " or t.aliases::pg_catalog.text[] operator(pg_catalog.&&) %(names)s"
        if "domains" in self._columns:
            condition += " or t.domains::pg_catalog.text[] operator(pg_catalog.&&) %(hosts)s"
        # In a query with parameters, literal percent signs must be doubled.
        query = self._query.replace("%", "%%")
        question = Statement(
            f"{_select(self._columns if self.state is CatalogState.LOADED else None, query)} where {condition}",
            {"names": names, "hosts": hosts},
            prepare=False,
        )
        async with self._lock:
            self.questions += 1
            deadline = loop.time() + min(self._config.timeout_s, QUESTION_LIMIT_S)
            connection = await self._connect(deadline)
            try:
                [answer] = await self._ask(connection, [question], deadline)
                reader = self._reader(list(answer.columns))
                reader.add(answer.tuples())
            except BaseException:
                self._drop_connection()
                raise
            finally:
                if self._channel is None:
                    self._drop_connection()
            found = reader.map()
            if found.names or found.taken:
                present = self._directory.map
                # A known alias or domain keeps its tenant until the next full load.
                self._swap(
                    TenantMap(
                        {**present.names, **found.names},
                        {**found.aliases, **present.aliases},
                        {**found.domains, **present.domains},
                        {**present.taken, **found.taken},
                    )
                )
                # The digest of the next refresh differs, so that all rows are read.
        present = self._directory.map
        for one in wanted:
            kind, text = one
            if (text not in present.domains) if kind == "domain" else (present.find(text) is None):
                self._absent.add(one)

    def _answer_all(self) -> None:
        asked, self._asking = self._asking, {}
        for futures in asked.values():
            _resolve(futures, DataError(DataErrorKind.CONNECTION, "the catalog is closed"))

    # -- the snapshot

    def _read_snapshot(self) -> None:
        if self._snapshot is None or self.state is not CatalogState.UNKNOWN:
            return
        try:
            columns, rows = read_snapshot(self._snapshot)
            reader = self._reader(columns)
            reader.add(rows)
        except (OSError, ValueError, DataError) as error:
            logger.error("the snapshot of the tenants cannot be used: %s", error)
            return
        self.state = CatalogState.SNAPSHOT
        self._columns = frozenset(columns)
        self._swap(reader.map())
        logger.warning("the tenants are those of the last snapshot: %d", len(self._directory.map.names))

    def _write_snapshot(self, columns: Sequence[str]) -> SnapshotWriter | None:
        if self._snapshot is None:
            return None
        try:
            return SnapshotWriter(self._snapshot, columns)
        except OSError as error:
            _complain(error)
            return None

    # -- the connection

    async def _connect(self, deadline: float) -> Connection:
        connection = self._connection
        if connection is not None and not connection.closed and connection.is_usable:
            return connection
        self._drop_connection()
        connection = await self._server.connect_apart(deadline=deadline, purpose="catalog")
        connection.when_gone = self._connection_lost
        self._connection = connection
        if self._channel is not None:
            connection.add_notify_handler(self._notified)
            try:
                await self._ask(connection, [Statement(f'listen "{self._channel}"', prepare=False)], deadline)
            except BaseException:
                self._drop_connection()
                raise
        return connection

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.when_gone = None
            connection.cut("the catalog has no more questions")

    async def _ask(self, connection: Connection, statements: Sequence[Statement], deadline: float) -> Sequence[Result]:
        exchange = await connection.exchange(statements, deadline=deadline)
        if exchange.error is not None:
            raise self._server.error_of(exchange, is_write=False) from exchange.error
        return exchange.answers(0, len(statements))


QUESTION_LIMIT_S: Final = 2.0
"""Most seconds of a query for unknown names; requests wait for it."""


def _select(columns: Iterable[str] | None, query: str) -> str:
    """Select columns of the document's query; None selects all."""
    chosen = "t.*" if columns is None else ", ".join(f't."{column}"' for column in columns)
    return f"select {chosen} from ({query}) t"  # noqa: S608 - the query is the document's


def _is_text(name: str) -> bool:
    """Whether PostgreSQL can store this name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in name


def _no_answer() -> DataError:
    return DataError(DataErrorKind.CONNECTION, "there may be such a tenant, but the catalog does not answer")


def _digest_query(query: str) -> str:
    """The query of the number and a digest of the rows, which detects changes."""
    rows = f"select pg_catalog.md5(t::pg_catalog.text) as row from ({query}) t"  # noqa: S608 - the query is the document's
    digest = "pg_catalog.md5(coalesce(pg_catalog.string_agg(row, '' order by row), ''))"
    return f"select pg_catalog.count(*) as count, {digest} as digest from ({rows}) rows"  # noqa: S608


def _add_or_abandon(writer: SnapshotWriter | None, rows: Sequence[Sequence[Any]]) -> SnapshotWriter | None:
    """Write rows into the snapshot; after an error of the disk, give up the snapshot and not the load."""
    if writer is not None:
        try:
            writer.add(rows)
        except OSError as error:
            _complain(error)
            writer.abandon()
            return None
    return writer


def _commit_or_abandon(writer: SnapshotWriter) -> None:
    try:
        writer.commit()
    except OSError as error:
        _complain(error)
        writer.abandon()


def _complain(error: OSError) -> None:
    logger.warning("the snapshot of the tenants cannot be written: %s", error.strerror or type(error).__name__)


def _resolve(futures: Sequence[asyncio.Future[None]], failure: DataError | None) -> None:
    for future in futures:
        if not future.done():
            if failure is None:
                future.set_result(None)
            else:
                future.set_exception(failure)
