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
        domains: Hosts of their own, in their one spelling, to the name. A namespace of its own: customers choose them,
            and no name of another tenant may be had by it.
        taken: Names that are no tenant's and would lead `"*"` to somebody's place, to whose it is.
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
    """Knows more tenants than the map, and swaps the map when it has learned of one."""

    async def learn(self, name: str) -> None:
        """Look for a name, or alias, that is not known."""
        ...

    async def learn_domain(self, host: str) -> None:
        """Look for a host that is not known."""
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
        """Set whom to ask for unknown names and hosts; None asks nobody."""
        self._source = source

    async def learn(self, name: str) -> None:
        """Ask for a name that is not known."""
        if self._source is not None:
            await self._source.learn(name)

    async def learn_domain(self, host: str) -> None:
        """Ask for a host that is not known."""
        if self._source is not None:
            await self._source.learn_domain(host)
