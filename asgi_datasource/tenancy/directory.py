"""The tenants as they are known now: one frozen map, swapped as a whole when a catalog has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .tenant import Tenant


@dataclass(frozen=True, slots=True)
class TenantMap:
    """Every tenant at one moment; never changed.

    Attributes:
        names: Every tenant by its name.
        aliases: Other names of theirs, domains of their own among them, to the name.
    """

    # Not `str`: what a resolver has answered is looked up as it is.
    names: dict[Any, Tenant] = field(default_factory=dict[str, Tenant])
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])

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


class TenantDirectory:
    """Holds the map of this moment. Readers take `map` once and keep it for as long as they need one answer."""

    __slots__ = ("_ask", "map")

    def __init__(self, tenants: TenantMap | None = None) -> None:
        self.map = tenants or TenantMap()
        self._ask: Callable[[str], Awaitable[None]] | None = None

    @property
    def can_learn(self) -> bool:
        """Whether a name that is not known may be asked for elsewhere."""
        return self._ask is not None

    def learn_from(self, ask: Callable[[str], Awaitable[None]] | None) -> None:
        """Name whom to ask for a name that is not known; he swaps the map when he has learned something."""
        self._ask = ask

    async def learn(self, name: str) -> None:
        """Ask for a name that is not known."""
        if self._ask is not None:
            await self._ask(name)
