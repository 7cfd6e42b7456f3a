"""Compiles a validated configuration into a `RuntimeConfig`. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import Final

from ..concurrency.limits import ConcurrencyLimit, InFlight
from ..concurrency.priority_queue import Priority
from ..config import (
    PLACEHOLDER,
    Config,
    ConsistencyConfig,
    DataSourceConfig,
    EndpointConfig,
    HealthConfig,
    PoolConfig,
    TelemetryConfig,
)
from ..config import RouteRule as RouteRuleConfig
from ..datasource.database_fleet import Fleet
from ..datasource.datasource import DataSource, ReplicatedDataSource, ReplicaTraits
from ..drivers import DEFAULT_DRIVER, load_driver
from ..drivers.protocol import Driver, Server
from ..drivers.settings import Reset, ServerSettings, TypeName
from ..errors import ConfigError
from ..observability.metrics import Metrics
from ..observability.query_tags import TagOptions
from ..observability.session_trace import TraceOptions
from ..routing import AccessIntent, Balance, Consistency, Freshness, NoReplica, Role, RoutingPolicy, choose_interval
from ..routing.consistency.client_history import TokenPolicy
from ..routing.consistency.token import TokenSigner
from ..routing.consistency.token_transport import TokenTransport
from ..sessions.policy import CommitScope, RouteRule, SessionPolicy
from ..sessions.route_rules import CompiledRule, RouteRules, compile_pattern
from ..tenancy import (
    CatalogPlan,
    OtherTenants,
    PlaceIndex,
    Resolvers,
    Tenant,
    TenantCompiler,
    TenantDirectory,
    compile_admission,
    compile_tenants,
    homes_to_come,
    import_callable,
)
from ..tenancy.path_prefix import PathPrefixes
from ..tenancy.provisioning import compile_provisioning
from ..tenancy.ways import ways_to_name
from ..transaction import OutcomeRule, Propagation, TransactionOptions, parse_isolation, parse_propagation
from .runtime_config import ErrorSettings, RuntimeConfig

MIN_REACH_S: Final = 600.0
"""Least seconds for which WAL positions of the primary are kept, to derive replication lag from."""


def compile_config(config: Config, *, previous: RuntimeConfig | None = None) -> RuntimeConfig:
    """Compile a configuration.

    Args:
        config: A validated configuration.
        previous: The configuration that it replaces: servers with unchanged settings keep their pools.

    Raises:
        ConfigError: A setting cannot be used; the message names it.
    """
    place_index = PlaceIndex(config)
    directory = TenantDirectory(place_index.with_owners(compile_tenants(config)))
    _check_settings(config, directory.map.names.values())
    before: Mapping[str, DataSource] = {} if previous is None else previous.datasources
    lags_s = [rule.max_lag_s for rule in config.routes]
    return RuntimeConfig(
        datasources={
            name: _compile_datasource(name, datasource, before.get(name), lags_s)
            for name, datasource in config.datasources.items()
            if not _has_databases(datasource)
        },
        fleets={
            name: _compile_fleet(name, datasource, None if previous is None else previous.fleets.get(name), lags_s)
            for name, datasource in config.datasources.items()
            if _has_databases(datasource)
        },
        admission=compile_admission(
            config, directory, OtherTenants(config, place_index) if place_index.has_others else None
        ),
        resolvers=Resolvers(config.tenancy, directory),
        homes_to_come=homes_to_come(config),
        provisioning=compile_provisioning(config, directory.map),
        migrating=None if config.migrate is None else config,
        shared_schemas={name: datasource.search_path for name, datasource in config.datasources.items()},
        audits={name: datasource.audit for name, datasource in config.datasources.items() if datasource.driver is None},
        catalog=(
            None
            if config.tenants_from is None
            else CatalogPlan(
                config.tenants_from,
                TenantCompiler(config.datasources),
                directory.map,
                own_hosts=config.tenancy.own_hosts,
                place_index=place_index,
            )
        ),
        policy=_compile_policy(config, previous),
        rules=_compile_rules(config.routes, None if previous is None else previous.rules),
        exempt=PathPrefixes(
            [*config.tenancy.exempt.paths, *([] if config.health is None else [config.health.path])],
            pages=config.tenancy.exempt.pages,
        ),
        ready_rule=HealthConfig().ready if config.health is None else config.health.ready,
        outbox=config.outbox,
        publishing=None if config.outbox is None else config,
        document=config,
        reload=config.reload,
        errors=_compile_errors(config),
    )


def _compile_errors(config: Config) -> ErrorSettings:
    tenancy, path = config.tenancy, config.errors.handler
    # With `hide_unknown`, a request learns nothing about tenants, so neither how one is named.
    has_page = tenancy.missing_page and not tenancy.hide_unknown
    return ErrorSettings(
        statuses=dict(config.errors.status),
        shows_details=config.errors.debug,
        handler=None if path is None else import_callable(path, where="errors.handler"),
        ways=ways_to_name(tenancy) if has_page else None,
    )


def _has_databases(datasource: DataSourceConfig) -> bool:
    return PLACEHOLDER in datasource.primary.url.get_secret_value()


def _compile_datasource(
    name: str, config: DataSourceConfig, previous: DataSource | None, route_lags_s: Sequence[float | None]
) -> DataSource:
    driver = _driver_of(name, config)
    before: Mapping[str, Server] = {} if previous is None else previous.servers

    def make(node: str, role: Role, server: EndpointConfig) -> Server:
        settings = server_settings(config.pool, server.url.get_secret_value(), driver=config.driver, types=config.types)
        present = before.get(node)
        if present is not None and present.role is role and present.settings == settings:
            return present
        return driver.make_server(node, name, role, settings)

    primary = make("primary", Role.PRIMARY, config.primary)
    replicas = [make(node, Role.REPLICA, server) for node, server in config.replicas.items()]
    policy, traits = _compile_routing(config, route_lags_s)
    previous_count = (
        None if previous is None or previous.concurrency_limit is None else previous.concurrency_limit.in_flight
    )
    limit = _compile_limit(name, config, previous_count)
    made = ReplicatedDataSource(name, primary, replicas, policy=policy, traits=traits, concurrency_limit=limit)
    return previous if previous is not None and made.is_like(previous) else made


def _compile_limit(name: str, config: DataSourceConfig, in_flight: InFlight | None = None) -> ConcurrencyLimit | None:
    """The concurrency limit of a datasource; after a reload, requests in progress still count."""
    if config.max_in_flight is None:
        return None
    advice = (
        "Raise max_in_flight of the datasource where its pools have connections to spare, make its requests shorter, or"
        " give less to those that matter less with max_in_flight of their routes"
    )
    return ConcurrencyLimit(f"datasource {name!r}", config.max_in_flight, advice=advice, in_flight=in_flight)


def _compile_routing(
    config: DataSourceConfig, route_lags_s: Sequence[float | None]
) -> tuple[RoutingPolicy, dict[str, ReplicaTraits]]:
    """The routing policy of a datasource, and the traits of its replicas."""
    routing = config.routing
    lags_s = [lag for lag in (routing.max_lag_s, *route_lags_s) if lag is not None]
    policy = RoutingPolicy(
        balance=Balance(routing.balance),
        max_lag_s=routing.max_lag_s,
        no_replica=NoReplica(routing.no_replica),
        zone=routing.zone,
        warmup_s=routing.warmup_s,
        check_interval_s=choose_interval(routing.check_interval_s, lags_s),
        reach_s=max([MIN_REACH_S, *(2 * lag for lag in lags_s)]),
    )
    traits = {node: ReplicaTraits(server.weight, server.zone, server.drain) for node, server in config.replicas.items()}
    return policy, traits


def _compile_fleet(
    name: str, config: DataSourceConfig, previous: Fleet | None, route_lags_s: Sequence[float | None]
) -> Fleet:
    """A datasource with a database per tenant; pools are opened on first use."""
    policy, traits = _compile_routing(config, route_lags_s)
    settings = (config, policy)
    if previous is not None and previous.settings == settings:
        return previous
    driver = _driver_of(name, config)
    templates = {
        node: driver.make_template(server.url.get_secret_value(), where=f"datasources.{name}, server {node!r}")
        for node, server in (("primary", config.primary), *config.replicas.items())
    }

    def make(database: str, fleet: Fleet) -> ReplicatedDataSource:
        def server(node: str, role: Role) -> Server:
            settings = server_settings(
                config.pool, templates[node].fill(database), driver=config.driver, types=config.types
            )
            return driver.make_server(node, name, role, settings, keeper=fleet)

        replicas = [server(node, Role.REPLICA) for node in config.replicas]
        primary = server("primary", Role.PRIMARY)
        limit = _compile_limit(name, config)
        return ReplicatedDataSource(name, primary, replicas, policy=policy, traits=traits, concurrency_limit=limit)

    pool = config.pool
    return Fleet(
        name,
        make,
        replicas=tuple(config.replicas),
        drained=() if previous is None else previous.drained,
        max_open=pool.max_open_pools,
        close_idle_after_s=pool.close_idle_after_s,
        settings=settings,
    )


def _check_settings(config: Config, tenants: Iterable[Tenant]) -> None:
    lacking = {
        name
        for name, datasource in config.datasources.items()
        if datasource.driver is not None and not _driver_of(name, datasource).has_settings
    }
    if not lacking:
        return
    for tenant in tenants:
        if tenant.datasource in lacking and tenant.settings:
            raise ConfigError(
                f"tenants.{tenant.name}: the driver {config.datasources[tenant.datasource].driver} of"
                f" {tenant.datasource} cannot keep tenants apart by schema, role or row_security; give the tenant a"
                " datasource of its own"
            )


def _driver_of(name: str, config: DataSourceConfig) -> Driver:
    return load_driver(config.driver or DEFAULT_DRIVER, key=f"datasources.{name}.driver")


def server_settings(
    pool: PoolConfig, conninfo: str, *, driver: str | None = None, types: Sequence[str] = ()
) -> ServerSettings:
    """The connection and pool settings of a server."""
    return ServerSettings(
        conninfo=conninfo,
        driver=driver,
        min_size=pool.min_size,
        max_size=pool.max_size,
        acquire_timeout_s=pool.acquire_timeout_s,
        max_waiting=pool.max_waiting,
        connect_timeout_s=pool.connect_timeout_s,
        reconnect_pause_s=pool.reconnect_pause_s,
        max_lifetime_s=pool.max_lifetime_s,
        max_idle_s=pool.max_idle_s,
        tcp_user_timeout_s=pool.tcp_user_timeout_s,
        keepalives_idle_s=pool.keepalives_idle_s,
        keepalives_interval_s=pool.keepalives_interval_s,
        keepalives_count=pool.keepalives_count,
        is_fair=pool.fair,
        max_depth=1 if pool.multiplex == "off" or pool.pooler == "transaction" else pool.max_depth,
        reset=Reset(pool.reset),
        is_pooled=pool.pooler == "transaction",
        prepares=pool.pooler == "none",
        types=tuple([TypeName.parse(text) for text in types]),
    )


def _compile_policy(config: Config, previous: RuntimeConfig | None) -> SessionPolicy:
    transactions = config.transactions
    return SessionPolicy(
        commit_scope=CommitScope.SESSION if transactions.default == "request" else CommitScope.ANNOTATED,
        deadline_s=transactions.deadline_s,
        rollback_on=OutcomeRule.of(transactions.rollback_on, where="transactions.rollback_on"),
        is_traced=config.telemetry.spans,
        trace_options=TraceOptions(
            statements=config.telemetry.statements != "off",
            text=config.telemetry.statements == "text",
            tenant=config.telemetry.tenant_attribute,
        ),
        tags=_compile_tags(config.telemetry),
        metrics=_compile_metrics(config, previous),
        retry=transactions.retry,
        retry_body_limit=transactions.retry_body_limit,
        max_parallel=transactions.max_parallel,
        allows_multiple_writers=transactions.multiple_writers == "allow",
        tokens=_compile_tokens(config.consistency),
    )


def _compile_tags(telemetry: TelemetryConfig) -> TagOptions | None:
    if telemetry.sqlcommenter == "off" and not telemetry.application_name:
        return None
    return TagOptions(
        comments=telemetry.sqlcommenter != "off",
        traceparent=telemetry.sqlcommenter == "traceparent",
        tenant=telemetry.tenant_attribute,
        application_name=telemetry.application_name,
    )


def _compile_metrics(config: Config, previous: RuntimeConfig | None) -> Metrics | None:
    """The metrics; a reload keeps the tenants' labels, so that their number stays within the configured limit."""
    if not config.telemetry.metrics:
        return None
    before = None if previous is None else previous.policy.metrics
    most = config.telemetry.metric_tenants
    return before if before is not None and before.most_tenants == most else Metrics(most)


def _compile_tokens(config: ConsistencyConfig) -> TokenPolicy | None:
    if config.token == "off" or config.secret is None:  # noqa: S105 - a word of the configuration
        return None
    return TokenPolicy(
        signer=TokenSigner(
            [secret.get_secret_value() for secret in (config.secret, *config.old_secrets)], ttl_s=config.ttl_s
        ),
        transport=TokenTransport(
            cookie=config.cookie if config.token in ("cookie", "both") else None,
            header=config.header if config.token in ("header", "both") else None,
            max_age_s=ceil(config.ttl_s),
        ),
        wait_s=config.wait_s,
        is_monotonic=config.monotonic,
    )


def _compile_rules(routes: Sequence[RouteRuleConfig], previous: RouteRules | None) -> RouteRules:
    before = {} if previous is None else {compiled.match: compiled.rule.concurrency_limit for compiled in previous}
    return RouteRules([_compile_rule(index, rule, before.get(rule.match)) for index, rule in enumerate(routes)])


def _compile_rule(index: int, config: RouteRuleConfig, previous: ConcurrencyLimit | None) -> CompiledRule:
    where = f"routes[{index}]"
    options = TransactionOptions(
        read_only=bool(config.read_only),
        isolation=parse_isolation(config.isolation),
        propagation=parse_propagation(config.propagation or Propagation.REQUIRED),
        retry=config.retry,
        deferrable=bool(config.deferrable),
        stream=bool(config.stream),
        timeout_s=config.timeout_s,
        commit_on=OutcomeRule.of(config.commit_on, where=f"{where}.commit_on"),
        rollback_on=OutcomeRule.of(config.rollback_on, where=f"{where}.rollback_on"),
    )
    method, path = compile_pattern(config.match)
    rule = RouteRule(
        options=options if options != TransactionOptions() else None,
        # Settings that only limit a transaction, or decide its outcome, do not ask for one.
        is_transactional=(config.read_only, config.isolation, config.propagation, config.retry) != (None,) * 4,
        intent=None if config.intent is None else AccessIntent(config.intent),
        freshness=Freshness(None if config.consistency is None else Consistency(config.consistency), config.max_lag_s),
        datasource=config.datasource,
        priority=Priority.NORMAL if config.priority is None else Priority[config.priority.upper()],
        concurrency_limit=None
        if config.max_in_flight is None
        else ConcurrencyLimit(
            f"{where} ({config.match})",
            config.max_in_flight,
            advice="Raise its max_in_flight, or make these requests shorter",
            in_flight=None if previous is None else previous.in_flight,
        ),
    )
    return CompiledRule(config.match, method, path, rule)
