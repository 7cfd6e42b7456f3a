"""Explains to which server a request would be routed, and why, without sending anything.

Uses the same resolvers, rules, plans, tokens and `choose()` as a session, on the present topology or on a saved state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from starlette.types import Scope

from ..config import DataSourceState, ServerState, StateDocument
from ..datasource.datasource import DataSource
from ..datasource.router import Attempt, find_route, no_eligible_server
from ..errors import ConfigError, DataError, DataErrorKind
from ..routing import (
    AccessIntent,
    Asked,
    Consistency,
    Freshness,
    Health,
    Judgement,
    Lineage,
    Node,
    Position,
    Role,
    Route,
    Topology,
    choose,
    format_lsn,
    judge,
    parse_lsn,
)
from ..routing.consistency.client_history import ClientHistory
from ..routing.consistency.token import Mark, Token, scope_of
from ..sessions.policy import NO_RULE, Plan, RouteRule, make_lane, make_plan, opening, timeout_of
from ..sessions.route_rules import CompiledRule
from ..tenancy import Answer, Resolution, Tenant
from ..tenancy.path_prefix import route_path
from ..tenancy.preflight import is_preflight
from .runtime_config import RuntimeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The request to explain.

    Attributes:
        method, path: As in its first line; the path may have a query string.
        tenant: The tenant's name; None uses the resolvers.
        headers: Headers for the resolvers and for tokens.
        intent: The intent of its first statement; None uses that of the rule or the method.
        tokens: Signed tokens, or positions (`1:0/3000148`).
        is_pinned: It has written already.
        sticky: Name of the replica that it has read from already.
    """

    method: str = "GET"
    path: str = "/"
    tenant: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    intent: AccessIntent | None = None
    tokens: Sequence[str] = ()
    is_pinned: bool = False
    sticky: str | None = None

    def scope(self) -> dict[str, Any]:
        """The request as an ASGI scope."""
        path, _, query = self.path.partition("?")
        return {
            "type": "http",
            "method": self.method.upper(),
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode("latin-1"), value.encode()) for name, value in self.headers],
            "client": None,
        }


@dataclass(frozen=True, slots=True)
class TokenReading:
    """The effect of the request's tokens.

    Attributes:
        position: The position that the server must have replayed; None requires none.
        why: An explanation.
    """

    position: Position | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The server of a request's first statement, and the reasons.

    Attributes:
        question: The request.
        is_exempt: It has no session: its path is exempt, or it is a CORS preflight without a tenant.
        refusal: Why it would be refused; None if it would be served.
        tenant: The tenant.
        rule: Index and pattern of the rule of `routes` that matches.
        timeout_s: Seconds from the start of the request to the end of COMMIT; None sets no bound.
        intent: The intent of its first statement.
        consistency: The consistency of its reads; None when tokens are disabled and the rule sets none.
        max_lag_s: Most seconds of replication lag; None sets no bound.
        terms: A description of the transaction of its first statement.
        token: The effect of its tokens; None without tokens.
        limits: Its priority and its bound on requests in progress.
        route: The chosen server; None if none is eligible.
        servers: The judgement of each server.
    """

    question: Question
    is_exempt: bool = False
    refusal: DataError | None = None
    tenant: Tenant | None = None
    rule: tuple[int, str] | None = None
    timeout_s: float | None = None
    intent: AccessIntent | None = None
    consistency: Consistency | None = None
    max_lag_s: float | None = None
    terms: str = ""
    token: TokenReading | None = None
    limits: RouteRule = NO_RULE
    route: Route | None = None
    servers: tuple[Judgement, ...] = ()

    def document(self) -> dict[str, Any]:
        """The explanation as plain data (`schemas/explain/v1.json`)."""
        question, tenant = self.question, self.tenant
        refusal, route, limits = self.refusal, self.route, self.limits
        return {
            "version": 1,
            "request": {"method": question.method.upper(), "path": question.path},
            "outcome": "exempt" if self.is_exempt else "routed" if route is not None else "refused",
            "refusal": None
            if refusal is None
            else {"kind": refusal.kind.value, "status": refusal.http_status, "message": refusal.message},
            "tenant": None
            if tenant is None
            else {
                "name": tenant.name,
                "datasource": tenant.datasource,
                "strategy": tenant.strategy.value,
                "state": tenant.state.value,
                "max_connections": tenant.max_connections,
            },
            "rule": None if self.rule is None else {"index": self.rule[0], "match": self.rule[1]},
            "plan": None
            if self.intent is None
            else {
                "intent": self.intent.value,
                "runs": self.terms,
                "consistency": None if self.consistency is None else self.consistency.value,
                "max_lag_s": self.max_lag_s,
                "timeout_s": self.timeout_s,
                "priority": limits.priority.name.lower(),
                "max_in_flight": None if limits.concurrency_limit is None else limits.concurrency_limit.limit,
            },
            "token": None
            if self.token is None
            else {
                "position": None if self.token.position is None else str(self.token.position),
                "why": self.token.why,
            },
            "route": None
            if route is None
            else {"node": route.node, "role": route.role.value, "reason": route.reason.value},
            "servers": [
                {
                    "node": judgement.node.name,
                    "role": judgement.node.role.value,
                    "verdict": judgement.verdict.value,
                    "why": judgement.why,
                    "seen": str(judgement.node),
                }
                for judgement in self.servers
            ],
        }


async def explain(compiled: RuntimeConfig, question: Question, state: StateDocument | None = None) -> Explanation:
    """Explain to which server a request would be routed.

    Args:
        compiled: The configuration.
        question: The request.
        state: A state of the servers; None uses the present one of this process.

    Raises:
        ConfigError: The state, or `sticky`, is about other servers than the configuration.
    """
    if state is not None:
        _check_state(compiled, state)
    scope: Scope = question.scope()
    if compiled.exempt and compiled.exempt.matches(route_path(scope)):
        return Explanation(question=question, is_exempt=True)
    try:
        tenant, scope = await _tenant_of(compiled, question, scope)
        other = compiled.rules.match(question.method, route_path(scope)).datasource
        if other is not None:
            tenant = compiled.default_on(other) if tenant.name is None else tenant.on(other)
        datasource = compiled.datasource_of(tenant)
    except DataError as error:
        if error.kind is DataErrorKind.TENANT and is_preflight(scope):
            return Explanation(question=question, is_exempt=True)
        return Explanation(question=question, refusal=error)
    return _RequestExplainer(compiled, question, tenant, datasource, scope).explanation(state)


async def _tenant_of(compiled: RuntimeConfig, question: Question, scope: Scope) -> tuple[Tenant, Scope]:
    if question.tenant is not None:
        # The caller names the tenant: `authorize` has no request to decide on.
        tenant = await compiled.admission.find(question.tenant)
        compiled.admission.check_served(tenant)
        return tenant, scope
    given = compiled.resolution()(scope)
    answer: Answer = given if given is None or isinstance(given, str | Resolution) else await given
    if not isinstance(answer, Resolution):
        return await compiled.admission.admit(scope, answer), scope
    return await compiled.admission.admit(scope, answer.name), {**scope, "root_path": answer.prefix}


class _RequestExplainer:
    """Explains one request whose tenant is known."""

    def __init__(
        self, compiled: RuntimeConfig, question: Question, tenant: Tenant, datasource: DataSource, scope: Scope
    ) -> None:
        self._compiled = compiled
        self._question = question
        self._tenant = tenant
        self._datasource = datasource
        self._scope = scope

    def explanation(self, state: StateDocument | None) -> Explanation:
        question, compiled = self._question, self._compiled
        method: str = self._scope["method"]
        path = route_path(self._scope)
        found = compiled.rules.find(method, path)
        rule = NO_RULE if found is None else found.rule
        lane = make_lane(compiled.policy, rule, method, None)
        plan = make_plan(lane, None, asyncio.get_running_loop().time())
        wanted = question.intent or plan.intent
        intent, freshness, terms = self._ask(plan, wanted)
        client_history, token = self._client_history(freshness)
        common = Explanation(
            question=question,
            tenant=self._tenant,
            rule=self._number_of(found),
            timeout_s=timeout_of(compiled.policy, rule, None),
            intent=intent,
            consistency=freshness.consistency if client_history is None else client_history.consistency(freshness),
            max_lag_s=self._datasource.topology.policy.max_lag_s
            if freshness.max_lag_s is None
            else freshness.max_lag_s,
            terms=terms,
            token=token,
            limits=rule,
        )
        try:
            if plan.reads_only and wanted is AccessIntent.WRITE:
                raise DataError(DataErrorKind.READ_ONLY, "the transaction is read only")
            if wanted is AccessIntent.WRITE:
                self._tenant.check_writable()
        except DataError as error:
            return replace(common, refusal=error)
        replicas = [node.name for node in self._datasource.topology.replicas]
        if question.sticky is not None and question.sticky not in replicas:
            has = ", ".join(replicas) or "none"
            raise ConfigError(f"{self._datasource.name!r} has no replica {question.sticky!r}; it has {has}")
        servers = _Servers(self._datasource, None if state is None else state.datasources.get(self._datasource.name))
        asked: list[Asked] = []

        def choice(topology: Topology, wants: AccessIntent, /, **told: Any) -> Route | None:
            # No random choice here: a server in slow start counts with its full weight.
            told["dice"] = 0.0
            asked.append(Asked(intent=wants, **told))
            return choose(topology, wants, **told)

        attempt = Attempt()
        route = find_route(
            servers,
            intent,
            attempt,
            freshness,
            is_pinned=question.is_pinned,
            client_history=client_history,
            sticky=question.sticky,
            choice=choice,
        )
        return replace(
            common,
            token=None if token is None else replace(token, position=attempt.after),
            route=route,
            refusal=None if route is not None else no_eligible_server(servers.topology),
            servers=judge(servers.topology, asked[0], route),
        )

    def _ask(self, plan: Plan, wanted: AccessIntent) -> tuple[AccessIntent, Freshness, str]:
        """Intent and freshness of the first statement, and a description of its transaction."""
        terms = plan.terms
        if wanted is AccessIntent.READ and not terms.opens_with_reads:
            return AccessIntent.READ, plan.freshness, "by itself, READ ONLY, in one round trip"
        intent, freshness = opening(terms, plan.freshness)
        isolation = "" if terms.isolation is None else f", {terms.isolation.value}"
        if terms.read_only:
            return intent, freshness, f"in a READ ONLY transaction of the request{isolation or ', repeatable read'}"
        if terms.is_shared:
            return intent, freshness, f"in the transaction of the request{isolation}"
        return intent, freshness, f"in a transaction of its own{isolation}"

    def _client_history(self, freshness: Freshness) -> tuple[ClientHistory | None, TokenReading | None]:
        policy = self._compiled.policy.tokens
        scope = scope_of(self._tenant.name, self._datasource.name)
        given = list(self._question.tokens)
        if policy is None:
            why = "consistency.token is off: it is not looked at"
            return None, TokenReading(None, why) if given else None
        carried = policy.transport.find(self._scope)
        positions = [position for text in given if (position := as_position(text)) is not None]
        texts = [*carried, *(text for text in given if as_position(text) is None)]
        now = time.time()
        token = policy.signer.read(texts, now=now)
        token = token.merged(Token(tuple([Mark(scope, position, int(now)) for position in positions])))
        client_history = ClientHistory(policy, scope, token)
        if not texts and not positions:
            return client_history, None
        found = token.positions(scope)
        if found:
            why = f"the client has seen {', '.join(map(str, found))}"
        elif any(policy.signer.describe(text) is not None for text in texts):
            why = "it is of another tenant or datasource, or older than consistency.ttl: it asks for nothing here"
        else:
            why = "none of the secrets has signed it: it is ignored"
        if found and client_history.needed(freshness) is None:
            why += f", but consistency: {client_history.consistency(freshness).value} does not ask for that"
        return client_history, TokenReading(None, why)

    def _number_of(self, found: CompiledRule | None) -> tuple[int, str] | None:
        if found is None:
            return None
        return list(self._compiled.rules).index(found), found.match


def as_position(text: str) -> Position | None:
    """Parse a position in place of a token, as `timeline:lsn`; None for anything else."""
    timeline, colon, lsn = text.partition(":")
    if not colon:
        return None
    try:
        return Position(int(timeline), parse_lsn(lsn))
    except ValueError:
        return None


class _Servers:
    """The servers of a datasource, as they are now or in a saved state."""

    def __init__(self, datasource: DataSource, state: DataSourceState | None) -> None:
        topology = datasource.topology
        now = asyncio.get_running_loop().time()
        if state is None:
            self.topology, self.turn, self._load = topology, datasource.turn, datasource.load()
            self.held = datasource.held
            return
        self.held = {}
        servers = state.servers
        self.turn = state.turn
        self.topology = Topology(
            topology.datasource,
            _node(topology.primary, servers.get("primary"), now),
            tuple([_node(node, servers.get(node.name), now) for node in topology.replicas]),
            topology.policy,
            Lineage(tuple(sorted((fork.timeline, parse_lsn(fork.lsn)) for fork in state.forks))),
        )
        self._load = {
            node.name: servers[node.name].borrowed / node.weight if node.name in servers else 0.0
            for node in topology.replicas
        }

    def take_turn(self) -> None:
        """Explaining does not advance the round robin."""

    def load(self) -> Mapping[str, float]:
        """Load by server."""
        return self._load


def _node(node: Node, state: ServerState | None, now: float) -> Node:
    if state is None:
        state = _NOTHING_KNOWN
    has_position = state.timeline is not None and state.lsn is not None
    return replace(
        node,
        health=Health(state.breaker),
        is_draining=node.is_draining if state.draining is None else state.draining,
        is_foreign=state.foreign,
        fresh_at=None if state.age_s is None else now - state.age_s,
        lag_s=state.lag_s,
        lag_bytes=state.lag_bytes,
        position=Position(state.timeline or 0, parse_lsn(state.lsn or "0/0")) if has_position else None,
        rtt_s=state.rtt_s,
        up_since=None if state.up_s is None else now - state.up_s,
    )


_NOTHING_KNOWN: Final = ServerState()


def _check_state(compiled: RuntimeConfig, state: StateDocument) -> None:
    known = {**dict.fromkeys(compiled.fleets), **dict.fromkeys(compiled.datasources)}
    for name, looked in state.datasources.items():
        if name not in known:
            raise ConfigError(f"the state names a datasource {name!r}; the configuration has {', '.join(known)}")
        datasource = compiled.datasources.get(name)
        if datasource is None:
            continue
        for node, seen in looked.servers.items():
            server = datasource.servers.get(node)
            if server is None:
                has = ", ".join(datasource.servers)
                raise ConfigError(f"the state names a server {node!r} of {name!r}; the configuration has {has}")
            if seen.role is not None and seen.role != server.role.value:
                raise ConfigError(f"{name}.{node} is the {seen.role} by the state, and not by the configuration")


def describe_state(compiled: RuntimeConfig) -> dict[str, Any]:
    """The present state of the servers as plain data (`schemas/state/v1.json`)."""
    now = asyncio.get_running_loop().time()
    return {
        "version": 1,
        "datasources": {
            name: {
                "turn": datasource.turn,
                "forks": [
                    {"timeline": timeline, "lsn": format_lsn(lsn)}
                    for timeline, lsn in datasource.topology.lineage.forks
                ],
                "servers": {
                    node.name: _describe_node(node, datasource, now)
                    for node in (datasource.topology.primary, *datasource.topology.replicas)
                },
            }
            for name, datasource in compiled.datasources.items()
        },
    }


def _describe_node(node: Node, datasource: DataSource, now: float) -> dict[str, Any]:
    document: dict[str, Any] = {"role": node.role.value, "breaker": node.health.value}
    if node.role is Role.REPLICA:
        document |= {"draining": node.is_draining, "foreign": node.is_foreign}
    position, shown = node.position, datasource.held.get(node.name)
    if position is not None and shown is not None and datasource.topology.lineage.covers(shown, position):
        position = shown
    known = {
        "timeline": None if position is None else position.timeline,
        "lsn": None if position is None else format_lsn(position.lsn),
        "lag_s": node.lag_s,
        "lag_bytes": node.lag_bytes,
        "age_s": None if node.fresh_at is None else max(0.0, now - node.fresh_at),
        "rtt_s": node.rtt_s,
        "up_s": None if node.up_since is None else max(0.0, now - node.up_since),
        "borrowed": datasource.servers[node.name].borrowed,
    }
    return document | {key: value for key, value in known.items() if value is not None}
