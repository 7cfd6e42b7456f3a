"""The sections about requests: routes, transactions, consistency, telemetry, reload, errors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from . import values
from .durations import parse_duration
from .kinds import (
    CallablePath,
    CookieName,
    DatasourceName,
    Duration,
    ErrorKind,
    ErrorStatus,
    Flag,
    HeaderName,
    InFlightLimit,
    IsolationLevel,
    MetricTenants,
    Outcome,
    Parallel,
    Retries,
    RouteMatch,
    RoutePropagation,
    SecretText,
    Size,
)
from .sections import OMISSIBLE, Section, duration_field, mapping_field
from .sizes import parse_size


class RouteRule(Section):
    """Options for matching requests; an annotation of the route takes precedence."""

    match: RouteMatch = Field(
        title="Match",
        description=(
            "A method and a path: * is one segment, a final ** any number of segments. Without a method, or with *,"
            " every method matches. The first matching rule applies; HEAD uses the rule of GET unless it has its own."
        ),
        examples=["GET /reports/**", "POST /search", "/basket/*"],
    )
    datasource: Annotated[DatasourceName | None, OMISSIBLE] = Field(
        default=None,
        title="Datasource",
        description=(
            "The datasource of the request's session, one of the tenant's datasources. Default: the tenant's own."
        ),
        examples=["analytics"],
    )
    intent: Annotated[Literal["read", "write"] | None, values.word("Intent", "read", "write")] = Field(
        default=None,
        title="Intent",
        description=(
            "The intent of the statements. read: may go to a replica, is READ ONLY. write: goes to the primary."
        ),
        examples=["read"],
    )
    consistency: Annotated[
        Literal["strong", "session", "token", "eventual"] | None,
        values.word("Consistency", "strong", "session", "token", "eventual"),
    ] = Field(
        default=None,
        title="Consistency",
        description=(
            "What reads must see. strong: everything committed, so the primary answers. session: the client's own"
            " writes, and no older state than it has seen. token: the client's own writes. eventual: any state of a"
            " replica. Default: what the section consistency defines."
        ),
        examples=["strong"],
    )
    max_lag_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="max_lag",
        title="Largest lag",
        description="How old the data of a read may be; overrides the datasource's routing.max_lag.",
        examples=["60s"],
    )
    timeout_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="timeout",
        title="Timeout",
        description="From the first byte of the request to the end of COMMIT; overrides transactions.deadline.",
        examples=["30s"],
    )
    read_only: Annotated[Flag | None, OMISSIBLE] = Field(
        default=None,
        title="Read only",
        description="true: one READ ONLY transaction on one server for all the reads of the request, a snapshot.",
        examples=[True],
    )
    isolation: Annotated[IsolationLevel | None, OMISSIBLE] = Field(
        default=None,
        title="Isolation",
        description="The isolation level of the request's transaction; default: the server's.",
        examples=["repeatable read"],
    )
    deferrable: Annotated[Flag | None, OMISSIBLE] = Field(
        default=None,
        title="Deferrable",
        description="true, with read_only and serializable: waits for a snapshot that cannot fail or make others fail.",
        examples=[True],
    )
    stream: Annotated[Flag | None, OMISSIBLE] = Field(
        default=None,
        title="Stream",
        description="true, with read_only: the transaction lasts until the end of the response's body, for exports.",
        examples=[True],
    )
    propagation: Annotated[RoutePropagation | None, OMISSIBLE] = Field(
        default=None,
        title="Propagation",
        description=(
            "required: one transaction for the request, also with transactions.default: annotated."
            " not_supported: each statement commits by itself."
        ),
        examples=["required", "not_supported"],
    )
    retry: Annotated[Retries | None, OMISSIBLE] = Field(
        default=None,
        title="Retries",
        description="How often the request is retried after it lost a conflict with another one (40001, 40P01).",
        examples=[3],
    )
    priority: Annotated[Literal["low", "normal", "high"] | None, values.word("Priority", "low", "normal", "high")] = (
        Field(
            default=None,
            title="Priority",
            description=(
                "The order when connections are scarce. high: waits before the others, and is admitted where they are"
                " refused; for health checks and administration. low: waits after the others, and is refused first; for"
                " reports. normal: the default."
            ),
            examples=["high"],
        )
    )
    max_in_flight: Annotated[InFlightLimit | None, OMISSIBLE] = Field(
        default=None,
        title="Most requests in flight",
        description=(
            "How many matching requests each process handles at a time; a further one is answered with 503 at once,"
            " before the application is called. Without it there is no bound."
        ),
        examples=[20],
    )
    commit_on: tuple[Outcome, ...] = Field(
        default=(),
        title="Commit on",
        description="Statuses and classes of statuses that commit, although they would roll back by default.",
        examples=[["4xx"], [409]],
    )
    rollback_on: tuple[Outcome, ...] = Field(
        default=(),
        title="Roll back on",
        description="Statuses and classes of statuses that roll back, although they would commit by default.",
        examples=[["3xx"], [202]],
    )


class TransactionsConfig(Section):
    """When a transaction begins, and which outcomes commit it or roll it back."""

    default: Annotated[Literal["request", "annotated"], values.word("TransactionDefault", "request", "annotated")] = (
        Field(
            default="request",
            title="Default",
            description=(
                "request: the first write opens one transaction for the whole request. annotated: only routes with"
                " @transactional or a rule have a transaction, and elsewhere each statement commits by itself."
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
        description="Statuses and classes of statuses that roll back the request's transaction.",
        examples=[["4xx", "5xx"], [409, "5xx"]],
    )
    on_disconnect: Annotated[Literal["rollback"], values.word("OnDisconnect", "rollback", planned=("commit",))] = Field(
        default="rollback",
        title="Client disconnects",
        description="What happens to the transaction when the client disconnects before the response has started.",
        examples=["rollback"],
    )
    retry: Retries = Field(
        default=0,
        title="Retries",
        description=(
            "How often a request is retried, with the same body, after it lost a conflict with another one (40001,"
            " 40P01)."
        ),
        examples=[0, 3],
    )
    retry_body_limit: Size = Field(
        default=parse_size("1MiB"),
        json_schema_extra={"default": "1MiB"},
        title="Body kept for a retry",
        description="A request with a longer body is not retried.",
        examples=["64KiB", "1MiB"],
    )
    max_parallel: Parallel = Field(
        default=1,
        title="Parallel reads",
        description=(
            "How many reads of one request may run in parallel outside of a transaction; each takes a connection."
        ),
        examples=[1, 4],
    )
    multiple_writers: Annotated[Literal["refuse", "allow"], values.word("MultipleWriters", "refuse", "allow")] = Field(
        default="refuse",
        title="Several writers",
        description=(
            "Whether one request may write to several datasources. allow: the COMMITs are not atomic, one may succeed"
            " while another fails."
        ),
        examples=["refuse"],
    )


class ConsistencyConfig(Section):
    """Read your writes across requests; within a request this always holds."""

    token: Annotated[
        Literal["off", "cookie", "header", "both"], values.word("TokenCarrier", "off", "cookie", "header", "both")
    ] = Field(
        default="off",
        title="Token",
        description=(
            "How a client carries the position of what it has seen, so that its next reads see at least that on any"
            " server. off: not at all. cookie: browsers send it by themselves. header: for API clients and other"
            " services. both: either of them."
        ),
        examples=["cookie"],
    )
    secret: Annotated[SecretText | None, OMISSIBLE] = Field(
        default=None,
        title="Secret",
        description=(
            "Signs the tokens. At least 16 characters, and the same in all processes and services that share tokens."
        ),
        examples=[{"file": "/run/secrets/token"}, "${TOKEN_SECRET}"],
    )
    old_secrets: tuple[SecretText, ...] = Field(
        default=(),
        title="Old secrets",
        description="Tokens signed with these are still valid, so that clients do not notice a change of the secret.",
        examples=[["${OLD_TOKEN_SECRET}"]],
    )
    ttl_s: Duration = duration_field(
        "30s",
        alias="ttl",
        title="Life of a token",
        description="How long a token is valid. Exclude replicas that lag longer than this with routing.max_lag.",
        examples=["1m"],
    )
    wait_s: Duration = duration_field(
        "50ms",
        alias="wait",
        title="Longest wait for a replica",
        description=(
            "How long a read waits for a replica that is behind the client's token, before it goes to the next one,"
            " and finally to the primary."
        ),
        examples=["20ms"],
    )
    monotonic: Flag = Field(
        default=False,
        title="Monotonic reads",
        description=(
            "true: a client never sees an older state than before, even without writes of its own. Its token advances"
            " with its reads."
        ),
        examples=[True],
    )
    cookie: CookieName = Field(
        default="ads_token",
        title="Name of the cookie",
        description="The cookie is HttpOnly, SameSite=Lax and, over TLS, Secure.",
        examples=["ads_token"],
    )
    header: HeaderName = Field(
        default="X-Datasource-Token",
        title="Name of the header",
        description="Clients return the header as they received it; clients of several services return all of them.",
        examples=["X-Datasource-Token"],
    )


class TelemetryConfig(Section):
    """What is reported to OpenTelemetry."""

    spans: Flag = Field(
        default=True,
        title="Spans",
        description="Spans for routing decisions, statements, COMMIT and ROLLBACK. Without an SDK they cost nothing.",
        examples=[True],
    )
    metrics: Flag = Field(
        default=False,
        title="Metrics",
        description="Metrics of pools, statements, routes and transactions.",
        examples=[True],
    )
    metric_tenants: MetricTenants = Field(
        default=0,
        title="Tenants on metrics",
        description="How many tenants metrics name, the first ones that are served; the others are _OTHER. 0: none.",
        examples=[100],
    )
    tenant_attribute: Flag = Field(
        default=False,
        title="Tenant on spans",
        description="Whether spans, and query tags, carry the tenant's name.",
        examples=[False],
    )
    statements: Annotated[Literal["text", "summary", "off"], values.word("Statements", "text", "summary", "off")] = (
        Field(
            default="text",
            title="Statements on spans",
            description=(
                "text: operations and tables, such as INSERT orders, and the statement, each literal replaced by ?."
                " summary: operations and tables only. off: no spans for statements."
            ),
            examples=["summary"],
        )
    )
    sqlcommenter: Annotated[
        Literal["off", "route", "traceparent"], values.word("SqlCommenter", "off", "route", "traceparent")
    ] = Field(
        default="off",
        title="Query tags",
        description=(
            "off: statements are sent as they are."
            " route: each statement ends with a comment that names the route, in the format of sqlcommenter."
            " traceparent: the comment also names the trace; then statements are not prepared."
        ),
        examples=["route"],
    )
    application_name: Flag = Field(
        default=False,
        title="Route as application_name",
        description="Whether application_name is the route during a transaction, for pg_stat_activity and log lines.",
        examples=[True],
    )


class ReloadConfig(Section):
    """When a changed configuration is applied without a restart; an invalid one is refused and changes nothing."""

    on_sighup: Flag = Field(
        default=False,
        title="On SIGHUP",
        description="true: SIGHUP makes the process read its configuration again. Unix, main thread only.",
        examples=[True],
    )
    watch_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="watch",
        title="Watch the files",
        description=(
            "How often the files are checked for changes: the document, included files, overlays, and the files of"
            " secrets. Without it they are not watched."
        ),
        examples=["2s"],
    )


class ErrorsConfig(Section):
    """How failures are answered."""

    status: dict[ErrorKind, ErrorStatus] = mapping_field(
        title="Status by kind",
        description="The HTTP status for a kind of error, instead of its default.",
        examples=[{"conflict": 503}],
    )
    handler: Annotated[CallablePath | None, OMISSIBLE] = Field(
        default=None,
        title="Handler",
        description=(
            "A function, async or not, that takes the ASGI scope and the problem, and returns the response to it: an"
            " ASGI application, such as a Response of Starlette, or (status, headers, body). None: the problem"
            " document. An exception handler of the application comes first."
        ),
        examples=["shop.errors:render"],
    )
    debug: Flag = Field(
        default=False,
        title="Details in responses",
        description=(
            "Whether problem documents contain details. For development only: they reveal internals of the database."
        ),
        examples=[False],
    )
