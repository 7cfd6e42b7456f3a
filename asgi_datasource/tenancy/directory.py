"""The tenants as they are known now: one frozen map, swapped as a whole when a catalog has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .tenant import Tenant


@dataclass(frozen=True, slots=True)
class TenantMap:
    """Every tenant at one moment; never changed.

    Attributes:
        names: Every tenant by its name.
        aliases: Other names of theirs, to the name.
        domains: Normalized hosts, to the name. Customers choose their domains, so domains are never looked up as names.
        taken: Unlisted names that `"*"` expands to a tenant's place, to that tenant's name.
    """

    # Not `str`: what a resolver has answered is looked up as it is.
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
        """The tenant's name where this is an alias of it; otherwise the name itself."""
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
    """Holds the map of this moment. Readers take `map` once and keep it for as long as they need one answer."""

    __slots__ = ("_source", "map")

    def __init__(self, tenants: TenantMap | None = None) -> None:
        self.map = tenants or TenantMap()
        self._source: TenantSource | None = None

    @property
    def can_learn(self) -> bool:
        """Whether a name that is not known may be asked for elsewhere."""
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
