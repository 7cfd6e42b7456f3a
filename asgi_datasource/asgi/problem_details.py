"""Problem documents: responses to a `DataError` that the application does not handle itself.

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from __future__ import annotations

import json
import logging
import secrets
from typing import Final

from opentelemetry.trace import Span
from starlette.types import Scope, Send

from ..errors import DataError, DataErrorKind
from ..observability.decision_log import log_decision
from ..observability.names import ERROR_KIND, ERROR_TYPE, HTTP_STATUS, REFERENCE
from ..observability.tracing import cause_of, note_problem
from ..registry.runtime_config import ErrorSettings

logger = logging.getLogger("asgi_datasource.problems")

RETRY_AFTER_S: Final = 1
"""Seconds in `Retry-After` of a 503: about what a failover or a full queue takes."""

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


class ProblemDetails:
    """Sends problem documents with the configured statuses and details."""

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

    async def send(
        self, error: DataError, scope: Scope, send: Send, *, is_partial: bool = False, span: Span | None = None
    ) -> None:
        """Send the problem document of an error to a request without a response.

        Args:
            error: The error; its message is logged with the reference that the document carries.
            scope: The request's scope.
            send: Sends the response.
            is_partial: A part of the request's work had been committed before: a repeated request would do it twice.
            span: The request's span, which gets the error and the reference; None without one.
        """
        status = self.status_of(error)
        reference = secrets.token_hex(8)
        if span is not None:
            note_problem(span, error, reference)
        level = logging.ERROR if status >= 500 else logging.INFO
        log_decision(
            logger,
            level,
            "request_failed",
            "request answered with %d: %s (%s) [reference %s]",
            status,
            error.located_message,
            error.kind.value,
            reference,
            fields={
                HTTP_STATUS: status,
                ERROR_TYPE: cause_of(error),
                ERROR_KIND: error.kind.value,
                REFERENCE: reference,
            },
            # While a server is away, every request fails for the same reason.
            once_for=(error.kind, error.sqlstate, error.server) if status >= 500 and error.kind in _STORMS else None,
        )
        document: dict[str, object] = {
            "type": f"urn:asgi-datasource:problem:{error.kind.value.replace('_', '-')}",
            "title": self.title_of(error, is_partial=is_partial),
            "status": status,
            "kind": error.kind.value,
            "retryable": error.is_retryable and not is_partial,
            "reference": reference,
        }
        if error.kind is DataErrorKind.TENANT or self._settings.shows_details:
            document["detail"] = error.message
        if error.constraint is not None:
            document["constraint"] = error.constraint
        body = json.dumps(document).encode()
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if status == 401:
            # RFC 9110, section 15.5.2: a 401 must name an accepted scheme.
            headers.append((b"www-authenticate", b"Bearer"))
        if status == 503 and not is_partial:
            headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
