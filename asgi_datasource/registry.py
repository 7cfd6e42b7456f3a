"""The frozen map of tenants and datasources, compiled once from a checked configuration."""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from collections.abc import AsyncGenerator, Iterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from .background import BackgroundTasks
from .config import Config, DataSourceConfig, EndpointConfig, ResolverConfig, load
from .config import RouteRule as RouteRuleConfig
from .datasource import DataSource, PostgresDataSource
from .drivers.psycopg import Endpoint, EndpointSettings, PsycopgConnection
from .errors import ConfigError, DataError, DataErrorKind
from .paths import CompiledRule, PathPrefixes, RouteRules, compile_pattern
from .plan import NO_RULE, CommitScope, RouteRule, SessionPolicy
from .problems import ProblemAnswers
from .routing import AccessIntent, ReadAfterWritePin, Role
from .session import DataSession, SessionOwner
from .tenancy import (
    MAX_NAME_LENGTH,
    CallableResolver,
    HeaderResolver,
    PathPrefixResolver,
    SubdomainResolver,
    Tenant,
    TenantFunction,
    TenantResolver,
    chain,
    tenant_settings,
)
from .transaction import Frame, OutcomeRule, TransactionOptions, current_frame, current_runner, parse_isolation

logger = logging.getLogger("asgi_datasource.registry")

CLOSE_TIMEOUT_S: Final = 10.0
"""Seconds that closing may take in all: clean-up tasks first, then the pools."""


class DataSourceRegistry:
    """Every tenant and every datasource of a configuration; made by `compile`, never changed afterwards.

    Look-ups are plain reads of immutable maps. Iterating gives the datasources.
    """

    def __init__(
        self,
        datasources: Mapping[str, DataSource],
        tenants: Mapping[str, Tenant],
        *,
        default: Tenant | None = None,
        policy: SessionPolicy | None = None,
        rules: RouteRules | None = None,
        exempt: PathPrefixes | None = None,
        problems: ProblemAnswers | None = None,
        resolvers: Sequence[TenantResolver] = (),
        pattern: str = r"[a-z0-9][a-z0-9_-]{0,62}",
        missing_status: int = 400,
        unknown_status: int = 404,
    ) -> None:
        self._datasources = MappingProxyType(dict(datasources))
        self._tenants: Mapping[str, Tenant] = MappingProxyType(dict(tenants))
        self._default = default
        self._resolvers = tuple(resolvers)
        self._pattern = re.compile(pattern)
        self._missing_status = missing_status
        self._unknown_status = unknown_status
        self.policy = policy or SessionPolicy()
        self.statement_policy = replace(self.policy, commit_scope=CommitScope.STATEMENT, deadline_s=None)
        """The policy of websocket sessions: no transaction is held over a connection that may last for hours."""
        self.rules = rules or RouteRules()
        self.exempt_paths = exempt or PathPrefixes(())
        self.problems = problems or ProblemAnswers()
        self.background = BackgroundTasks()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.is_open = False
        """Whether its pools are open."""

    # -- look-ups

    def __iter__(self) -> Iterator[DataSource]:
        return iter(self._datasources.values())

    def __len__(self) -> int:
        return len(self._datasources)

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<DataSourceRegistry {state}, {len(self._datasources)} datasources, {len(self._tenants)} tenants>"

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """Every tenant by its name."""
        return self._tenants

    @property
    def datasources(self) -> Mapping[str, DataSource]:
        """Every datasource by its name."""
        return self._datasources

    def tenant(self, name: str | None) -> Tenant:
        """The tenant of a name, as a request gave it.

        Args:
            name: None for a request that names none.

        Raises:
            DataError: TENANT: the name does not match the pattern; or it is unknown or absent, and the configuration
                names no default datasource.
        """
        if name is not None:
            tenant = self._tenants.get(name)
            if tenant is not None:
                return tenant
            if len(name) > MAX_NAME_LENGTH or self._pattern.fullmatch(name) is None:
                raise DataError(
                    DataErrorKind.TENANT, "the request's tenant is not a valid tenant name", http_status=400
                )
        if self._default is not None:
            return self._default
        if name is None:
            raise DataError(DataErrorKind.TENANT, "the request names no tenant", http_status=self._missing_status)
        raise DataError(DataErrorKind.TENANT, "there is no such tenant", http_status=self._unknown_status)

    def for_tenant(self, name: str | None) -> DataSource:
        """The datasource of a tenant; an unknown or absent one gets the default where the configuration names one.

        Raises:
            DataError: TENANT: there is no such tenant, and no default.
        """
        return self._datasources[self.tenant(name).datasource]

    def resolution(self, first: Sequence[TenantResolver] = ()) -> TenantResolver:
        """How requests name their tenant: `first`, then the configured resolvers."""
        return chain((*first, *self._resolvers))

    def make_session(
        self,
        tenant: Tenant,
        *,
        policy: SessionPolicy,
        scope: MutableMapping[str, Any] | None = None,
        method: str = "POST",
        path: str | None = None,
        started: float | None = None,
        owner: SessionOwner | None = None,
        outer: DataSession | None = None,
        pin: ReadAfterWritePin | None = None,
    ) -> DataSession:
        """Make a session; whoever calls this ends it.

        Args:
            tenant: Whose.
            policy: What the configuration says about it.
            scope: The request's ASGI scope.
            method, path: What the rules of `routes` are matched against.
            started: Event-loop time at which the request began.
            owner: Is told when the session comes into use.
            outer: A session that the request has already, of another registry.
            pin: The caller's own.
        """
        session = DataSession(
            self,
            self._datasources[tenant.datasource],
            tenant,
            policy=policy,
            background=self.background,
            scope=scope,
            method=method,
            rule=NO_RULE if path is None else self.rules.match(method, path),
            started=started,
            owner=owner,
            pin=pin,
        )
        if outer is not None:
            session.share_writers(outer)
        return session

    # -- life

    async def open(self) -> None:
        """Open the pools. Returns at once, also when a server is down: connections are made in the background.

        Raises:
            DataError: CONFIG: it is open in another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not loop and not self._loop.is_closed():
            raise DataError(DataErrorKind.CONFIG, "the registry is open in another event loop; compile one for each")
        if self._loop is not loop:
            self._loop = loop
            self.is_open = False
            self._opening = loop.create_task(self._open_endpoints())
            self._keeper = loop.create_task(self._close_with_the_loop())
        if self._opening is not None:
            await asyncio.shield(self._opening)

    async def _open_endpoints(self) -> None:
        for endpoint in self._endpoints():
            await endpoint.open()
        self.is_open = True
        self._opening = None

    async def close(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """End what is still under way, then close the pools; bounded, whatever the servers do.

        Args:
            timeout_s: Seconds that it may take.
        """
        if not self.is_open:
            return
        self.is_open = False
        if self._keeper is not None and self._keeper is not asyncio.current_task():
            self._keeper.cancel()
        await self.background.drain(timeout_s / 2)
        await asyncio.gather(*(endpoint.close(timeout_s=timeout_s / 2) for endpoint in self._endpoints()))
        self._loop = None

    async def _close_with_the_loop(self) -> None:
        """Close when the event loop ends and nobody has: a server without lifespan never says good-bye.

        Left to itself, the scheduler of a pool that just tries to connect takes the cancellation for a failed attempt
        and goes on, and the loop waits for it for ever.
        """
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self.is_open:
                await self.close()

    async def __aenter__(self) -> DataSourceRegistry:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _endpoints(self) -> list[Endpoint]:
        return [endpoint for datasource in self for endpoint in datasource.endpoints.values()]

    # -- use outside requests

    @asynccontextmanager
    async def session(
        self, tenant: str | None = None, *, read_only: bool = False, timeout: float | None = None
    ) -> AsyncGenerator[DataSession]:
        """A session outside a request: for workers, scripts, background tasks and tests.

        Its writes are one transaction, committed at the end of the block, or rolled back when an exception leaves it.

        Args:
            tenant: The tenant's name; None for the default datasource.
            read_only: Nothing may write; all reads see one snapshot, on one replica.
            timeout: Seconds for the whole block, COMMIT included.

        Raises:
            DataError: TENANT: there is no such tenant. Or what became of the commit.
        """
        if not self.is_open:
            await self.open()
        db = self.make_session(self.tenant(tenant), policy=replace(self.policy, commit_scope=CommitScope.SESSION))
        options = TransactionOptions(read_only=read_only, timeout_s=timeout)
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        frame_token = current_frame.set(Frame(options, db, deadline))
        token = current_runner.set(db)
        try:
            try:
                yield db
            except BaseException as error:
                await self.background.run(db.end(commit=False, reason=type(error).__name__))
                raise
            await db.end(commit=db.rollback_reason is None, reason="end of the block")
        finally:
            current_runner.reset(token)
            current_frame.reset(frame_token)
            if db.has_due_hooks:
                await self.background.run(db.run_due_hooks())

    @asynccontextmanager
    async def acquire(
        self,
        datasource: DataSource,
        intent: AccessIntent,
        pin: ReadAfterWritePin | None = None,
        *,
        tenant: Tenant | None = None,
    ) -> AsyncGenerator[PsycopgConnection]:
        """A connection for an intent: routed, inside a transaction that ends with the block.

        Args:
            datasource: One of this registry's.
            intent: READ runs READ ONLY, on a replica where there is one; WRITE sets the pin.
            pin: The caller's; once it is set, reads go to the primary.
            tenant: Applied inside the transaction; None applies nothing.

        Raises:
            DataError: No connection could be had, or the commit failed.
        """
        if not self.is_open:
            await self.open()
        db = self.make_session(
            tenant or Tenant(None, datasource.name),
            policy=replace(self.policy, commit_scope=CommitScope.SESSION),
            pin=pin,
        )
        try:
            async with db.connection(intent) as connection:
                yield connection
        except BaseException as error:
            await self.background.run(db.end(commit=False, reason=type(error).__name__))
            raise
        await db.end(commit=True, reason="end of the block")


def compile(
    source: str | Path | Mapping[str, Any] | Config,
    *,
    environ: Mapping[str, str] | None = None,
    needs_resolver: bool = False,
) -> DataSourceRegistry:
    """Compile a configuration into a registry. Opens nothing.

    Args:
        source: A path to a YAML, TOML or JSON document, a mapping, or a `Config` that is loaded already.
        environ: Where `${NAME}` is looked up; None takes the process's environment.
        needs_resolver: Whether tenants without a way to tell them from requests are an error; workers and scripts name
            the tenant themselves.

    Raises:
        ConfigError: The configuration is wrong; every problem is listed.
    """
    config = load(source, environ=environ, needs_resolver=needs_resolver)
    shared_schemas = {name: datasource.search_path for name, datasource in config.datasources.items()}
    default = config.tenancy.default
    return DataSourceRegistry(
        {name: _compile_datasource(name, datasource) for name, datasource in config.datasources.items()},
        _compile_tenants(config, shared_schemas),
        default=None if default is None else _compile_default(default, shared_schemas[default]),
        policy=_compile_policy(config),
        rules=RouteRules([_compile_rule(index, rule) for index, rule in enumerate(config.routes)]),
        exempt=PathPrefixes(config.tenancy.exempt),
        problems=ProblemAnswers(statuses=dict(config.errors.status), shows_details=config.errors.debug),
        resolvers=[_compile_resolver(resolver) for resolver in config.tenancy.resolve],
        pattern=config.tenancy.pattern,
        missing_status=config.tenancy.missing,
        unknown_status=config.tenancy.unknown,
    )


def _compile_datasource(name: str, config: DataSourceConfig) -> PostgresDataSource:
    def endpoint(node: str, role: Role, server: EndpointConfig) -> Endpoint:
        pool = config.pool
        settings = EndpointSettings(
            conninfo=server.url.get_secret_value(),
            min_size=pool.min_size,
            max_size=pool.max_size,
            acquire_timeout_s=pool.acquire_timeout_s,
            max_waiting=pool.max_waiting,
            connect_timeout_s=pool.connect_timeout_s,
            max_lifetime_s=pool.max_lifetime_s,
            max_idle_s=pool.max_idle_s,
            tcp_user_timeout_s=pool.tcp_user_timeout_s,
            keepalives_idle_s=pool.keepalives_idle_s,
            keepalives_interval_s=pool.keepalives_interval_s,
            keepalives_count=pool.keepalives_count,
        )
        return Endpoint(node, name, role, settings)

    return PostgresDataSource(
        name,
        endpoint("primary", Role.PRIMARY, config.primary),
        [endpoint(node, Role.REPLICA, server) for node, server in config.replicas.items()],
    )


def _compile_tenants(config: Config, shared_schemas: Mapping[str, Sequence[str]]) -> dict[str, Tenant]:
    tenants: dict[str, Tenant] = {}
    for name, tenant in config.tenants.items():
        strategy, settings = tenant_settings(
            schema=tenant.schema_name,
            shared_schemas=shared_schemas[tenant.datasource],
            row_security=tenant.row_security,
            role=tenant.role,
        )
        tenants[name] = Tenant(name, tenant.datasource, strategy, settings)
    return tenants


def _compile_default(datasource: str, shared_schemas: Sequence[str]) -> Tenant:
    strategy, settings = tenant_settings(shared_schemas=shared_schemas)
    return Tenant(None, datasource, strategy, settings)


def _compile_policy(config: Config) -> SessionPolicy:
    transactions = config.transactions
    return SessionPolicy(
        commit_scope=CommitScope.SESSION if transactions.default == "request" else CommitScope.STATEMENT,
        deadline_s=transactions.deadline_s,
        rollback_on=OutcomeRule.of(transactions.rollback_on, where="transactions.rollback_on"),
        is_traced=config.telemetry.spans,
        traces_statements=config.telemetry.statements != "off",
        shows_tenant=config.telemetry.tenant_attribute,
        allows_multiple_writers=transactions.multiple_writers == "allow",
    )


def _compile_rule(index: int, config: RouteRuleConfig) -> CompiledRule:
    where = f"routes[{index}]"
    options = TransactionOptions(
        read_only=bool(config.read_only),
        isolation=parse_isolation(config.isolation),
        timeout_s=config.timeout_s,
        commit_on=OutcomeRule.of(config.commit_on, where=f"{where}.commit_on"),
        rollback_on=OutcomeRule.of(config.rollback_on, where=f"{where}.rollback_on"),
    )
    method, path = compile_pattern(config.match)
    rule = RouteRule(
        options=options if options != TransactionOptions() else None,
        intent=None if config.intent is None else AccessIntent(config.intent),
        is_strong=config.consistency == "strong",
    )
    return CompiledRule(method, path, rule)


def _compile_resolver(config: ResolverConfig) -> TenantResolver:
    argument = config.argument
    if config.kind == "header":
        return HeaderResolver(argument)
    if config.kind == "subdomain_of":
        return SubdomainResolver(argument)
    if config.kind == "path_prefix":
        return PathPrefixResolver(argument)
    module, _, attribute = argument.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"tenancy.resolve: the callable {argument!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(f"tenancy.resolve: {argument!r} is not callable")
    return CallableResolver(cast("TenantFunction", found), name=argument)
