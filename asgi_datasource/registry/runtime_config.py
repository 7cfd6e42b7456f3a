"""All that a configuration says, compiled: one frozen value that a reload replaces whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from ..config import AuditConfig, OutboxConfig, ReloadConfig
from ..datasource.database_fleet import Fleet
from ..datasource.datasource import DataSource
from ..drivers.protocol import Server
from ..errors import DataErrorKind
from ..routing.consistency.token import NOTHING_SEEN, Token
from ..sessions.policy import CommitScope, SessionPolicy
from ..sessions.route_rules import RouteRules
from ..tenancy import Admission, CatalogPlan, Home, Resolvers, Tenant, TenantResolver, home_of
from ..tenancy.path_prefix import PathPrefixes
from ..tenancy.provisioning import ProvisioningPlan

_NO_PATHS: Final = PathPrefixes(())


@dataclass(frozen=True, slots=True)
class ErrorSettings:
    """How failures are answered.

    Attributes:
        statuses: HTTP status by kind, where the configuration names one.
        shows_details: Whether an answer carries the error's message (`errors.debug`); never in production.
    """

    statuses: Mapping[DataErrorKind, int] = field(default_factory=dict[DataErrorKind, int])
    shows_details: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuntimeConfig:
    """What the middleware and the registry read: look-ups are plain reads of immutable maps.

    A request reads the registry's current one once, and ends with the one that it began with.

    Attributes:
        datasources: Every datasource by its name.
        fleets: Every datasource with a database for each tenant, by its name.
        admission: The tenants, and who may act for them.
        catalog: The tenants that are in a table; None where there are none.
        resolvers: How requests name their tenant, in order.
        shared_schemas: What is searched after a tenant's own schema, by datasource.
        homes_to_come: Where tenants will live that are not known yet, by datasource.
        provisioning: How tenants are made.
        audits: What to look for at the start in each datasource, by name.
        policy: What holds for every session.
        rules: Those of `routes`.
        exempt: Paths without a session.
        errors: How failures are answered.
        statement_policy: The policy of websocket sessions: no transaction is held over a connection that may last for
            hours.
        block_policy: The policy of `registry.session()`: one transaction, and no deadline but its own.
        outbox: How events are published and delivered; None where there are none.
        reload: When another configuration is taken by itself.
        may_retry: Whether it has requests run again.
    """

    datasources: Mapping[str, DataSource]
    fleets: Mapping[str, Fleet] = field(default_factory=dict[str, Fleet])
    admission: Admission
    resolvers: Resolvers
    catalog: CatalogPlan | None = None
    homes_to_come: Mapping[str, Sequence[Home]] = field(default_factory=dict[str, "Sequence[Home]"])
    provisioning: ProvisioningPlan | None = None
    shared_schemas: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])
    audits: Mapping[str, AuditConfig] = field(default_factory=dict[str, AuditConfig])
    policy: SessionPolicy = SessionPolicy()
    rules: RouteRules = RouteRules()
    exempt: PathPrefixes = _NO_PATHS
    errors: ErrorSettings = ErrorSettings()
    outbox: OutboxConfig | None = None
    reload: ReloadConfig = ReloadConfig()
    statement_policy: SessionPolicy = field(init=False, repr=False)
    block_policy: SessionPolicy = field(init=False, repr=False)
    may_retry: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "datasources", MappingProxyType(dict(self.datasources)))
        statement_policy = replace(self.policy, commit_scope=CommitScope.STATEMENT, deadline_s=None)
        object.__setattr__(self, "statement_policy", statement_policy)
        block_policy = replace(self.policy, commit_scope=CommitScope.SESSION, deadline_s=None)
        object.__setattr__(self, "block_policy", block_policy)
        object.__setattr__(self, "may_retry", bool(self.policy.retry) or self.rules.may_retry)

    def tenant(self, name: str | None) -> Tenant:
        """The tenant of a name, as a request gave it.

        Args:
            name: None for a request that names none.

        Raises:
            DataError: TENANT: the name does not match the pattern; or it is unknown or absent, and the configuration
                names no default datasource.
        """
        return self.admission.tenant(name)

    @property
    def servers(self) -> list[Server]:
        """Every server of every datasource."""
        return [server for datasource in self.datasources.values() for server in datasource.servers.values()]

    def seen(self, tokens: Iterable[str]) -> Token:
        """What tokens say together; nothing where the configuration has none."""
        policy = self.policy.tokens
        return NOTHING_SEEN if policy is None else policy.signer.read(tokens, now=time.time())

    def datasource_of(self, tenant: Tenant) -> DataSource:
        """Where a tenant's data is.

        Raises:
            DataError: TENANT: its name cannot be that of a database.
        """
        found = self.datasources.get(tenant.datasource)
        if found is None:
            return self.fleets[tenant.datasource].member(tenant.database or tenant.name or "")
        return found

    def residents(self, name: str) -> list[Tenant]:
        """The tenants that are known now and live on a datasource."""
        return [tenant for tenant in self.admission.directory.map.names.values() if tenant.datasource == name]

    def homes(self, name: str, residents: Iterable[Tenant]) -> list[Home]:
        """Where tenants live on a datasource, and where those will that are not known yet."""
        shared = self.shared_schemas.get(name, ())
        return [*(home_of(tenant, shared) for tenant in residents), *self.homes_to_come.get(name, ())]

    def resolution(self, first: Sequence[TenantResolver] = ()) -> TenantResolver:
        """How requests name their tenant: `first`, then the configured resolvers."""
        return self.resolvers.resolution(first)
