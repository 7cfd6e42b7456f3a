"""Resolvers by host: a subdomain of the application's domain, or a domain of the tenant's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.types import Scope

from ..config.hostnames import normalize_host
from ..errors import DataError
from .directory import TenantDirectory
from .hosts import RequestHost, TrustedHosts
from .resolution import Answer, Resolution, TenantResolver, bad_request, reads_of

HostOf = Callable[[Scope], str | None]
"""Returns the normalized host of a request."""


class SubdomainResolver:
    """The tenant is the label in front of a domain: `acme` in `acme.app.example.com`."""

    __slots__ = ("_host", "_suffix", "reads")

    def __init__(self, domain: str, *, host: HostOf | None = None) -> None:
        domain = domain.strip(".")
        self._suffix = "." + (normalize_host(domain) or domain)
        self._host = host or RequestHost()
        self.reads = reads_of(self._host)

    def __call__(self, scope: Scope, /) -> str | None:
        host = self._host(scope)
        if host is None or not host.endswith(self._suffix):
            return None
        label = host[: -len(self._suffix)]
        return label if label and "." not in label else None


class DomainResolver:
    """The tenant is the owner of the request's host, by a map or by the tenants' own domains.

    Args:
        hosts: Maps hosts to tenants.
        directory: Contains the tenants' domains.
        host: Returns the request's host.
    """

    __slots__ = ("_directory", "_host", "_hosts", "reads")

    def __init__(
        self, hosts: Mapping[str, str], *, directory: TenantDirectory | None = None, host: HostOf | None = None
    ) -> None:
        self._hosts = {normalize_host(name) or name: tenant for name, tenant in hosts.items()}
        self._directory = directory or TenantDirectory()
        self._host = host or RequestHost()
        self.reads = reads_of(self._host)

    def __call__(self, scope: Scope, /) -> str | None | Awaitable[str | None]:
        host = self._host(scope)
        if host is None:
            return None
        found = self._hosts.get(host) or self._directory.map.domains.get(host)
        if found is None and self._directory.can_learn:
            return self._ask(host)
        return found

    async def _ask(self, host: str) -> str | None:
        await self._directory.learn_domain(host)
        return self._directory.map.domains.get(host)

    def serves(self, host: str) -> bool:
        """Whether the host belongs to a tenant."""
        return host in self._hosts or host in self._directory.map.domains


class TrustedHostResolver:
    """Refuses requests for hosts that are not served, before any other resolver runs."""

    __slots__ = ("_directory", "_domains", "_host", "_resolve", "_trusted", "reads")

    def __init__(
        self,
        resolve: TenantResolver,
        trusted: TrustedHosts,
        domains: tuple[DomainResolver, ...],
        *,
        directory: TenantDirectory,
        host: HostOf,
    ) -> None:
        self._directory = directory
        self._resolve = resolve
        self._trusted = trusted
        self._domains = domains
        self._host = host
        self.reads = reads_of(host) | reads_of(resolve)

    def __call__(self, scope: Scope, /) -> Answer | Awaitable[Answer]:
        host = self._host(scope)
        if host is not None and self._serves(host):
            return self._resolve(scope)
        if host is not None and self._domains and self._directory.can_learn:
            return self._ask(host, scope)
        raise _not_served()

    async def _ask(self, host: str, scope: Scope) -> Answer:
        """Look up the host, which may be the domain of a tenant that is not known yet."""
        await self._directory.learn_domain(host)
        if not self._serves(host):
            raise _not_served()
        answer = self._resolve(scope)
        return answer if answer is None or isinstance(answer, str | Resolution) else await answer

    def _serves(self, host: str) -> bool:
        return self._trusted.serves(host) or any(domain.serves(host) for domain in self._domains)


def _not_served() -> DataError:
    return bad_request("the request's host is not one that is served here")
