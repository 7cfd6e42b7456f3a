"""The entry of the psycopg driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...routing import Role
from ..protocol import PoolKeeper
from ..settings import ServerSettings
from .conninfo_template import ConnectionTemplate
from .server import PsycopgServer

if TYPE_CHECKING:
    from ..protocol import Driver


class PsycopgDriver:
    """PostgreSQL through psycopg and psycopg_pool."""

    def make_server(
        self, name: str, datasource: str, role: Role, settings: ServerSettings, *, keeper: PoolKeeper | None = None
    ) -> PsycopgServer:
        """One server, not opened yet; raises ConfigError where its connection string cannot be read."""
        return PsycopgServer(name, datasource, role, settings, keeper=keeper)

    def make_template(self, conninfo: str, *, where: str) -> ConnectionTemplate:
        """A connection string with a place for the tenant; raises ConfigError where it cannot be read."""
        return ConnectionTemplate(conninfo, where=where)


DRIVER: Final[Driver] = PsycopgDriver()
