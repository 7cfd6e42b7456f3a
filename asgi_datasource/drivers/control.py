"""Connections outside any pool, for provisioning and for `check`: the additional protocol of PostgreSQL drivers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, LiteralString, Protocol, cast

from . import load_driver
from .protocol import ConnectionTemplate
from .settings import ServerSettings


class ControlConnection(Protocol):
    """One connection in autocommit mode. Error messages contain no row data from the server."""

    address: str
    """`host:port/database`, for messages."""
    is_encrypted: bool
    """The connection uses TLS."""
    is_local: bool
    """The server is on this machine."""
    connection: Any
    """The driver's own connection, for set-up functions of the application."""

    @property
    def told_pid(self) -> int:
        """The process id reported at connect; through a pooler it is not the server process's."""
        ...

    @property
    def parameters(self) -> Mapping[str, str]:
        """The effective connection parameters, secrets included."""
        ...

    async def rows(self, query: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; raises `DataError`."""
        ...

    async def table(self, query: str, *parameters: object) -> tuple[list[str], list[tuple[Any, ...]]]:
        """As `rows`, for a statement from the configuration; also returns the column names."""
        ...

    async def command(
        self, template: LiteralString, *names: str | tuple[str, ...], **texts: str
    ) -> list[tuple[Any, ...]]:
        """Run a command with identifiers (`{}`) and literals (`{key}`) instead of parameters; raises `DataError`."""
        ...

    async def script(self, text: str, *, name: str) -> None:
        """Run an SQL script in one message; `name` names it in errors."""
        ...

    def compose(self, template: LiteralString, *names: str | tuple[str, ...], **values: object) -> str:
        """The text of a statement, with names (`{}`) quoted as identifiers and values (`{key}`) as literals."""
        ...

    async def batch(self, *texts: str, name: str = "") -> list[list[tuple[Any, ...]]]:
        """Run texts in one message and one round trip; returns the rows of each statement; raises `DataError`."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """A transaction block; raises `DataError`."""
        ...

    def translated(self) -> AbstractAsyncContextManager[None]:
        """A block in which the driver's own errors become `DataError`s without values; it begins no transaction."""
        ...

    def verifier(self, user: str, password: str) -> str:
        """The password verifier that the server stores, such as SCRAM-SHA-256's."""
        ...

    def is_refusal(self, error: BaseException, /) -> bool:
        """Whether the driver raised this error, so that `transaction` translates it."""
        ...


class ControlDriver(Protocol):
    """A driver that supports provisioning and checks."""

    def open_control(
        self,
        settings: ServerSettings,
        *,
        where: str,
        dbname: str | None = None,
        timeout_s: float | None = 5.0,
        is_privileged: bool = False,
    ) -> AbstractAsyncContextManager[ControlConnection]:
        """See the function `open_control`."""
        ...

    def make_template(self, conninfo: str, *, where: str) -> ConnectionTemplate:
        """See `drivers.protocol.Driver`."""
        ...

    def login_of(self, conninfo: str) -> str:
        """The role that a connection string logs in as; raises `ConfigError` if it names none."""
        ...

    def connect_blocking(self, conninfo: str, *, dbname: str | None = None) -> Any:
        """A connection of the driver's blocking kind, for tools that know no other."""
        ...

    def refusal_text(self, error: BaseException | None) -> str:
        """What a message says of an error that the driver raised; without values."""
        ...

    def with_application_name(self, conninfo: str, name: str) -> str:
        """A connection string whose connections bear another `application_name`."""
        ...

    async def login_parameters(
        self, admin: Any, conninfo: str, *, user: str, password: str, where: str
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
        ...


def control_driver() -> ControlDriver:
    """The default driver."""
    return cast("ControlDriver", load_driver())


def open_control(
    settings: ServerSettings,
    *,
    where: str,
    dbname: str | None = None,
    timeout_s: float | None = 5.0,
    is_privileged: bool = False,
) -> AbstractAsyncContextManager[ControlConnection]:
    """Connect, and close the connection at the end of the block.

    Args:
        settings: The server's settings.
        where: Names the server in the error about an unreadable connection string.
        dbname: Another database on the same server.
        timeout_s: Longest wait for each answer; None sets no bound.
        is_privileged: The role has more privileges than others: names are then resolved in `pg_catalog` only, so that
            an object of another role is not used by accident. Needs a direct connection: poolers refuse it.

    Raises:
        DataError: CONNECTION: the server cannot be reached; the message has the reason, without user and password.
    """
    return control_driver().open_control(
        settings, where=where, dbname=dbname, timeout_s=timeout_s, is_privileged=is_privileged
    )
