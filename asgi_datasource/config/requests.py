"""Rules for requests in the document: intents, transactions, telemetry, answers to failures."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from . import values
from .durations import parse_duration
from .kinds import (
    CookieName,
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
    """Options for the requests that match; an annotation of the route's own wins over them."""

    planned: ClassVar[dict[str, str]] = {
        "datasource": "leave it out: the tenant's datasource is used",
    }

    match: RouteMatch = Field(
        title="Match",
        description=(
            "A method and a path: * is one segment, ** at the end is the rest. Without a method, or with * for it,"
            " every method matches. The first rule that matches counts; HEAD has the rule of GET unless it has its own."
        ),
        examples=["GET /reports/**", "POST /search", "/basket/*"],
    )
    intent: Annotated[Literal["read", "write"] | None, values.word("Intent", "read", "write")] = Field(
        default=None,
        title="Intent",
        description="What the statements want. read: may go to a replica, is READ ONLY. write: goes to the primary.",
        examples=["read"],
    )
    consistency: Annotated[
        Literal["strong", "session", "token", "eventual"] | None,
        values.word("Consistency", "strong", "session", "token", "eventual"),
    ] = Field(
        default=None,
        title="Consistency",
        description=(
            "What reads have to see. strong: all that is committed, so the primary answers. session: the client's own"
            " writes, and no older state than it has seen. token: the client's own writes. eventual: whatever a replica"
            " has. Without it, what the section consistency says."
        ),
        examples=["strong"],
    )
    max_lag_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="max_lag",
        title="Largest lag",
        description="How old the data of a read may be, in place of the datasource's routing.max_lag.",
        examples=["60s"],
    )
    timeout_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="timeout",
        title="Timeout",
        description="From the first byte of the request to the end of COMMIT, in place of transactions.deadline.",
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
        description="Isolation level of the request's transaction; without it the server's own.",
        examples=["repeatable read"],
    )
    deferrable: Annotated[Flag | None, OMISSIBLE] = Field(
        default=None,
        title="Deferrable",
        description=(
            "true, with read_only and serializable: waits for a snapshot that can neither fail nor make others fail."
        ),
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
        description="How often the request is run again when it has lost against another one (40001, 40P01).",
        examples=[3],
    )
    priority: Annotated[Literal["low", "normal", "high"] | None, values.word("Priority", "low", "normal", "high")] = (
        Field(
            default=None,
            title="Priority",
            description=(
                "Who goes first when connections are scarce. high: waits in front of the others, and gets in where they"
                " are refused; for health checks and administration. low: waits behind them, and is refused first; for"
                " reports. normal: like those without it."
            ),
            examples=["high"],
        )
    )
    max_in_flight: Annotated[InFlightLimit | None, OMISSIBLE] = Field(
        default=None,
        title="Most requests in flight",
        description=(
            "How many requests that match may be under way at a time, in each process; the next one is answered with"
            " 503 at once, before the application sees it. Without it there is no bound."
        ),
        examples=[20],
    )
    commit_on: tuple[Outcome, ...] = Field(
        default=(),
        title="Commit on",
        description="Statuses, and classes of them, that commit although they would roll back.",
        examples=[["4xx"], [409]],
    )
    rollback_on: tuple[Outcome, ...] = Field(
        default=(),
        title="Roll back on",
        description="Statuses, and classes of them, that roll back although they would commit.",
        examples=[["3xx"], [202]],
    )


class TransactionsConfig(Section):
    """When a transaction begins, and which outcomes end it how."""

    default: Annotated[Literal["request", "annotated"], values.word("TransactionDefault", "request", "annotated")] = (
        Field(
            default="request",
            title="Default",
            description=(
                "request: the first write opens one transaction for the whole request. annotated: only routes have one"
                " that ask for it, by @transactional or a rule, and everywhere else each statement commits by itself."
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
    retry: Retries = Field(
        default=0,
        title="Retries",
        description=(
            "How often a request that has lost against another one (40001, 40P01) is run again, with the same body."
        ),
        examples=[0, 3],
    )
    retry_body_limit: Size = Field(
        default=parse_size("1MiB"),
        json_schema_extra={"default": "1MiB"},
        title="Body kept for a retry",
        description="A request whose body is longer is not run again.",
        examples=["64KiB", "1MiB"],
    )
    max_parallel: Parallel = Field(
        default=1,
        title="Parallel reads",
        description=(
            "How many reads of one request may run side by side, outside of a transaction; each takes a connection."
        ),
        examples=[1, 4],
    )
    multiple_writers: Annotated[Literal["refuse", "allow"], values.word("MultipleWriters", "refuse", "allow")] = Field(
        default="refuse",
        title="Several writers",
        description=(
            "Whether one request may write to several datasources. allow: their COMMITs are not atomic, one may"
            " succeed while the other fails."
        ),
        examples=["refuse"],
    )


class ConsistencyConfig(Section):
    """Read your writes across requests; inside a request they always hold."""

    token: Annotated[
        Literal["off", "cookie", "header", "both"], values.word("TokenCarrier", "off", "cookie", "header", "both")
    ] = Field(
        default="off",
        title="Token",
        description=(
            "How a client carries what it has seen, so that its next reads see no less, wherever they land. off: not at"
            " all. cookie: browsers do it by themselves. header: for API clients and other services. both: in either."
        ),
        examples=["cookie"],
    )
    secret: Annotated[SecretText | None, OMISSIBLE] = Field(
        default=None,
        title="Secret",
        description="Signs the tokens; at least 16 characters, the same in every process and service that shares them.",
        examples=[{"file": "/run/secrets/token"}, "${TOKEN_SECRET}"],
    )
    old_secrets: tuple[SecretText, ...] = Field(
        default=(),
        title="Old secrets",
        description="Tokens that these have signed still count: for changing the secret without anybody noticing.",
        examples=[["${OLD_TOKEN_SECRET}"]],
    )
    ttl_s: Duration = duration_field(
        "30s",
        alias="ttl",
        title="Life of a token",
        description=(
            "For how long what a client has seen counts. Replicas that may be further behind than this have to be kept"
            " out by routing.max_lag."
        ),
        examples=["1m"],
    )
    wait_s: Duration = duration_field(
        "50ms",
        alias="wait",
        title="Longest wait for a replica",
        description=(
            "How long a read waits for a replica that does not have what its client has seen, before it goes to the"
            " next one, and at last to the primary."
        ),
        examples=["20ms"],
    )
    monotonic: Flag = Field(
        default=False,
        title="Monotonic reads",
        description=(
            "true: a client sees no older state than it has seen before, also where it has not written. Its token"
            " moves on with its reads."
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
        description="Clients send it back as they got it; those of several services send all that they have got.",
        examples=["X-Datasource-Token"],
    )


class TelemetryConfig(Section):
    """What is reported to OpenTelemetry."""

    planned: ClassVar[dict[str, str]] = {
        "sqlcommenter": "leave it out: statements are sent as they are",
        "application_name": "set it in the url: ?application_name=shop",
    }

    spans: Flag = Field(
        default=True,
        title="Spans",
        description="Spans for routing decisions, statements, COMMIT and ROLLBACK. Without an SDK nothing is built.",
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
        description="How many tenants metrics name, those that are served first; the others are _OTHER. 0: none.",
        examples=[100],
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
            description="summary: operation and table, INSERT orders, never a literal. off: statements have no spans.",
            examples=["summary"],
        )
    )


class ReloadConfig(Section):
    """When a changed configuration is taken without a restart; one that is wrong is refused, and nothing changes."""

    on_sighup: Flag = Field(
        default=False,
        title="On SIGHUP",
        description="true: the process reads its configuration again when it gets SIGHUP. Unix, in the main thread.",
        examples=[True],
    )
    watch_s: Annotated[Duration | None, OMISSIBLE] = Field(
        default=None,
        alias="watch",
        title="Watch the files",
        description=(
            "How often to look whether the files have changed: the document, what it includes, its overlays, and the"
            " files of secrets. Without it, nobody looks."
        ),
        examples=["2s"],
    )


class ErrorsConfig(Section):
    """How failures are answered."""

    status: dict[ErrorKind, ErrorStatus] = mapping_field(
        title="Status by kind",
        description="The HTTP status that answers an error of a kind, where it is not the kind's own.",
        examples=[{"conflict": 503}],
    )
    debug: Flag = Field(
        default=False,
        title="Details in answers",
        description="Whether problem documents tell details: for development, they show the inside of the database.",
        examples=[False],
    )
