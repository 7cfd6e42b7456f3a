"""The configuration: one YAML, TOML or JSON document, validated as a whole before anything starts."""

from .changes import Change, find_changes
from .changes import Weight as ChangeWeight
from .codes import Explained, explain_code
from .diagnostics import Code, Diagnostic, Edit, EditKind, InvalidConfig, Position, Severity, show_path
from .diagnostics import Path as DiagnosticPath
from .documents import describe_changes, describe_diagnostics
from .durations import parse_duration
from .editing import apply_edit, edit_text
from .generated import json_schema, part_schema
from .health import ANY_SERVER, EVERY_PRIMARY
from .kinds import EVERY_OTHER
from .layers import ConfigFile
from .loading import Findings, Source, examine, load
from .models import (
    AuditConfig,
    BudgetConfig,
    CatalogConfig,
    Config,
    ConsistencyConfig,
    DataSourceConfig,
    EndpointConfig,
    ErrorsConfig,
    HealthConfig,
    MigrateConfig,
    OutboxConfig,
    PlaceConfig,
    PoolConfig,
    ProvisioningConfig,
    PublisherConfig,
    ReloadConfig,
    ReplicaConfig,
    ResolverConfig,
    RouteRule,
    RoutingConfig,
    StageConfig,
    TelemetryConfig,
    TenancyConfig,
    TenantConfig,
    TenantDefaults,
    TokenConfig,
    TransactionsConfig,
)
from .origins import Origins
from .provenance import Provenance, Resolved, resolve_document
from .reading import Format, Text, open_text, read_text
from .semantics import MAX_NAME_BYTES
from .state import DataSourceState, ServerState, StateDocument, read_state
from .suppressions import Suppressed
from .url import PLACEHOLDER, DatabaseUrl, mask_url, server_of

__all__ = [
    "ANY_SERVER",
    "EVERY_OTHER",
    "EVERY_PRIMARY",
    "MAX_NAME_BYTES",
    "PLACEHOLDER",
    "AuditConfig",
    "BudgetConfig",
    "CatalogConfig",
    "Change",
    "ChangeWeight",
    "Code",
    "Config",
    "ConfigFile",
    "ConsistencyConfig",
    "DataSourceConfig",
    "DataSourceState",
    "DatabaseUrl",
    "Diagnostic",
    "DiagnosticPath",
    "Edit",
    "EditKind",
    "EndpointConfig",
    "ErrorsConfig",
    "Explained",
    "Findings",
    "Format",
    "HealthConfig",
    "InvalidConfig",
    "MigrateConfig",
    "Origins",
    "OutboxConfig",
    "PlaceConfig",
    "PoolConfig",
    "Position",
    "Provenance",
    "ProvisioningConfig",
    "PublisherConfig",
    "ReloadConfig",
    "ReplicaConfig",
    "Resolved",
    "ResolverConfig",
    "RouteRule",
    "RoutingConfig",
    "ServerState",
    "Severity",
    "Source",
    "StageConfig",
    "StateDocument",
    "Suppressed",
    "TelemetryConfig",
    "TenancyConfig",
    "TenantConfig",
    "TenantDefaults",
    "Text",
    "TokenConfig",
    "TransactionsConfig",
    "apply_edit",
    "describe_changes",
    "describe_diagnostics",
    "edit_text",
    "examine",
    "explain_code",
    "find_changes",
    "json_schema",
    "load",
    "mask_url",
    "open_text",
    "parse_duration",
    "part_schema",
    "read_state",
    "read_text",
    "resolve_document",
    "server_of",
    "show_path",
]
