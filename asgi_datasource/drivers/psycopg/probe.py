"""A connection for questions: outside any pool, without preparing anything, each answer bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg

from ...errors import DataError, DataErrorKind
from ..settings import ServerSettings
from .settings import connect_failure, resolve


class Probe:
    """One connection to one server.

    Attributes:
        address: `host:port/database`, for messages.
    """

    __slots__ = ("_connection", "_timeout_s", "address", "is_encrypted", "is_local")

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], address: str, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self.address = address
        self.is_encrypted = bool(connection.pgconn.ssl_in_use)
        host = connection.info.host
        self.is_local = host.startswith("/") or host in ("localhost", "127.0.0.1", "::1", "")

    @property
    def told_pid(self) -> int:
        """The process id that whoever is at the other end told when the connection was made."""
        return self._connection.info.backend_pid

    async def rows(self, sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """Ask the server.

        Args:
            sql: One statement.
            parameters: For its placeholders.

        Raises:
            DataError: The server refused, or did not answer in time; the message holds no value.
        """
        _, rows = await self.table(sql, *parameters)
        return rows

    async def table(self, sql: str, *parameters: object) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The names of the columns, and the rows; for a statement that the configuration holds. Otherwise as `rows`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                cursor = await self._connection.execute(sql.encode(), parameters or None, prepare=False)
                if cursor.description is None:
                    return [], []
                return [column.name for column in cursor.description], await cursor.fetchall()
        except TimeoutError:
            raise DataError(DataErrorKind.TIMEOUT, f"no answer within {self._timeout_s:g} s") from None
        except psycopg.Error as error:
            message = (error.diag.message_primary or type(error).__name__).strip()
            raise DataError(DataErrorKind.OTHER, message, sqlstate=error.sqlstate) from None


@asynccontextmanager
async def open_probe(settings: ServerSettings, *, where: str, timeout_s: float = 5.0) -> AsyncGenerator[Probe, None]:
    """Connect for questions, and close the connection in the end.

    Args:
        settings: How the server is reached.
        where: Names the server in errors.
        timeout_s: Longest wait for the connection, and for each answer.

    Raises:
        DataError: There is no connection to be had; the message says why, without user and password.
    """
    address = resolve(settings, where=where)
    try:
        async with asyncio.timeout(timeout_s + settings.connect_timeout_s):
            connection = await psycopg.AsyncConnection.connect(
                address.conninfo, autocommit=True, prepare_threshold=None
            )
    except TimeoutError:
        message = f"{address.host}:{address.port}: no answer within {timeout_s + settings.connect_timeout_s:g} s"
        raise DataError(DataErrorKind.CONNECTION, message) from None
    except (psycopg.Error, OSError) as error:
        raise DataError(
            DataErrorKind.CONNECTION, connect_failure(error, address), sqlstate=getattr(error, "sqlstate", None)
        ) from None
    try:
        yield Probe(connection, f"{address.host}:{address.port}/{address.dbname}", timeout_s)
    finally:
        # Not `await close()`: it is never to wait for a server that is silent.
        connection.pgconn.finish()
