"""A driver for SQLite with `aiosqlite`: the example of `docs/drivers.md`.

SQLite has no roles, schemas and settings, so it does not support tenancy by schema or row security: each tenant has its
own datasource, or all tenants share one database.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from typing import Any, Final

import aiosqlite

from asgi_datasource.drivers.plain import PlainConnection, PlainServer, RowsResult
from asgi_datasource.drivers.protocol import Driver, PoolKeeper
from asgi_datasource.drivers.settings import ServerSettings
from asgi_datasource.drivers.statements import Begin, Control, ControlKind, Settings, Statement
from asgi_datasource.errors import DataErrorKind
from asgi_datasource.routing import Role

_PLACEHOLDER: Final = re.compile(r"%(?:s|\((\w+)\)s|(%))")
_ENDS: Final = frozenset({ControlKind.COMMIT, ControlKind.ROLLBACK})
_SAME_WORDS: Final = _ENDS | {ControlKind.SAVEPOINT, ControlKind.RELEASE, ControlKind.ROLLBACK_TO}
"""Statements with the same syntax in SQLite and PostgreSQL."""


def _in_sqlite(text: str) -> str:
    """Convert placeholders: `%s` to `?`, and `%(name)s` to `:name`."""
    return _PLACEHOLDER.sub(lambda found: "%" if found[2] else f":{found[1]}" if found[1] else "?", text)


class SqliteConnection(PlainConnection):
    """One connection, in a thread of `aiosqlite`."""

    errors = (sqlite3.Error,)

    def __init__(self, raw: aiosqlite.Connection) -> None:
        self.raw = raw
        self._savepoints: list[str] = []
        self._read_only_at: int | None = None
        """The number of open savepoints when the transaction became read only; None if it is not read only."""

    @property
    def is_in_transaction(self) -> bool:
        return not self.closed and self.raw.in_transaction

    async def begin(self) -> None:
        await self.raw.execute("begin")

    async def commit(self) -> None:
        await self.raw.execute("commit")

    async def reset(self) -> None:
        if self.raw.in_transaction:
            await self.raw.execute("rollback")
        self._savepoints.clear()
        await self._read_and_write(since=0)

    def interrupt(self) -> None:
        # Not `aiosqlite`'s interrupt, which waits for the busy thread.
        self.raw._conn.interrupt()

    async def disconnect(self) -> None:
        await self.raw.close()

    async def run(self, statement: Statement) -> RowsResult:
        if isinstance(statement, Control):
            await self._control(statement)
            return RowsResult(statement.kind.value.upper())
        cursor = await self.raw.execute(_in_sqlite(statement.text), statement.params or ())
        command = statement.text.split(None, 1)[0].upper()
        if not cursor.description:
            return RowsResult(f"INSERT 0 {cursor.rowcount}" if command == "INSERT" else command, cursor.rowcount)
        rows = [tuple(row) for row in await cursor.fetchall()]
        return RowsResult(command, len(rows), tuple(column[0] for column in cursor.description), rows)

    async def _control(self, control: Control) -> None:
        kind = control.kind
        if isinstance(control, Settings):
            if control.pairs:
                raise sqlite3.NotSupportedError("SQLite has no settings: neither row_security nor schemas of tenants")
            if control.is_read:
                await self._read_only()
        elif isinstance(control, Begin):
            await self.raw.execute("begin" if control.read_only else "begin immediate")
            if control.read_only:
                await self._read_only()
        elif kind is ControlKind.READ_ONLY:
            await self._read_only()
        elif kind in _SAME_WORDS:
            if kind in (ControlKind.RELEASE, ControlKind.ROLLBACK_TO):
                del self._savepoints[self._savepoints.index(control.name) + 1 :]
                await self._read_and_write(since=len(self._savepoints))
            await self.raw.execute(control.text)
            if kind is ControlKind.SAVEPOINT:
                self._savepoints.append(control.name)
            elif kind is ControlKind.RELEASE:
                self._savepoints.pop()
            elif kind in _ENDS:
                await self.reset()

    async def _read_only(self) -> None:
        if self._read_only_at is None:
            self._read_only_at = len(self._savepoints)
            await self.raw.execute("pragma query_only = on")

    async def _read_and_write(self, *, since: int) -> None:
        if self._read_only_at is not None and self._read_only_at >= since:
            self._read_only_at = None
            await self.raw.execute("pragma query_only = off")


class SqliteServer(PlainServer[SqliteConnection]):
    """A database file."""

    errors = (sqlite3.Error,)

    async def connect(self) -> SqliteConnection:
        raw = aiosqlite.connect(self.dbname, isolation_level=None)
        try:
            return SqliteConnection(await raw)
        except sqlite3.Error:
            # `aiosqlite` stops its thread in this case without waiting for it.
            await asyncio.to_thread(raw._thread.join)
            raise

    def native(self, connection: SqliteConnection) -> aiosqlite.Connection:
        return connection.raw

    def kind_of(self, error: BaseException, *, is_write: bool) -> DataErrorKind:
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, sqlite3.IntegrityError):
            return DataErrorKind.CONSTRAINT
        if code == sqlite3.SQLITE_READONLY:
            return DataErrorKind.READ_ONLY
        return DataErrorKind.CONFLICT if code == sqlite3.SQLITE_BUSY else DataErrorKind.QUERY


class SqliteDriver:
    """The entry point: `driver: tests.drivers.sqlite_driver:DRIVER`."""

    has_settings = False

    def make_server(
        self, name: str, datasource: str, role: Role, settings: ServerSettings, *, keeper: PoolKeeper | None = None
    ) -> SqliteServer:
        path = settings.conninfo.removeprefix("sqlite://")
        return SqliteServer(
            name, datasource, role, settings, address=path, port=0, dbname=path, system="sqlite", keeper=keeper
        )

    def make_template(self, conninfo: str, *, where: str) -> Any:
        raise NotImplementedError("SQLite has a file for a database: give each tenant a datasource of its own")


DRIVER: Final[Driver] = SqliteDriver()
