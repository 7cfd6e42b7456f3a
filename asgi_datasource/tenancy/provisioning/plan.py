"""The configuration of provisioning, compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...config import PLACEHOLDER, Config, server_of
from ...errors import ConfigError
from .. import TenantCompiler, TenantMap, compile_tenants, home_of
from .ledger import Placement


@dataclass(frozen=True, slots=True)
class Site:
    """One datasource, with its settings for provisioning.

    Attributes:
        name: Its name.
        url: The application's connection string; it holds `{tenant}` where each tenant has a database.
        admin_url: The connection string of the role that provisions.
        shared_schemas: Schemas that are searched after a tenant's own.
    """

    name: str
    url: str = field(repr=False)
    admin_url: str = field(repr=False)
    shared_schemas: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The server and database that the URL leads to. Not for messages: it may hold a password."""
        return server_of(self.url)

    @property
    def has_databases(self) -> bool:
        """Whether each tenant has a database of its own there."""
        return PLACEHOLDER in self.url


@dataclass(frozen=True, slots=True)
class ProvisioningPlan:
    """The input of a provisioner.

    Attributes:
        sites: Every datasource by its name.
        home: The datasource with the table of tenants; None where the configuration has no such table.
        set_up: SQL files and functions, in order.
        template: The database that new databases are copied from.
        dump_folder: The folder of dumps.
        programs: The folder of PostgreSQL's programs.
        compiler: Makes tenants.
        defaults: `tenants_from.defaults`: datasource, schema, row_security, role.
        listed: The tenants of the document.
        own_hosts: The application's own domains; no tenant may have one, nor one below.
        pattern: `tenancy.pattern`, which a tenant's whole name has to match.
    """

    sites: Mapping[str, Site]
    home: str | None
    set_up: tuple[str, ...]
    template: str | None
    dump_folder: Path | None
    programs: Path | None
    compiler: TenantCompiler
    defaults: Mapping[str, object]
    listed: TenantMap
    own_hosts: frozenset[str]
    pattern: str

    def documents(self, part: str, name: str | None) -> bool:
        """Whether the document itself gives new tenants this schema, role or database, the same for all of them."""
        return name is not None and self.defaults.get(part) == name

    def lists(self, name: str) -> bool:
        """Whether the document has this name, or alias, already."""
        return self.listed.find(name) is not None

    def serves(self, host: str) -> bool:
        """Whether the document has this domain already."""
        return host in self.listed.domains

    def listed_places(self) -> Iterator[tuple[str, Placement]]:
        """The places of the tenants of the document. Computed at each call, since there may be many."""
        for name, tenant in self.listed.names.items():
            home = home_of(tenant, self.sites[tenant.datasource].shared_schemas)
            settings = {key: value for key, value in tenant.settings if key not in ("search_path", "role")}
            yield name, Placement(tenant.datasource, home.schema, home.role, tenant.database, settings or None)

    @property
    def databases(self) -> frozenset[str]:
        """The databases that the connection strings of the document name."""
        urls = [url for site in self.sites.values() for url in (site.url, site.admin_url) if PLACEHOLDER not in url]
        return frozenset(server_of(url).rpartition("/")[2] for url in urls)

    def same_server(self, one: str, other: str) -> bool:
        """Whether two datasources are on one server, and have their roles in common."""
        urls = [self.sites[name].admin_url for name in (one, other)]
        return len({server_of(url, with_database=False) for url in urls}) == 1

    def twins(self, datasource: str) -> list[str]:
        """Every datasource that leads to the same server and database as this one."""
        place = self.sites[datasource].place
        return [name for name, site in self.sites.items() if site.place == place]


def step_name(step: str) -> str:
    """The name of a set-up step in the ledger: without the folder, which may differ between deployments."""
    return Path(step).name if step.endswith(".sql") else step


def compile_provisioning(config: Config, listed: TenantMap | None = None) -> ProvisioningPlan:
    """Compile the configuration of provisioning.

    Args:
        config: A checked configuration.
        listed: Its tenants; None compiles them.
    """
    if listed is None:
        listed = compile_tenants(config)
    sites = {
        name: Site(
            name,
            datasource.primary.url.get_secret_value(),
            (datasource.admin or datasource.primary).url.get_secret_value(),
            datasource.search_path,
        )
        for name, datasource in config.datasources.items()
        if datasource.driver is None
    }
    catalog = config.tenants_from
    provisioning = config.provisioning
    steps = [step_name(step) for step in provisioning.set_up]
    if len(set(steps)) < len(steps):
        raise ConfigError("provisioning.set_up: two steps have the same name, by which it is known what has been run")
    defaults = {} if catalog is None else catalog.defaults.model_dump(by_alias=True, exclude_none=True)
    return ProvisioningPlan(
        sites,
        None if catalog is None or catalog.query is not None else catalog.datasource,
        provisioning.set_up,
        provisioning.template,
        None if provisioning.dump_folder is None else Path(provisioning.dump_folder),
        None if provisioning.programs is None else Path(provisioning.programs),
        TenantCompiler(config.datasources),
        defaults,
        listed,
        config.tenancy.own_hosts,
        config.tenancy.pattern,
    )
