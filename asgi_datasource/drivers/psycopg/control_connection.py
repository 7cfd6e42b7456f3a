"""Connections outside any pool: for provisioning, with a privileged role, and for `check`.

The server's message for a failed statement may quote row data. So error messages contain our own text for the SQLSTATE
and the names of the objects only; psycopg's exception is the `__cause__`, with the server's message in `diag`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import ConfigError, DataError, DataErrorKind, ErrorDetail, classify
from ..settings import ServerSettings
from .refusals import refusal_text
from .settings import connect_failure, resolve, without_location

SAFE_PATH: Final = "-c search_path=pg_catalog"
"""Start-up option of privileged connections. It overrides ALTER DATABASE and ALTER ROLE, and RESET returns to it."""


class ControlConnection:
    """One connection in autocommit mode, without prepared statements.

    Attributes:
        connection: psycopg's connection, for set-up functions of the application.
        address: `host:port/database`, for messages.
        is_encrypted: The connection uses TLS.
        is_local: The server is on this machine.
    """

    __slots__ = ("_timeout_s", "address", "connection", "is_encrypted", "is_local")

    def __init__(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], address: str, timeout_s: float | None
    ) -> None:
        self.connection = connection
        self.address = address
        self.is_encrypted = bool(connection.pgconn.ssl_in_use)
        host = connection.info.host
        self.is_local = host.startswith("/") or host in ("localhost", "127.0.0.1", "::1", "")
        self._timeout_s = timeout_s

    @property
    def told_pid(self) -> int:
        """The process id reported at connect; through a pooler it is not the server process's."""
        return self.connection.info.backend_pid

    @property
    def parameters(self) -> dict[str, str]:
        """The effective connection parameters, secrets included, from the URL, a service file and libpq's environment
        variables."""
        found = {
            option.keyword.decode(): option.val.decode()
            for option in self.connection.pgconn.info
            if option.val is not None and option.val != option.compiled
        }
        return {name: value for name, value in found.items() if name not in _OF_THE_CLIENT}

    async def rows(self, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows.

        Args:
            query: The statement.
            parameters: Values for its placeholders.

        Raises:
            DataError: The server refused it, or timed out.
        """
        _, rows = await self.table(query, *parameters)
        return rows

    async def table(self, query: str, *parameters: object) -> tuple[list[str], list[tuple[Any, ...]]]:
        """As `rows`, for a statement from the configuration; also returns the column names."""
        return await self._run(query.encode(), parameters or None)

    async def command(
        self, template: LiteralString, *names: str | tuple[str, ...], **texts: str
    ) -> list[tuple[Any, ...]]:
        """Run a command with identifiers and literals instead of parameters, and return its rows.

        Args:
            template: `create schema {}`.
            names: Replace the empty braces, quoted as identifiers; a tuple is a schema-qualified name.
            texts: Replace `{key}`, quoted as literals: `comment on schema {} is {text}`.

        Raises:
            DataError: The server refused it.
        """
        parts = [sql.Identifier(*((name,) if isinstance(name, str) else name)) for name in names]
        literals = {key: sql.Literal(text) for key, text in texts.items()}
        _, rows = await self._run(sql.SQL(template).format(*parts, **literals), None)
        return rows

    async def script(self, text: str, *, name: str) -> None:
        """Run an SQL script: several statements in one message.

        Args:
            text: The statements.
            name: Names the script in errors.

        Raises:
            DataError: The server refused a statement; the message has line and column if the server reports them.
        """
        try:
            await self.connection.execute(text.encode(), prepare=False)
        except psycopg.Error as error:
            raise self._refused(error, where=f"{name}{_position(error, text)}: ") from error

    def compose(self, template: LiteralString, *names: str | tuple[str, ...], **values: object) -> str:
        """The text of a statement, for `batch`.

        Args:
            template: `insert into t values ({id})`.
            names: What replaces the empty braces, quoted as identifiers; a tuple is a name qualified by its schema.
            values: What replaces `{key}`, as literals.
        """
        parts = [sql.Identifier(*((name,) if isinstance(name, str) else name)) for name in names]
        literals = {key: sql.Literal(value) for key, value in values.items()}
        return sql.SQL(template).format(*parts, **literals).as_string(self.connection)

    async def batch(self, *texts: str, name: str = "") -> list[list[tuple[Any, ...]]]:
        """Run several statements in one message and one round trip.

        After a failure, none of the following statements runs; a transaction that the message has begun stays open and
        failed.

        Args:
            texts: The statements; each text holds one or more of them, without a semicolon at its end.
            name: Names the first text in errors, with line and column where the server reports them.

        Returns:
            The rows of each statement, in their order; none for a statement without rows.

        Raises:
            DataError: The server refused one of them, or the connection was lost.
        """
        text = "\n;\n".join(texts)
        try:
            cursor = await self.connection.execute(text.encode(), prepare=False)
            found: list[list[tuple[Any, ...]]] = []
            while True:
                found.append(await cursor.fetchall() if cursor.description is not None else [])
                if not cursor.nextset():
                    return found
        except psycopg.Error as error:
            where = f"{name}{_position(error, text)}: " if name else ""
            raise self._refused(error, where=where) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """A transaction block.

        Raises:
            DataError: A statement in it failed, including those of a set-up function.
        """
        try:
            async with self.connection.transaction():
                yield
        except psycopg.Error as error:
            raise self._refused(error) from error

    @asynccontextmanager
    async def translated(self) -> AsyncGenerator[None]:
        """A block in which psycopg's errors become `DataError`s without values; it begins no transaction.

        Raises:
            DataError: A statement in it failed.
        """
        try:
            yield
        except psycopg.Error as error:
            raise self._refused(error) from error

    def verifier(self, user: str, password: str) -> str:
        """The password verifier that the server stores: statements and server logs do not contain the password."""
        return self.connection.pgconn.encrypt_password(password.encode(), user.encode(), b"scram-sha-256").decode()

    @staticmethod
    def is_refusal(error: BaseException) -> bool:
        """Whether the driver raised this error, so that `transaction` translates it."""
        return isinstance(error, psycopg.Error)

    async def _run(
        self, query: bytes | sql.Composed, parameters: tuple[object, ...] | None
    ) -> tuple[list[str], list[tuple[Any, ...]]]:
        try:
            async with asyncio.timeout(self._timeout_s):
                cursor = await self.connection.execute(query, parameters, prepare=False)
                if cursor.description is None:
                    return [], []
                return [column.name for column in cursor.description], await cursor.fetchall()
        except TimeoutError:
            raise DataError(DataErrorKind.TIMEOUT, f"no answer within {self._timeout_s:g} s") from None
        except psycopg.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: psycopg.Error, *, where: str = "") -> DataError:
        found = classify(ErrorDetail(sqlstate=error.sqlstate, is_broken=self.connection.closed))
        text = refusal_text(error)
        # Tracebacks print the cause. Its `diag` keeps the server's message.
        error.args = (text,)
        return DataError(
            found.kind,
            where + text,
            sqlstate=error.sqlstate,
            http_status=found.http_status,
            is_retryable=found.is_retryable,
            constraint=error.diag.constraint_name,
            table=error.diag.table_name,
            column=error.diag.column_name,
        )


@asynccontextmanager
async def open_control(
    settings: ServerSettings,
    *,
    where: str,
    dbname: str | None = None,
    timeout_s: float | None = 5.0,
    is_privileged: bool = False,
) -> AsyncGenerator[ControlConnection]:
    """Connect, and close the connection at the end of the block; see `drivers.control.open_control`."""
    address = resolve(settings, where=where)
    parts = {name: str(value) for name, value in conninfo_to_dict(address.conninfo).items()}
    if dbname is not None:
        parts["dbname"] = dbname
    if is_privileged:
        parts["options"] = f"{parts.get('options', '')} {SAFE_PATH}".strip()
    location = f"{address.host}:{address.port}"
    limit_s = settings.connect_timeout_s + (5.0 if timeout_s is None else timeout_s)
    try:
        async with asyncio.timeout(limit_s):
            connection = await psycopg.AsyncConnection.connect(
                make_conninfo("", **parts), autocommit=True, prepare_threshold=None
            )
    except TimeoutError:
        raise DataError(DataErrorKind.CONNECTION, f"no answer within {limit_s:g} s", server=location) from None
    except (psycopg.Error, OSError) as error:
        reason = without_location(connect_failure(error, address))
        sqlstate = getattr(error, "sqlstate", None)
        raise DataError(DataErrorKind.CONNECTION, reason, sqlstate=sqlstate, server=location) from None
    try:
        yield ControlConnection(connection, f"{location}/{connection.info.dbname}", timeout_s)
    finally:
        # `await connection.close()` could wait for a server that does not answer.
        connection.pgconn.finish()


def login_of(conninfo: str) -> str:
    """The role that a connection string logs in as.

    Raises:
        ConfigError: It names none.
    """
    user = conninfo_to_dict(conninfo).get("user")
    if not user:
        raise ConfigError("the connection URL names no user")
    return str(user)


def connect_blocking(conninfo: str, *, dbname: str | None = None) -> psycopg.Connection[Any]:
    """A connection of the blocking kind, which prepares nothing, for tools that know no other."""
    parts = {} if dbname is None else {"dbname": dbname}
    return psycopg.connect(make_conninfo(conninfo, **parts), prepare_threshold=None)


def with_application_name(conninfo: str, name: str) -> str:
    """A connection string whose connections bear another `application_name`."""
    return make_conninfo(conninfo, application_name=name)


async def login_parameters(
    admin: ControlConnection, conninfo: str, *, user: str, password: str, where: str
) -> dict[str, str]:
    """Connection parameters for another login to the same database, without a pooler in between.

    Args:
        admin: The control connection; its address is tried first.
        conninfo: A second connection string for the server.
        user, password: The other login.
        where: Names the server in errors.

    Raises:
        DataError: CONNECTION: the login is refused at both addresses.
    """
    failure: DataError | None = None
    for parts in (admin.parameters, conninfo_to_dict(conninfo)):
        candidate = {name: str(value) for name, value in parts.items() if name not in _OF_THE_LOGIN}
        candidate |= {"user": user, "password": password, "dbname": admin.connection.info.dbname}
        try:
            settings = ServerSettings(conninfo=make_conninfo("", **candidate))
            async with open_control(settings, where=where) as connection:
                [[pid]] = await connection.rows("select pg_catalog.pg_backend_pid()")
                if pid == connection.told_pid:
                    return candidate
        except DataError as error:
            failure = failure or error
    reason = "a pooler is in between" if failure is None else failure.message
    raise DataError(DataErrorKind.CONNECTION, f"{where}: {user} cannot log in with its password: {reason}")


_OF_THE_LOGIN: Final = frozenset(
    {
        *("user", "password", "passfile", "sslcert", "sslkey", "sslpassword", "sslcertmode", "require_auth", "options"),
        *("channel_binding", "gssencmode", "gsslib", "gssdelegation", "krbsrvname", "service"),
        *("scram_client_key", "scram_server_key"),
        *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
    }
)
"""Parameters of the login, not of the address (PostgreSQL manual, "Parameter Key Words")."""

_OF_THE_CLIENT: Final = frozenset({"service", "servicefile", "replication", "fallback_application_name"})
"""Parameters that are not passed on to other programs: the effective parameters include those of a service file."""


def _position(error: psycopg.Error, text: str) -> str:
    """Position of an error in a script: `, line 2, column 8`. The server counts characters, from 1."""
    offset = error.diag.statement_position
    if offset is None:
        return ""
    before = text[: int(offset) - 1]
    return f", line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
