"""Finds the names with which a template expands to a place that is already in use.

A template (of `"*"`, or of a catalog's defaults) contains `{tenant}`, which is replaced by a name from a request or a
row. The result must not be the database, schema, role or setting of a listed tenant, and must not belong to the server,
to another datasource or to this library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import unquote

from .models import Config, DataSourceConfig, TenantConfig
from .url import PLACEHOLDER, server_of, user_of

RESERVED_DATABASES: Final = frozenset({"postgres", "template0", "template1"})
RESERVED_SCHEMAS: Final = frozenset({"public", "information_schema", "asgi_datasource", "$user"})
RESERVED_ROLES: Final = frozenset({"none", "public", "postgres"})
SERVERS_OWN: Final = "pg_"
"""The prefix of PostgreSQL's own schemas and roles."""


class Placed(Protocol):
    """The configured place of one tenant, or of many with `{tenant}`."""

    @property
    def schema_name(self) -> str | None:
        """The schema."""
        ...

    @property
    def role(self) -> str | None:
        """The role."""
        ...

    @property
    def row_security(self) -> dict[str, str] | None:
        """The custom settings."""
        ...


Settings = Iterable[tuple[str, str]]
"""The settings of a tenant's transactions; its role is the setting `role`."""


@dataclass(frozen=True, slots=True)
class _Template:
    """A text with `{tenant}` in it."""

    text: str
    before: str
    behind: str
    count: int

    @classmethod
    def of(cls, text: str | None) -> _Template | None:
        """The template; None if the text has no placeholder."""
        if text is None or PLACEHOLDER not in text:
            return None
        before, _, rest = text.partition(PLACEHOLDER)
        return cls(text, before, rest.rpartition(PLACEHOLDER)[2], text.count(PLACEHOLDER))

    def fill(self, name: str) -> str:
        return self.text.replace(PLACEHOLDER, name)

    def name_in(self, filled: str) -> str | None:
        """The name with which the template expands to this text; None if there is none."""
        if not filled.startswith(self.before) or not filled.endswith(self.behind):
            return None
        spare = len(filled) - len(self.text) + self.count * len(PLACEHOLDER)
        if spare <= 0 or spare % self.count:
            return None
        start = len(self.before)
        name = filled[start : start + spare // self.count]
        return name if self.count == 1 or self.fill(name) == filled else None

    def names_in(self, texts: Iterable[str]) -> Iterator[str]:
        return (name for name in map(self.name_in, texts) if name is not None)

    def starts(self, start: str) -> tuple[list[str], list[str]]:
        """The names with which the expansion has this prefix.

        Returns:
            Prefixes of names, and whole names.
        """
        if self.before.startswith(start):
            return [""], []
        if not start.startswith(self.before):
            return [], []
        needed = start[len(self.before) :]
        shorter = (needed[:length] for length in range(1, len(needed)))
        return [needed], [name for name in shorter if self.fill(name).startswith(start)]


@dataclass(frozen=True, slots=True)
class _Site:
    """The database and the login of a datasource; both may contain `{tenant}`."""

    place: str
    login: str
    has_databases: bool
    shared_schemas: tuple[str, ...]

    @classmethod
    def of(cls, config: DataSourceConfig) -> _Site:
        url = config.primary.url.get_secret_value()
        return cls(_place_of(url), user_of(url), PLACEHOLDER in url, config.search_path)

    @property
    def server(self) -> str:
        return self.place.rpartition("/")[0]

    def at(self, database: str | None) -> str:
        return self.place if database is None else self.place.replace(PLACEHOLDER, database)

    def server_at(self, database: str | None) -> str:
        return self.server if database is None else self.server.replace(PLACEHOLDER, database)

    def login_at(self, database: str | None) -> str:
        return self.login if database is None else self.login.replace(PLACEHOLDER, database)


class Sites:
    """The databases and logins of the datasources of a document, and which of them no tenant may have."""

    def __init__(self, config: Config) -> None:
        self.by_name = {name: _Site.of(datasource) for name, datasource in config.datasources.items()}
        whole = [site for site in self.by_name.values() if not site.has_databases]
        admins = [each.admin.url.get_secret_value() for each in config.datasources.values() if each.admin is not None]
        self.databases = frozenset({*(site.place for site in whole), *map(_place_of, admins)})
        """Databases of whole datasources, and those of the `admin` logins."""
        self.logins = frozenset(
            {
                *((site.server, site.login) for site in whole),
                *((_place_of(url).rpartition("/")[0], user_of(url)) for url in admins),
            }
        )
        """Pairs of server and login."""
        template = config.provisioning.template
        self.copied = RESERVED_DATABASES if template is None else RESERVED_DATABASES | {template}


class TemplateReach:
    """Finds the names with which a template expands to the place of a given tenant, or to a reserved one.

    Args:
        datasource: The datasource of the tenants.
        placed: Their configured place.
        database: Replaces `{tenant}` in the datasource's URL; None: the name does.
        sites: The datasources of the document.
    """

    __slots__ = (
        "_login",
        "_place",
        "_role",
        "_schema",
        "_server",
        "_settings",
        "_sites",
        "reserved",
        "scope",
        "starts",
    )

    def __init__(self, datasource: str, placed: Placed, *, database: str | None, sites: Sites) -> None:
        self._sites = sites.by_name
        site = sites.by_name[datasource]
        fill = (PLACEHOLDER if database is None else database) if site.has_databases else None
        self.scope = site.at(fill)
        """Server and database; equal for two datasources on the same database."""
        self._server = site.server_at(fill)
        self._place = _Template.of(self.scope)
        self._login = _Template.of(site.login_at(fill))
        # A tenant with a database of its own shares no schema or setting.
        inside = self._place is None
        self._schema = _Template.of(placed.schema_name) if inside else None
        settings = (placed.row_security or {}).items() if inside else ()
        self._settings = {key: made for key, value in settings if (made := _Template.of(value)) is not None}
        self._role = _Template.of(placed.role)
        names, starts = self._reserve(sites, site)
        self.reserved = frozenset(names)
        """Names that expand to a place of the server, of another datasource or of this library."""
        self.starts = tuple(starts)
        """Prefixes of further reserved names."""

    @property
    def is_constant(self) -> bool:
        """Whether the template has no placeholder."""
        return not (self._place or self._schema or self._settings or self._role or self._login)

    @property
    def takes_databases(self) -> bool:
        """Whether each name has a database of its own."""
        return self._place is not None

    def is_reserved(self, name: str) -> bool:
        """Whether the name expands to a reserved place."""
        return name in self.reserved or name.startswith(self.starts)

    def names_into(self, datasource: str, database: str | None, schema: str | None, settings: Settings) -> list[str]:
        """The names that expand to the place of a tenant; its own name may be among them.

        Args:
            datasource: The tenant's datasource.
            database: Replaces `{tenant}` in the datasource's URL; None if that has no placeholder.
            schema: The tenant's schema.
            settings: The settings of its transactions.
        """
        site = self._sites.get(datasource)
        if site is None:
            return []
        place = site.at(database)
        found: list[str | None] = []
        if self._place is not None:
            found.append(self._place.name_in(place))
        elif place == self.scope:
            if self._schema is not None and schema is not None:
                found.append(self._schema.name_in(schema))
            for key, value in settings if self._settings else ():
                template = self._settings.get(key)
                if template is not None:
                    found.append(template.name_in(value))
        if (self._role is not None or self._login is not None) and site.server_at(database) == self._server:
            if self._role is not None:
                found += [self._role.name_in(value) for key, value in settings if key == "role"]
            if self._login is not None and site.has_databases:
                found.append(self._login.name_in(site.login_at(database)))
        return [name for name in found if name is not None]

    def _reserve(self, sites: Sites, site: _Site) -> tuple[list[str], list[str]]:
        names: list[str] = []
        starts: list[str] = []
        logins = [login for server, login in sites.logins if server == self._server]
        if self._place is not None:
            names += self._place.names_in(sites.databases)
            dbname = _Template.of(self.scope.rpartition("/")[2])
            names += () if dbname is None else dbname.names_in(sites.copied)
        # `"$user"` in a search_path is the schema with the name of the login.
        schemas = (*RESERVED_SCHEMAS, *site.shared_schemas, *logins)
        roles = (*RESERVED_ROLES, *logins)
        for template, taken in ((self._schema, schemas), (self._role, roles), (self._login, roles)):
            if template is not None:
                names += template.names_in(taken)
                begin, exactly = template.starts(SERVERS_OWN)
                starts += begin
                names += exactly
        return names, starts


def _place_of(url: str) -> str:
    return unquote(server_of(url))


def place_of(
    name: str, config: TenantConfig, sites: Sites
) -> tuple[str, str | None, str | None, Sequence[tuple[str, str]]]:
    """The place of a tenant of the document, as arguments of `TemplateReach.names_into`."""
    site = sites.by_name.get(config.datasource)
    database = (config.database or PLACEHOLDER) if site is not None and site.has_databases else None
    settings = [*(config.row_security or {}).items(), *([] if config.role is None else [("role", config.role)])]

    def filled(text: str | None) -> str | None:
        return text if text is None else text.replace(PLACEHOLDER, name)

    return (
        config.datasource,
        filled(database),
        filled(config.schema_name),
        [(key, value.replace(PLACEHOLDER, name)) for key, value in settings],
    )
