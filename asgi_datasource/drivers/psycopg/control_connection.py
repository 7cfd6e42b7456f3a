"""Connections for provisioning: outside any pool, as a role that may create things, one statement after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from ...errors import DataError, DataErrorKind
from ..settings import ServerSettings
from .settings import connect_failure, resolve


class Admin:
    """One connection, in autocommit mode.

    Attributes:
        connection: psycopg's own, for set-up code of the application's.
    """

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
        self.connection = connection

    async def rows(self, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement with values, and return its rows.

        Raises:
            DataError: The server refused it.
        """
        try:
            cursor = await self.connection.execute(query, parameters or None, prepare=False)
            return await cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise _refused(error) from error

    async def command(
        self, template: LiteralString, *names: str | tuple[str, ...], **texts: str
    ) -> list[tuple[Any, ...]]:
        """Run a command in whose `{}` names stand, quoted so that each stays a name, and return its rows.

        Args:
            template: `create schema {}`; a tuple is a name with its schema's.
            names: What stands in the empty braces.
            texts: Values by name, quoted as literals: `comment on schema {} is {text}`.

        Raises:
            DataError: The server refused it.
        """
        parts = [sql.Identifier(*((name,) if isinstance(name, str) else name)) for name in names]
        literals = {key: sql.Literal(text) for key, text in texts.items()}
        try:
            cursor = await self.connection.execute(sql.SQL(template).format(*parts, **literals), prepare=False)
            return await cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            raise _refused(error) from error

    async def script(self, text: str) -> None:
        """Run a file of SQL, several statements at once.

        Raises:
            DataError: One of them was refused.
        """
        try:
            await self.connection.execute(text.encode(), prepare=False)
        except psycopg.Error as error:
            raise _refused(error) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """A block that takes effect as a whole."""
        try:
            async with self.connection.transaction():
                yield
        except psycopg.Error as error:
            raise _refused(error) from error


def _refused(error: psycopg.Error) -> DataError:
    diagnostics = error.diag
    where = f" (line {diagnostics.statement_position})" if diagnostics.statement_position else ""
    message = diagnostics.message_primary or type(error).__name__
    return DataError(DataErrorKind.QUERY, f"{message}{where}", sqlstate=error.sqlstate)


@asynccontextmanager
async def open_admin(conninfo: str, *, where: str, dbname: str | None = None) -> AsyncGenerator[Admin]:
    """Connect for provisioning, and close the connection in the end.

    Args:
        conninfo: libpq's URL or keyword string.
        where: Names the server in errors.
        dbname: Another database on the same server.

    Raises:
        DataError: CONNECTION: the server cannot be reached.
    """
    address = resolve(ServerSettings(conninfo=conninfo, connect_timeout_s=10.0), where=where)
    parameters: Mapping[str, str] = {} if dbname is None else {"dbname": dbname}
    try:
        connection = await psycopg.AsyncConnection.connect(address.conninfo, autocommit=True, **parameters)  # type: ignore[arg-type]
    except psycopg.Error as error:
        reason = connect_failure(error, address)
        raise DataError(DataErrorKind.CONNECTION, f"{where}: cannot connect to {reason}") from None
    try:
        yield Admin(connection)
    finally:
        await connection.close()


def login_of(conninfo: str) -> str:
    """The role that a connection string logs in as; raises ValueError when it names none."""
    from psycopg.conninfo import conninfo_to_dict

    user = conninfo_to_dict(conninfo).get("user")
    if not user:
        raise ValueError("the connection URL names no user")
    return str(user)


def program_arguments(conninfo: str, *, dbname: str | None = None) -> tuple[Sequence[str], Mapping[str, str]]:
    """How PostgreSQL's own programs are told of a server: arguments without the password, and their environment."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
    password = parts.pop("password", None)
    if dbname is not None:
        parts["dbname"] = dbname
    return ["--dbname", make_conninfo("", **parts)], {} if password is None else {"PGPASSWORD": password}
