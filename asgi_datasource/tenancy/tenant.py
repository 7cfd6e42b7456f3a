"""A tenant, compiled: where it lives and what every one of its transactions is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Strategy(StrEnum):
    """How a tenant's rows are kept apart from its neighbours' on the same datasource."""

    NONE = "none"
    """Nothing is set: the datasource is the tenant's own."""
    SCHEMA = "schema"
    """A schema of its own: `search_path`."""
    ROW_SECURITY = "row_security"
    """Row security policies that read custom settings, and a role where one is configured."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant as the registry knows it.

    Attributes:
        name: The tenant's name; None for the tenant of requests that name none, where a default datasource allows that.
        datasource: Name of the datasource that it lives on.
        strategy: How it is kept apart there.
        settings: Setting and value pairs, applied inside every transaction with `set_config(name, value, true)`,
            so that nothing of them outlives it (PostgreSQL manual, "System Administration Functions").
    """

    name: str | None
    datasource: str
    strategy: Strategy = Strategy.NONE
    settings: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        # The values identify customers and are nobody else's business.
        return f"Tenant(name={self.name!r}, datasource={self.datasource!r}, strategy={self.strategy.value!r})"
