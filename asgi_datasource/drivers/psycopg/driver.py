"""Entry point of the psycopg driver."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Final

import psycopg

from ...routing import Role
from ..protocol import PoolKeeper
from ..settings import ServerSettings
from .conninfo_template import ConnectionTemplate
from .control_connection import (
    ControlConnection,
    connect_blocking,
    login_of,
    login_parameters,
    open_control,
    with_application_name,
)
from .refusals import refusal_text
from .server import PsycopgServer

if TYPE_CHECKING:
    from ..protocol import Driver


class PsycopgDriver:
    """PostgreSQL through psycopg and psycopg_pool."""

    has_settings = True

    def make_server(
        self, name: str, datasource: str, role: Role, settings: ServerSettings, *, keeper: PoolKeeper | None = None
    ) -> PsycopgServer:
        """Make a server; its pool is not open yet. Raises ConfigError if its connection string is invalid."""
        return PsycopgServer(name, datasource, role, settings, keeper=keeper)

    def make_template(self, conninfo: str, *, where: str) -> ConnectionTemplate:
        """Parse a connection string with a tenant placeholder; raises ConfigError if it is invalid."""
        return ConnectionTemplate(conninfo, where=where)

    def open_control(
        self,
        settings: ServerSettings,
        *,
        where: str,
        dbname: str | None = None,
        timeout_s: float | None = 5.0,
        is_privileged: bool = False,
    ) -> AbstractAsyncContextManager[ControlConnection]:
        """A connection outside any pool; see `drivers.control.open_control`."""
        return open_control(settings, where=where, dbname=dbname, timeout_s=timeout_s, is_privileged=is_privileged)

    def login_of(self, conninfo: str) -> str:
        """The role that a connection string logs in as; raises ConfigError if it names none."""
        return login_of(conninfo)

    def connect_blocking(self, conninfo: str, *, dbname: str | None = None) -> psycopg.Connection[Any]:
        """See `drivers.control.ControlDriver`."""
        return connect_blocking(conninfo, dbname=dbname)

    def refusal_text(self, error: BaseException | None) -> str:
        """See `drivers.control.ControlDriver`."""
        return refusal_text(error) if isinstance(error, psycopg.Error) else type(error).__name__

    def with_application_name(self, conninfo: str, name: str) -> str:
        """See `drivers.control.ControlDriver`."""
        return with_application_name(conninfo, name)

    async def login_parameters(
        self, admin: ControlConnection, conninfo: str, *, user: str, password: str, where: str
    ) -> dict[str, str]:
        """Connection parameters for another login; see `drivers.control.ControlDriver`."""
        return await login_parameters(admin, conninfo, user=user, password=password, where=where)


DRIVER: Final[Driver] = PsycopgDriver()
