"""The document as models: frozen, strict, and every key described, since editors teach from these words.

A key is called here as in the document; only durations are called `*_s`, because here they are seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from ..errors import DataErrorKind
from . import values
from .url import DatabaseUrl
from .values import parse_duration

DatasourceName = Annotated[
    str,
    values.text(
        "DatasourceName",
        "a name of letters, digits, '_' and '-' that starts with a letter or digit",
        r"[A-Za-z0-9][A-Za-z0-9_-]*",
        maximum=63,
    ),
]
ReplicaName = Annotated[
    str,
    values.text(
        "ReplicaName",
        "a name of letters, digits, '_' and '-' that starts with a letter or digit",
        r"[A-Za-z0-9][A-Za-z0-9_-]*",
        maximum=63,
    ),
]
TenantName = Annotated[
    str,
    values.text(
        "TenantName",
        "a tenant name: 1 to 255 characters, without '*', braces and control characters",
        r"[^\x00-\x1f\x7f*{}]+",
        takes_reference=False,
    ),
]
DatabaseIdentifier = Annotated[
    str,
    values.text(
        "DatabaseIdentifier",
        "a name in the database: 1 to 63 characters, without braces and control characters",
        r"[^\x00-\x1f\x7f{}]+",
        maximum=63,
    ),
]
SettingName = Annotated[
    str,
    values.text(
        "SettingName",
        "a custom setting's name with a dot in it, such as app.tenant",
        r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)+",
        maximum=127,
        takes_reference=False,
    ),
]
SettingValue = Annotated[
    str,
    values.text(
        "SettingValue",
        "a string of at most 1000 characters, without braces and control characters",
        r"[^\x00-\x1f\x7f{}]*",
        minimum=0,
        maximum=1000,
    ),
]
_SEGMENT: Final = r"[^/*?#{}\x00-\x20\x7f]+"
PathPrefix = Annotated[
    str,
    values.text("PathPrefix", "a path such as /docs, without '*', '?' and '#'", rf"(?:/{_SEGMENT})+/?", maximum=1000),
]
TenantPathPrefix = Annotated[
    str,
    values.text(
        "TenantPathPrefix", "a path such as /t, or / alone", rf"/(?:{_SEGMENT}(?:/{_SEGMENT})*/?)?", maximum=1000
    ),
]
_GLOB_SEGMENT: Final = rf"(?:\*|{_SEGMENT})"
RouteMatch = Annotated[
    str,
    values.text(
        "RouteMatch",
        "a method and a path such as 'GET /reports/**': '*' is one segment, '**' at the end is the rest",
        rf"(?:(?:[A-Z]+|\*) )?/(?:{_GLOB_SEGMENT}(?:/{_GLOB_SEGMENT})*(?:/\*\*)?/?|\*\*)?",
        maximum=1000,
    ),
]
HeaderName = Annotated[
    str, values.text("HeaderName", "a header's name such as X-Tenant", r"[A-Za-z][A-Za-z0-9_-]*", maximum=64)
]
DomainName = Annotated[
    str,
    values.text(
        "DomainName",
        "a domain such as app.example.com, without port, scheme and leading dot",
        r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*",
        maximum=253,
    ),
]
CallablePath = Annotated[
    str,
    values.text(
        "CallablePath",
        "a function to import, package.module:function",
        r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*",
    ),
]
NamePattern = Annotated[
    str,
    values.text("NamePattern", "a regular expression of at most 1000 characters", r"[^\x00-\x1f\x7f]+", maximum=1000),
]

Duration = Annotated[float, values.duration("Duration")]
WholeSeconds = Annotated[float, values.duration("WholeSeconds", whole_seconds=True)]
Flag = Annotated[bool, values.flag("Flag")]
PoolSize = Annotated[int, values.integer("PoolSize", 1, 10_000)]
PoolMinimum = Annotated[int, values.integer("PoolMinimum", 0, 10_000)]
QueueSize = Annotated[int, values.integer("QueueSize", 0, 1_000_000)]
ProbeCount = Annotated[int, values.integer("ProbeCount", 1, 127)]
ClientErrorStatus = Annotated[int, values.status("ClientErrorStatus", 400, 499)]
ErrorStatus = Annotated[int, values.status("ErrorStatus", 400, 599)]
Outcome = Annotated[int | str, values.outcome("Outcome")]
ErrorKind = Annotated[
    DataErrorKind,
    values.word("ErrorKind", *(kind.value for kind in DataErrorKind if kind is not DataErrorKind.CONFIG)),
]


class _Omissible:
    """A key that may be left out, and is not written as `null` instead."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        nullable = handler(source)
        return nullable["schema"]


_OMISSIBLE: Final = _Omissible()


def _duration(written: str, **told: Any) -> Any:
    return Field(default=parse_duration(written), json_schema_extra={"default": written}, **told)


def _section(factory: type[Any], **told: Any) -> Any:
    return Field(default_factory=factory, json_schema_extra={"default": {}}, **told)


def _mapping(**told: Any) -> Any:
    return Field(default_factory=dict, json_schema_extra={"default": {}}, **told)


class Model(BaseModel):
    """A section of the document."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=False, title=None
    )

    planned: ClassVar[dict[str, str]] = {}
    """Keys that a later version brings to life, and what to do until then."""


class EndpointConfig(Model):
    """One server: where it is and how to log in."""

    url: Annotated[DatabaseUrl, values.database_url("DatabaseUrl")] = Field(
        title="Connection URL",
        description=(
            "libpq's connection URL or keyword string. Keep passwords out of this file: take the URL from the"
            " environment with ${NAME}, or from a file with {file: path}."
        ),
        examples=[
            "${ORDERS_PRIMARY_URL}",
            "postgresql://app@db.internal:5432/orders",
            {"file": "/run/secrets/orders_url"},
        ],
    )


class ReplicaConfig(EndpointConfig):
    """A streaming replica of the datasource's primary."""

    planned: ClassVar[dict[str, str]] = {
        "weight": "leave it out: replicas take turns",
        "zone": "leave it out: replicas take turns",
    }


class PoolConfig(Model):
    """The connection pool of each server of a datasource; every process has its own."""

    planned: ClassVar[dict[str, str]] = {
        "max_open_pools": "leave it out: there is one pool for each server",
        "close_idle_after": "leave it out; max_idle closes idle connections",
    }

    min_size: PoolMinimum = Field(
        default=1,
        title="Fewest connections",
        description="Connections that are kept open also when nobody uses them.",
        examples=[2],
    )
    max_size: PoolSize = Field(
        default=10,
        title="Most connections",
        description="Connections to one server from one process. Processes times this must fit the server's max_connections.",
        examples=[20],
    )
    acquire_timeout_s: Duration = _duration(
        "5s",
        alias="acquire_timeout",
        title="Longest wait for a connection",
        description="How long a statement waits for a free connection before the request is answered with 503.",
        examples=["3s"],
    )
    max_waiting: QueueSize = Field(
        default=100,
        title="Longest queue",
        description="How many may wait for a connection; the next one is answered with 503 at once. 0 sets no bound.",
        examples=[200],
    )
    connect_timeout_s: WholeSeconds = _duration(
        "3s",
        alias="connect_timeout",
        title="Longest connect",
        description="How long one attempt to connect may take, in whole seconds; libpq's shortest is 2s.",
        examples=["2s"],
    )
    reconnect_timeout_s: Duration = _duration(
        "5s",
        alias="reconnect_timeout",
        title="Longest series of reconnects",
        description=(
            "How long the pool tries again, with growing pauses, after a connection could not be replaced. Short is"
            " good: the next request after it connects at once."
        ),
        examples=["2s"],
    )
    max_lifetime_s: Duration = _duration(
        "1h",
        alias="max_lifetime",
        title="Longest life of a connection",
        description="A connection older than this is replaced when it is free.",
        examples=["30m"],
    )
    max_idle_s: Duration = _duration(
        "10m",
        alias="max_idle",
        title="Longest idle time",
        description="Connections beyond min_size are closed after this long without use.",
        examples=["5m"],
    )
    tcp_user_timeout_s: Duration = _duration(
        "10s",
        alias="tcp_user_timeout",
        title="Longest silence with data in flight",
        description="A connection whose data the network does not acknowledge for this long is given up.",
        examples=["5s"],
    )
    keepalives_idle_s: WholeSeconds = _duration(
        "10s",
        alias="keepalives_idle",
        title="Silence before the first TCP keepalive",
        description="How long a connection is silent before the system asks whether the other side is still there.",
        examples=["30s"],
    )
    keepalives_interval_s: WholeSeconds = _duration(
        "3s",
        alias="keepalives_interval",
        title="Pause between TCP keepalives",
        description="How long to wait for an answer to a keepalive before the next one.",
        examples=["5s"],
    )
    keepalives_count: ProbeCount = Field(
        default=3,
        title="Lost TCP keepalives",
        description="After so many unanswered keepalives the connection is given up.",
        examples=[3],
    )


class RoutingConfig(Model):
    """Which of a datasource's servers runs a statement."""

    planned: ClassVar[dict[str, str]] = {"max_lag": "leave it out: every replica that is up is used"}

    balance: Annotated[
        Literal["round_robin"],
        values.word("Balance", "round_robin", planned=("weighted", "least_busy", "nearest", "random")),
    ] = Field(
        default="round_robin",
        title="Balance",
        description="How reads are spread over the replicas: round_robin takes them in turn.",
        examples=["round_robin"],
    )
    no_replica: Annotated[Literal["primary"], values.word("NoReplica", "primary", planned=("fail", "stale"))] = Field(
        default="primary",
        title="No replica is up",
        description="Who answers reads while no replica is up: the primary stands in, still read only.",
        examples=["primary"],
    )


class DataSourceConfig(Model):
    """One logical database: a primary and its streaming replicas."""

    primary: EndpointConfig = Field(
        title="Primary",
        description="The server that takes writes.",
        examples=[{"url": "${ORDERS_PRIMARY_URL}"}],
    )
    replicas: dict[ReplicaName, ReplicaConfig] = _mapping(
        title="Replicas",
        description="Streaming replicas of the primary by name; reads go to them. The name `primary` is taken.",
        examples=[{"r1": {"url": "${ORDERS_R1_URL}"}}],
    )
    pool: PoolConfig = _section(
        PoolConfig,
        title="Pool",
        description="The connection pool of each of these servers.",
        examples=[{"min_size": 2, "max_size": 20}],
    )
    routing: RoutingConfig = _section(
        RoutingConfig,
        title="Routing",
        description="Which of these servers runs a statement.",
        examples=[{"balance": "round_robin"}],
    )
    search_path: tuple[DatabaseIdentifier, ...] = Field(
        default=(),
        title="Shared schemas",
        description="Schemas that are searched after the tenant's own: extensions, shared tables.",
        examples=[["extensions"]],
    )


class ResolverConfig(Model):
    """One way to tell the tenant from a request; exactly one key."""

    planned: ClassVar[dict[str, str]] = dict.fromkeys(
        ("domain", "query", "cookie", "jwt_claim", "scope", "fixed"),
        "use header, subdomain_of, path_prefix or callable",
    )

    header: Annotated[HeaderName | None, _OMISSIBLE] = Field(
        default=None,
        title="Header",
        description="The tenant is the value of this request header.",
        examples=["X-Tenant"],
    )
    subdomain_of: Annotated[DomainName | None, _OMISSIBLE] = Field(
        default=None,
        title="Subdomain of",
        description="The tenant is the label in front of this domain: `acme` in acme.app.example.com.",
        examples=["app.example.com"],
    )
    path_prefix: Annotated[TenantPathPrefix | None, _OMISSIBLE] = Field(
        default=None,
        title="Path prefix",
        description="The tenant is the path's segment behind this prefix; both move to root_path.",
        examples=["/t"],
    )
    callable: Annotated[CallablePath | None, _OMISSIBLE] = Field(
        default=None,
        title="Callable",
        description="The tenant is what this function answers, async or not, given the ASGI scope; None passes on.",
        examples=["shop.tenants:resolve"],
    )

    @property
    def kind(self) -> Literal["header", "subdomain_of", "path_prefix", "callable"]:
        """Which of the ways this is."""
        if self.header is not None:
            return "header"
        if self.subdomain_of is not None:
            return "subdomain_of"
        return "path_prefix" if self.path_prefix is not None else "callable"

    @property
    def argument(self) -> str:
        """What stands behind the key: the header's name, the domain, the prefix or the function."""
        return self.header or self.subdomain_of or self.path_prefix or self.callable or ""


class TenancyConfig(Model):
    """Who is asking."""

    resolve: tuple[ResolverConfig, ...] = Field(
        default=(),
        title="Resolvers",
        description="Ways to tell the tenant from a request, tried in order; the first answer wins.",
        examples=[[{"header": "X-Tenant"}, {"subdomain_of": "app.example.com"}]],
    )
    missing: ClientErrorStatus = Field(
        default=400,
        title="Status for no tenant",
        description="The status that answers a request which names no tenant.",
        examples=[400],
    )
    unknown: ClientErrorStatus = Field(
        default=404,
        title="Status for an unknown tenant",
        description="The status that answers a request whose tenant is not known here.",
        examples=[404],
    )
    exempt: tuple[PathPrefix, ...] = Field(
        default=(),
        title="Exempt paths",
        description=(
            "Paths that pass straight through, without tenant and session, with everything below them: /docs covers"
            " /docs and /docs/x, but not /docsx."
        ),
        examples=[["/healthz", "/docs"]],
    )
    pattern: NamePattern = Field(
        default="^[a-z0-9][a-z0-9_-]{0,62}$",
        title="Pattern of tenant names",
        description="Python regular expression that a tenant's name matches as a whole, before it is used anywhere.",
        examples=["^[a-z0-9][a-z0-9_-]{0,62}$"],
    )
    default: Annotated[DatasourceName | None, _OMISSIBLE] = Field(
        default=None,
        title="Default datasource",
        description="The datasource that an unknown or absent tenant gets; without it such requests are refused.",
        examples=["shared"],
    )


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class TenantConfig:
    """Where a tenant lives and what keeps it apart there."""

    # A slotted dataclass and not a model: there may be 100,000, and a model takes six times the memory.
    planned: ClassVar[dict[str, str]] = {
        "limits": "leave it out: the pool's own limits apply",
        "state": "leave it out: every tenant is active",
        "database": "give the tenant a datasource of its own",
    }

    datasource: Annotated[
        DatasourceName,
        Field(title="Datasource", description="Name of the datasource that the tenant lives on.", examples=["orders"]),
    ]
    schema_name: Annotated[
        DatabaseIdentifier | None,
        _OMISSIBLE,
        Field(
            alias="schema",
            title="Schema",
            description="The tenant's own schema: first in the search_path of its transactions.",
            examples=["acme"],
        ),
    ] = None
    row_security: Annotated[
        dict[SettingName, SettingValue] | None,
        _OMISSIBLE,
        Field(
            min_length=1,
            repr=False,
            title="Row security settings",
            description="Custom settings that the policies read with current_setting(); set in every transaction.",
            examples=[{"app.tenant": "42"}],
        ),
    ] = None
    role: Annotated[
        DatabaseIdentifier | None,
        _OMISSIBLE,
        Field(
            title="Role",
            description="Role that the tenant's transactions run as (SET LOCAL ROLE).",
            examples=["tenant_reader"],
        ),
    ] = None


IsolationLevel = Annotated[
    Literal["read committed", "repeatable read", "serializable"],
    values.word("IsolationLevel", "read committed", "repeatable read", "serializable"),
]


class RouteRule(Model):
    """Options for the requests that match; a route's own annotation wins over them."""

    planned: ClassVar[dict[str, str]] = {
        "max_lag": "use consistency: strong where a replica may be behind",
        "retry": "leave it out: nothing is retried",
        "propagation": "leave it out: one transaction for the request",
        "datasource": "choose it in the handler",
        "stream": "leave it out",
    }

    match: RouteMatch = Field(
        title="Match",
        description=(
            "A method and a path: '*' is one segment, '**' at the end is the rest. Without a method, or with '*' as"
            " the method, any method matches. The first rule that matches counts."
        ),
        examples=["GET /reports/**", "POST /search", "/basket"],
    )
    intent: Annotated[Literal["read", "write"] | None, values.word("Intent", "read", "write")] = Field(
        default=None,
        title="Intent",
        description="What its statements want: read may go to a replica and is enforced, write goes to the primary.",
        examples=["read"],
    )
    consistency: Annotated[
        Literal["strong"] | None, values.word("Consistency", "strong", planned=("token", "eventual"))
    ] = Field(
        default=None,
        title="Consistency",
        description="strong: reads go to the primary as well.",
        examples=["strong"],
    )
    timeout_s: Annotated[Duration | None, _OMISSIBLE] = Field(
        default=None,
        alias="timeout",
        title="Timeout",
        description="From the first byte of the request to the end of COMMIT, in place of transactions.deadline.",
        examples=["30s"],
    )
    read_only: Annotated[Flag | None, _OMISSIBLE] = Field(
        default=None,
        title="Read only",
        description="true: one READ ONLY transaction on one server for all the reads of the request, a snapshot.",
        examples=[True],
    )
    isolation: Annotated[IsolationLevel | None, _OMISSIBLE] = Field(
        default=None,
        title="Isolation",
        description="Isolation level of the request's transaction; without it the server's own.",
        examples=["repeatable read"],
    )
    commit_on: tuple[Outcome, ...] = Field(
        default=(),
        title="Commit on",
        description="Statuses that commit although they would roll back.",
        examples=[["4xx"], [409]],
    )
    rollback_on: tuple[Outcome, ...] = Field(
        default=(),
        title="Roll back on",
        description="Statuses that roll back although they would commit.",
        examples=[["3xx"], [202]],
    )


class TransactionsConfig(Model):
    """When a transaction begins, and which outcomes end it how."""

    planned: ClassVar[dict[str, str]] = {
        "retry_body_limit": "leave it out: nothing is retried",
        "max_in_flight": "leave it out",
    }

    default: Annotated[Literal["request", "annotated"], values.word("TransactionDefault", "request", "annotated")] = (
        Field(
            default="request",
            title="Default",
            description=(
                "request: the first write opens one transaction for the whole request. annotated: only routes with"
                " @transactional have one; everywhere else each statement commits by itself."
            ),
            examples=["request"],
        )
    )
    deadline_s: Duration | None = Field(
        default=parse_duration("30s"),
        alias="deadline",
        json_schema_extra={"default": "30s"},
        title="Deadline",
        description="From the first byte of the request to the end of COMMIT; null sets none.",
        examples=["10s", None],
    )
    rollback_on: tuple[Outcome, ...] = Field(
        default=("4xx", "5xx"),
        title="Roll back on",
        description="Statuses, and classes of them, that roll the request's transaction back.",
        examples=[["4xx", "5xx"], [409, "5xx"]],
    )
    on_disconnect: Annotated[Literal["rollback"], values.word("OnDisconnect", "rollback", planned=("commit",))] = Field(
        default="rollback",
        title="Client has left",
        description="What becomes of the transaction when the client leaves before the response has started.",
        examples=["rollback"],
    )
    retry: Annotated[int, values.zero("Retry")] = Field(
        default=0,
        title="Retries",
        description="How often a request that lost against another one is run again.",
        examples=[0],
    )
    multiple_writers: Annotated[Literal["refuse", "allow"], values.word("MultipleWriters", "refuse", "allow")] = Field(
        default="refuse",
        title="Several writers",
        description=(
            "Whether one request may write to several datasources. allow: their COMMITs are not atomic, one may"
            " succeed and the other fail."
        ),
        examples=["refuse"],
    )


class ConsistencyConfig(Model):
    """Read your writes across requests; inside a request they always hold."""

    planned: ClassVar[dict[str, str]] = dict.fromkeys(
        ("token", "secret", "ttl", "wait"), "use consistency: strong in routes where it matters"
    )


class TelemetryConfig(Model):
    """What is reported to OpenTelemetry."""

    planned: ClassVar[dict[str, str]] = {"sqlcommenter": "leave it out", "application_name": "set it in the url"}

    spans: Flag = Field(
        default=True,
        title="Spans",
        description="Spans for routing decisions, statements, COMMIT and ROLLBACK. Without an SDK nothing is built.",
        examples=[True],
    )
    metrics: Annotated[bool, values.flag("Metrics", only=False)] = Field(
        default=False, title="Metrics", description="Metrics of pools, routes and transactions.", examples=[False]
    )
    tenant_attribute: Flag = Field(
        default=False,
        title="Tenant on spans",
        description="Whether spans carry the tenant's name.",
        examples=[False],
    )
    statements: Annotated[Literal["summary", "off"], values.word("Statements", "summary", "off", planned=("text",))] = (
        Field(
            default="summary",
            title="Statements on spans",
            description="summary: the operation and its table, `INSERT orders`, never a literal. off: no spans for statements.",
            examples=["summary"],
        )
    )


class ErrorsConfig(Model):
    """How failures are answered."""

    status: dict[ErrorKind, ErrorStatus] = _mapping(
        title="Status by kind",
        description="The HTTP status that answers an error of a kind, where it is not the kind's own.",
        examples=[{"conflict": 503}],
    )
    debug: Flag = Field(
        default=False,
        title="Details in answers",
        description="Whether problem documents tell details. For development only: they show the inside of the database.",
        examples=[False],
    )


class Config(Model):
    """The whole document: databases, tenants, and the rules between them."""

    planned: ClassVar[dict[str, str]] = {
        "budget": "leave it out; keep processes x max_size below max_connections yourself",
        "tenants_from": "list the tenants under tenants",
        "include": "keep everything in one document",
        "outbox": "leave it out",
        "migrate": "leave it out",
    }

    version: Annotated[Literal[1], values.version("Version")] = Field(
        title="Version", description="Version of this document's format: 1.", examples=[1]
    )
    datasources: dict[DatasourceName, DataSourceConfig] = Field(
        min_length=1,
        title="Datasources",
        description="The logical databases by name: each a primary and its replicas.",
        examples=[{"orders": {"primary": {"url": "${ORDERS_PRIMARY_URL}"}}}],
    )
    tenancy: TenancyConfig = _section(
        TenancyConfig,
        title="Tenancy",
        description="How the tenant is told from a request, and how requests without one are answered.",
        examples=[{"resolve": [{"header": "X-Tenant"}]}],
    )
    tenants: dict[TenantName, TenantConfig] = _mapping(
        title="Tenants",
        description="The tenants by name: where each lives and what keeps it apart there.",
        examples=[{"acme": {"datasource": "orders", "schema": "acme"}}],
    )
    routes: tuple[RouteRule, ...] = Field(
        default=(),
        title="Routes",
        description="Rules for routes that carry no annotation of their own; the first match counts.",
        examples=[[{"match": "POST /search", "intent": "read"}]],
    )
    transactions: TransactionsConfig = _section(
        TransactionsConfig,
        title="Transactions",
        description="When a transaction begins, and which outcomes end it how.",
        examples=[{"deadline": "10s"}],
    )
    consistency: ConsistencyConfig = _section(
        ConsistencyConfig,
        title="Consistency",
        description="Read your writes across requests; takes no keys yet.",
        examples=[{}],
    )
    telemetry: TelemetryConfig = _section(
        TelemetryConfig,
        title="Telemetry",
        description="What is reported to OpenTelemetry.",
        examples=[{"tenant_attribute": True}],
    )
    errors: ErrorsConfig = _section(
        ErrorsConfig, title="Errors", description="How failures are answered.", examples=[{"status": {"conflict": 503}}]
    )
