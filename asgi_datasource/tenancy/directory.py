"""The known tenants: one frozen map, which is replaced when a catalog has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .tenant import Tenant


@dataclass(frozen=True, slots=True)
class TenantMap:
    """An immutable snapshot of all tenants.

    Attributes:
        names: Tenants by name.
        aliases: Maps aliases to names.
        domains: Maps normalized hosts to names. Domains are never looked up as names, because customers choose them.
        taken: Unlisted names that `"*"` expands to a tenant's place, to that tenant's name.
    """

    # Not `str`: the answer of a resolver is looked up unchanged, whatever its type.
    names: dict[Any, Tenant] = field(default_factory=dict[str, Tenant])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    domains: Mapping[str, str] = field(default_factory=dict[str, str])
    taken: Mapping[str, str] = field(default_factory=dict[str, str])

    def find(self, name: str) -> Tenant | None:
        """The tenant of a name or alias."""
        tenant = self.names.get(name)
        if tenant is None and self.aliases:
            known = self.aliases.get(name)
            return None if known is None else self.names.get(known)
        return tenant

    def canonical(self, name: str) -> str:
        """The tenant's name for an alias; any other name unchanged."""
        return name if name in self.names else self.aliases.get(name, name)


class TenantSource(Protocol):
    """Looks up tenants that are not in the map, and replaces the map when it finds one."""

    async def learn(self, name: str) -> None:
        """Look up an unknown name or alias."""
        ...

    async def learn_domain(self, host: str) -> None:
        """Look up an unknown host."""
        ...


class TenantDirectory:
    """Holds the present map. Readers read `map` once and use that one for a whole decision."""

    __slots__ = ("_source", "map")

    def __init__(self, tenants: TenantMap | None = None) -> None:
        self.map = tenants or TenantMap()
        self._source: TenantSource | None = None

    @property
    def can_learn(self) -> bool:
        """Whether there is a source of unknown names."""
        return self._source is not None

    def learn_from(self, source: TenantSource | None) -> None:
        """Set the source of unknown names and hosts; None disables the look-up."""
        self._source = source

    async def learn(self, name: str) -> None:
        """Look up an unknown name."""
        if self._source is not None:
            await self._source.learn(name)

    async def learn_domain(self, host: str) -> None:
        """Look up an unknown host."""
        if self._source is not None:
            await self._source.learn_domain(host)
