"""The databases of a configuration that have an outbox, as the role that owns its tables reaches them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..config import PLACEHOLDER, Config, DataSourceConfig
from ..drivers.control import control_driver
from ..tenancy import Tenant, compile_tenants
from .install import InstallSite


def install_sites(config: Config, tenants: Iterable[Tenant] | None = None) -> Iterator[InstallSite]:
    """Every database of a document's datasources and tenants, for the installation of the tables.

    Args:
        config: A checked configuration.
        tenants: All tenants; None takes those that the document lists.
    """
    known = compile_tenants(config).names.values() if tenants is None else tenants
    by_place: dict[str, dict[str | None, list[Tenant]]] = {}
    for tenant in known:
        has_databases = _has_databases(config.datasources[tenant.datasource])
        database = (tenant.database or tenant.name) if has_databases else None
        by_place.setdefault(tenant.datasource, {}).setdefault(database, []).append(tenant)
    for name, datasource in config.datasources.items():
        if datasource.driver is not None:
            continue
        places = by_place.get(name, {})
        if not _has_databases(datasource):
            places.setdefault(None, [])
        for database, living in places.items():
            yield _site(name, datasource, database, living)


def site_of(config: Config, tenant: Tenant) -> InstallSite | None:
    """The database that a tenant's events are written to; None where another driver leads to it."""
    datasource = config.datasources[tenant.datasource]
    if datasource.driver is not None:
        return None
    database = (tenant.database or tenant.name) if _has_databases(datasource) else None
    return _site(tenant.datasource, datasource, database, [tenant])


def _has_databases(datasource: DataSourceConfig) -> bool:
    return PLACEHOLDER in datasource.primary.url.get_secret_value()


def _site(name: str, datasource: DataSourceConfig, database: str | None, tenants: Iterable[Tenant]) -> InstallSite:
    url = datasource.primary.url.get_secret_value()
    admin_url = (datasource.admin or datasource.primary).url.get_secret_value()
    found = [value for tenant in tenants for setting, value in tenant.settings if setting == "role"]
    roles = tuple(dict.fromkeys(found))
    if database is None:
        return InstallSite(name, admin_url, url, roles=roles)
    template = control_driver().make_template(url, where=f"datasources.{name}, server 'primary'")
    filled = template.fill(database)
    dbname = template.dbname(database)
    if PLACEHOLDER in admin_url:
        admin_url = control_driver().make_template(admin_url, where=f"datasources.{name}, admin").fill(database)
    where = f"{name}, tenant {database}"
    return InstallSite(where, admin_url, filled, dbname=dbname, roles=roles, is_of_a_tenant=True)
