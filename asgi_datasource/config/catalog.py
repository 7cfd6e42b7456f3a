"""The section `tenants_from`: tenants that are rows of a table."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .kinds import (
    ChannelName,
    DatasourceName,
    Duration,
    FilePath,
    SettingName,
    SettingValue,
    SqlQuery,
    TenantIdentifier,
)
from .sections import OMISSIBLE, Section, duration_field, section_field
from .tenants import LimitsConfig


class TenantDefaults(Section):
    """Defaults for columns that a tenant's row lacks or has null in."""

    datasource: Annotated[DatasourceName | None, OMISSIBLE] = Field(
        default=None,
        title="Datasource",
        description="The name of their datasource.",
        examples=["orders"],
    )
    schema_name: Annotated[TenantIdentifier | None, OMISSIBLE] = Field(
        default=None,
        alias="schema",
        title="Schema",
        description="Their schema: first in the search_path of their transactions. {tenant} is the tenant's name.",
        examples=["{tenant}"],
    )
    row_security: Annotated[dict[SettingName, SettingValue] | None, OMISSIBLE] = Field(
        default=None,
        min_length=1,
        title="Row security settings",
        description="Custom settings that policies read with current_setting(). {tenant} is the tenant's name.",
        examples=[{"app.tenant": "{tenant}"}],
    )
    role: Annotated[TenantIdentifier | None, OMISSIBLE] = Field(
        default=None,
        title="Role",
        description="The role that their transactions run as (SET LOCAL ROLE). {tenant} is the tenant's name.",
        examples=["tenant_reader"],
    )
    limits: Annotated[LimitsConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Limits",
        description="Limits on shared resources, for each of them.",
        examples=[{"max_connections": 5}],
    )


class CatalogConfig(Section):
    """Tenants from a table: a query on a datasource, run at start-up and kept up to date."""

    datasource: DatasourceName = Field(
        title="Datasource",
        description="The datasource whose primary runs the query. Each process keeps a separate connection to it.",
        examples=["orders"],
    )
    query: Annotated[SqlQuery | None, OMISSIBLE] = Field(
        default=None,
        title="Query",
        description=(
            "Returns a row for each tenant, with the column name and any of datasource, schema, row_security (json),"
            " role, state, aliases (an array of names), domains (an array of hosts), max_connections, database and"
            " is_ready (false: not served yet). Without it, the table of asgi-datasource tenants is read."
        ),
        examples=["select slug as name, status as state from customers where plan <> 'none'"],
    )
    defaults: TenantDefaults = section_field(
        TenantDefaults,
        title="Defaults",
        description="Defaults for missing columns and nulls.",
        examples=[{"datasource": "orders", "schema": "{tenant}"}],
    )
    refresh_s: Duration = duration_field(
        "60s",
        alias="refresh",
        title="Refresh",
        description="How often the query is run to find changes.",
        examples=["5m"],
    )
    notify: Annotated[ChannelName | None, OMISSIBLE] = Field(
        default=None,
        title="Channel",
        description=(
            "A NOTIFY channel: a notification runs the query at once. The table of asgi-datasource tenants notifies"
            " asgi_datasource_tenants."
        ),
        examples=["customers_changed"],
    )
    miss_interval_s: Duration = duration_field(
        "1s",
        alias="miss_interval",
        title="Pause between lookups of unknown names",
        description="Unknown names are looked up together, at most once in this time: a flood of them costs one query.",
        examples=["1s"],
    )
    timeout_s: Duration = duration_field(
        "10s",
        alias="timeout",
        title="Longest load",
        description="How long loading the tenants may take; the start-up does not wait longer.",
        examples=["30s"],
    )
    snapshot: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="Snapshot",
        description="A file with the tenants that were loaded last, for a start-up while the datasource is down.",
        examples=["/var/lib/shop/tenants.snapshot"],
    )
