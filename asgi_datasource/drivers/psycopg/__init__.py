"""PostgreSQL through psycopg: pools are psycopg_pool's, the hot path is libpq's pipeline."""

from typing import Any

from psycopg import AsyncConnection

from .connection import PsycopgConnection
from .conninfo_template import ConnectionTemplate
from .control_connection import Admin, login_of, open_admin, program_arguments
from .driver import DRIVER
from .pipeline import Pipeline
from .probe import Probe, open_probe
from .server import PsycopgServer

RawConnection = AsyncConnection[Any]
"""What `db.connection()` hands out."""

__all__ = [
    "DRIVER",
    "Admin",
    "ConnectionTemplate",
    "Pipeline",
    "Probe",
    "PsycopgConnection",
    "PsycopgServer",
    "RawConnection",
    "login_of",
    "open_admin",
    "open_probe",
    "program_arguments",
]
