"""Real PostgreSQL servers, real faults and a real uvicorn for tests, demos and benchmarks.

Needs the extra `asgi-datasource[testing]` (and uvicorn for `serve`); submodules are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .binaries import ClusterError
    from .cluster import ClusterState, EmbeddedCluster
    from .live import LiveServer, RunningServer, ServeError, serve
    from .migrated import MigratedTemplate, MigrationOptions
    from .node import Node
    from .options import ClusterOptions
    from .protocol import RoundTripCounter
    from .proxy import FaultProxy
    from .server import Server, ServerState
    from .traces import TraceFiles, as_jaeger, write_traces

__all__ = [
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
    "ServeError",
    "Server",
    "ServerState",
    "TraceFiles",
    "as_jaeger",
    "serve",
    "write_traces",
]

_HOME = {
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
    "ServeError": "live",
    "Server": "server",
    "ServerState": "server",
    "TraceFiles": "traces",
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
