"""Declarative ASGI middleware for multi-tenant PostgreSQL: tenant, replica and transaction, right together."""

from .config import Config, json_schema, load
from .datasource import DataSource
from .drivers.psycopg import Params, Query, RowFactory
from .errors import (
    ClientDisconnected,
    CommitUnknown,
    ConfigError,
    DataError,
    DataErrorKind,
    SessionClosed,
    UnexpectedRollback,
)
from .middleware import DataSourceMiddleware
from .registry import DataSourceRegistry, compile
from .routing import AccessIntent, ReadAfterWritePin, Reason, Role, Route
from .session import DataSession, Row, current_session, session
from .tenancy import Resolution, Tenant, TenantResolver
from .transaction import Isolation, TxState, transactional

__all__ = [
    "AccessIntent",
    "ClientDisconnected",
    "CommitUnknown",
    "Config",
    "ConfigError",
    "DataError",
    "DataErrorKind",
    "DataSession",
    "DataSource",
    "DataSourceMiddleware",
    "DataSourceRegistry",
    "Isolation",
    "Params",
    "Query",
    "ReadAfterWritePin",
    "Reason",
    "Resolution",
    "Role",
    "Route",
    "Row",
    "RowFactory",
    "SessionClosed",
    "Tenant",
    "TenantResolver",
    "TxState",
    "UnexpectedRollback",
    "compile",
    "current_session",
    "json_schema",
    "load",
    "session",
    "transactional",
]
