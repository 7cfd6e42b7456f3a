"""From the document's `tenancy` and `tenants` to what answers requests."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..config import Config, ResolverConfig, TenancyConfig, TenantConfig, TokenConfig
from ..errors import ConfigError
from ..hostnames import normalize_host
from .admission import Admission, Authorize
from .answers import TenantResolver
from .chain import Agreement, PathRuleResolver, chain
from .directory import TenantDirectory, TenantMap
from .domains import DomainResolver, SubdomainResolver, TrustedHostResolver
from .hosts import RequestHost, TrustedHosts
from .isolation import tenant_settings
from .resolvers import (
    CallableResolver,
    CookieResolver,
    FixedResolver,
    HeaderResolver,
    PathPrefixResolver,
    QueryResolver,
    ScopeResolver,
    TenantFunction,
)
from .tenant import Tenant, TenantState
from .tokens import FixedKey, KeySetFile, TokenKeys, TokenResolver, TokenRules


class Resolvers:
    """How requests name their tenant, by the document; those that come from code are put in front."""

    def __init__(self, config: TenancyConfig, directory: TenantDirectory) -> None:
        self._host = RequestHost(config.trusted_proxies)
        self._directory = directory
        self._trusted = TrustedHosts(config.trusted_hosts) if config.trusted_hosts else None
        self._agree = config.agree
        self._domains: list[DomainResolver] = []
        self._configured = [self._compile(way) for way in config.resolve]

    def resolution(self, first: Sequence[TenantResolver] = ()) -> TenantResolver:
        """One resolver: `first`, then the configured ones."""
        resolvers = (*first, *self._configured)
        if self._agree:
            resolve: TenantResolver = Agreement(resolvers, lambda name: self._directory.map.canonical(name))
        else:
            resolve = chain(resolvers)
        if self._trusted is None:
            return resolve
        return TrustedHostResolver(resolve, self._trusted, tuple(self._domains), host=self._host)

    def _compile(self, config: ResolverConfig) -> TenantResolver:
        resolver = self._way(config)
        return PathRuleResolver(resolver, config.paths) if config.paths else resolver

    def _way(self, config: ResolverConfig) -> TenantResolver:
        if config.header is not None:
            return HeaderResolver(config.header)
        if config.subdomain_of is not None:
            return SubdomainResolver(config.subdomain_of, host=self._host)
        if config.domain is not None:
            resolver = DomainResolver(config.domain, directory=self._directory, host=self._host)
            self._domains.append(resolver)
            return resolver
        if config.path_prefix is not None:
            return PathPrefixResolver(config.path_prefix)
        if config.query is not None:
            return QueryResolver(config.query)
        if config.cookie is not None:
            return CookieResolver(config.cookie)
        if config.jwt_claim is not None:
            return _token_resolver(config.jwt_claim)
        if config.scope is not None:
            return ScopeResolver(config.scope)
        if config.fixed is not None:
            return FixedResolver(config.fixed)
        path = config.callable or ""
        function = import_callable(path, where="tenancy.resolve")
        return CallableResolver(cast("TenantFunction", function), name=path)


def _token_resolver(config: TokenConfig) -> TokenResolver:
    rules = TokenRules(
        claim=config.claim,
        algorithms=config.algorithms,
        audience=config.audience,
        issuer=config.issuer,
        leeway_s=config.leeway_s,
        required=config.required,
        header=config.header,
        cookie=config.cookie,
    )
    keys: TokenKeys
    if config.jwks is not None:
        keys = KeySetFile(Path(config.jwks))
    elif config.key is not None:
        keys = FixedKey(config.key.get_secret_value(), config.algorithms)
    else:
        raise ConfigError("tenancy.resolve: jwt_claim needs key or jwks")
    return TokenResolver(rules, keys)


def import_callable(path: str, *, where: str) -> Any:
    """What stands at `package.module:function`.

    Args:
        path: Where it is.
        where: The key that names it.

    Raises:
        ConfigError: It cannot be imported, or cannot be called.
    """
    module, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: the callable {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"{where}: {path!r} is not callable")
    return found


def compile_admission(config: Config, directory: TenantDirectory) -> Admission:
    """Who may act for which tenant, by the document."""
    tenancy = config.tenancy
    default = tenancy.default
    authorize = tenancy.authorize
    return Admission(
        directory,
        pattern=tenancy.pattern,
        default=None if default is None else _default(default, config.datasources[default].search_path),
        missing_status=tenancy.missing,
        unknown_status=tenancy.unknown,
        authorize=(
            None if authorize is None else cast("Authorize", import_callable(authorize, where="tenancy.authorize"))
        ),
        hides_unknown=tenancy.hide_unknown,
    )


def compile_tenants(config: Config) -> TenantMap:
    """The tenants of the document."""
    shared = {name: datasource.search_path for name, datasource in config.datasources.items()}
    names = {name: compile_tenant(name, tenant, shared) for name, tenant in config.tenants.items()}
    aliases = {
        normalize_host(alias) or alias: name for name, tenant in config.tenants.items() for alias in tenant.aliases
    }
    # An alias that is no host stands as it is written: names know capital letters.
    aliases.update({alias: name for name, tenant in config.tenants.items() for alias in tenant.aliases})
    return TenantMap(names, aliases)


def compile_tenant(name: str, config: TenantConfig, shared_schemas: Mapping[str, Sequence[str]]) -> Tenant:
    """One tenant, ready to be served."""
    strategy, settings = tenant_settings(
        schema=config.schema_name,
        shared_schemas=shared_schemas[config.datasource],
        row_security=config.row_security,
        role=config.role,
    )
    return Tenant(name, config.datasource, strategy, settings, TenantState(config.state))


def _default(datasource: str, shared_schemas: Sequence[str]) -> Tenant:
    strategy, settings = tenant_settings(shared_schemas=shared_schemas)
    return Tenant(None, datasource, strategy, settings)
