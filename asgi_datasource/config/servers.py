"""The databases in the document: servers, their pools, and how reads are spread over them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from . import values
from .kinds import (
    ConnectionLimit,
    DatabaseIdentifier,
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
    Url,
    Weight,
    WholeSeconds,
    ZoneName,
)
from .sections import OMISSIBLE, Section, duration_field, mapping_field, section_field


class EndpointConfig(Section):
    """One server: where it is and how to log in."""

    url: Url = Field(
        title="Connection URL",
        description=(
            "libpq's connection URL or keyword string; {tenant} in the name of the database, the user or the host makes"
            " it one for each tenant. Keep passwords out of this file: take the URL from the environment with ${NAME},"
            " or from a file with {file: path}."
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
        description="Where the server is. With routing.zone, the replicas of that zone go first.",
        examples=["eu-west-1a"],
    )
    drain: Flag = Field(
        default=False,
        title="Drain",
        description="true: it gets no new reads, while what has begun there goes on. For taking it away under load.",
        examples=[True],
    )


class PoolConfig(Section):
    """The connection pool of each server of a datasource; every process has its own."""

    min_size: PoolMinimum = Field(
        default=1,
        title="Fewest connections",
        description="Connections that are kept open also when nobody uses them.",
        examples=[2],
    )
    max_size: PoolSize = Field(
        default=10,
        title="Most connections",
        description=(
            "Most connections to one server from one process. Processes times this must fit into the server's"
            " max_connections."
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
        description="How many may wait for a connection; the next one is answered with 503 at once. 0 sets no bound.",
        examples=[200],
    )
    connect_timeout_s: WholeSeconds = duration_field(
        "3s",
        alias="connect_timeout",
        title="Longest connect",
        description="How long one attempt to connect may take, in whole seconds; libpq waits 2s at least.",
        examples=["2s"],
    )
    reconnect_pause_s: Duration = duration_field(
        "2s",
        alias="reconnect_pause",
        title="Longest pause between attempts to reconnect",
        description=(
            "A server that is down is tried again after 200ms, then after pauses that double up to this one: after it"
            " came back, or a failover, it is in use again within this time."
        ),
        examples=["1s"],
    )
    max_lifetime_s: Duration = duration_field(
        "1h",
        alias="max_lifetime",
        title="Longest life of a connection",
        description="A connection older than this is replaced once it is free.",
        examples=["30m"],
    )
    max_idle_s: Duration = duration_field(
        "10m",
        alias="max_idle",
        title="Longest idle time",
        description="Connections beyond min_size are closed after this long without use.",
        examples=["5m"],
    )
    tcp_user_timeout_s: Duration = duration_field(
        "10s",
        alias="tcp_user_timeout",
        title="Longest silence with data in flight",
        description="A connection whose data the other side has not acknowledged for this long is given up.",
        examples=["5s"],
    )
    keepalives_idle_s: WholeSeconds = duration_field(
        "10s",
        alias="keepalives_idle",
        title="Silence before the first TCP keepalive",
        description="How long a connection is silent before the system asks whether the other side is still there.",
        examples=["30s"],
    )
    keepalives_interval_s: WholeSeconds = duration_field(
        "3s",
        alias="keepalives_interval",
        title="Pause between TCP keepalives",
        description="How long to wait for the answer to a keepalive before the next one.",
        examples=["5s"],
    )
    keepalives_count: ProbeCount = Field(
        default=3,
        title="Lost TCP keepalives",
        description="After so many keepalives without an answer the connection is given up.",
        examples=[5],
    )
    pooler: Annotated[Literal["none", "transaction"], values.word("Pooler", "none", "transaction")] = Field(
        default="none",
        title="Pooler in between",
        description=(
            "transaction: the URL leads to PgBouncer, or another pooler, in transaction mode. Statements are not"
            " prepared on the server then, and those that change the session itself are refused: the next transaction"
            " on that connection may be another tenant's."
        ),
        examples=["transaction"],
    )
    fair: Flag = Field(
        default=False,
        title="Tenants take turns",
        description=(
            "true: each tenant waits in a line of its own, and the lines take turns; in a full queue it is the tenant"
            " with the longest line that is answered with 503."
        ),
        examples=[True],
    )
    max_open_pools: OpenPools = Field(
        default=100,
        title="Most open pools",
        description=(
            "With a database for each tenant ({tenant} in the URL): most pools open at a time. The one that was used"
            " longest ago is closed for the next, never one in use."
        ),
        examples=[200],
    )
    close_idle_after_s: Duration = duration_field(
        "10m",
        alias="close_idle_after",
        title="Close idle pools",
        description="With a database for each tenant: a pool that nobody has used for this long is closed.",
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
            " least_busy: the one with the fewest borrowed connections for its weight. nearest: those whose answers"
            " come soonest take turns."
        ),
        examples=["weighted"],
    )
    max_lag_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="max_lag",
        title="Largest lag",
        description=(
            "How old the data of a read may be. A replica that cannot show that its data is younger gets no reads: one"
            " that lags, that is cut off, or of which nothing is known. Without it, every replica that is up is used."
        ),
        examples=["5s"],
    )
    no_replica: Annotated[Literal["primary", "fail", "stale"], values.word("NoReplica", "primary", "fail", "stale")] = (
        Field(
            default="primary",
            title="No replica may answer",
            description=(
                "Who answers reads while no replica may. primary: it stands in, and they stay read only. fail: nobody,"
                " they are answered with 503 and the primary is spared. stale: the primary; while that is down, a"
                " replica although it lags."
            ),
            examples=["primary"],
        )
    )
    check_interval_s: Duration = duration_field(
        "1s",
        alias="check_interval",
        title="Pause between checks",
        description=(
            "How often each server is asked how it is, over a connection of its own; more often where a max_lag is"
            " shorter than four times this. Where there are no replicas nobody is asked."
        ),
        examples=["500ms"],
    )
    zone: Annotated[ZoneName | None, OMISSIBLE] = Field(
        default=None,
        title="Own zone",
        description="Where this process runs: replicas of the same zone go first, the others when none of them may.",
        examples=["${ZONE}"],
    )
    warmup_s: Duration = duration_field(
        "10s",
        alias="warmup",
        title="Warm-up",
        description="A replica that was down gets back to its whole share of the reads within this time, bit by bit.",
        examples=["30s"],
    )


class BudgetConfig(Section):
    """How many connections the processes of the application may open, so that this is checked before it is deployed."""

    processes: ProcessCount = Field(
        default=1,
        title="Processes",
        description="Processes of the application over all machines, those of a deployment's overlap included.",
        examples=[8],
    )
    reserve: ReservedConnections = Field(
        default=10,
        title="Reserve",
        description="Connections of each server that are left to others: migrations, jobs, people.",
        examples=[10],
    )
    max_connections: Annotated[ConnectionLimit | None, OMISSIBLE] = Field(
        default=None,
        title="Most connections of a server",
        description=(
            "What the smallest of the servers allows; validate compares it with processes x max_size, where check"
            " asks each server."
        ),
        examples=[200],
    )


class AuditConfig(Section):
    """What is looked for in the database before tenants are trusted to it."""

    on_start: Annotated[Literal["refuse", "warn", "off"], values.word("OnStart", "refuse", "warn", "off")] = Field(
        default="refuse",
        title="At the start",
        description=(
            "refuse: the application does not start with a role that bypasses the row security of its tenants; other"
            " holes are logged. warn: all are logged. off: nobody looks. A server that is down keeps nobody from"
            " starting."
        ),
        examples=["refuse"],
    )
    allow_roles: tuple[DatabaseIdentifier, ...] = Field(
        default=(),
        title="Roles that may bypass",
        description=(
            "Login roles, and roles of tenants, that may bypass row security or use the schemas of several tenants."
        ),
        examples=[["reporting"]],
    )
    shared_tables: tuple[DatabaseIdentifier, ...] = Field(
        default=(),
        title="Shared tables",
        description="Tables, views and functions that all tenants may see all of, as table or schema.table.",
        examples=[["countries", "shop.currencies"]],
    )


class DataSourceConfig(Section):
    """One logical database: a primary and its streaming replicas."""

    primary: EndpointConfig = Field(
        title="Primary",
        description="The server that takes writes.",
        examples=[{"url": "${ORDERS_PRIMARY_URL}"}],
    )
    admin: Annotated[EndpointConfig | None, OMISSIBLE] = Field(
        default=None,
        title="Who provisions",
        description=(
            "How asgi-datasource tenants and registry.provision log in: as a role that may create schemas, databases"
            " and roles there, which the application's own need not be. Without {tenant}. The primary's unless told"
            " otherwise."
        ),
        examples=[{"url": "${ORDERS_ADMIN_URL}"}],
    )
    replicas: dict[ReplicaName, ReplicaConfig] = mapping_field(
        title="Replicas",
        description="Streaming replicas of the primary, by name; reads go to them. The name primary is taken.",
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
            "How many requests may use this datasource at a time, in each process; the next one is answered with 503 at"
            " its first statement. Those of high priority get in all the same, those of low priority up to half of it."
            " Without it, only the pools' queues are bounded. With a database for each tenant: of each of these."
        ),
        examples=[200],
    )
    audit: AuditConfig = section_field(
        AuditConfig,
        title="Audit",
        description="What is looked for in the database before tenants are trusted to it.",
        examples=[{"shared_tables": ["countries"]}],
    )
    search_path: tuple[DatabaseIdentifier, ...] = Field(
        default=(),
        title="Shared schemas",
        description="Schemas that are searched after the tenant's own: extensions, shared tables.",
        examples=[["extensions"]],
    )
