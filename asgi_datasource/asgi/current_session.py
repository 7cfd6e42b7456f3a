"""Access to the session of a request or of the current context."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from starlette.requests import HTTPConnection

from ..errors import DataError, DataErrorKind
from ..sessions.context import SessionRunner, current_runner
from ..sessions.decorator import no_session

if TYPE_CHECKING:
    from ..registry.registry import DataSourceRegistry
    from ..sessions.session import DataSession

SCOPE_KEY: Final = "asgi_datasource.session"


class SessionHolder(SessionRunner, Protocol):
    """The value of the scope's `asgi_datasource.session`: holds the session, or creates it on first access."""

    @property
    def registry(self) -> DataSourceRegistry:
        """The registry that creates the session."""
        ...


def current_session() -> DataSession:
    """The session of the running request or `registry.session()` block.

    Raises:
        DataError: QUERY: the call is outside of both.
    """
    runner = current_runner.get()
    if runner is None:
        raise no_session()
    return cast("DataSession", runner.session)


def in_transaction() -> bool:
    """Whether the current session has an open transaction; False without a session."""
    runner = current_runner.get()
    return runner is not None and runner.session.in_transaction()


if TYPE_CHECKING:

    def session(request: HTTPConnection | MutableMapping[str, Any]) -> DataSession:
        """The session of the request; see below."""
        ...

else:
    # FastAPI injects the request by this annotation: `Annotated[DataSession, Depends(session)]`.
    def session(request: HTTPConnection) -> DataSession:
        """The session of the request.

        Args:
            request: A request or websocket of Starlette, FastAPI, Litestar or Quart, or the ASGI scope.

        Raises:
            DataError: QUERY: the middleware is missing, or the path is exempt.
        """
        scope = request if type(request) is dict else getattr(request, "scope", request)
        holder = scope.get(SCOPE_KEY)
        if holder is None:
            raise DataError(
                DataErrorKind.QUERY,
                "no session in this request: add DataSourceMiddleware to the application, or take the path out of"
                " `tenancy.exempt`",
            )
        db = holder.session
        # The innermost scope contains the matched endpoint.
        db.scope = scope
        return db
