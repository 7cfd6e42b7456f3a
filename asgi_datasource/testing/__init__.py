"""Real PostgreSQL servers, real faults and a real uvicorn for tests, demos and benchmarks.

Needs the extra `asgi-datasource[testing]` (and uvicorn for `serve`); submodules are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .app_client import AppClient
    from .binaries import ClusterError
    from .cluster import ClusterState, EmbeddedCluster
    from .kit import SeenRoute, SessionOfTest, TestKit
    from .live import LiveServer, RunningServer, ServeError, serve
    from .migrated import MigratedTemplate, MigrationOptions
    from .node import Node
    from .options import ClusterOptions
    from .protocol import RoundTripCounter
    from .proxy import FaultProxy
    from .server import Server, ServerState
    from .traces import TraceFiles, as_jaeger, write_traces
    from .user_databases import UserDatabases

__all__ = [
    "AppClient",
    "ClusterError",
    "ClusterOptions",
    "ClusterState",
    "EmbeddedCluster",
    "FaultProxy",
    "LiveServer",
    "MigratedTemplate",
    "MigrationOptions",
    "Node",
    "RoundTripCounter",
    "RunningServer",
    "SeenRoute",
    "ServeError",
    "Server",
    "ServerState",
    "SessionOfTest",
    "TestKit",
    "TraceFiles",
    "UserDatabases",
    "as_jaeger",
    "serve",
    "write_traces",
]

_HOME = {
    "AppClient": "app_client",
    "ClusterError": "binaries",
    "ClusterOptions": "options",
    "ClusterState": "cluster",
    "EmbeddedCluster": "cluster",
    "FaultProxy": "proxy",
    "LiveServer": "live",
    "MigratedTemplate": "migrated",
    "MigrationOptions": "migrated",
    "Node": "node",
    "RoundTripCounter": "protocol",
    "RunningServer": "live",
    "SeenRoute": "kit",
    "ServeError": "live",
    "Server": "server",
    "ServerState": "server",
    "SessionOfTest": "kit",
    "TestKit": "kit",
    "TraceFiles": "traces",
    "UserDatabases": "user_databases",
    "as_jaeger": "traces",
    "serve": "live",
    "write_traces": "traces",
}


def __getattr__(name: str) -> object:
    # The pytest plugin is in this package and is loaded in every test run in an environment with this library: it must
    # not import psycopg and uvicorn.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
