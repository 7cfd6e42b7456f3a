"""A compiled tenant: its datasource, and the settings of its transactions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..concurrency.expiring_set import ExpiringSet
from ..drivers.statements import OWN_SCHEMA
from ..errors import DataError, DataErrorKind


class Strategy(StrEnum):
    """The isolation of a tenant from others on the same datasource."""

    NONE = "none"
    """No isolation: the datasource is the tenant's own."""
    DATABASE = "database"
    """A database of its own, on a datasource with a database per tenant."""
    SCHEMA = "schema"
    """A schema of its own: `search_path`."""
    ROW_SECURITY = "row_security"
    """Row security policies that read custom settings; with a role, if one is configured."""


class TenantState(StrEnum):
    """Whether a tenant's requests may read and write."""

    ACTIVE = "active"
    READ_ONLY = "read_only"
    """Reads are served, writes refused with 403."""
    SUSPENDED = "suspended"
    """Everything is refused with 403."""
    MOVING = "moving"
    """Reads are served, writes refused with 503 and Retry-After, until the move to another datasource has ended."""


STATES: Final = {state.value: state for state in TenantState}
"""States by value; faster than `TenantState(...)` for 100,000 tenants."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant of the registry.

    Attributes:
        name: The tenant's name; None for the tenant of requests without a name, which needs a default datasource.
        datasource: The name of its datasource.
        strategy: Its isolation there.
        settings: Setting and value pairs, applied inside every transaction with `set_config(name, value, true)`,
            so that they end with it (PostgreSQL manual, "System Administration Functions").
        state: Whether its requests may read and write.
        max_connections: Most connections of each server's pool that it may hold at a time; None sets no bound.
        database: The value of `{tenant}` in the datasource's URL, if that has a database per tenant.
        schema: Its own schema, first in its `search_path`; None without one. If it does not exist or may not be used,
            every transaction of the tenant fails, since names would resolve to another schema.
        missing: The negative cache for its name, used when its schema or database does not exist; None uses none.
        besides: The same tenant on its other datasources, by their names; None without any.
        applied: The settings together with the schema, in the form for drivers; None until `apply` is called.
    """

    name: str | None
    datasource: str
    strategy: Strategy = Strategy.NONE
    settings: tuple[tuple[str, str], ...] = ()
    state: TenantState = TenantState.ACTIVE
    max_connections: int | None = None
    database: str | None = None
    schema: str | None = field(default=None, compare=False)
    missing: ExpiringSet[str] | None = field(default=None, compare=False, repr=False)
    besides: Mapping[str, Tenant] | None = field(default=None, compare=False, repr=False)
    applied: tuple[tuple[str, str], ...] | None = field(default=None, init=False, compare=False, repr=False)

    def apply(self) -> tuple[tuple[str, str], ...]:
        """Fill `applied` on first use; most of 100,000 tenants are never used by a process."""
        applied = self.settings if self.schema is None else (*self.settings, (OWN_SCHEMA, self.schema))
        object.__setattr__(self, "applied", applied)
        return applied

    def on(self, datasource: str) -> Tenant:
        """The same tenant on one of its datasources.

        Raises:
            DataError: CONFIG: it has no datasource of this name.
        """
        if datasource == self.datasource:
            return self
        found = None if self.besides is None else self.besides.get(datasource)
        if found is None:
            names = ", ".join([self.datasource, *(self.besides or ())])
            raise DataError(
                DataErrorKind.CONFIG,
                f"the tenant has no datasource {datasource!r}, only: {names}. Name it under tenants.NAME.datasources",
                http_status=500,
            )
        return found

    def note_failure(self, error: DataError) -> None:
        """Record in the negative cache that the tenant's schema or database does not exist, if `error` says so."""
        if self.missing is not None and self.name is not None and error.http_status == 404:
            self.missing.add(self.name)

    def check_served(self) -> None:
        """Refuse a tenant that is not served at all.

        Raises:
            DataError: TENANT (403): it is suspended.
        """
        if self.state is TenantState.SUSPENDED:
            raise DataError(DataErrorKind.TENANT, "the tenant is suspended", http_status=403)

    def check_writable(self) -> None:
        """Refuse a write where the tenant's state allows none.

        Raises:
            DataError: TENANT: 403 while it is read only, 503 while it moves.
        """
        if self.state is TenantState.MOVING:
            raise DataError(
                DataErrorKind.TENANT,
                "the tenant is moving and takes no writes for the moment; send the request again",
                http_status=503,
                is_retryable=True,
            )
        if self.state is TenantState.READ_ONLY:
            raise DataError(DataErrorKind.TENANT, "the tenant is read only at the moment", http_status=403)
        self.check_served()

    def __repr__(self) -> str:
        # Without the settings: their values identify customers.
        return f"Tenant(name={self.name!r}, datasource={self.datasource!r}, strategy={self.strategy.value!r})"
