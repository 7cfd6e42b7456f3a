"""The models of the document: frozen and strict, with a description of every key that editors show.

Fields have the names of their keys, with two exceptions: durations are `*_s`, because they are seconds here, and a
tenant's `schema` is `schema_name`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, WrapValidator

from .catalog import CatalogConfig, TenantDefaults
from .health import HealthConfig
from .kinds import DatasourceName, IncludePattern, TenantName, Version
from .migrate import MigrateConfig, StageConfig
from .outbox import OutboxConfig, PublisherConfig
from .provisioning import ProvisioningConfig
from .requests import ConsistencyConfig, ErrorsConfig, ReloadConfig, RouteRule, TelemetryConfig, TransactionsConfig
from .sections import OMISSIBLE, Section, mapping_field, section_field
from .servers import (
    AuditConfig,
    BudgetConfig,
    DataSourceConfig,
    EndpointConfig,
    PoolConfig,
    ReplicaConfig,
    RoutingConfig,
)
from .tenants import PlaceConfig, ResolverConfig, TenancyConfig, TenantConfig, TokenConfig, keep_compact

__all__ = [
    "AuditConfig",
    "BudgetConfig",
    "CatalogConfig",
    "Config",
    "ConsistencyConfig",
    "DataSourceConfig",
    "EndpointConfig",
    "ErrorsConfig",
    "HealthConfig",
    "MigrateConfig",
    "OutboxConfig",
    "PlaceConfig",
    "PoolConfig",
    "ProvisioningConfig",
    "PublisherConfig",
    "ReloadConfig",
    "ReplicaConfig",
    "ResolverConfig",
    "RouteRule",
    "RoutingConfig",
    "StageConfig",
    "TelemetryConfig",
    "TenancyConfig",
    "TenantConfig",
    "TenantDefaults",
    "TokenConfig",
    "TransactionsConfig",
]


class Config(Section):
    """The databases, the tenants on them, and the rules for requests."""

    version: Version = Field(title="Version", description="Version of this document's format: 1.", examples=[1])
    include: tuple[IncludePattern, ...] = Field(
        default=(),
        title="Include",
        description=(
            "Files that are part of this document, relative to this file; * and ** match names. Each key of a section"
            " is defined in one file; the entries of routes are concatenated."
        ),
        examples=[["tenants/*.yaml"]],
    )
    datasources: dict[DatasourceName, DataSourceConfig] = Field(
        min_length=1,
        title="Datasources",
        description="The logical databases by name, each a primary and its replicas.",
        examples=[{"orders": {"primary": {"url": "${ORDERS_PRIMARY_URL}"}}}],
    )
    tenancy: TenancyConfig = section_field(
        TenancyConfig,
        title="Tenancy",
        description="How requests name their tenant, and how requests without a tenant are answered.",
        examples=[{"resolve": [{"header": "X-Tenant"}]}],
    )
    tenants: Annotated[dict[TenantName, TenantConfig], WrapValidator(keep_compact)] = mapping_field(
        title="Tenants",
        description="The tenants by name, each with its datasource and its isolation there.",
        examples=[{"acme": {"datasource": "orders", "schema": "acme"}}],
    )
    tenants_from: Annotated[CatalogConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Tenants from a table",
        description="A query that returns further tenants; tenants of the document take precedence.",
        examples=[{"datasource": "orders", "query": "select slug as name from customers"}],
    )
    provisioning: ProvisioningConfig = section_field(
        ProvisioningConfig,
        title="Provisioning",
        description="How tenants are created, moved and dropped.",
        examples=[{"set_up": ["sql/tenant.sql"]}],
    )
    migrate: Annotated[MigrateConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Migrate",
        description="How schemas are changed: by versioned files, for each datasource and each tenant.",
        examples=[{"folder": "migrations"}],
    )
    routes: tuple[RouteRule, ...] = Field(
        default=(),
        title="Routes",
        description="Rules for routes without an annotation of their own; the first match applies.",
        examples=[[{"match": "POST /search", "intent": "read"}]],
    )
    transactions: TransactionsConfig = section_field(
        TransactionsConfig,
        title="Transactions",
        description="When a transaction begins, and which outcomes commit it or roll it back.",
        examples=[{"deadline": "10s"}],
    )
    consistency: ConsistencyConfig = section_field(
        ConsistencyConfig,
        title="Consistency",
        description="Read your writes across requests.",
        examples=[{"token": "cookie", "secret": {"file": "/run/secrets/token"}}],
    )
    budget: Annotated[BudgetConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Budget",
        description="How many connections the processes of the application may open to each server.",
        examples=[{"processes": 8, "reserve": 10}],
    )
    outbox: Annotated[OutboxConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Outbox",
        description="Events that transactions publish, and how they are delivered.",
        examples=[{"relay": "embedded", "publisher": {"nats": {"url": "nats://nats:4222"}}}],
    )
    health: Annotated[HealthConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Health",
        description="When the application's health checks (HealthApp) answer that it is ready, and where they are.",
        examples=[{"ready": "any_server"}],
    )
    reload: ReloadConfig = section_field(
        ReloadConfig,
        title="Reload",
        description="When a changed configuration is applied without a restart.",
        examples=[{"watch": "2s"}],
    )
    telemetry: TelemetryConfig = section_field(
        TelemetryConfig,
        title="Telemetry",
        description="What is reported to OpenTelemetry.",
        examples=[{"tenant_attribute": True}],
    )
    errors: ErrorsConfig = section_field(
        ErrorsConfig,
        title="Errors",
        description="How failures are answered.",
        examples=[{"status": {"conflict": 503}}],
    )
