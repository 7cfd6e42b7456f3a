"""The compiled configuration: one frozen value that a reload replaces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from ..config import EVERY_PRIMARY, AuditConfig, Config, OutboxConfig, ReloadConfig
from ..datasource.database_fleet import Fleet
from ..datasource.datasource import DataSource
from ..drivers.protocol import Server
from ..errors import DataError, DataErrorKind
from ..routing.consistency.token import NOTHING_SEEN, Token
from ..sessions.policy import CommitScope, SessionPolicy
from ..sessions.route_rules import RouteRules
from ..tenancy import Admission, CatalogPlan, Home, Resolvers, Tenant, TenantResolver, home_of, tenant_settings
from ..tenancy.path_prefix import PathPrefixes
from ..tenancy.provisioning import ProvisioningPlan
from ..tenancy.ways import Way

_NO_PATHS: Final = PathPrefixes(())


@dataclass(frozen=True, slots=True)
class ErrorSettings:
    """Settings of error responses.

    Attributes:
        statuses: Configured HTTP statuses by kind.
        shows_details: Whether a response contains the error's message (`errors.debug`); not for production.
        handler: The application's function that renders errors (`errors.handler`); None without one.
        ways: The ways to name a tenant, for the page of a browser that names none; None if there is no such page.
    """

    statuses: Mapping[DataErrorKind, int] = field(default_factory=dict[DataErrorKind, int])
    shows_details: bool = False
    handler: Callable[..., Any] | None = None
    ways: tuple[Way, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RuntimeConfig:
    """The compiled configuration of middleware and registry, in immutable maps.

    A request reads the registry's current one once, and uses it until its end.

    Attributes:
        datasources: Datasources by name.
        fleets: Datasources with a database per tenant, by name.
        admission: Admits tenants and requests for them.
        catalog: Settings of the tenants in a table; None without `tenants_from`.
        resolvers: The tenant resolvers, in order.
        shared_schemas: Schemas in the search path after the tenant's own, by datasource.
        homes_to_come: Homes of tenants that are not known yet, by datasource.
        provisioning: Settings for creating tenants.
        migrating: The document, if it has migrations.
        audits: Settings of the start-up audit, by datasource.
        policy: Settings of all sessions.
        rules: The rules of `routes`.
        exempt: Paths without a session.
        errors: Settings of error responses.
        statement_policy: The policy of websocket sessions: autocommit, since a connection may last for hours.
        block_policy: The policy of `registry.session()`: one transaction, and only its own deadline.
        outbox: Settings of the outbox; None without one.
        publishing: The document, if it has an outbox.
        document: The document that it was compiled from.
        ready_rule: When the process is ready: `every_primary`, `any_server`, or a percentage of the tenants.
        reload: Settings of automatic reloads.
        may_retry: Whether the configuration or a rule sets `retry`.
    """

    datasources: Mapping[str, DataSource]
    fleets: Mapping[str, Fleet] = field(default_factory=dict[str, Fleet])
    admission: Admission
    resolvers: Resolvers
    catalog: CatalogPlan | None = None
    homes_to_come: Mapping[str, Sequence[Home]] = field(default_factory=dict[str, "Sequence[Home]"])
    provisioning: ProvisioningPlan | None = None
    shared_schemas: Mapping[str, Sequence[str]] = field(default_factory=dict[str, "Sequence[str]"])
    migrating: Config | None = field(default=None, repr=False)
    audits: Mapping[str, AuditConfig] = field(default_factory=dict[str, AuditConfig])
    policy: SessionPolicy = SessionPolicy()
    rules: RouteRules = RouteRules()
    exempt: PathPrefixes = _NO_PATHS
    errors: ErrorSettings = ErrorSettings()
    outbox: OutboxConfig | None = None
    publishing: Config | None = field(default=None, repr=False)
    document: Config | None = field(default=None, repr=False)
    ready_rule: str | int = EVERY_PRIMARY
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
        """The tenant of a name, as given by a request.

        Args:
            name: The name; None is a request without a tenant.

        Raises:
            DataError: TENANT: the name does not match the pattern; or it is unknown or absent, and the configuration
                names no default datasource.
        """
        return self.admission.tenant(name)

    @property
    def servers(self) -> list[Server]:
        """The servers of all datasources."""
        return [server for datasource in self.datasources.values() for server in datasource.servers.values()]

    def seen(self, tokens: Iterable[str]) -> Token:
        """Merge causal-consistency tokens; empty when tokens are disabled."""
        policy = self.policy.tokens
        return NOTHING_SEEN if policy is None else policy.signer.read(tokens, now=time.time())

    def datasource_of(self, tenant: Tenant) -> DataSource:
        """The datasource of a tenant.

        Raises:
            DataError: TENANT: its name is not a valid database name.
        """
        found = self.datasources.get(tenant.datasource)
        if found is None:
            return self.fleets[tenant.datasource].member(tenant.database or tenant.name or "")
        return found

    def residents(self, name: str) -> list[Tenant]:
        """The tenants of a datasource that are known now."""
        found: list[Tenant] = []
        for tenant in self.admission.directory.map.names.values():
            if tenant.datasource == name:
                found.append(tenant)
            elif tenant.besides is not None and name in tenant.besides:
                found.append(tenant.besides[name])
        return found

    def default_on(self, name: str) -> Tenant:
        """The tenant of requests without a name, on any datasource.

        Raises:
            DataError: CONFIG: there is no such datasource, or it has a database for each tenant.
        """
        if name not in self.datasources:
            names = ", ".join(self.datasources)
            raise DataError(
                DataErrorKind.CONFIG, f"there is no datasource {name!r} for requests without a tenant, only: {names}"
            )
        shared = self.shared_schemas.get(name, ())
        return Tenant(None, name, *tenant_settings(shared_schemas=shared))

    def homes(self, name: str, residents: Iterable[Tenant]) -> list[Home]:
        """The homes of tenants on a datasource, with those of tenants that are not known yet."""
        shared = self.shared_schemas.get(name, ())
        return [*(home_of(tenant, shared) for tenant in residents), *self.homes_to_come.get(name, ())]

    def resolution(self, first: Sequence[TenantResolver] = ()) -> TenantResolver:
        """The resolver chain: `first`, then the configured resolvers."""
        return self.resolvers.resolution(first)
