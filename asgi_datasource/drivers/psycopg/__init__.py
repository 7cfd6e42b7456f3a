"""PostgreSQL through psycopg: pools are psycopg_pool's, the hot path is libpq's pipeline."""

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import AsyncRowFactory as RowFactory

from .connection import Connection
from .conninfo_template import ConnectionTemplate
from .control_connection import ControlConnection, login_of, login_parameters, open_control
from .health_check import ASK_POSITION, HealthCheck, read_position
from .result import Exchange, Result
from .server import PoolKeeper, PsycopgServer
from .server_timeouts import ServerTimeouts
from .settings import ServerSettings
from .statement import Control, Params, Query, Statement

RawConnection = AsyncConnection[Any]
"""What `db.connection()` hands out."""

__all__ = [
    "ASK_POSITION",
    "Connection",
    "ConnectionTemplate",
    "Control",
    "ControlConnection",
    "Exchange",
    "HealthCheck",
    "Params",
    "PoolKeeper",
    "PsycopgServer",
    "Query",
    "RawConnection",
    "Result",
    "RowFactory",
    "ServerSettings",
    "ServerTimeouts",
    "Statement",
    "login_of",
    "login_parameters",
    "open_control",
    "read_position",
]
