"""One migration in one schema: claimed, run, and written down; safe against other processes, blockers and crashes.

No lock outlives a transaction, so everything works through a pooler in transaction mode. A transactional step is two
round trips: `[BEGIN, settings, lock, row]`, and `[statements, row, COMMIT]`. A step without a transaction is claimed by
a committed row with a heartbeat, and each of its statements is written down when it has run.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString
from uuid import UUID, uuid4

from ..drivers.control import ControlConnection
from ..drivers.statement_analysis import outlives_transaction
from ..errors import DataError, DataErrorKind
from ..tenancy import quote_identifier
from .concurrent_index import ConcurrentIndex, concurrent_index
from .files import Kind, Migration, check_statements, read_text
from .fleet import Database, Target
from .ledger import ERASE, ROW_OF, WRITE, EntryState, lock_key, row_values
from .python_steps import run_python
from .sql_tokens import Statement, split

ATTEMPTS: Final = 6
"""How often a step is tried that waits too long for a lock, or loses a deadlock."""
LONGEST_PAUSE_S: Final = 30.0
BEAT_S: Final = 3.0
"""Pause between two heartbeats; five of them missed make a claim stale (`ROW_OF`)."""

RETRIED: Final = frozenset({"55P03", "40P01", "40001"})
"""lock_not_available, deadlock_detected, serialization_failure."""


class Outcome(StrEnum):
    """What became of a step."""

    APPLIED = "applied"
    ALREADY = "already"
    """Another process has run it meanwhile."""
    BUSY = "busy"
    """Another process migrates this schema now."""


class StepFailed(Exception):
    """Raised when a migration fails in a schema, or cannot be run there.

    Attributes:
        migration: Which one.
        message: Why; never a value of a row.
        sqlstate: The server's code.
    """

    def __init__(self, migration: Migration, message: str, *, sqlstate: str | None = None) -> None:
        super().__init__(f"{migration.label}: {message}")
        self.migration = migration
        self.message = message
        self.sqlstate = sqlstate


@dataclass(frozen=True, slots=True)
class Run:
    """One run of `migrate apply`.

    Attributes:
        lock_timeout_s: Longest wait for a lock, where a migration does not say another one.
        tell: Is called with what is worth knowing while it happens.
        id: Its id, in the ledger.
        texts: Statements that are the same for every schema but for the places of its names.
    """

    lock_timeout_s: float = 3.0
    tell: Callable[[str], None] = field(default=lambda _: None)
    id: UUID = field(default_factory=uuid4)
    texts: dict[tuple[str, int, str], str] = field(default_factory=dict[tuple[str, int, str], str], repr=False)


class Worker:
    """A connection that migrates; steps without a transaction are claimed in its name.

    Args:
        run: The run.
        database: The database.
        admin: A connection to it, opened by `open_worker`.
        id: Its id, which is the end of its `application_name`.
    """

    def __init__(self, run: Run, database: Database, admin: ControlConnection, id: UUID) -> None:
        self.run = run
        self.database = database
        self.admin = admin
        self.id = id


@asynccontextmanager
async def open_worker(run: Run, database: Database) -> AsyncGenerator[Worker]:
    """Connect to a database to migrate it.

    Raises:
        DataError: CONNECTION: it cannot be reached.
    """
    claim = uuid4()
    async with database.open(label=_label(str(claim))) as admin:
        yield Worker(run, database, admin, claim)


def _label(claim: str | None) -> str:
    """The `application_name` of a worker: other processes see by it whether a step is still running."""
    return f"asgi-ds-migrate {claim}"


async def apply_step(worker: Worker, target: Target, migration: Migration) -> Outcome:
    """Run one migration in one schema, or find that another process has done so or does so now.

    Args:
        worker: A connection to the database.
        target: The schema.
        migration: The next one that the schema lacks.

    Raises:
        StepFailed: The server refused it, or it waited too long for a lock each time.
        DataError: CONNECTION: the connection was lost. What became of the step is in the ledger.
    """
    step = _Step(worker, target, migration)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if migration.directives.is_transactional:
                return await step.transactional()
            return await step.untransactional()
        except DataError as error:
            if error.kind is DataErrorKind.CONNECTION:
                raise
            await step.roll_back()
            if error.sqlstate not in RETRIED or attempt == ATTEMPTS:
                raise StepFailed(migration, error.message, sqlstate=error.sqlstate) from error
            pause_s = min(LONGEST_PAUSE_S, step.lock_timeout_s * 2 ** (attempt - 1)) * random.uniform(0.7, 1.3)  # noqa: S311
            worker.run.tell(
                f"{worker.database.where}, {target.scope or target.part}: {migration.label}: {error.message}; the"
                f" queries behind it pass, and it is tried again in {pause_s:.1f} s"
            )
            await asyncio.sleep(pause_s)
    raise AssertionError


async def take_back(worker: Worker, target: Target, migration: Migration) -> Outcome:
    """Take one migration back in one schema, by its `.down.sql` or `down(db)`, together with its row.

    Args:
        worker: A connection to the database.
        target: The schema.
        migration: The highest one that the schema has.

    Raises:
        StepFailed: The server refused it, there is no row of it, or it cannot be taken back.
        DataError: CONNECTION: the connection was lost. What became of the step is in the ledger.
    """
    step = _Step(worker, target, migration)
    try:
        return await step.back()
    except DataError as error:
        if error.kind is DataErrorKind.CONNECTION:
            raise
        await step.roll_back()
        raise StepFailed(migration, error.message, sqlstate=error.sqlstate) from error


_CLAIM: Final[LiteralString] = "select pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended({key}, 0))"
_OID: Final[LiteralString] = "select oid::int8 from pg_catalog.pg_namespace where nspname = {schema}"
_SETTINGS: Final[LiteralString] = (
    "select pg_catalog.set_config('lock_timeout', {lock}, true),"
    " pg_catalog.set_config('statement_timeout', {statement}, true)"
)
_PATH: Final[LiteralString] = "select pg_catalog.set_config('search_path', {path}, true)"


_LOCK_MARK: Final = "asgi_datasource mark: lock"
_SCOPE_MARK: Final = "asgi_datasource mark: scope"
_SCHEMA_MARK: Final = "asgi_datasource mark: schema"
_PATH_MARK: Final = "asgi_datasource mark: path"
_MARK: Final = re.compile(r"'(asgi_datasource mark: [a-z]+)'")
_OID_MARK: Final = "asgi_datasource mark: oid"


def _literal(text: str) -> str:
    """A text as a literal, whatever `standard_conforming_strings` is."""
    quoted = "'" + text.replace("'", "''") + "'"
    return " E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


class _Step:
    """One migration, one schema, one connection."""

    def __init__(self, worker: Worker, target: Target, migration: Migration) -> None:
        self.run = worker.run
        self.admin = worker.admin
        self.database = worker.database
        self.claim = str(worker.id)
        self.target = target
        self.migration = migration
        self.lock_timeout_s = migration.directives.lock_timeout_s or worker.run.lock_timeout_s

    async def roll_back(self) -> None:
        """End a transaction that has failed."""
        await self.admin.batch("rollback")

    # -- in a transaction

    async def transactional(self) -> Outcome:
        row = await self._begin()
        if isinstance(row, Outcome):
            await self.roll_back()
            return row
        if self.migration.is_python:
            await run_python(self.migration, "up", self.admin, self.target)
            await self.admin.batch(*self._resets(), *self._written(row.oid, EntryState.APPLIED), "commit")
        else:
            await self.admin.batch(
                self.migration.text,
                *self._resets(),
                *self._written(row.oid, EntryState.APPLIED),
                "commit",
                name=self.migration.path.name,
            )
        if self._outlives:
            await self.admin.batch("discard all")
        return Outcome.APPLIED

    async def _begin(self, *, is_back: bool = False, dead: str | None = None) -> Outcome | _Row:
        """Begin a transaction, take the lock of the schema and read the row.

        Args:
            is_back: Whether the migration is to be taken back: a row that says that it has run is no reason to stop.
            dead: A claim whose connection has ended.

        Returns:
            The row as it is under the lock; or why there is nothing to do.
        """
        path = ", ".join(map(quote_identifier, self.target.search_path))
        text = self._composed("begin", self._begin_texts)
        _, _, _, [[is_ours]], found, oids, _ = await self.admin.batch(self._filled(text, path=path))
        if not is_ours:
            return Outcome.BUSY
        if not oids and self.target.tenants:
            raise DataError(DataErrorKind.QUERY, f"there is no schema {self.target.schema!r} any more")
        oid = int(oids[0][0]) if self.target.tenants else 0
        if not found:
            return _Row(oid)
        [[state, checksum, run_id, done, is_stale]] = found
        row = _Row(oid, EntryState(state), run_id, int(done), bool(is_stale))
        if is_back:
            return row
        if row.state in (EntryState.APPLIED, EntryState.BASELINED):
            if self.migration.kind is Kind.REPEATABLE and bytes.fromhex(checksum) != self.migration.checksum:
                return row
            return Outcome.ALREADY
        if row.state is EntryState.RUNNING and row.run_id != dead:
            if await self._is_alive(row):
                return Outcome.BUSY
            # It may have written that it is done, and disconnected, since the row was read: read it again.
            await self.roll_back()
            return await self._begin(dead=row.run_id)
        return row

    def _begin_texts(self) -> Sequence[str]:
        directives, compose = self.migration.directives, self.admin.compose
        statement_ms = _milliseconds(directives.statement_timeout_s or 0)
        return (
            "begin",
            "set local search_path = pg_catalog",
            compose(_SETTINGS, lock=_milliseconds(self.lock_timeout_s), statement=statement_ms),
            compose(_CLAIM, key=_LOCK_MARK),
            compose(ROW_OF, **{**self._key(), "scope": _SCOPE_MARK}),
            compose(_OID, schema=_SCHEMA_MARK),
            compose(_PATH, path=_PATH_MARK),
        )

    def _composed(self, purpose: str, make: Callable[[], Sequence[str]]) -> str:
        """A text that was composed once for all schemas, with marks where their names go."""
        key = (purpose, id(self.migration), self.target.kind.value)
        text = self.run.texts.get(key)
        if text is None:
            text = self.run.texts[key] = ";\n".join(make())
        return text

    def _filled(self, text: str, *, path: str = "", oid: int = 0) -> str:
        """The same with the names of this schema."""
        marks = {
            _LOCK_MARK: lock_key(self.target.scope),
            _SCOPE_MARK: self.target.scope,
            _SCHEMA_MARK: self.target.schema,
            _PATH_MARK: path,
            _OID_MARK: str(oid),
        }
        return _MARK.sub(lambda found: _literal(marks[found[1]]), text)

    def _key(self) -> dict[str, object]:
        repeatable = self.migration.name if self.migration.kind is Kind.REPEATABLE else ""
        return {"scope": self.target.scope, "version": self.migration.version, "repeatable": repeatable}

    def _written(self, oid: int, state: EntryState, done: int = 0) -> tuple[str, str]:
        """What writes the row, whatever the migration has made of the search path."""
        if state is EntryState.APPLIED:
            text = self._composed("write", lambda: [self._write_text(state, done)])
        else:
            text = self._write_text(state, done)
        return "set local search_path = pg_catalog", self._filled(text, oid=oid)

    def _write_text(self, state: EntryState, done: int) -> str:
        migration = self.migration
        entry = {
            **self._key(),
            "kind": migration.kind.value,
            "name": migration.name,
            "oid": _OID_MARK,
            "state": state.value,
            "checksum": migration.checksum,
            "raw_checksum": migration.raw_checksum,
            "run_id": self.claim if state is EntryState.RUNNING else str(self.run.id),
            "step": done,
        }
        return self.admin.compose(WRITE, **{**row_values("", entry), "scope": _SCOPE_MARK})

    @property
    def _outlives(self) -> bool:
        """Whether a statement changes something of the session that the end of the transaction does not undo."""
        return any(outlives_transaction(statement.text.encode()) for statement in self.migration.statements)

    def _resets(self) -> tuple[str, ...]:
        """Take settings of the session back before COMMIT, so that they are not those of the next schema."""
        return ("reset session authorization", "reset role", "reset all") if self._outlives else ()

    async def back(self) -> Outcome:
        row = await self._begin(is_back=True)
        if row is Outcome.BUSY or not isinstance(row, _Row):
            await self.roll_back()
            return Outcome.BUSY
        if row.state is not EntryState.APPLIED:
            raise DataError(DataErrorKind.CONFLICT, "the ledger does not have it as applied: it cannot be taken back")
        erase = ("set local search_path = pg_catalog", self.admin.compose(ERASE, **self._key()), "commit")
        if self.migration.is_python:
            await run_python(self.migration, "down", self.admin, self.target)
            await self.admin.batch(*erase)
        elif self.migration.down is not None:
            text = read_text(self.migration.down)
            check_statements(self.migration.down, split(text))
            await self.admin.batch(text, *erase, name=self.migration.down.name)
        return Outcome.APPLIED

    # -- without a transaction

    async def untransactional(self) -> Outcome:
        await self._refuse_pooler()
        row = await self._begin()
        if isinstance(row, Outcome):
            await self.roll_back()
            return row
        done = row.done if row.state in (EntryState.RUNNING, EntryState.FAILED) else 0
        is_resumed = row.state is not None
        await self.admin.batch(*self._written(row.oid, EntryState.RUNNING, done), "commit")
        try:
            async with self._beating():
                await self._run_statements(done, is_resumed=is_resumed)
        except BaseException as error:
            with suppress(DataError):
                # A connection that was lost leaves the claim; it is stale as soon as no backend bears its run's id.
                await asyncio.shield(self._give_up(error))
            raise
        await self._note(
            "state = 'applied', run_id = {id}::uuid, ms = extract(epoch from clock_timestamp() - started_at) * 1000"
        )
        return Outcome.APPLIED

    async def _refuse_pooler(self) -> None:
        [[pid]] = await self.admin.rows("select pg_catalog.pg_backend_pid()")
        if pid != self.admin.told_pid:
            raise DataError(
                DataErrorKind.CONFIG,
                f"{self.database.where} is reached through a pooler, where a step without a transaction has no settings"
                " of its own: set admin.url of the datasource to the server itself",
            )

    async def _is_alive(self, row: _Row) -> bool:
        """Whether the connection that has claimed the step is there, or may be there without being visible."""
        [[others, sees]] = await self.admin.rows(
            "select pg_catalog.count(*), pg_catalog.pg_has_role('pg_read_all_stats', 'usage') or not exists ("
            "select from asgi_datasource.migration where state = 'running' and applied_by <> session_user)"
            " from pg_catalog.pg_stat_activity"
            " where datname = pg_catalog.current_database() and application_name = %s",
            _label(row.run_id),
        )
        return bool(others) or not (sees or row.is_stale)

    async def _run_statements(self, done: int, *, is_resumed: bool) -> None:
        path = ", ".join(map(quote_identifier, self.target.search_path))
        await self.admin.rows("select pg_catalog.set_config('search_path', %s, false)", path)
        try:
            if self.migration.is_python:
                await run_python(self.migration, "up", self.admin, self.target)
                return
            for number, statement in enumerate(self.migration.statements[done:], start=done):
                await self._set_timeouts(statement)
                is_repeated = is_resumed and number == done
                index = concurrent_index(statement)
                if index is None or not await self._has_index(index, is_repeated=is_repeated):
                    await self._run_one(statement)
                await self._note("step = step + 1, beat_at = clock_timestamp()")
        finally:
            with suppress(DataError):
                await self.admin.batch("discard all")

    async def _run_one(self, statement: Statement) -> None:
        """Run a statement; an error says where it stands in its file."""
        line_breaks = "\n" * (statement.line - 1)
        await self.admin.batch(line_breaks + statement.text, name=self.migration.path.name)

    async def _set_timeouts(self, statement: Statement) -> None:
        """CONCURRENTLY holds up no query while it waits: only a directive bounds its wait."""
        directives = self.migration.directives
        limit_s = directives.lock_timeout_s if "concurrently" in statement.words else self.lock_timeout_s
        await self.admin.rows(
            "select pg_catalog.set_config('lock_timeout', %s, false),"
            " pg_catalog.set_config('statement_timeout', %s, false)",
            _milliseconds(limit_s or 0),
            _milliseconds(directives.statement_timeout_s or 0),
        )

    async def _has_index(self, index: ConcurrentIndex, *, is_repeated: bool) -> bool:
        """Drop an invalid index of this name, which an attempt before has left.

        Returns:
            Whether an attempt before has built it, and died before it wrote that down.
        """
        rows = await self.admin.rows(
            "select i.indisvalid, n.nspname::text from pg_catalog.pg_class c"
            " join pg_catalog.pg_index i on i.indexrelid = c.oid"
            " join pg_catalog.pg_namespace n on n.oid = c.relnamespace"
            " where c.relname = %s and n.nspname = %s",
            index.name,
            index.schema or self.target.schema,
        )
        if not rows:
            return False
        [[is_valid, schema]] = rows
        if is_valid:
            return is_repeated
        self.run.tell(f"{self.database.where}: drops the invalid index {index.name!r} that an attempt before has left")
        await self.admin.command("drop index concurrently {}", (str(schema), index.name))
        return False

    async def _note(self, changes: LiteralString) -> None:
        """Change the row of the claim; a claim that another process has taken over is left alone."""
        await self._change(self.admin, changes)

    async def _change(self, admin: ControlConnection, changes: LiteralString) -> None:
        where: LiteralString = (
            " where scope = {scope} and version = {version} and repeatable = {repeatable}"
            " and run_id = {claim}::pg_catalog.uuid returning 1"
        )
        update = "update asgi_datasource.migration set " + changes + where  # noqa: S608 - constants
        text = admin.compose(update, id=str(self.run.id), claim=self.claim, **self._key())
        [*_, [*rows], _] = await admin.batch("begin", "set local search_path = pg_catalog", text, "commit")
        if not rows:
            raise DataError(DataErrorKind.CONFLICT, "another process has taken this step over")

    async def _give_up(self, error: BaseException) -> None:
        """Write down why it stopped, so that the next run goes on there."""
        state = error.sqlstate if isinstance(error, DataError) else None
        message = error.message if isinstance(error, DataError) else type(error).__name__
        await self.admin.rows(
            "update asgi_datasource.migration set state = 'failed', sqlstate = %s, error = %s"
            " where scope = %s and version = %s and repeatable = %s and run_id = %s",
            state,
            message[:500],
            *self._key().values(),
            self.claim,
        )

    @asynccontextmanager
    async def _beating(self) -> AsyncGenerator[None]:
        """A heartbeat for as long as the block lasts, on a connection of its own: this one is busy."""
        async with self.database.open(label="asgi-ds-migrate heartbeat") as other:
            beat: asyncio.Task[Any] = asyncio.ensure_future(self._beat(other))
            try:
                yield
            finally:
                beat.cancel()
                with suppress(BaseException):
                    await beat

    async def _beat(self, other: ControlConnection) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._change(other, "beat_at = clock_timestamp()")


@dataclass(frozen=True, slots=True)
class _Row:
    """What the ledger says of the step under the lock.

    Attributes:
        oid: The schema's oid; 0 for the shared scope.
        state: None where there is no row.
        run_id: Whose claim it is.
        done: How many statements have run.
        is_stale: Its heartbeat has stopped.
    """

    oid: int
    state: EntryState | None = None
    run_id: str | None = None
    done: int = 0
    is_stale: bool = False


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
