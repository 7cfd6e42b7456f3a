"""The PostgreSQL driver: psycopg's connections and pool, with libpq's pipeline driven directly on the hot path."""

from typing import Any

from psycopg import AsyncConnection

from .connection import PsycopgConnection
from .conninfo_template import ConnectionTemplate
from .control_connection import ControlConnection, login_of, login_parameters, open_control
from .driver import DRIVER
from .pipeline import Pipeline
from .server import PsycopgServer

RawConnection = AsyncConnection[Any]
"""Type of the connection that `db.connection()` gives."""

__all__ = [
    "DRIVER",
    "ConnectionTemplate",
    "ControlConnection",
    "Pipeline",
    "PsycopgConnection",
    "PsycopgServer",
    "RawConnection",
    "login_of",
    "login_parameters",
    "open_control",
]
