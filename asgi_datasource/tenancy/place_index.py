"""Refuses names from requests and catalog rows that expand to the place of another tenant, or to a reserved one."""

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
"""The size of the negative cache: names whose schema or database does not exist."""

MISSING_FOR_S: Final = 2.0
"""Lifetime of an entry of the negative cache, in seconds."""

Expansion = tuple[str, str]
"""The scope of a template (`TemplateReach.scope`), and the name that replaces its placeholder."""


class PlaceIndex:
    """Maps the names that templates expand to a tenant's place to that tenant.

    The templates are those of `"*"` and of the defaults of `tenants_from`.

    Args:
        config: The document.
    """

    __slots__ = ("_defaults", "_listed", "_listed_names", "_others", "_reaches", "_sites", "_suspects", "has_others")

    def __init__(self, config: Config) -> None:
        self._sites = Sites(config)
        others = config.tenants.get(EVERY_OTHER)
        self._others = (
            None
            if others is None
            else TemplateReach(others.datasource, others, database=others.database, sites=self._sites)
        )
        self.has_others = others is not None
        """Whether the document has an entry `"*"`."""
        self._defaults = None if config.tenants_from is None else config.tenants_from.defaults
        self._reaches: dict[str, TemplateReach] = {}
        self._listed: list[Tenant] = []
        self._listed_names: dict[str, dict[str, str]] = {}
        self._suspects: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {}

    def with_owners(self, tenants: TenantMap) -> TenantMap:
        """The tenants of the document, with the index of the names that `"*"` expands to their places."""
        self._listed = list(tenants.names.values())
        if self._others is None:
            return tenants
        taken = {other: str(tenant.name) for tenant in self._listed for other in self.names_from_others(tenant)}
        return TenantMap(tenants.names, tenants.aliases, tenants.domains, taken)

    def names_from_others(self, tenant: Tenant) -> Iterable[str]:
        """The other names that `"*"` expands to the tenant's place."""
        if self._others is None:
            return ()
        return [other for other in self._others.names_into(*place_of(tenant)) if other != tenant.name]

    def is_reserved(self, name: str) -> bool:
        """Whether `"*"` expands the name to a reserved place."""
        return self._others is not None and self._others.is_reserved(name)

    # -- rows of a catalog

    def is_free(self, datasource: str, name: str) -> bool:
        """Whether the defaults expand the name to a place that is neither reserved nor a listed tenant's."""
        suspects = self._suspects.get(datasource)
        if suspects is None:
            reach = self._reach(datasource)
            suspects = self._suspects[datasource] = (reach.reserved | self._listed_by(reach).keys(), reach.starts)
        return name not in suspects[0] and not name.startswith(suspects[1])

    def check_row(self, tenant: Tenant) -> Sequence[Expansion]:
        """Refuse a row whose name the defaults expand to a reserved place, or to that of a tenant of the document.

        Returns:
            The other names that the defaults expand to the place of the row's tenant.

        Raises:
            ValueError: The place is reserved, or another tenant's.
        """
        reach, name = self._reach(tenant.datasource), str(tenant.name)
        names = reach.names_into(*place_of(tenant))
        if name in names and not self.is_free(tenant.datasource, name):
            owner = self._listed_by(reach).get(name)
            owned = "is reserved" if owner is None else f"belongs to the tenant {owner!r}"
            raise ValueError(f"the defaults give it a place that {owned}")
        return [(reach.scope, other) for other in names if other != name]

    def is_placed_by_name(self, tenant: Tenant) -> bool:
        """Whether the defaults contribute to the place of a row's tenant."""
        return str(tenant.name) in self._reach(tenant.datasource).names_into(*place_of(tenant))

    def expansion_of(self, tenant: Tenant) -> Expansion:
        """The expansion of the defaults with the row's own name."""
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
        """The names that the defaults expand to places of tenants of the document, and those tenants."""
        found = self._listed_names.get(reach.scope)
        if found is None:
            found = self._listed_names[reach.scope] = {
                other: str(tenant.name) for tenant in self._listed for other in reach.names_into(*place_of(tenant))
            }
            for tenant in self._listed:
                # The tenant of the document replaces a row of the same name.
                found.pop(str(tenant.name), None)
        return found


class OtherTenants:
    """Makes the tenants of names that are not listed, from the entry `"*"`.

    A name has no tenant if it expands to a place in use or a reserved one, or if its schema or database did not exist
    a moment ago. Both are indistinguishable from an unknown name.

    Args:
        config: The document.
        place_index: The places in use.
    """

    __slots__ = ("_compiler", "_config", "_missing", "_place_index")

    def __init__(self, config: Config, place_index: PlaceIndex) -> None:
        self._config = config.tenants[EVERY_OTHER]
        self._compiler = TenantCompiler(config.datasources)
        self._place_index = place_index
        self._missing: ExpiringSet[str] = ExpiringSet(most=MOST_MISSING, keep_s=MISSING_FOR_S)

    def find(self, name: str, known: TenantMap) -> Tenant | None:
        """The tenant of a name; None where there is none.

        Args:
            name: One that has passed the pattern, and is not in the map.
            known: The tenants that are listed.
        """
        if name in known.taken or name in self._missing or self._place_index.is_reserved(name):
            return None
        try:
            return self._compiler.of_config(name, self._config, missing=self._missing)
        except ValueError:
            return None


def place_of(tenant: Tenant) -> tuple[str, str | None, str | None, Sequence[tuple[str, str]]]:
    """The place of a tenant, as arguments of `TemplateReach.names_into`."""
    return tenant.datasource, tenant.database, tenant.schema, tenant.settings
