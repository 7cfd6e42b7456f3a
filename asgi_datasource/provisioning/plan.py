"""What the configuration says of provisioning, compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..config import EVERY_OTHER, PLACEHOLDER, Config, TenantConfig, server_of
from ..errors import ConfigError
from ..tenancy import TenantCompiler
from .records import Placement


@dataclass(frozen=True, slots=True)
class Site:
    """One datasource, as whoever provisions sees it.

    Attributes:
        name: Its name.
        url: The application's own connection string; with `{tenant}` in it where each tenant has a database.
        admin_url: Who may create things there.
        shared_schemas: What is searched after a tenant's own schema.
    """

    name: str
    url: str = field(repr=False)
    admin_url: str = field(repr=False)
    shared_schemas: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Which server and database it leads to; not for messages."""
        return server_of(self.url)

    @property
    def has_databases(self) -> bool:
        """Whether each tenant has a database of its own there."""
        return PLACEHOLDER in self.url


@dataclass(frozen=True, slots=True)
class ProvisioningPlan:
    """All that a provisioner has to know.

    Attributes:
        sites: Every datasource by its name.
        home: Where the table of tenants is; None where the configuration names no catalog.
        set_up: SQL files and functions, in order.
        template: What databases are copied from.
        dump_folder: Where dumps are kept.
        programs: The folder of PostgreSQL's programs.
        compiler: Makes tenants.
        defaults: The catalog's: datasource, schema, row_security, role.
        listed: Where the tenants of the document live, by name.
        listed_names: Their names and aliases.
    """

    sites: Mapping[str, Site]
    home: str | None
    set_up: tuple[str, ...]
    template: str | None
    dump_folder: Path | None
    programs: Path | None
    compiler: TenantCompiler
    defaults: Mapping[str, object]
    listed: Mapping[str, Placement]
    listed_names: frozenset[str]

    def twins(self, datasource: str) -> list[str]:
        """Every datasource that leads to the same place as this one."""
        place = self.sites[datasource].place
        return [name for name, site in self.sites.items() if site.place == place]


def step_name(step: str) -> str:
    """What a set-up step is remembered by: where its file lies may change from one deployment to the next."""
    return Path(step).name if step.endswith(".sql") else step


def compile_provisioning(config: Config) -> ProvisioningPlan:
    """What the document says."""
    sites = {
        name: Site(
            name,
            datasource.primary.url.get_secret_value(),
            (datasource.admin or datasource.primary).url.get_secret_value(),
            datasource.search_path,
        )
        for name, datasource in config.datasources.items()
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
        {
            name: _placement(name, tenant, has_databases=sites[tenant.datasource].has_databases)
            for name, tenant in config.tenants.items()
            if name != EVERY_OTHER
        },
        frozenset(alias for name, tenant in config.tenants.items() for alias in (name, *tenant.aliases)),
    )


def _placement(name: str, tenant: TenantConfig, *, has_databases: bool) -> Placement:
    """Where a tenant of the document lives."""

    def filled(text: str | None) -> str | None:
        return None if text is None else text.replace(PLACEHOLDER, name)

    settings = tenant.row_security
    return Placement(
        tenant.datasource,
        filled(tenant.schema_name),
        filled(tenant.role),
        (filled(tenant.database) or name) if has_databases else None,
        None if settings is None else {key: value.replace(PLACEHOLDER, name) for key, value in settings.items()},
    )
