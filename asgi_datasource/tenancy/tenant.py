"""A tenant, compiled: where it lives and what every one of its transactions is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..concurrency.expiring_set import ExpiringSet
from ..drivers.statements import OWN_SCHEMA
from ..errors import DataError, DataErrorKind


class Strategy(StrEnum):
    """How a tenant's rows are kept apart from its neighbours' on the same datasource."""

    NONE = "none"
    """Nothing is set: the datasource is the tenant's own."""
    DATABASE = "database"
    """A database of its own, on a datasource with one for each tenant."""
    SCHEMA = "schema"
    """A schema of its own: `search_path`."""
    ROW_SECURITY = "row_security"
    """Row security policies that read custom settings, and a role where one is configured."""


class TenantState(StrEnum):
    """What a tenant's requests may do at the moment."""

    ACTIVE = "active"
    READ_ONLY = "read_only"
    """Reads are served, writes refused with 403."""
    SUSPENDED = "suspended"
    """Everything is refused with 403."""
    MOVING = "moving"
    """Reads are served, writes refused with 503 and Retry-After: it will be somewhere else in a moment."""


STATES: Final = {state.value: state for state in TenantState}
"""Every state by its word: there may be 100,000 to look up."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """One tenant as the registry knows it.

    Attributes:
        name: The tenant's name; None for the tenant of requests that name none, where a default datasource allows that.
        datasource: Name of the datasource that it lives on.
        strategy: How it is kept apart there.
        settings: Setting and value pairs, applied inside every transaction with `set_config(name, value, true)`,
            so that nothing of them outlives it (PostgreSQL manual, "System Administration Functions").
        state: What its requests may do at the moment.
        max_connections: The most that it may have of each server's pool at a time; None is as many as there are.
        database: What stands for `{tenant}` in the datasource's URL, where that is one for each tenant.
        schema: Its own schema, first in its `search_path`: every transaction of the tenant's fails where it is not
            there or may not be used, since names would be looked up elsewhere. None where it has none.
        missing: Where its name is kept for a while once its place turns out not to be there; None keeps none.
        applied: The settings together with the schema, as drivers take them; None until `apply` is called.
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
    applied: tuple[tuple[str, str], ...] | None = field(default=None, init=False, compare=False, repr=False)

    def apply(self) -> tuple[tuple[str, str], ...]:
        """Fill `applied` at the first use: most of 100,000 tenants are never used by a process."""
        applied = self.settings if self.schema is None else (*self.settings, (OWN_SCHEMA, self.schema))
        object.__setattr__(self, "applied", applied)
        return applied

    def note_failure(self, error: DataError) -> None:
        """A statement of the tenant's has failed, perhaps because its place is not there."""
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
        # The values identify customers and are nobody else's business.
        return f"Tenant(name={self.name!r}, datasource={self.datasource!r}, strategy={self.strategy.value!r})"
