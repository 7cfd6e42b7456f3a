"""Tenants from a table: loaded at the start, kept up to date, and asked for one by one where a name is not known.

The next map is built beside the present one and put in its place by one assignment; whoever has begun with a map ends
with it. One connection of the process's own asks all the questions and listens: it waits in no pool's queue.
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
"""The table that `asgi-datasource tenants` keeps."""

CHANNEL: Final = "asgi_datasource_tenants"
"""What that table's trigger notifies."""

TABLE_QUERY: Final = f"select * from {TABLE}"  # noqa: S608 - constants
"""All columns, because a table of an earlier version lacks some of `COLUMNS`; and all rows, because names and places of
tenants that are not ready are in use."""

ROWS_A_ROUND_TRIP: Final = 1000
"""Rows fetched and compiled at a time; between two times the event loop is free."""

NOTIFY_INTERVAL_S: Final = 1.0
"""Minimum pause, in seconds, between a load and one that a notification triggers. Every role that may connect may send
notifications, and each load computes a digest of all rows on the server."""

RETRY_FIRST_S: Final = 0.5
"""Pause after a load that failed; it doubles up to `refresh`."""

ABSENT_FOR: Final = 5
"""Pauses between questions for which a name that is not there is not asked for again."""

MOST_ABSENT: Final = 10_000
"""Names that are known not to be there."""

MOST_ASKING: Final = 1_000
"""Requests for unknown names that wait for the next question; those beyond it are answered at once."""

_BEGIN: Final = Statement("begin transaction isolation level repeatable read read only", prepare=False)
_END: Final = Statement("rollback", prepare=False)


_Wanted = tuple[Literal["name", "domain"], str]
"""A lookup: of a name or alias, or of a host."""


class CatalogState(StrEnum):
    """What is known of the tenants in the table."""

    UNKNOWN = "unknown"
    """Nothing yet."""
    SNAPSHOT = "snapshot"
    """What the file says."""
    LOADED = "loaded"
    """What the table said when it was asked last."""


@dataclass(frozen=True, slots=True)
class CatalogPlan:
    """What the configuration says of a catalog.

    Attributes:
        config: The document's `tenants_from`.
        compiler: Makes the tenants.
        fixed: The tenants of the document, which go before those of the table.
        own_hosts: Domains that no tenant of the table may have.
        place_index: The places in use; None disables the check.
    """

    config: CatalogConfig
    compiler: TenantCompiler
    fixed: TenantMap
    own_hosts: frozenset[str] = frozenset()
    place_index: PlaceIndex | None = None


class Catalog:
    """Keeps a directory in step with a table.

    Args:
        plan: What the configuration says.
        directory: Where the tenants are put.
        endpoint: The server that is asked.
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
        """How often all rows were read."""
        self.questions = 0
        """How often unknown names were asked for."""
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

    # -- life

    async def open(self) -> None:
        """Load the tenants, from the table or else from the snapshot; then keep them up to date. Never raises."""
        self._directory.learn_from(self)
        try:
            await self._load()
        except Exception as error:  # noqa: BLE001 - whatever it was, the application starts, and it is tried again
            logger.error("the tenants cannot be loaded: %s", error if isinstance(error, DataError) else repr(error))
            self._read_snapshot()
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Stop. The directory stays as it is."""
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
        """Where nothing could be loaded: keep what the catalog before knew, if it asked the same."""
        if self.state is not CatalogState.UNKNOWN or previous.state is CatalogState.UNKNOWN:
            return
        if previous._query == self._query and previous._config.datasource == self._config.datasource:
            self._columns = previous._columns
            self.state = CatalogState.SNAPSHOT
            # Not what the document before listed beside them, nor who lives where nothing is any more.
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
        """Ask now whether anything has changed, and take it over.

        Raises:
            DataError: The datasource does not answer, or the query is wrong.
        """
        await self._load()

    # -- keeping up to date

    async def _keep(self) -> None:
        """Ask again by the interval, and as soon as somebody notifies; after a failure sooner."""
        loop = asyncio.get_running_loop()
        pause_s = RETRY_FIRST_S
        while True:
            # Jitter, so that the processes of a service do not ask all at once.
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
                # Whatever it was, the next attempt must come.
                logger.exception("the tenants cannot be refreshed")
                self._drop_connection()

    def _notified(self, _: object) -> None:
        self._absent.clear()
        self._is_due.set()

    def _connection_lost(self) -> None:
        # What was notified meanwhile is not known: ask.
        self._is_due.set()

    async def _load(self) -> None:
        """Ask whether anything has changed since the last load, and read it when it has."""
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
        # A column that nobody asks for may hold what Python has no value for.
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
        """Put the next map in place of the present one."""
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

    # -- names that are not known

    async def learn(self, name: str) -> None:
        """Look a name or alias up; lookups at the same time share a query.

        Raises:
            DataError: CONNECTION: whether there is such a tenant cannot be told, for the datasource does not answer.
        """
        await self._learn(("name", name))

    async def learn_domain(self, host: str) -> None:
        """Look a host up, unless it is one that no tenant may have."""
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
                return
            waiting = self._asking[wanted] = []
        answered: asyncio.Future[None] = loop.create_future()
        waiting.append(answered)
        if self._answering is None:
            self._answering = loop.create_task(self._answer())
        await answered

    async def _answer(self) -> None:
        """Ask for all names that wait, in one question; and again for those that came meanwhile, an interval later."""
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
                    # Whatever it was, those who wait must hear, and the next ones be asked for.
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
        # With values to bind, a percent sign of the query's own has to be written twice.
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
                # The next refresh sees that there is more than at the last load, and reads it all.
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
"""Seconds that a question for unknown names may take: requests wait for it."""


def _select(columns: Iterable[str] | None, query: str) -> str:
    """What is read of the document's query: these columns, or all where they are not known."""
    chosen = "t.*" if columns is None else ", ".join(f't."{column}"' for column in columns)
    return f"select {chosen} from ({query}) t"  # noqa: S608 - the query is the document's


def _is_text(name: str) -> bool:
    """Whether a server could hold this name."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in name


def _no_answer() -> DataError:
    return DataError(DataErrorKind.CONNECTION, "there may be such a tenant, but the catalog does not answer")


def _digest_query(query: str) -> str:
    """Tells whether anything has changed, without the rows themselves."""
    rows = f"select pg_catalog.md5(t::pg_catalog.text) as row from ({query}) t"  # noqa: S608 - the query is the document's
    digest = "pg_catalog.md5(coalesce(pg_catalog.string_agg(row, '' order by row), ''))"
    return f"select pg_catalog.count(*) as count, {digest} as digest from ({rows}) rows"  # noqa: S608


def _add_or_abandon(writer: SnapshotWriter | None, rows: Sequence[Sequence[Any]]) -> SnapshotWriter | None:
    """Write rows into the snapshot; a disk that is full must not keep a tenant from being known."""
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
