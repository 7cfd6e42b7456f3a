"""The configuration: one YAML, TOML or JSON document, checked as a whole before anything starts."""

from .diagnostics import Code, Diagnostic, InvalidConfig, Position, Severity
from .generated import json_schema
from .loading import Findings, Source, examine, load
from .models import (
    Config,
    ConsistencyConfig,
    DataSourceConfig,
    EndpointConfig,
    ErrorsConfig,
    PoolConfig,
    ReplicaConfig,
    ResolverConfig,
    RouteRule,
    RoutingConfig,
    TelemetryConfig,
    TenancyConfig,
    TenantConfig,
    TransactionsConfig,
)
from .url import DatabaseUrl

__all__ = [
    "Code",
    "Config",
    "ConsistencyConfig",
    "DataSourceConfig",
    "DatabaseUrl",
    "Diagnostic",
    "EndpointConfig",
    "ErrorsConfig",
    "Findings",
    "InvalidConfig",
    "PoolConfig",
    "Position",
    "ReplicaConfig",
    "ResolverConfig",
    "RouteRule",
    "RoutingConfig",
    "Severity",
    "Source",
    "TelemetryConfig",
    "TenancyConfig",
    "TenantConfig",
    "TransactionsConfig",
    "examine",
    "json_schema",
    "load",
]
