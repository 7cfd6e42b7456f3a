"""The database that a tenant's events are in, as the role that owns its tables reaches it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..config import PLACEHOLDER, Config, DataSourceConfig
from ..drivers.control import control_driver
from ..tenancy import Tenant


@dataclass(frozen=True, slots=True)
class OutboxSite:
    """One database with an outbox.

    Attributes:
        name: Names it in messages: the datasource, and the tenant where each has a database.
        admin_url: The connection string of the role that owns the tables.
        dbname: The database, where the connection string leads to another one.
        is_of_a_tenant: It is a tenant's own database.
    """

    name: str
    admin_url: str = field(repr=False)
    dbname: str | None = None
    is_of_a_tenant: bool = False


def site_of(config: Config, tenant: Tenant) -> OutboxSite | None:
    """The database that a tenant's events are written to; None where another driver leads to it."""
    datasource = config.datasources[tenant.datasource]
    if datasource.driver is not None:
        return None
    url = datasource.primary.url.get_secret_value()
    admin_url = (datasource.admin or datasource.primary).url.get_secret_value()
    if not _has_databases(datasource):
        return OutboxSite(tenant.datasource, admin_url)
    database = tenant.database or tenant.name or ""
    dbname = (
        control_driver().make_template(url, where=f"datasources.{tenant.datasource}, server 'primary'").dbname(database)
    )
    if PLACEHOLDER in admin_url:
        admin_url = (
            control_driver().make_template(admin_url, where=f"datasources.{tenant.datasource}, admin").fill(database)
        )
    return OutboxSite(f"{tenant.datasource}, tenant {database}", admin_url, dbname, is_of_a_tenant=True)


def _has_databases(datasource: DataSourceConfig) -> bool:
    return PLACEHOLDER in datasource.primary.url.get_secret_value()
