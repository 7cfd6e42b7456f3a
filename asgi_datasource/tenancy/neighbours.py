"""Keeps names that come from outside, from a request or from a row, out of places that are somebody's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..concurrency.expiring_set import ExpiringSet
from ..config import EVERY_OTHER, Config
from ..config.tenant_places import Sites, TemplateReach
from .compiler import TenantCompiler
from .directory import TenantMap
from .tenant import Tenant

MOST_MISSING: Final = 10_000
"""Names whose schema or database is known not to be there."""

MISSING_FOR_S: Final = 2.0
"""Seconds for which such a name is answered without a question to the server."""

Led = tuple[str, str]
"""Where a template leads, and the name that it is filled with."""


class Neighbours:
    """Which names lead to whose place, by what a document writes about tenants that it does not list.

    Args:
        config: The document.
    """

    __slots__ = ("_defaults", "_listed", "_listed_led", "_others", "_reaches", "_sites", "_suspects", "has_others")

    def __init__(self, config: Config) -> None:
        self._sites = Sites(config)
        others = config.tenants.get(EVERY_OTHER)
        self._others = (
            None
            if others is None
            else TemplateReach(others.datasource, others, database=others.database, sites=self._sites)
        )
        self.has_others = others is not None
        """Whether names that are not listed are served at all."""
        self._defaults = None if config.tenants_from is None else config.tenants_from.defaults
        self._reaches: dict[str, TemplateReach] = {}
        self._listed: list[Tenant] = []
        self._listed_led: dict[str, dict[str, str]] = {}
        self._suspects: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}

    def with_owners(self, tenants: TenantMap) -> TenantMap:
        """The tenants of the document, with the index of the names that lead to their places."""
        self._listed = list(tenants.names.values())
        if self._others is None:
            return tenants
        taken = {led: str(tenant.name) for tenant in self._listed for led in self.led_by_others(tenant)}
        return TenantMap(tenants.names, tenants.aliases, tenants.domains, taken)

    def led_by_others(self, tenant: Tenant) -> Iterable[str]:
        """The names, beside the tenant's own, by which `"*"` would lead to its place."""
        if self._others is None:
            return ()
        return [led for led in self._others.leads(*place_of(tenant)) if led != tenant.name]

    def is_reserved(self, name: str) -> bool:
        """Whether `"*"` would lead a name to what is no tenant's."""
        return self._others is not None and self._others.is_reserved(name)

    # -- rows of a catalog

    def is_free(self, datasource: str, name: str) -> bool:
        """Whether the defaults lead a name to no place that is known to be somebody's."""
        suspects = self._suspects.get(datasource)
        if suspects is None:
            reach = self._reach(datasource)
            suspects = self._suspects[datasource] = (reach.reserved | self._listed_by(reach).keys(), reach.starts)
        return name not in suspects[0] and not name.startswith(suspects[1])

    def check_row(self, tenant: Tenant) -> Sequence[Led]:
        """Refuse a row whose name has led the defaults to a place that is no tenant's, or one of the document.

        Returns:
            By which other names the defaults would lead to where the row's tenant lives.

        Raises:
            ValueError: It does.
        """
        reach, name = self._reach(tenant.datasource), str(tenant.name)
        leads = reach.leads(*place_of(tenant))
        if name in leads and not self.is_free(tenant.datasource, name):
            owner = self._listed_by(reach).get(name)
            whose = "no tenant's" if owner is None else f"that of the tenant {owner!r}"
            raise ValueError(f"its name leads to a place that is {whose}")
        return [(reach.scope, led) for led in leads if led != name]

    def is_placed_by_name(self, tenant: Tenant) -> bool:
        """Whether the defaults have made a part of a row's place out of its name."""
        return str(tenant.name) in self._reach(tenant.datasource).leads(*place_of(tenant))

    def led_to(self, tenant: Tenant) -> Led:
        """Where the defaults lead a row's own name."""
        return self._reach(tenant.datasource).scope, str(tenant.name)

    def _reach(self, datasource: str) -> TemplateReach:
        found = self._reaches.get(datasource)
        if found is None:
            defaults = self._defaults
            if defaults is None:
                raise ValueError("the document names no catalog")
            found = self._reaches[datasource] = TemplateReach(datasource, defaults, database=None, sites=self._sites)
        return found

    def _listed_by(self, reach: TemplateReach) -> Mapping[str, str]:
        """The names by which the defaults would lead to tenants of the document, and whose places these are."""
        found = self._listed_led.get(reach.scope)
        if found is None:
            found = self._listed_led[reach.scope] = {
                led: str(tenant.name) for tenant in self._listed for led in reach.leads(*place_of(tenant))
            }
            for tenant in self._listed:
                # A row of that name is never served: the document goes before it.
                found.pop(str(tenant.name), None)
        return found


class OtherTenants:
    """Makes the tenants of names that are not listed, where the document has something for all of those (`"*"`).

    A name that leads to somebody's place has no tenant, nor has one whose schema or database was not there a moment
    ago: neither is served, and neither is told from a name that nobody has.

    Args:
        config: The document.
        neighbours: Knows whose the places are.
    """

    __slots__ = ("_compiler", "_config", "_missing", "_neighbours")

    def __init__(self, config: Config, neighbours: Neighbours) -> None:
        self._config = config.tenants[EVERY_OTHER]
        self._compiler = TenantCompiler(config.datasources)
        self._neighbours = neighbours
        self._missing: ExpiringSet[str] = ExpiringSet(most=MOST_MISSING, keep_s=MISSING_FOR_S)

    def find(self, name: str, known: TenantMap) -> Tenant | None:
        """The tenant of a name; None where there is none.

        Args:
            name: One that has passed the pattern, and is not in the map.
            known: The tenants that are listed.
        """
        if name in known.taken or name in self._missing or self._neighbours.is_reserved(name):
            return None
        try:
            return self._compiler.of_config(name, self._config, missing=self._missing)
        except ValueError:
            return None


def place_of(tenant: Tenant) -> tuple[str, str | None, str | None, Sequence[tuple[str, str]]]:
    """Where a tenant lives, as `TemplateReach.leads` takes it."""
    return tenant.datasource, tenant.database, tenant.schema, tenant.settings
