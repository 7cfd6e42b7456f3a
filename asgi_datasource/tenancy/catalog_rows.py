"""Creates tenants from the rows of a catalog. An invalid row is left out and does not affect the others."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final, cast
from uuid import UUID

from ..config import TenantDefaults
from ..config.hostnames import lies_within, normalize_host
from .compiler import TenantCompiler
from .directory import TenantMap
from .place_index import Expansion, PlaceIndex
from .resolution import MAX_NAME_LENGTH
from .tenant import Tenant, TenantState

logger = logging.getLogger("asgi_datasource.tenancy")

COLUMNS: Final = (
    *("name", "datasource", "schema", "row_security", "role", "state", "aliases", "max_connections", "database"),
    *("domains", "is_ready"),
)
"""The columns that are read."""

MOST_COMPLAINTS: Final = 10
"""Rows, aliases and domains that are left out of one load and logged one by one."""


class RowReader:
    """Collects tenants from rows.

    Args:
        columns: The columns of the query, in order; those that are not in `COLUMNS` are ignored.
        compiler: Creates the tenants.
        defaults: Values for columns that a row lacks or has null in.
        own_hosts: The application's own domains; no tenant may have one of them, or one below.
        place_index: The places in use; None disables the check.

    Raises:
        ValueError: There is no column `name`.
    """

    def __init__(
        self,
        columns: Sequence[str],
        compiler: TenantCompiler,
        defaults: TenantDefaults,
        *,
        own_hosts: Container[str] = (),
        place_index: PlaceIndex | None = None,
    ) -> None:
        if "name" not in columns:
            raise ValueError("the query gives no column `name`")
        self._at = {column: index for index, column in enumerate(columns) if column in COLUMNS}
        self._slots = [(COLUMNS.index(column), index) for column, index in self._at.items()]
        self._blank: list[Any] = [None] * len(COLUMNS)
        self._compiler = compiler
        self._defaults = defaults
        self._limit = None if defaults.limits is None else defaults.limits.max_connections
        self._names: dict[str, Tenant] = {}
        self._aliases: dict[str, str | None] = {}
        self._domains: dict[str, str | None] = {}
        self._own_hosts = own_hosts
        self._place_index = place_index
        self._placed: dict[Expansion, str] = {}
        """Expansions of the defaults with names other than the row's that are the place of the row's tenant."""
        self._taken: dict[str, str] = {}
        self._twice: set[str] = set()
        self._left_out = 0
        # Equal for most tenants: stored once.
        self._words: dict[str, str] = {}

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows."""
        for row in rows:
            try:
                self._add(row)
            except (ValueError, TypeError) as error:
                self._leave_out("the catalog's row for the tenant %r is left out: %s", row[self._at["name"]], error)

    def map(self) -> TenantMap:
        """The tenants of all rows."""
        if self._left_out > MOST_COMPLAINTS:
            logger.warning("%d rows, aliases and domains of the catalog are left out", self._left_out)
        names = self._names
        for name in self._twice:
            names.pop(name, None)
        self._keep_apart(names)
        return TenantMap(
            names,
            {alias: name for alias, name in self._aliases.items() if name in names and alias not in names},
            {host: name for host, name in self._domains.items() if name in names},
            self._taken,
        )

    def _keep_apart(self, names: dict[str, Tenant]) -> None:
        """Leave out tenants whose name expands to a place that another row gives to its own tenant."""
        place_index = self._place_index
        if place_index is None:
            return
        for (scope, name), owner in self._placed.items():
            tenant = names.get(name)
            if tenant is None or place_index.expansion_of(tenant)[0] != scope:
                continue
            if place_index.is_placed_by_name(tenant):
                logger.error("the tenant %r is left out: the defaults give it the place of the tenant %r", name, owner)
                del names[name]

    def _leave_out(self, why: str, *details: object) -> None:
        self._left_out += 1
        if self._left_out <= MOST_COMPLAINTS:
            logger.warning(why, *details)

    def _add(self, row: Sequence[Any]) -> None:
        values = self._blank.copy()
        for slot, index in self._slots:
            values[slot] = row[index]
        name, datasource, schema, settings, role, state, aliases, limit, database, domains, is_ready = values
        defaults = self._defaults
        if isinstance(name, int | UUID) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise ValueError("that is no name")
        if name in self._names:
            # Ambiguous: both rows are left out.
            self._twice.add(name)
            raise ValueError("there is another of that name, and neither is used")
        datasource = (None if datasource is None else _text(datasource)) or defaults.datasource
        if datasource is None:
            raise ValueError("it names no datasource, and neither do the defaults")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError("max_connections is no positive whole number")
        aliases = () if aliases is None else _texts(aliases, of="aliases")
        domains = () if domains is None else _texts(domains, of="domains")
        tenant = self._compiler.make(
            name,
            self._words.setdefault(datasource, datasource),
            schema=(None if schema is None else _identifier(schema)) or defaults.schema_name,
            row_security=(None if settings is None else _settings(settings)) or defaults.row_security,
            role=(None if role is None else _identifier(role)) or defaults.role,
            state=TenantState.ACTIVE if state is None else TenantState(state),
            max_connections=self._limit if limit is None else limit,
            database=None if database is None else _identifier(database),
        )
        if self._place_index is not None:
            place_index = self._place_index
            has_place = schema is not None or settings is not None or role is not None or database is not None
            if has_place or not place_index.is_free(datasource, name):
                for expansion in place_index.check_row(tenant):
                    self._placed[expansion] = name
            if place_index.has_others:
                for other in place_index.names_from_others(tenant):
                    self._taken[other] = name
        if is_ready is False:
            # Its creation has not ended, or has failed: neither its name nor its place may be served by `"*"`.
            self._taken[name] = name
            return
        self._names[name] = tenant
        for alias in aliases:
            self._claim(self._aliases, alias, name, what="alias")
        for domain in domains:
            self._add_domain(domain, name)

    def _add_domain(self, domain: str, name: str) -> None:
        host = normalize_host(domain)
        if host is None:
            self._leave_out("the domain %r of the tenant %r is left out: it is no host", domain, name)
        elif lies_within(host, self._own_hosts):
            self._leave_out("the domain %r of the tenant %r is left out: it is the application's own", domain, name)
        else:
            self._claim(self._domains, host, name, what="domain")

    def _claim(self, claims: dict[str, str | None], wanted: str, name: str, *, what: str) -> None:
        # Requests must not reach one of two tenants by the order of rows.
        if claims.setdefault(wanted, name) != name:
            self._leave_out("the %s %r belongs to two tenants and is used for neither", what, wanted)
            claims[wanted] = None


_NAME: Final = re.compile(rf"[^\x00-\x1f\x7f*{{}}]{{1,{MAX_NAME_LENGTH}}}")
"""The same form as in the document."""


def _text(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} stands where a text should")
    return value


def _identifier(value: object) -> str | None:
    text = _text(value)
    if text is not None and ("\x00" in text or len(text) > 63 or (not text.isascii() and len(text.encode()) > 63)):
        raise ValueError("a name is too long for something in the database")
    return text


def _settings(value: object) -> Mapping[str, str] | None:
    if isinstance(value, str):
        value = json.loads(value)
    if value is None or value == {}:
        return None
    if not isinstance(value, dict):
        raise ValueError("row_security is no mapping of settings")
    settings = cast("dict[object, object]", value)
    for key, text in settings.items():
        if not isinstance(key, str) or "." not in key or not isinstance(text, str):
            raise ValueError("row_security is no mapping of custom settings to texts")
    return cast("dict[str, str]", settings)


def _texts(value: object, *, of: str) -> Sequence[str]:
    if isinstance(value, str):
        value = json.loads(value)
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in cast("list[object]", value)):
        raise ValueError(f"{of} is no list of names")
    return cast("list[str]", value)
