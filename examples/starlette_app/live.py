"""The live feed of the page: the last requests, with server and reason of each statement, and the outcome.

The data comes from the library's spans, which a collector also gets: `Feed` is a span processor that keeps the spans
of the last requests in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEPT: Final = 500
"""Number of requests in the feed."""

_PREFIX: Final = "asgi_datasource."
_tracer: Final = trace.get_tracer("flight_desk")


@dataclass(slots=True)
class Record:
    """One request: the request line, the response, and the library's spans."""

    number: int
    method: str
    path: str
    tenant: str | None
    is_from_page: bool
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


def _continues(steps: list[dict[str, Any]], attributes: Mapping[str, Any]) -> bool:
    """Whether a statement runs where the last step has run, for the same reason."""
    last = steps[-1] if steps else {}
    return all(last.get(name) == attributes.get(_PREFIX + name) for name in ("node", "reason"))


_current: ContextVar[Record | None] = ContextVar("flight_desk_record", default=None)


class Feed(SpanProcessor):
    """Keeps the last requests, each with the spans that started during it."""

    def __init__(self) -> None:
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
        headers = dict(scope["headers"])
        tenant = headers.get(b"x-tenant", b"").decode("latin-1")[:20] or None
        return Record(self.number, scope["method"], scope["path"][:120], tenant, b"x-desk-page" in headers)

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
