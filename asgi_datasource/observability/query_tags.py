"""Query tags: what leads from PostgreSQL's own views and logs back to the route and the trace.

A comment behind each statement, in the format of sqlcommenter: `/*route='GET%20%2Forders%2F%7Bid%7D'*/`; and the route
as `application_name` for the length of a transaction.

Source: sqlcommenter specification (google.github.io/sqlcommenter/spec); PostgreSQL manual, "application_name".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from opentelemetry import trace

MAX_APPLICATION_NAME: Final = 63
"""Characters of `application_name` that PostgreSQL shows (NAMEDATALEN - 1)."""


class QueryTag:
    """A comment behind each statement of a session.

    Attributes:
        comment: The comment, in ASCII.
        is_constant: It is the same for all requests of a route, so that statements with it are worth preparing.
    """

    __slots__ = ("comment", "is_constant")

    def __init__(self, comment: bytes, *, is_constant: bool) -> None:
        self.comment = comment
        self.is_constant = is_constant

    def behind(self, text: bytes) -> bytes:
        """A statement with its tag; on a line of its own where a `--` comment would swallow it."""
        return text + (b"\n" if b"--" in text else b" ") + self.comment


@dataclass(frozen=True, slots=True)
class TagOptions:
    """How statements are tagged.

    Attributes:
        comments: Statements have a comment.
        traceparent: It names the span of the request; then it differs from request to request.
        tenant: It names the tenant.
        application_name: The route is the transaction's `application_name`.
    """

    comments: bool = False
    traceparent: bool = False
    tenant: bool = False
    application_name: bool = False

    def tag(self, route: str | None, tenant: str | None) -> QueryTag | None:
        """The tag of a session; None without one."""
        if not self.comments:
            return None
        tenant = tenant if self.tenant else None
        if self.traceparent:
            span = trace.get_current_span().get_span_context()
            if span.is_valid:
                parent = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags & 0xFF:02x}"
                return QueryTag(_comment(route, tenant, parent), is_constant=False)
        return _constant(route, tenant)

    def settings(self, route: str | None) -> tuple[tuple[str, str], ...]:
        """The settings of the session's transactions that name the route."""
        return _application_name(route) if self.application_name and route is not None else ()


@lru_cache(maxsize=2048)
def _constant(route: str | None, tenant: str | None) -> QueryTag | None:
    return None if route is None and tenant is None else QueryTag(_comment(route, tenant, None), is_constant=True)


def _comment(route: str | None, tenant: str | None, traceparent: str | None) -> bytes:
    """The comment: keys in order, values percent-encoded, so that no quote and no `*/` is left in them."""
    pairs = (("route", route), ("tenant", tenant), ("traceparent", traceparent))
    found = ",".join([f"{key}='{quote(value, safe='')}'" for key, value in pairs if value is not None])
    return f"/*{found}*/".encode("ascii")


@lru_cache(maxsize=2048)
def _application_name(route: str) -> tuple[tuple[str, str], ...]:
    plain = "".join([character if " " <= character <= "~" else "?" for character in route])
    return (("application_name", plain[:MAX_APPLICATION_NAME]),)


def route_of(scope: Mapping[str, Any] | None, method: str) -> str | None:
    """The route of a request, never its path, which contains ids: `GET /orders/{id}`; None where none is known.

    Starlette and FastAPI put the matched route into the scope, Litestar its template; else the endpoint has a name.
    """
    if scope is None:
        return None
    route = scope.get("route")
    template = getattr(route, "path_format", None) or getattr(route, "path", None) or scope.get("path_template")
    if isinstance(template, str):
        return f"{method} {template}"
    name = getattr(scope.get("endpoint"), "__qualname__", None)
    return f"{method} {name}" if isinstance(name, str) else None
