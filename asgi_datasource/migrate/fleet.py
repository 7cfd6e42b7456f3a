"""What there is to migrate: every database of the document, and the schemas of tenants in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..config import PLACEHOLDER, Config, MigrateConfig
from ..drivers.control import ControlConnection, control_driver, open_control
from ..drivers.settings import ServerSettings
from ..errors import ConfigError, DataError, DataErrorKind
from ..tenancy import TABLE_QUERY, RowReader, Tenant, TenantCompiler, TenantMap, TenantState, compile_tenants, home_of
from ..tenancy.provisioning.plan import Site, compile_provisioning
from ..tenancy.provisioning.trust import SCHEMA, check_own, check_path
from .files import Scope
from .ledger import SHARED
from .own_tables import OwnTables, own_tables

_CONNECT_TIMEOUT_S: Final = 10.0
_NO_SCHEMA: Final = "public"
_MOVING: Final = TenantState.MOVING


@dataclass(frozen=True, slots=True)
class Target:
    """One schema that is migrated as a whole: the shared part of a database, or a tenant's part.

    Attributes:
        scope: Its name in the ledger: `""` for the shared part, the schema for a tenant's.
        tenants: The tenants that live in it; none for the shared part.
        search_path: Where its statements find and create tables.
        is_moving: Its tenant is being moved to another datasource.
        own: The library's tables that it consists of; None for what the application's files make.
    """

    scope: str
    tenants: tuple[str, ...]
    search_path: tuple[str, ...]
    is_moving: bool = False
    own: OwnTables | None = None

    @property
    def part(self) -> str:
        """What it is, in reports: `shared`, `tenant`, or the name of own tables."""
        return self.kind.value if self.own is None else self.own.name

    @property
    def kind(self) -> Scope:
        """Which files it gets."""
        return Scope.TENANT if self.tenants else Scope.SHARED

    @property
    def schema(self) -> str:
        """The schema that its tables are in."""
        return self.search_path[0]


@dataclass(frozen=True, slots=True)
class Database:
    """One database.

    Attributes:
        site: The datasource that leads to it; the first by name where several do.
        datasources: All datasources that lead to it.
        name: What stands for `{tenant}` in the URL; None where the URL names the database.
        url: The connection string of the role that migrates. It may hold a password.
        dbname: The database, where the connection string names another one.
        app: The role of the application, where it is another one than the role that migrates.
        shared: Its shared part; None where no files are configured for it.
        targets: The schemas of tenants; none where no files are configured for it.
        own: The library's tables.
        roles: The roles of tenants.
        places: All datasources of the document that lead to it, those without files included.
    """

    site: Site
    datasources: tuple[str, ...]
    name: str | None
    url: str = field(repr=False)
    dbname: str | None
    app: str | None
    shared: Target | None
    targets: tuple[Target, ...] = field(repr=False)
    own: tuple[Target, ...] = ()
    roles: tuple[str, ...] = field(default=(), repr=False)
    places: frozenset[str] = frozenset()

    @property
    def where(self) -> str:
        """For messages: `datasource 'orders'`."""
        return f"datasource {self.site.name!r}" + ("" if self.name is None else f", database of {self.name!r}")

    @property
    def everything(self) -> tuple[Target, ...]:
        """Own tables, its shared part and the schemas of tenants."""
        return (*self.own, *(() if self.shared is None else (self.shared,)), *self.targets)

    def is_home_of(self, tenant: Tenant) -> bool:
        """Whether it is the database of a tenant."""
        return tenant.datasource in self.places and tenant.database == self.name

    @asynccontextmanager
    async def open(self, *, label: str | None = None) -> AsyncGenerator[ControlConnection]:
        """Connect as the role that migrates, and close the connection at the end of the block.

        Args:
            label: The connection's `application_name`, by which other processes see whether a step is still running.

        Raises:
            DataError: CONNECTION: the server cannot be reached.
        """
        url = self.url if label is None else _named(self.url, label)
        settings = ServerSettings(conninfo=url, connect_timeout_s=_CONNECT_TIMEOUT_S)
        try:
            async with open_control(settings, where=self.where, dbname=self.dbname, timeout_s=None) as admin:
                yield admin
        except DataError as error:
            if error.kind is not DataErrorKind.CONNECTION or error.message.startswith(self.where):
                raise
            text = f"{self.where}: {error.message}"
            raise DataError(error.kind, text, sqlstate=error.sqlstate, server=error.server) from None

    async def check_trust(self, admin: ControlConnection, targets: Sequence[Target]) -> None:
        """Refuse to run migrations with rights that another role could use.

        Args:
            admin: A connection to it.
            targets: What is to be migrated.

        Raises:
            DataError: CONFIG: another role has put something into the schema of the ledger; or the role of the
                application, where it is another one, can put functions in the way.
        """
        async with admin.transaction():
            await admin.rows("select set_config('search_path', 'pg_catalog', true)")
            await check_own(admin, where=self.where)
            if self.app is not None:
                path = sorted({schema for target in targets for schema in target.search_path})
                await check_path(admin, self.app, path, where=self.where)


def _named(url: str, label: str) -> str:
    """A connection string with another `application_name`."""
    return control_driver().with_application_name(url, label)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything that is migrated.

    Attributes:
        config: The document.
        migrate: Its section `migrate`; the defaults where it has none.
        databases: Every database, datasources by name and then databases by tenant.
    """

    config: Config
    migrate: MigrateConfig
    databases: tuple[Database, ...]

    def folder_of(self, database: Database) -> Path:
        """The folder of a database's migrations.

        Raises:
            ConfigError: None is configured for it.
        """
        if self.migrate.engine == "alembic":
            return Path(self.migrate.script_location or "")
        found = next((path for name, path in self.migrate.folders.items() if name in database.datasources), None)
        folder = found or self.migrate.folder
        if folder is None:
            raise ConfigError(f"migrate: there is no folder for {database.where}: set migrate.folder")
        return Path(folder)

    def tenants(self) -> Iterator[str]:
        """The names of all tenants that have a schema or database."""
        return (name for database in self.databases for target in database.targets for name in target.tenants)


async def find_fleet(config: Config) -> Fleet:
    """Everything that a document has migrated, with the tenants of the table as they are now.

    Args:
        config: A checked configuration.

    Raises:
        ConfigError: It has neither a section `migrate` nor one that needs own tables.
        DataError: The table of tenants cannot be read.
    """
    if config.migrate is None and not own_tables(config):
        raise ConfigError("there is no section migrate in the document: add migrate: {folder: migrations}")
    listed = compile_tenants(config)
    known = await _read_table(config, listed)
    return Fleet(config, config.migrate or MigrateConfig(), arrange(config, known))


def arrange(config: Config, tenants: Iterable[Tenant]) -> tuple[Database, ...]:
    """The databases of tenants, without I/O.

    Args:
        config: A checked configuration.
        tenants: Every tenant.
    """
    sites = compile_provisioning(config, TenantMap()).sites
    own = own_tables(config)
    with_files = _with_files(config, sites)
    places_with_files = {sites[name].place for name in with_files}
    # Own tables are in every database; where files are migrated, it is as it would be without them.
    wanted = [name for name in sites if name in with_files or (own and sites[name].place not in places_with_files)]
    by_place: dict[tuple[str, str | None], list[Tenant]] = {}
    names: dict[str, list[str]] = {}
    for name in sorted(wanted):
        names.setdefault(sites[name].place, []).append(name)
        if not sites[name].has_databases:
            by_place.setdefault((sites[name].place, None), [])
    # There may be 100,000 of them: what is the same for all of a datasource is computed once.
    used = {sites[name].place for name in wanted}
    places = {name: site.place for name, site in sites.items() if site.place in used}
    for tenant in tenants:
        place = places.get(tenant.datasource)
        if place is not None:
            by_place.setdefault((place, tenant.database), []).append(tenant)
    found = [
        _database(sites, names[place], database, living, own, has_files=place in places_with_files)
        for (place, database), living in sorted(
            by_place.items(), key=lambda item: (names[item[0][0]], item[0][1] or "")
        )
    ]
    return tuple(found)


def _with_files(config: Config, sites: Iterable[str]) -> list[str]:
    """The datasources that are migrated by the application's files."""
    migrate = config.migrate
    if migrate is None:
        return []
    return [name for name in sites if migrate.datasources is None or name in migrate.datasources]


def _database(
    known: Mapping[str, Site],
    names: Sequence[str],
    database: str | None,
    tenants: Sequence[Tenant],
    own: Sequence[OwnTables],
    *,
    has_files: bool,
) -> Database:
    site = known[names[0]]
    driver = control_driver()
    url, dbname, app_url = site.admin_url, None, site.url
    if database is not None:
        template = driver.make_template(site.url, where=f"datasource {site.name!r}")
        app_url = template.fill(database)
        if PLACEHOLDER in site.admin_url:
            url = driver.make_template(site.admin_url, where=f"datasource {site.name!r}").fill(database)
        else:
            dbname = template.dbname(database)
    by_schema: dict[tuple[str, tuple[str, ...]], list[Tenant]] = {}
    for tenant in tenants if has_files else ():
        if tenant.datasource not in names:
            continue
        shared = known[tenant.datasource].shared_schemas
        schema = home_of(tenant, shared).schema
        if schema is None and database is None:
            # Its rows are in shared tables.
            continue
        by_schema.setdefault((schema or _NO_SCHEMA, shared), []).append(tenant)
    targets = tuple(
        Target(
            schema,
            tuple(sorted(tenant.name or "" for tenant in living)),
            (schema, *shared),
            any(tenant.state is _MOVING for tenant in living),
        )
        for (schema, shared), living in sorted(by_schema.items(), key=lambda item: item[0])
    )
    shared_path = tuple(dict.fromkeys(schema for name in names for schema in known[name].shared_schemas))
    return Database(
        site,
        tuple(names),
        database,
        url,
        dbname,
        None if site.admin_url == site.url else driver.login_of(app_url),
        Target(SHARED, (), shared_path or (_NO_SCHEMA,)) if has_files else None,
        targets,
        tuple(Target(tables.scope, (), (SCHEMA,), own=tables) for tables in own),
        _roles(tenants) if own else (),
        frozenset(name for name, one in known.items() if one.place == site.place),
    )


def _roles(tenants: Iterable[Tenant]) -> tuple[str, ...]:
    """The roles of tenants, each once."""
    return tuple(dict.fromkeys(value for tenant in tenants for setting, value in tenant.settings if setting == "role"))


async def _read_table(config: Config, listed: TenantMap) -> list[Tenant]:
    """The tenants of the document, and those of the table beside them."""
    catalog = config.tenants_from
    if catalog is None:
        return list(listed.names.values())
    where = f"datasource {catalog.datasource!r}"
    url = config.datasources[catalog.datasource].primary.url.get_secret_value()
    settings = ServerSettings(conninfo=url, connect_timeout_s=_CONNECT_TIMEOUT_S)
    query = f"select * from ({catalog.query or TABLE_QUERY}) t"  # noqa: S608 - the query is the document's
    async with open_control(settings, where=where, timeout_s=catalog.timeout_s) as connection:
        try:
            columns, rows = await connection.table(query)
        except DataError as error:
            if catalog.query is None and error.sqlstate in ("42P01", "3F000"):
                # No tenant has been created yet.
                return list(listed.names.values())
            raise DataError(error.kind, f"tenants_from: {error.message}", sqlstate=error.sqlstate) from None
    reader = RowReader(columns, TenantCompiler(config.datasources), catalog.defaults)
    reader.add(rows)
    return list({**reader.map().names, **listed.names}.values())
