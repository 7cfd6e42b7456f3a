"""Compiles the document's `tenancy` and `tenants` into resolvers, admission and tenants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from ..concurrency.expiring_set import ExpiringSet
from ..config import (
    EVERY_OTHER,
    MAX_NAME_BYTES,
    PLACEHOLDER,
    Config,
    DataSourceConfig,
    ResolverConfig,
    TenancyConfig,
    TenantConfig,
    TokenConfig,
)
from ..config.hostnames import normalize_host
from ..drivers import import_object
from ..errors import ConfigError
from .admission import Admission, Authorize, OthersSource
from .directory import TenantDirectory, TenantMap
from .domains import DomainResolver, SubdomainResolver, TrustedHostResolver
from .hosts import RequestHost, TrustedHosts
from .isolation import tenant_settings
from .isolation_audit import Home
from .resolution import TenantResolver
from .resolver_chain import Agreement, PathRuleResolver, chain
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
from .tenant import STATES, Strategy, Tenant, TenantState
from .tokens import FixedKey, KeySetFile, TokenKeys, TokenResolver, TokenRules


class Resolvers:
    """The tenant resolvers of the document; those from code run before them."""

    def __init__(self, config: TenancyConfig, directory: TenantDirectory) -> None:
        self._host = RequestHost(config.trusted_proxies, config.trusted_headers)
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
        return TrustedHostResolver(
            resolve, self._trusted, tuple(self._domains), directory=self._directory, host=self._host
        )

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
    """Import the callable at `package.module:function`.

    Args:
        path: The import path.
        where: The key of the document, for errors.

    Raises:
        ConfigError: It cannot be imported, or cannot be called.
    """
    try:
        found = import_object(path)
    except ImportError as error:
        raise ConfigError(f"{where}: the callable {path!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"{where}: {path!r} is not callable")
    return found


def compile_admission(config: Config, directory: TenantDirectory, others: OthersSource | None = None) -> Admission:
    """The admission of requests, as the document configures it."""
    tenancy = config.tenancy
    default = tenancy.default
    authorize = tenancy.authorize
    compiler = TenantCompiler(config.datasources)
    return Admission(
        directory,
        pattern=tenancy.pattern,
        default=None if default is None else compiler.default(default),
        others=others,
        missing_status=tenancy.missing,
        unknown_status=tenancy.unknown,
        authorize=(
            None if authorize is None else cast("Authorize", import_callable(authorize, where="tenancy.authorize"))
        ),
        hides_unknown=tenancy.hide_unknown,
    )


class TenantCompiler:
    """Compiles tenants of the document or of a catalog.

    Args:
        datasources: The datasources of the document, by name.
    """

    __slots__ = ("_has_databases", "_shared_schemas")

    def __init__(self, datasources: Mapping[str, DataSourceConfig]) -> None:
        self._shared_schemas = {name: datasource.search_path for name, datasource in datasources.items()}
        self._has_databases = {
            name for name, datasource in datasources.items() if PLACEHOLDER in datasource.primary.url.get_secret_value()
        }

    def knows(self, datasource: str) -> bool:
        """Whether the datasource exists."""
        return datasource in self._shared_schemas

    def make(
        self,
        name: str,
        datasource: str,
        *,
        schema: str | None = None,
        row_security: Mapping[str, str] | None = None,
        role: str | None = None,
        state: TenantState = TenantState.ACTIVE,
        max_connections: int | None = None,
        database: str | None = None,
        missing: ExpiringSet[str] | None = None,
        besides: Mapping[str, Tenant] | None = None,
    ) -> Tenant:
        """Compile one tenant. `{tenant}` in its values is replaced by its name.

        Raises:
            ValueError: There is no such datasource, or a name is too long for PostgreSQL, which would cut it off.
        """
        shared_schemas = self._shared_schemas.get(datasource)
        if shared_schemas is None:
            raise ValueError("it names a datasource that is not there")
        if schema is not None and PLACEHOLDER in schema:
            schema = _filled(schema, name)
        if row_security is not None:
            for value in row_security.values():
                if PLACEHOLDER in value:
                    row_security = {key: text.replace(PLACEHOLDER, name) for key, text in row_security.items()}
                    break
        if role is not None:
            role = _filled(role, name)
            if role == NO_ROLE:
                raise ValueError(f"{NO_ROLE!r} is no role: it stands for the login's own")
        strategy, settings = tenant_settings(
            schema=schema, shared_schemas=shared_schemas, row_security=row_security, role=role
        )
        if datasource in self._has_databases:
            database = _filled(PLACEHOLDER if database is None else database, name)
            strategy = Strategy.DATABASE if strategy is Strategy.NONE else strategy
        else:
            database = None
        return Tenant(name, datasource, strategy, settings, state, max_connections, database, schema, missing, besides)

    def of_config(self, name: str, config: TenantConfig, *, missing: ExpiringSet[str] | None = None) -> Tenant:
        """A tenant of the document; errors: `make`."""
        besides: dict[str, Tenant] | None = None
        if config.datasources:
            besides = {
                other: self.make(
                    name,
                    other,
                    schema=place.schema_name,
                    row_security=place.row_security,
                    role=place.role,
                    state=STATES[config.state],
                    max_connections=None if config.limits is None else config.limits.max_connections,
                    database=place.database,
                )
                for other, place in config.datasources.items()
            }
        return self.make(
            name,
            config.datasource,
            schema=config.schema_name,
            row_security=config.row_security,
            role=config.role,
            state=STATES[config.state],
            max_connections=None if config.limits is None else config.limits.max_connections,
            database=config.database,
            missing=missing,
            besides=besides,
        )

    def default(self, datasource: str) -> Tenant:
        """The tenant of requests without a name."""
        strategy, settings = tenant_settings(shared_schemas=self._shared_schemas[datasource])
        return Tenant(None, datasource, strategy, settings)


NO_ROLE: Final = "none"
"""The role name that PostgreSQL treats as RESET ROLE (manual, "SET ROLE")."""


def _filled(text: str | None, name: str) -> str | None:
    if text is None or PLACEHOLDER not in text:
        return text
    filled = text.replace(PLACEHOLDER, name)
    if len(filled.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise ValueError("the tenant's name is too long for that of something in the database")
    return filled


def compile_tenants(config: Config) -> TenantMap:
    """The tenants of the document."""
    compiler = TenantCompiler(config.datasources)
    try:
        names = {
            name: compiler.of_config(name, tenant) for name, tenant in config.tenants.items() if name != EVERY_OTHER
        }
    except ValueError as error:
        raise ConfigError(f"tenants: {error}") from None
    return TenantMap(
        names,
        {alias: name for name, tenant in config.tenants.items() for alias in tenant.aliases},
        {normalize_host(host) or host: name for name, tenant in config.tenants.items() for host in tenant.domains},
    )


def homes_to_come(config: Config) -> dict[str, list[Home]]:
    """The homes of tenants that are not known yet, by datasource: those of `"*"` and of a catalog's defaults."""
    found: dict[str, list[Home]] = {}
    others = config.tenants.get(EVERY_OTHER)
    catalog = config.tenants_from
    for place in (others, None if catalog is None else catalog.defaults):
        if place is not None and place.datasource is not None:
            schema, role = (_unless_filled(text) for text in (place.schema_name, place.role))
            home = Home(EVERY_OTHER, schema, role, place.row_security is not None, tuple(place.row_security or ()))
            found.setdefault(place.datasource, []).append(home)
    return found


def _unless_filled(text: str | None) -> str | None:
    return "" if text is not None and PLACEHOLDER in text else text
