"""Problem documents: responses to a `DataError` that the application does not handle itself.

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from __future__ import annotations

import inspect
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, cast

from opentelemetry.trace import Span
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import DataError, DataErrorKind
from ..observability.decision_log import log_decision
from ..observability.names import ERROR_KIND, ERROR_TYPE, HTTP_STATUS, REFERENCE
from ..observability.tracing import cause_of, note_problem
from ..registry.runtime_config import ErrorSettings
from ..tenancy import TenantMissing
from .missing_tenant_page import HEADERS as PAGE_HEADERS
from .missing_tenant_page import accepts_html, render_page

logger = logging.getLogger("asgi_datasource.problems")

RETRY_AFTER_S: Final = 1
"""Seconds in `Retry-After` of a 503: about what a failover or a full queue takes."""

PROBLEM_TYPE: Final = (b"content-type", b"application/problem+json")

_STORMS: Final = frozenset(
    {DataErrorKind.CONNECTION, DataErrorKind.RESOURCE, DataErrorKind.TIMEOUT, DataErrorKind.CONFLICT}
)
"""Kinds that many requests fail with at a time."""

_NOTHING: Final = "nothing was changed"

_TITLES: Final[dict[DataErrorKind, str]] = {
    DataErrorKind.CONFIG: "The service is not configured correctly",
    DataErrorKind.TENANT: "The tenant could not be served",
    DataErrorKind.CONNECTION: "The database cannot be reached",
    DataErrorKind.RESOURCE: "The database is at its limit",
    DataErrorKind.TIMEOUT: f"The request ran out of time; {_NOTHING}",
    DataErrorKind.CONFLICT: f"The request conflicts with another one; {_NOTHING}",
    DataErrorKind.CONSTRAINT: f"The data breaks a rule; {_NOTHING}",
    DataErrorKind.READ_ONLY: "The request tried to write where it may only read",
    DataErrorKind.QUERY: "The request could not be carried out",
    DataErrorKind.VALUE: f"A value is not acceptable; {_NOTHING}",
    DataErrorKind.CLOSED: "The request could not be carried out",
    DataErrorKind.COMMIT_UNKNOWN: "It is unknown whether the change took effect",
    DataErrorKind.OTHER: "The request could not be carried out",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error, and how the library would answer it; the argument of the function at `errors.handler`.

    Attributes:
        error: The error.
        status: The HTTP status.
        document: The problem document (RFC 9457), without internal details.
        headers: Headers of the response besides those of its content: `Cache-Control`, and `Retry-After`,
            `WWW-Authenticate` or `Vary` where they apply.
    """

    error: DataError
    status: int
    document: Mapping[str, object]
    headers: tuple[tuple[bytes, bytes], ...]

    @property
    def title(self) -> str:
        """The error's kind in a sentence for a person."""
        return str(self.document["title"])

    @property
    def reference(self) -> str:
        """Identifies the log line about the error."""
        return str(self.document["reference"])

    @property
    def body(self) -> bytes:
        """The document as JSON."""
        return json.dumps(dict(self.document)).encode()


PlainResponse = tuple[int, Mapping[str, str] | Iterable[tuple[str, str]], bytes | str]
"""A response as status, headers and body."""

ErrorHandler = Callable[[Scope, Problem], ASGIApp | PlainResponse | None | Awaitable[ASGIApp | PlainResponse | None]]
"""A function of the application, sync or async, that renders a problem: an ASGI application, or status, headers and
body; None for the problem document. The status of anything but a tenant's refusal is from 400."""


class ProblemDetails:
    """Answers errors, with the configured statuses and details."""

    __slots__ = ("_settings",)

    def __init__(self, settings: ErrorSettings) -> None:
        self._settings = settings

    def status_of(self, error: DataError) -> int:
        """The status of the response to an error."""
        return self._settings.statuses.get(error.kind, error.http_status)

    def title_of(self, error: DataError, *, is_partial: bool = False) -> str:
        """A title for the error's kind, without internal details.

        Args:
            error: The error.
            is_partial: A part of the request's work had been committed before.
        """
        title = _TITLES.get(error.kind, _TITLES[DataErrorKind.OTHER])
        return title.replace(_NOTHING, "what it had committed before stays") if is_partial else title

    def answers(self, error: DataError) -> bool:
        """Whether an error that leaves the application gets a problem document.

        The others are defects of the application, and propagate to its framework's error page and error reporting.
        """
        return self.status_of(error) != 500 or error.kind is DataErrorKind.COMMIT_UNKNOWN

    def make(self, error: DataError, *, is_partial: bool = False) -> Problem:
        """The problem of an error, with a new reference.

        Args:
            error: The error.
            is_partial: A part of the request's work had been committed before: a repeated request would do it twice.
        """
        status = self.status_of(error)
        document: dict[str, object] = {
            "type": f"urn:asgi-datasource:problem:{error.kind.value.replace('_', '-')}",
            "title": self.title_of(error, is_partial=is_partial),
            "status": status,
            "kind": error.kind.value,
            "retryable": error.is_retryable and not is_partial,
            "reference": secrets.token_hex(8),
        }
        if error.kind is DataErrorKind.TENANT or self._settings.shows_details:
            document["detail"] = error.message
        if error.constraint is not None:
            document["constraint"] = error.constraint
        headers = [(b"cache-control", b"no-store")]
        if status == 401:
            # RFC 9110, section 15.5.2: a 401 must name an accepted scheme.
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 503 and not is_partial:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        if self._offers_page(error):
            headers.append((b"vary", b"Accept"))
        return Problem(error, status, document, tuple(headers))

    async def send(
        self,
        error: DataError,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        is_partial: bool = False,
        span: Span | None = None,
    ) -> None:
        """Answer a request without a response: by `errors.handler`, or with the problem document of the error.

        Args:
            error: The error; its message is logged with the reference that the document carries.
            scope: The request's scope.
            receive: The messages of the request, for the application's function.
            send: Sends the response.
            is_partial: A part of the request's work had been committed before.
            span: The request's span, which gets the error and the reference; None without one.
        """
        problem = self.make(error, is_partial=is_partial)
        if span is not None:
            note_problem(span, error, problem.reference)
        level = logging.ERROR if problem.status >= 500 else logging.INFO
        log_decision(
            logger,
            level,
            "request_failed",
            "request answered with %d: %s (%s) [reference %s]",
            problem.status,
            error.located_message,
            error.kind.value,
            problem.reference,
            fields={
                HTTP_STATUS: problem.status,
                ERROR_TYPE: cause_of(error),
                ERROR_KIND: error.kind.value,
                REFERENCE: problem.reference,
            },
            # While a server is away, every request fails for the same reason.
            once_for=(error.kind, error.sqlstate, error.server)
            if problem.status >= 500 and error.kind in _STORMS
            else None,
        )
        handler = self._settings.handler
        if handler is not None and await _answer_by(handler, problem, scope, receive, send):
            return
        if self._offers_page(error) and accepts_html(scope):
            page = render_page(self._settings.ways or (), problem.reference)
            answer = _Answer(problem.status, (*PAGE_HEADERS, *problem.headers), page)
        else:
            answer = _Answer(problem.status, (PROBLEM_TYPE, *problem.headers), problem.body)
        await answer(scope, receive, send)

    def _offers_page(self, error: DataError) -> bool:
        return self._settings.ways is not None and isinstance(error, TenantMissing)


class _Answer:
    """A response of one part, as an ASGI application."""

    def __init__(self, status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        self._status = status
        self._headers = [*headers, (b"content-length", str(len(body)).encode())]
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._status, "headers": self._headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self._body})


async def _answer_by(handler: ErrorHandler, problem: Problem, scope: Scope, receive: Receive, send: Send) -> bool:
    """Send the response of the application's function; False if there is none, or the function fails."""
    has_started = False

    async def send_checked(message: Message) -> None:
        nonlocal has_started
        if message["type"] == "http.response.start":
            check_failure(message["status"], problem.error)
            has_started = True
        await send(message)

    try:
        response = handler(scope, problem)
        if inspect.isawaitable(response):
            response = await response
        if response is None:
            return False
        app = _as_app(response)
        await app(scope, receive, send_checked)
    except Exception as error:
        if has_started:
            raise
        logger.exception("errors.handler failed on %r: %s", problem.error, type(error).__name__)
        return False
    return True


def check_failure(status: int, error: BaseException | None) -> None:
    """Check the status of the application's response to an error: only a tenant's refusal may lead elsewhere.

    Raises:
        ValueError: A client would take it for a success.
    """
    if status < 400 and not (isinstance(error, DataError) and error.kind is DataErrorKind.TENANT):
        raise ValueError(f"its response has the status {status}, as if the request had succeeded")


def _as_app(response: object) -> ASGIApp:
    """The response of the application's function as an ASGI application."""
    if not isinstance(response, tuple):
        return cast("ASGIApp", response)
    status, headers, body = cast("PlainResponse", response)
    pairs = cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    return _Answer(status, encoded, body.encode() if isinstance(body, str) else body)
