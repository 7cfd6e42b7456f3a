"""Admission: the tenant of a request's name, and whether the request may act for it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from starlette.types import Scope

from ..config.name_pattern import compile_name_pattern
from ..errors import DataError, DataErrorKind
from .directory import TenantDirectory, TenantMap
from .resolution import MAX_NAME_LENGTH, bad_request
from .tenant import Tenant, TenantState

Authorize = Callable[[Scope, str], bool | Awaitable[bool]]
"""A function of the application, sync or async: whether a request may act for the tenant of a name."""


class TenantMissing(DataError):
    """Raised when a request names no tenant, and there is no default."""

    def __init__(self, status: int) -> None:
        super().__init__(DataErrorKind.TENANT, "the request names no tenant", http_status=status)


class OthersSource(Protocol):
    """Creates the tenants of names that are not listed."""

    def find(self, name: str, known: TenantMap) -> Tenant | None:
        """The tenant of a name that matches the pattern and is not in the map; None if there is none."""
        ...


class Admission:
    """Finds tenants, and decides which requests may act for them.

    Args:
        directory: The tenants.
        pattern: The pattern that a whole name must match before it is used for anything but a look-up.
        others: Creates the tenants of names that are not listed; None if there are no others.
        default: The tenant of requests with no name or an unknown one; None refuses those.
        missing_status, unknown_status: The HTTP statuses of requests without a name, and with an unknown one.
        authorize: Decides whether a request may act for a tenant; None admits every request.
        hides_unknown: Treat a tenant that a request may not act for as unknown: refused, or served as the default.
    """

    def __init__(
        self,
        directory: TenantDirectory,
        *,
        pattern: str = r"[a-z0-9][a-z0-9_-]{0,62}",
        others: OthersSource | None = None,
        default: Tenant | None = None,
        missing_status: int = 400,
        unknown_status: int = 404,
        authorize: Authorize | None = None,
        hides_unknown: bool = False,
    ) -> None:
        self.directory = directory
        self.default = default
        self._others = others
        self._matches = compile_name_pattern(pattern)
        self._missing_status = missing_status
        self._unknown_status = unknown_status
        self._authorize = authorize
        self._hides_unknown = hides_unknown
        self._refused: dict[str, str] = {}
        self._behind: Mapping[str, str] = {}
        self._datasources_behind: Mapping[str, str] = {}
        self.authorizes = authorize is not None
        """Whether the application has an `authorize` function."""
        self.asks = authorize is not None
        """Whether even a known and active tenant needs `admit`, because of `authorize` or a refused datasource."""

    def refuse(self, datasource: str, reason: str) -> None:
        """Refuse all tenants of a datasource from now on, because it does not isolate them."""
        self._refused[datasource] = reason
        self.asks = True

    def hold_back(self, tenants: Mapping[str, str], datasources: Mapping[str, str]) -> None:
        """Serve no tenant whose schema is behind, until the next call.

        Args:
            tenants: Names of tenants that are behind, each with the reason.
            datasources: Datasources whose shared part is behind, each with the reason.
        """
        self._behind, self._datasources_behind = tenants, datasources
        self.asks = self._authorize is not None or bool(self._refused or tenants or datasources)

    @property
    def tenants_behind(self) -> Mapping[str, str]:
        """Tenants that are held back because they lack migrations, each with the reason."""
        return self._behind

    @property
    def datasources_held_back(self) -> frozenset[str]:
        """Datasources whose tenants are refused: they lack migrations, or do not keep tenants apart."""
        return frozenset((*self._datasources_behind, *self._refused))

    def serves(self, tenant: Tenant) -> bool:
        """Whether a tenant is served: neither suspended nor behind, on a datasource that keeps tenants apart."""
        is_behind = tenant.datasource in self._datasources_behind or tenant.name in self._behind
        return tenant.state is not TenantState.SUSPENDED and tenant.datasource not in self._refused and not is_behind

    def check_served(self, tenant: Tenant) -> None:
        """Refuse a tenant that is not served.

        Raises:
            DataError: TENANT (403): it is suspended; (503) its schema lacks migrations. CONFIG (503): its datasource
                does not isolate tenants.
        """
        behind = self._datasources_behind.get(tenant.datasource) or self._behind.get(tenant.name or "")
        if behind is not None:
            raise DataError(DataErrorKind.TENANT, behind, http_status=503, is_retryable=True)
        reason = self._refused.get(tenant.datasource)
        if reason is not None:
            raise DataError(DataErrorKind.CONFIG, reason, http_status=503)
        tenant.check_served()

    def tenant(self, name: str | None) -> Tenant:
        """The tenant of a name, without a look-up of unknown names.

        Args:
            name: The name as it was given; None for a request without a tenant.

        Raises:
            DataError: TENANT: the name does not match the pattern; or it is unknown or absent, and there is no default.
        """
        if name is not None:
            tenant = self.directory.map.find(name)
            if tenant is not None:
                return tenant
            self._check_name(name)
            if self._others is not None:
                found = self._others.find(name, self.directory.map)
                if found is None:
                    raise self._unknown()
                return found
        if self.default is not None:
            return self.default
        if name is None:
            raise TenantMissing(self._missing_status)
        raise self._unknown()

    async def find(self, name: str | None) -> Tenant:
        """The tenant of a name; unknown names are looked up in the catalog. Errors: `tenant`."""
        directory = self.directory
        if name is not None and directory.can_learn and directory.map.find(name) is None:
            self._check_name(name)
            await directory.learn(name)
        return self.tenant(name)

    async def admit(self, scope: Scope, name: str | None) -> Tenant:
        """The tenant that a request may act for.

        Args:
            scope: The request's scope.
            name: The name as the request gave it.

        Raises:
            DataError: TENANT: there is no such tenant, the request may not act for it, or it is suspended.
        """
        if self._hides_unknown and self._authorize is not None and name is not None:
            tenant = await self._admit_hidden(scope, name)
        else:
            tenant = await self.find(name)
            if name is not None and tenant.name is not None and not await self._may_act(scope, tenant.name):
                raise _refused()
        self.check_served(tenant)
        return tenant

    async def _admit_hidden(self, scope: Scope, name: str) -> Tenant:
        """`admit`, so that neither the response nor its time reveals whether a hidden tenant exists.

        `authorize` is called before the catalog is queried for an unknown name, which takes time. If unknown names are
        served as the default tenant, so are hidden ones.
        """
        known = self.directory.map.find(name)
        if known is None:
            self._check_name(name)
        asked = name if known is None or known.name is None else known.name
        if not await self._may_act(scope, asked):
            return self._hidden()
        tenant = await self.find(name)
        if tenant.name not in (None, asked) and not await self._may_act(scope, str(tenant.name)):
            # The name was an alias that the directory did not contain.
            return self._hidden()
        return tenant

    def _hidden(self) -> Tenant:
        if self.default is None:
            raise self._unknown()
        return self.default

    async def _may_act(self, scope: Scope, name: str) -> bool:
        if self._authorize is None:
            return True
        is_allowed = self._authorize(scope, name)
        if inspect.isawaitable(is_allowed):
            is_allowed = await is_allowed
        return bool(is_allowed)

    def _check_name(self, name: str) -> None:
        if len(name) > MAX_NAME_LENGTH or not self._matches(name):
            raise bad_request("the request's tenant is not a valid tenant name")

    def _unknown(self) -> DataError:
        return DataError(DataErrorKind.TENANT, "there is no such tenant", http_status=self._unknown_status)


def _refused() -> DataError:
    return DataError(DataErrorKind.TENANT, "the request may not act for this tenant", http_status=403)
