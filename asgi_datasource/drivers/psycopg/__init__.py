"""PostgreSQL through psycopg: pools are psycopg_pool's, the hot path is libpq's pipeline."""

from typing import Any

from psycopg import AsyncConnection

from .connection import PsycopgConnection
from .conninfo_template import ConnectionTemplate
from .control_connection import ControlConnection, login_of, login_parameters, open_control
from .driver import DRIVER
from .pipeline import Pipeline
from .server import PsycopgServer

RawConnection = AsyncConnection[Any]
"""What `db.connection()` hands out."""

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
