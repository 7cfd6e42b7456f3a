"""The section `datasources`: servers, pools, routing, audit; and the section `budget`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from . import values
from .kinds import (
    CallablePath,
    ConnectionLimit,
    DatabaseIdentifier,
    Depth,
    Duration,
    Flag,
    InFlightLimit,
    OpenPools,
    PoolMinimum,
    PoolSize,
    ProbeCount,
    ProcessCount,
    QueueLength,
    ReplicaName,
    ReservedConnections,
    TypeSpecification,
    Url,
    Weight,
    WholeSeconds,
    ZoneName,
)
from .sections import OMISSIBLE, Section, duration_field, mapping_field, section_field


class EndpointConfig(Section):
    """One server: its address and login."""

    url: Url = Field(
        title="Connection URL",
        description=(
            "libpq's connection URL or keyword string. With {tenant} in the name of the database, the user or the"
            " host, each tenant has its own. Keep passwords out of this file: take the URL from the environment with"
            " ${NAME}, or from a file with {file: path}."
        ),
        examples=[
            "${ORDERS_PRIMARY_URL}",
            "postgresql://app@db.internal:5432/orders",
            {"file": "/run/secrets/orders_url"},
        ],
    )


class ReplicaConfig(EndpointConfig):
    """A streaming replica of the datasource's primary."""

    weight: Weight = Field(
        default=1,
        title="Weight",
        description="Its share of the reads, relative to the other replicas' weights; for weighted and least_busy.",
        examples=[2],
    )
    zone: Annotated[ZoneName | None, OMISSIBLE] = Field(
        default=None,
        title="Zone",
        description="The server's zone. With routing.zone, replicas of that zone are preferred.",
        examples=["eu-west-1a"],
    )
    drain: Flag = Field(
        default=False,
        title="Drain",
        description="true: it gets no new reads, and reads in progress continue. For removing it under load.",
        examples=[True],
    )


class PoolConfig(Section):
    """The connection pool of each server of a datasource; every process has its own."""

    min_size: PoolMinimum = Field(
        default=1,
        title="Fewest connections",
        description="Connections that are kept open even when idle.",
        examples=[2],
    )
    max_size: PoolSize = Field(
        default=10,
        title="Most connections",
        description=(
            "Most connections to one server from one process. Multiplied by the number of processes it must fit into"
            " the server's max_connections."
        ),
        examples=[20],
    )
    acquire_timeout_s: Duration = duration_field(
        "5s",
        alias="acquire_timeout",
        title="Longest wait for a connection",
        description="How long a statement waits for a free connection before the request is answered with 503.",
        examples=["3s"],
    )
    max_waiting: QueueLength = Field(
        default=100,
        title="Longest queue",
        description=(
            "How many statements may wait for a connection; a further one is answered with 503 at once. 0 sets no"
            " bound."
        ),
        examples=[200],
    )
    connect_timeout_s: WholeSeconds = duration_field(
        "3s",
        alias="connect_timeout",
        title="Longest connect",
        description="How long one attempt to connect may take, in whole seconds; libpq waits at least 2s.",
        examples=["2s"],
    )
    reconnect_pause_s: Duration = duration_field(
        "2s",
        alias="reconnect_pause",
        title="Longest pause between attempts to reconnect",
        description=(
            "A server that is down is retried after 200ms, then after pauses that double up to this one: after its"
            " return, or a failover, it is in use again within this time."
        ),
        examples=["1s"],
    )
    max_lifetime_s: Duration = duration_field(
        "1h",
        alias="max_lifetime",
        title="Longest life of a connection",
        description="A connection older than this is replaced as soon as it is free.",
        examples=["30m"],
    )
    max_idle_s: Duration = duration_field(
        "10m",
        alias="max_idle",
        title="Longest idle time",
        description="Connections beyond min_size are closed after this idle time.",
        examples=["5m"],
    )
    tcp_user_timeout_s: Duration = duration_field(
        "10s",
        alias="tcp_user_timeout",
        title="Longest silence with data in flight",
        description="A connection is dropped when sent data stays unacknowledged for this long.",
        examples=["5s"],
    )
    keepalives_idle_s: WholeSeconds = duration_field(
        "10s",
        alias="keepalives_idle",
        title="Silence before the first TCP keepalive",
        description="How long a connection is silent before the system sends the first keepalive.",
        examples=["30s"],
    )
    keepalives_interval_s: WholeSeconds = duration_field(
        "3s",
        alias="keepalives_interval",
        title="Pause between TCP keepalives",
        description="How long the system waits for the answer to a keepalive before it sends the next one.",
        examples=["5s"],
    )
    keepalives_count: ProbeCount = Field(
        default=3,
        title="Lost TCP keepalives",
        description="A connection is dropped after this many keepalives without an answer.",
        examples=[5],
    )
    pooler: Annotated[Literal["none", "transaction"], values.word("Pooler", "none", "transaction")] = Field(
        default="none",
        title="Pooler in between",
        description=(
            "transaction: the URL leads to PgBouncer, or another pooler, in transaction mode. Statements are then not"
            " prepared on the server, every transaction begins with a reset of the session (see reset), and statements"
            " whose text shows that they change the session are refused."
        ),
        examples=["transaction"],
    )
    reset: Annotated[
        Literal["on_tenant_change", "always", "never"], values.word("Reset", "on_tenant_change", "always", "never")
    ] = Field(
        default="on_tenant_change",
        title="Reset of sessions",
        description=(
            "When what a session of the server keeps beyond its transactions is cleared: settings, role, temporary"
            " objects, cursors, advisory locks, sequence values, channels. on_tenant_change: before the first statement"
            " of another tenant than the last one on the connection, in that statement's round trip; behind a pooler in"
            " transaction mode, in every transaction. always: before the first statement of every use. never: only"
            " after statements whose text shows that they change the session."
        ),
        examples=["always"],
    )
    fair: Flag = Field(
        default=False,
        title="Tenants take turns",
        description=(
            "true: each tenant has a queue of its own, and the queues take turns; when all are full, the tenant with"
            " the longest queue is answered with 503."
        ),
        examples=[True],
    )
    multiplex: Annotated[Literal["auto", "off"], values.word("Multiplex", "auto", "off")] = Field(
        default="auto",
        title="Multiplexed reads",
        description=(
            "auto: a read that would have to wait for a connection joins those in progress on another one, in one"
            " pipeline. Each keeps its tenant, READ ONLY, time limit and errors, and none waits behind a slow one."
            " Writes, transactions and streams never share a connection, and reads do not behind a pooler, with fair,"
            " or before PostgreSQL 14. off: every read has a connection of its own."
        ),
        examples=["off"],
    )
    max_depth: Depth = Field(
        default=8,
        title="Most reads on one connection",
        description="With multiplex: most reads on one connection at a time.",
        examples=[4],
    )
    max_open_pools: OpenPools = Field(
        default=100,
        title="Most open pools",
        description=(
            "With a database for each tenant ({tenant} in the URL): most pools open at a time. For a further one, the"
            " least recently used pool is closed, never one in use."
        ),
        examples=[200],
    )
    close_idle_after_s: Duration = duration_field(
        "10m",
        alias="close_idle_after",
        title="Close idle pools",
        description="With a database for each tenant: a pool is closed after this idle time.",
        examples=["5m"],
    )


class RoutingConfig(Section):
    """Which of a datasource's servers runs a statement."""

    balance: Annotated[
        Literal["round_robin", "weighted", "least_busy", "nearest"],
        values.word("Balance", "round_robin", "weighted", "least_busy", "nearest"),
    ] = Field(
        default="round_robin",
        title="Balance",
        description=(
            "How reads are spread over the replicas. round_robin: they take turns. weighted: turns by weight."
            " least_busy: the replica with the fewest connections in use for its weight. nearest: the replicas with the"
            " shortest round trips take turns."
        ),
        examples=["weighted"],
    )
    max_lag_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="max_lag",
        title="Largest lag",
        description=(
            "How old the data of a read may be. A replica that cannot prove that its data is younger gets no reads:"
            " because it lags, is cut off, or its state is unknown. Without it, every replica that is up is used."
        ),
        examples=["5s"],
    )
    no_replica: Annotated[Literal["primary", "fail", "stale"], values.word("NoReplica", "primary", "fail", "stale")] = (
        Field(
            default="primary",
            title="No eligible replica",
            description=(
                "Which server answers reads while no replica is eligible. primary: the primary, and the reads stay"
                " READ ONLY. fail: none, the requests are answered with 503 and the primary is spared. stale: the"
                " primary, or while it is down a replica that lags."
            ),
            examples=["primary"],
        )
    )
    check_interval_s: Duration = duration_field(
        "1s",
        alias="check_interval",
        title="Pause between checks",
        description=(
            "How often each server's state is polled, over a separate connection; more often when a max_lag is shorter"
            " than four times this. Without replicas there is no polling."
        ),
        examples=["500ms"],
    )
    zone: Annotated[ZoneName | None, OMISSIBLE] = Field(
        default=None,
        title="Own zone",
        description=(
            "The zone of this process: replicas of the same zone are preferred, the others are used when none of them"
            " is eligible."
        ),
        examples=["${ZONE}"],
    )
    warmup_s: Duration = duration_field(
        "10s",
        alias="warmup",
        title="Warm-up",
        description="A replica that was down gradually returns to its full share of the reads within this time.",
        examples=["30s"],
    )


class BudgetConfig(Section):
    """How many connections the processes of the application may open, for checks before a deployment."""

    processes: ProcessCount = Field(
        default=1,
        title="Processes",
        description="Processes of the application on all machines, including the overlap of a deployment.",
        examples=[8],
    )
    reserve: ReservedConnections = Field(
        default=10,
        title="Reserve",
        description="Connections of each server that are reserved for others: migrations, jobs, people.",
        examples=[10],
    )
    max_connections: Annotated[ConnectionLimit | None, OMISSIBLE] = Field(
        default=None,
        title="Most connections of a server",
        description=(
            "The max_connections of the smallest server. validate compares it with processes x max_size; check reads"
            " it from each server."
        ),
        examples=[200],
    )


class AuditConfig(Section):
    """Checks of the database's tenant isolation at start-up."""

    on_start: Annotated[Literal["refuse", "warn", "off"], values.word("OnStart", "refuse", "warn", "off")] = Field(
        default="refuse",
        title="At start-up",
        description=(
            "refuse: the application does not start with a role that bypasses the row security of its tenants; other"
            " holes are logged. warn: all are logged. off: no checks. A server that is down does not prevent the start."
        ),
        examples=["refuse"],
    )
    allow_roles: tuple[DatabaseIdentifier, ...] = Field(
        default=(),
        title="Roles that may bypass",
        description=(
            "Roles, of logins and of tenants, that may bypass row security or use the schemas of several tenants."
        ),
        examples=[["reporting"]],
    )
    shared_tables: tuple[DatabaseIdentifier, ...] = Field(
        default=(),
        title="Shared tables",
        description="Tables, views and functions whose rows all tenants may see, as table or schema.table.",
        examples=[["countries", "shop.currencies"]],
    )


class DataSourceConfig(Section):
    """One logical database: a primary and its streaming replicas."""

    driver: Annotated[CallablePath | None, OMISSIBLE] = Field(
        default=None,
        title="Driver",
        description=(
            "Where the driver of another database is found, as package.module:attribute; its servers' URLs are written"
            " as that driver reads them. Default: psycopg, for PostgreSQL. check, provisioning, the start-up audit and"
            " tenants_from know PostgreSQL only."
        ),
        examples=["shop.sqlite:DRIVER"],
    )
    primary: EndpointConfig = Field(
        title="Primary",
        description="The server that takes writes.",
        examples=[{"url": "${ORDERS_PRIMARY_URL}"}],
    )
    admin: Annotated[EndpointConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Login for provisioning",
        description=(
            "The login of asgi-datasource tenants and registry.provision: a role that may create schemas, databases"
            " and roles, which the application's own role does not need. Without {tenant}. Default: the primary's URL."
        ),
        examples=[{"url": "${ORDERS_ADMIN_URL}"}],
    )
    replicas: dict[ReplicaName, ReplicaConfig] = mapping_field(
        title="Replicas",
        description="Streaming replicas of the primary, by name; reads go to them. The name primary is reserved.",
        examples=[{"r1": {"url": "${ORDERS_R1_URL}"}}],
    )
    pool: PoolConfig = section_field(
        PoolConfig,
        title="Pool",
        description="The connection pool of each of these servers.",
        examples=[{"min_size": 2, "max_size": 20}],
    )
    routing: RoutingConfig = section_field(
        RoutingConfig,
        title="Routing",
        description="Which of these servers runs a statement.",
        examples=[{"balance": "round_robin"}],
    )
    max_in_flight: Annotated[InFlightLimit | None, OMISSIBLE] = Field(
        default=None,
        title="Most requests in flight",
        description=(
            "How many requests of each process may use this datasource at a time; a further one is answered with 503"
            " at its first statement. Requests of high priority are always admitted, those of low priority up to half"
            " of the limit. Without it, only the pools' queues are bounded. With a database for each tenant, the limit"
            " applies to each database."
        ),
        examples=[200],
    )
    types: tuple[TypeSpecification, ...] = Field(
        default=(),
        title="Types",
        description=(
            "Types of the database whose values are converted: hstore, vector, halfvec, sparsevec, enum NAME, composite"
            " NAME, range NAME. A name without a schema is each tenant's own type, found by its search_path. With as"
            " package.module:Class, an enum or a composite has this Python class. For the driver psycopg."
        ),
        examples=[["hstore", "vector", "enum shop.color"]],
    )
    audit: AuditConfig = section_field(
        AuditConfig,
        title="Audit",
        description="Checks of the database's tenant isolation at start-up.",
        examples=[{"shared_tables": ["countries"]}],
    )
    search_path: tuple[DatabaseIdentifier, ...] = Field(
        default=(),
        title="Shared schemas",
        description="Schemas in the search_path after the tenant's own: extensions, shared tables.",
        examples=[["extensions"]],
    )
