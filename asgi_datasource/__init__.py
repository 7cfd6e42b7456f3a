"""Declarative ASGI middleware for multi-tenant PostgreSQL: tenant, replica and transaction, right together.

A public name is imported when it is first used (PEP 562): the command line answers `--help` without a driver, and
validates a file without a web framework.
"""

TYPE_CHECKING = False  # as `typing` defines it, without importing that
if TYPE_CHECKING:
    from .asgi.current_session import current_session, in_transaction, session
    from .asgi.middleware import DataSourceMiddleware
    from .asgi.problem_details import Problem
    from .config import Config, ConfigFile, json_schema, load
    from .datasource.datasource import DataSource
    from .drivers.protocol import RowFactory
    from .drivers.statements import Params, Query
    from .errors import (
        ClientDisconnected,
        CommitUnknown,
        ConfigError,
        DataError,
        DataErrorKind,
        SessionClosed,
        UnexpectedRollback,
    )
    from .registry.explain import Explanation
    from .registry.registry import DataSourceRegistry, compile
    from .routing import AccessIntent, ReadAfterWritePin, Reason, Role, Route
    from .sessions.decorator import transactional
    from .sessions.session import DataSession
    from .sessions.statement_api import Row
    from .tenancy import Resolution, Tenant, TenantResolver, TenantState, current_tenant, tenant_context
    from .transaction import Isolation, Propagation, TxState

_HOMES = {
    "AccessIntent": "routing",
    "ClientDisconnected": "errors",
    "CommitUnknown": "errors",
    "Config": "config",
    "ConfigError": "errors",
    "ConfigFile": "config",
    "DataError": "errors",
    "DataErrorKind": "errors",
    "DataSession": "sessions.session",
    "DataSource": "datasource.datasource",
    "DataSourceMiddleware": "asgi.middleware",
    "DataSourceRegistry": "registry.registry",
    "Explanation": "registry.explain",
    "Isolation": "transaction",
    "Params": "drivers.statements",
    "Problem": "asgi.problem_details",
    "Propagation": "transaction",
    "Query": "drivers.statements",
    "ReadAfterWritePin": "routing",
    "Reason": "routing",
    "Resolution": "tenancy",
    "Role": "routing",
    "Route": "routing",
    "Row": "sessions.statement_api",
    "RowFactory": "drivers.protocol",
    "SessionClosed": "errors",
    "Tenant": "tenancy",
    "TenantResolver": "tenancy",
    "TenantState": "tenancy",
    "TxState": "transaction",
    "UnexpectedRollback": "errors",
    "compile": "registry.registry",
    "current_session": "asgi.current_session",
    "current_tenant": "tenancy",
    "in_transaction": "asgi.current_session",
    "json_schema": "config",
    "load": "config",
    "session": "asgi.current_session",
    "tenant_context": "tenancy",
    "transactional": "sessions.decorator",
}

__all__ = [
    "AccessIntent",
    "ClientDisconnected",
    "CommitUnknown",
    "Config",
    "ConfigError",
    "ConfigFile",
    "DataError",
    "DataErrorKind",
    "DataSession",
    "DataSource",
    "DataSourceMiddleware",
    "DataSourceRegistry",
    "Explanation",
    "Isolation",
    "Params",
    "Problem",
    "Propagation",
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
    "TenantState",
    "TxState",
    "UnexpectedRollback",
    "compile",
    "current_session",
    "current_tenant",
    "in_transaction",
    "json_schema",
    "load",
    "session",
    "tenant_context",
    "transactional",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
