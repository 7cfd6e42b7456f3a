"""Which names would lead a template into a place that is somebody's.

`{tenant}` in a template (of `"*"`, of a catalog's defaults) is filled with a name that a request or a row gives. The
outcome must not be the database, schema, role or setting of a tenant that is listed, nor belong to the server, to
another datasource or to this library.
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
"""How the names of PostgreSQL's own schemas and roles begin."""


class Placed(Protocol):
    """What is written about where tenants live: of one of them, or with `{tenant}` for many."""

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
"""The settings of a tenant's transactions, its role among them as `role`."""


@dataclass(frozen=True, slots=True)
class _Template:
    """A text with `{tenant}` in it."""

    text: str
    before: str
    behind: str
    count: int

    @classmethod
    def of(cls, text: str | None) -> _Template | None:
        """None where the placeholder does not stand in the text."""
        if text is None or PLACEHOLDER not in text:
            return None
        before, _, rest = text.partition(PLACEHOLDER)
        return cls(text, before, rest.rpartition(PLACEHOLDER)[2], text.count(PLACEHOLDER))

    def fill(self, name: str) -> str:
        return self.text.replace(PLACEHOLDER, name)

    def name_in(self, filled: str) -> str | None:
        """The name that makes this out of the template; None where none does."""
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
        """Which names make a text that begins so: those that begin in one of these ways, and these ones."""
        if self.before.startswith(start):
            return [""], []
        if not start.startswith(self.before):
            return [], []
        needed = start[len(self.before) :]
        shorter = (needed[:length] for length in range(1, len(needed)))
        return [needed], [name for name in shorter if self.fill(name).startswith(start)]


@dataclass(frozen=True, slots=True)
class _Site:
    """Where a datasource leads; both parts hold `{tenant}` where it stands in them."""

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
    """Where the datasources of a document lead, and what there is nobody's to give away."""

    def __init__(self, config: Config) -> None:
        self.by_name = {name: _Site.of(datasource) for name, datasource in config.datasources.items()}
        whole = [site for site in self.by_name.values() if not site.has_databases]
        admins = [each.admin.url.get_secret_value() for each in config.datasources.values() if each.admin is not None]
        self.databases = frozenset({*(site.place for site in whole), *map(_place_of, admins)})
        """Databases that are a datasource's, or that whoever provisions logs in to."""
        self.logins = frozenset(
            {
                *((site.server, site.login) for site in whole),
                *((_place_of(url).rpartition("/")[0], user_of(url)) for url in admins),
            }
        )
        """Who logs in to which server."""
        template = config.provisioning.template
        self.copied = RESERVED_DATABASES if template is None else RESERVED_DATABASES | {template}


class TemplateReach:
    """Which names lead a template into somebody's place.

    Args:
        datasource: Where it makes tenants live.
        placed: What is written about them.
        database: What stands for `{tenant}` in the datasource's URL; None takes the name.
        sites: Where the datasources lead.
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
        """Where it leads, as far as that is written: the same for datasources that lead to the same place."""
        self._server = site.server_at(fill)
        self._place = _Template.of(self.scope)
        self._login = _Template.of(site.login_at(fill))
        # In a database of its own, nothing inside of it is anybody else's.
        inside = self._place is None
        self._schema = _Template.of(placed.schema_name) if inside else None
        settings = (placed.row_security or {}).items() if inside else ()
        self._settings = {key: made for key, value in settings if (made := _Template.of(value)) is not None}
        self._role = _Template.of(placed.role)
        names, starts = self._reserve(sites, site)
        self.reserved = frozenset(names)
        """Names that lead to what is no tenant's: the server's own, another datasource's, or the library's."""
        self.starts = tuple(starts)
        """How other such names begin."""

    @property
    def is_constant(self) -> bool:
        """Whether no name makes a difference."""
        return not (self._place or self._schema or self._settings or self._role or self._login)

    @property
    def takes_databases(self) -> bool:
        """Whether a name makes a database."""
        return self._place is not None

    def is_reserved(self, name: str) -> bool:
        """Whether a name leads to what is no tenant's."""
        return name in self.reserved or name.startswith(self.starts)

    def leads(self, datasource: str, database: str | None, schema: str | None, settings: Settings) -> list[str]:
        """The names that would lead to where a tenant lives, its own among them.

        Args:
            datasource: The tenant's.
            database: What stands for `{tenant}` in the datasource's URL; None where that has none.
            schema: Its own schema.
            settings: Those of its transactions.
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
        # A login's own name is a schema as well: that of `"$user"` in its search_path.
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
    """Where a tenant of the document lives, as `TemplateReach.leads` takes it."""
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
