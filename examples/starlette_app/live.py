"""The live feed of the page: the last requests, with server and reason of each statement, and the outcome.

The data comes from the library's spans, which a collector also gets: `Feed` is a span processor that keeps the spans
of the last requests in memory. `Detail` shows all of one request: its SQL, its spans, and why it went to no other
server.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asgi_datasource import AccessIntent, DataSourceRegistry

KEPT: Final = 500
"""Number of requests in the feed."""

TOKEN: Final = "x-datasource-token"  # noqa: S105
"""The header with the client's position, by datasource.yaml."""
NOT_PROVED: Final = "not_proved"
"""In place of a reason: the replica was asked, and has not replayed what the client's token requires."""

_DECIDING: Final = ("host", "x-tenant", TOKEN)
"""Headers that decide on the tenant and the server."""
_PREFIX: Final = "asgi_datasource."
_tracer: Final = trace.get_tracer("flight_desk")


@dataclass(slots=True)
class Record:
    """One request: the request line, the response, and the library's spans.

    Attributes:
        headers: The headers that decide on the tenant and the server.
        state: The state of the servers when it arrived, for `registry.explain`.
        token: The token of the response.
    """

    number: int
    method: str
    path: str
    tenant: str | None
    is_from_page: bool
    headers: dict[str, str] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    token: str | None = None
    at: float = field(default_factory=time.time)
    status: int | None = None
    ms: float = 0.0
    spans: list[ReadableSpan] = field(default_factory=list)

    def steps(self) -> list[dict[str, Any]]:
        """The use of each server, in order: server, reason, candidates, statements."""
        steps: list[dict[str, Any]] = []
        for span in sorted(self.spans, key=lambda span: span.start_time or 0):
            attributes = span.attributes or {}
            reason = attributes.get(_PREFIX + "reason")
            if _PREFIX + "candidates" in attributes or (reason is not None and not _continues(steps, attributes)):
                # A choice; or a statement in a transaction, which needs none.
                names = ("datasource", "intent", "node", "role", "reason", "candidates")
                step: dict[str, Any] = {name: attributes.get(_PREFIX + name) for name in names}
                if attributes.get(_PREFIX + "proof") == "failed":
                    step["reason"] = NOT_PROVED
                if step["candidates"] is None and steps:
                    step |= {"intent": "read", "candidates": steps[-1]["candidates"]}
                steps.append(step | {"statements": [], "is_failed": not span.status.is_ok})
            if steps and "db.query.summary" in attributes:
                steps[-1]["statements"].append(span.name)
        return steps

    def outcome(self) -> str | None:
        """The outcome of the request's transaction; None without a transaction."""
        for span in reversed(self.spans):
            outcome = (span.attributes or {}).get(_PREFIX + "transaction.outcome")
            if outcome is not None:
                return str(outcome)
        return None

    def as_json(self) -> dict[str, Any]:
        """The record as JSON for the page."""
        plain = ("number", "method", "path", "tenant", "at", "status", "ms")
        return {name: getattr(self, name) for name in plain} | {
            "page": self.is_from_page,
            "steps": self.steps(),
            "outcome": self.outcome(),
        }

    def tree(self) -> list[dict[str, Any]]:
        """The spans in the order of their start, with their depth, and milliseconds since the start of the request."""
        depths: dict[int, int] = {}
        found: list[dict[str, Any]] = []
        for span in sorted(self.spans, key=lambda span: span.start_time or 0):
            attributes = span.attributes or {}
            parent = 0 if span.parent is None else span.parent.span_id
            depth = depths.get(parent, 0) + 1
            if span.context is not None:
                depths[span.context.span_id] = depth
            start = span.start_time or 0
            found.append(
                {
                    "name": span.name,
                    "depth": depth,
                    "start_ms": round(max(0.0, start / 1e6 - self.at * 1000), 2),
                    "ms": None if span.end_time is None else round((span.end_time - start) / 1e6, 2),
                    "is_failed": not span.status.is_ok,
                    "text": attributes.get("db.query.text"),
                    "begin": attributes.get(_PREFIX + "transaction.begin"),
                    "attributes": {
                        name.removeprefix(_PREFIX): list(value) if isinstance(value, tuple) else value
                        for name, value in attributes.items()
                        if name.removeprefix(_PREFIX) not in _TOLD
                    },
                }
            )
        return found


_TOLD: Final = frozenset(("db.query.text", "db.query.summary", "transaction.begin", "db.system.name", "candidates"))
"""Attributes that the page shows in a place of their own, or that say the same in each span."""


def _continues(steps: list[dict[str, Any]], attributes: Mapping[str, Any]) -> bool:
    """Whether a statement runs where the last step has run, for the same reason."""
    last = steps[-1] if steps else {}
    return all(last.get(name) == attributes.get(_PREFIX + name) for name in ("node", "reason"))


_current: ContextVar[Record | None] = ContextVar("flight_desk_record", default=None)


class Feed(SpanProcessor):
    """Keeps the last requests, each with the spans that started during it.

    Args:
        state: The state of the servers; called at the start of each request.
    """

    def __init__(self, state: Callable[[], dict[str, Any]]) -> None:
        self._state = state
        self._records: deque[Record] = deque(maxlen=KEPT)
        self.number = 0

    def on_start(self, span: Span, parent_context: context.Context | None = None) -> None:
        """Called by the SDK at the start of a span, in the context of its request or of a child task."""
        record = _current.get()
        if record is not None and span.kind is not SpanKind.SERVER:
            record.spans.append(span)

    def begin(self, scope: Scope) -> Record:
        """Number a request and start its record."""
        self.number += 1
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        tenant = headers.get("x-tenant", "")[:20] or None
        record = Record(self.number, scope["method"], scope["path"][:120], tenant, "x-desk-page" in headers)
        record.headers = {name: headers[name] for name in _DECIDING if name in headers}
        record.state = self._state()
        return record

    def end(self, record: Record) -> None:
        """Add the completed request to the feed."""
        for span in record.spans:
            tenant = (span.attributes or {}).get(_PREFIX + "tenant.id")
            record.tenant = str(tenant) if tenant is not None else record.tenant
        self._records.append(record)

    def since(self, number: int, limit: int) -> list[dict[str, Any]]:
        """The newest records that came after this number, oldest first."""
        found = [record for record in self._records if record.number > number]
        return [record.as_json() for record in found[-limit:]]

    def find(self, number: int) -> Record | None:
        """The record of a request that is still kept."""
        return next((record for record in self._records if record.number == number), None)


class Detail:
    """All that is known of one request.

    Args:
        feed: The last requests.
        registry: The registry that has served them.
    """

    def __init__(self, feed: Feed, registry: DataSourceRegistry) -> None:
        self._feed = feed
        self._registry = registry

    async def show(self, request: Request) -> JSONResponse:
        """GET: the request, its tenant's settings, its tokens, its spans, and the judgement of every server."""
        record = self._feed.find(request.path_params["number"])
        if record is None:
            raise HTTPException(404, f"the desk keeps its last {KEPT} requests")
        steps = record.steps()
        choices: list[dict[str, Any]] = []
        for index, step in enumerate(steps):
            if step["candidates"] is not None and (not index or not _is_same_choice(step, steps[index - 1])):
                choices.append(await self._choice(record, step))
        return JSONResponse(
            record.as_json()
            | {
                "settings": self._settings(record.tenant) if steps else [],
                "token": {"sent": record.headers.get(TOKEN), "received": record.token},
                "spans": record.tree(),
                "choices": choices,
            }
        )

    def _settings(self, name: str | None) -> list[list[str]]:
        """What `set_config(name, value, true)` sets in each of the tenant's transactions."""
        tenant = None if name is None else self._registry.known_tenants.get(name)
        return [] if tenant is None else [[setting, value] for setting, value in tenant.settings]

    async def _choice(self, record: Record, step: Mapping[str, Any]) -> dict[str, Any]:
        """`asgi-datasource explain` for one choice, on the servers as they were when the request arrived."""
        told = await self._registry.explain(
            record.method,
            record.path,
            headers=record.headers,
            intent=AccessIntent(step["intent"]),
            is_pinned=step["reason"] == "pinned",
            sticky=step["node"] if step["reason"] == "sticky" else None,
            state=record.state,
        )
        document = told.document()
        return {
            "intent": step["intent"],
            "node": step["node"],
            "reason": step["reason"],
            "is_failed": step["is_failed"],
            "expected": document["route"],
            "runs": None if step["reason"] == "pinned" else document["plan"] and document["plan"]["runs"],
            "token": document["token"],
            "servers": document["servers"],
        }


def _is_same_choice(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("node", "reason", "intent", "is_failed"))


class Watch:
    """ASGI middleware: the server span of a request, its record for the feed, and the header `X-Served-By`.

    It is outside of `DataSourceMiddleware`, so it sees the same response as the client: after COMMIT, or instead of it.
    """

    def __init__(self, app: ASGIApp, feed: Feed) -> None:
        self._app = app
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; requests of the page itself are not recorded."""
        if scope["type"] != "http" or scope["path"] == "/ui" or scope["path"].startswith("/ui/"):
            await self._app(scope, receive, send)
            return
        record = self._feed.begin(scope)
        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        start = time.perf_counter()

        with _tracer.start_as_current_span(
            scope["method"],
            propagate.extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.path": scope["path"]},
        ) as span:

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    record.status = message["status"]
                    record.ms = round((time.perf_counter() - start) * 1000, 2)
                    record.token = dict(message.get("headers", ())).get(TOKEN.encode(), b"").decode("latin-1") or None
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                    served = ", ".join(f"{step['node']} ({step['reason']})" for step in record.steps())
                    message = {
                        **message,
                        "headers": [
                            *message.get("headers", ()),
                            (b"x-request-number", str(record.number).encode()),
                            (b"x-served-by", (served or "nobody").encode()),
                        ],
                    }
                await send(message)

            token = _current.set(record)
            try:
                await self._app(scope, receive, answer)
            except Exception:
                # The framework's error page is outside of this middleware: it answers unhandled exceptions.
                record.status = record.status or 500
                raise
            finally:
                _current.reset(token)
                self._feed.end(record)


class NameSpan:
    """ASGI middleware: names the request's span after its route, which is known after the call of the application.

    It is inside of `DataSourceMiddleware`, because the application has another scope if the path names the tenant.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application; then name the span."""
        try:
            await self._app(scope, receive, send)
        finally:
            route = scope.get("route")
            if route is not None and scope["type"] == "http":
                span = trace.get_current_span()
                span.update_name(f"{scope['method']} {route.path}")
                span.set_attribute("http.route", route.path)
