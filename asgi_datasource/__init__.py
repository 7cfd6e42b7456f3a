"""Declarative ASGI middleware for multi-tenant PostgreSQL: tenant, replica and transaction, right together.

Nothing is imported until the first public name is asked for (`public.py` says where each comes from): the command line
answers `--help` without loading a driver, and validates a file without a web framework.
"""

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False  # as `typing` has it, without importing it
if TYPE_CHECKING:
    from .public import *

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

if not TYPE_CHECKING:

    class _Package(ModuleType):
        """The package, with its public names imported on demand."""

        def __getattr__(self, name):
            if name not in __all__:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            public = import_module(f"{self.__name__}.public")
            self.__dict__.update((public_name, getattr(public, public_name)) for public_name in __all__)
            return self.__dict__[name]

        def __setattr__(self, name, value):
            # The import system hangs every module on its package; `session` is the function there, not the module.
            if not (name in __all__ and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self):
            return sorted({*super().__dir__(), *__all__})

    sys.modules[__name__].__class__ = _Package
