"""PostgreSQL through psycopg: pools are psycopg_pool's, the hot path is libpq's pipeline."""

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import AsyncRowFactory as RowFactory

from .admin import Admin, login_of, open_admin, program_arguments
from .connection import Connection
from .endpoint import Endpoint, PoolKeeper
from .limits import SessionLimits
from .lookout import ASK_POSITION, Lookout, read_position
from .probe import Probe, open_probe
from .query import Control, Params, Query, Statement
from .result import Exchange, Result
from .settings import EndpointSettings
from .template import ConnectionTemplate

PsycopgConnection = AsyncConnection[Any]
"""What `db.connection()` hands out."""

__all__ = [
    "ASK_POSITION",
    "Admin",
    "Connection",
    "ConnectionTemplate",
    "Control",
    "Endpoint",
    "EndpointSettings",
    "Exchange",
    "Lookout",
    "Params",
    "PoolKeeper",
    "Probe",
    "PsycopgConnection",
    "Query",
    "Result",
    "RowFactory",
    "SessionLimits",
    "Statement",
    "login_of",
    "open_admin",
    "open_probe",
    "program_arguments",
    "read_position",
]
