"""All that a configuration says, compiled: one frozen value that a reload replaces whole."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from .datasource import DataSource
from .drivers.psycopg import Endpoint
from .errors import DataError, DataErrorKind
from .paths import PathPrefixes, RouteRules
from .plan import CommitScope, SessionPolicy
from .problems import ProblemAnswers
from .tenancy import MAX_NAME_LENGTH, Tenant, TenantResolver, chain

_NO_PATHS: Final = PathPrefixes(())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """What the middleware and the registry read: look-ups are plain reads of immutable maps.

    A request reads the registry's current one once, and ends with the one that it began with.

    Attributes:
        datasources: Every datasource by its name.
        tenants: Every tenant by its name.
        default: Who an unknown or absent tenant is; None where such a request is refused.
        policy: What holds for every session.
        rules: Those of `routes`.
        exempt: Paths without a session.
        problems: How failures are answered.
        resolvers: How requests name their tenant, in order.
        pattern: What a tenant's name has to match.
        missing_status, unknown_status: What answers a request that names no tenant, or an unknown one.
        statement_policy: The policy of websocket sessions: no transaction is held over a connection that may last for
            hours.
    """

    datasources: Mapping[str, DataSource]
    tenants: Mapping[str, Tenant]
    default: Tenant | None = None
    policy: SessionPolicy = SessionPolicy()
    rules: RouteRules = RouteRules()
    exempt: PathPrefixes = _NO_PATHS
    problems: ProblemAnswers = ProblemAnswers()
    resolvers: Sequence[TenantResolver] = ()
    pattern: re.Pattern[str] = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
    missing_status: int = 400
    unknown_status: int = 404
    statement_policy: SessionPolicy = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "datasources", MappingProxyType(dict(self.datasources)))
        object.__setattr__(self, "tenants", MappingProxyType(dict(self.tenants)))
        statement_policy = replace(self.policy, commit_scope=CommitScope.STATEMENT, deadline_s=None)
        object.__setattr__(self, "statement_policy", statement_policy)

    def tenant(self, name: str | None) -> Tenant:
        """The tenant of a name, as a request gave it.

        Args:
            name: None for a request that names none.

        Raises:
            DataError: TENANT: the name does not match the pattern; or it is unknown or absent, and the configuration
                names no default datasource.
        """
        if name is not None:
            tenant = self.tenants.get(name)
            if tenant is not None:
                return tenant
            if len(name) > MAX_NAME_LENGTH or self.pattern.fullmatch(name) is None:
                raise DataError(
                    DataErrorKind.TENANT, "the request's tenant is not a valid tenant name", http_status=400
                )
        if self.default is not None:
            return self.default
        if name is None:
            raise DataError(DataErrorKind.TENANT, "the request names no tenant", http_status=self.missing_status)
        raise DataError(DataErrorKind.TENANT, "there is no such tenant", http_status=self.unknown_status)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every server of every datasource."""
        return [endpoint for datasource in self.datasources.values() for endpoint in datasource.endpoints.values()]

    def datasource_of(self, tenant: Tenant) -> DataSource:
        """Where a tenant's data is."""
        return self.datasources[tenant.datasource]

    def resolution(self, first: Sequence[TenantResolver] = ()) -> TenantResolver:
        """How requests name their tenant: `first`, then the configured resolvers."""
        return chain((*first, *self.resolvers))
