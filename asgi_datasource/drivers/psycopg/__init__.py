"""PostgreSQL through psycopg: pools are psycopg_pool's, the hot path is libpq's pipeline."""

from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import AsyncRowFactory as RowFactory

from .connection import Connection
from .endpoint import Endpoint
from .limits import SessionLimits
from .query import Params, Query, Statement
from .result import Exchange, Result
from .settings import EndpointSettings

PsycopgConnection = AsyncConnection[Any]
"""What `db.connection()` hands out."""

__all__ = [
    "Connection",
    "Endpoint",
    "EndpointSettings",
    "Exchange",
    "Params",
    "PsycopgConnection",
    "Query",
    "Result",
    "RowFactory",
    "SessionLimits",
    "Statement",
]
