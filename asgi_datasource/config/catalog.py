"""Tenants that are not listed in the document but in a table."""

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
    """What holds for tenants whose row says nothing else."""

    datasource: Annotated[DatasourceName | None, OMISSIBLE] = Field(
        default=None,
        title="Datasource",
        description="Name of the datasource that they live on.",
        examples=["orders"],
    )
    schema_name: Annotated[TenantIdentifier | None, OMISSIBLE] = Field(
        default=None,
        alias="schema",
        title="Schema",
        description="Their own schema: first in the search_path of their transactions. {tenant} is the tenant's name.",
        examples=["{tenant}"],
    )
    row_security: Annotated[dict[SettingName, SettingValue] | None, OMISSIBLE] = Field(
        default=None,
        min_length=1,
        title="Row security settings",
        description="Custom settings that the policies read with current_setting(). {tenant} is the tenant's name.",
        examples=[{"app.tenant": "{tenant}"}],
    )
    role: Annotated[TenantIdentifier | None, OMISSIBLE] = Field(
        default=None,
        title="Role",
        description="Role that their transactions run as (SET LOCAL ROLE). {tenant} is the tenant's name.",
        examples=["tenant_reader"],
    )
    limits: Annotated[LimitsConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Limits",
        description="How much of what they share with others each of them may have.",
        examples=[{"max_connections": 5}],
    )


class CatalogConfig(Section):
    """The tenants in a table: a query on a datasource, loaded at the start and kept up to date."""

    datasource: DatasourceName = Field(
        title="Datasource",
        description="The datasource whose primary is asked. Each process keeps a connection of its own to it.",
        examples=["orders"],
    )
    query: Annotated[SqlQuery | None, OMISSIBLE] = Field(
        default=None,
        title="Query",
        description=(
            "Gives a row for each tenant, with the column name and any of datasource, schema, row_security (json),"
            " role, state, aliases (an array of names), domains (an array of hosts), max_connections, database and"
            " is_ready (false: not served yet). Without it, the table that asgi-datasource tenants keeps is read."
        ),
        examples=["select slug as name, status as state from customers where plan <> 'none'"],
    )
    defaults: TenantDefaults = section_field(
        TenantDefaults,
        title="Defaults",
        description="What holds where a row has no such column, or null in it.",
        examples=[{"datasource": "orders", "schema": "{tenant}"}],
    )
    refresh_s: Duration = duration_field(
        "60s",
        alias="refresh",
        title="Refresh",
        description="How often the query is asked whether anything has changed.",
        examples=["5m"],
    )
    notify: Annotated[ChannelName | None, OMISSIBLE] = Field(
        default=None,
        title="Channel",
        description=(
            "A channel of NOTIFY: the query is asked as soon as something is sent there. The table that"
            " asgi-datasource tenants keeps tells asgi_datasource_tenants."
        ),
        examples=["customers_changed"],
    )
    miss_interval_s: Duration = duration_field(
        "1s",
        alias="miss_interval",
        title="Pause between questions for unknown names",
        description=(
            "A name that is not known is asked for, together with the others of this time: a flood of them costs one"
            " query in it."
        ),
        examples=["1s"],
    )
    timeout_s: Duration = duration_field(
        "10s",
        alias="timeout",
        title="Longest load",
        description="How long loading the tenants may take; the start waits no longer for it.",
        examples=["30s"],
    )
    snapshot: Annotated[FilePath | None, OMISSIBLE] = Field(
        default=None,
        title="Snapshot",
        description="A file that keeps what was loaded last, for a start at which the datasource does not answer.",
        examples=["/var/lib/shop/tenants.snapshot"],
    )
