"""From a request, or from where the code runs, to the session."""

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
    """What stands in the scope: knows the session, or makes it when it is asked for."""

    @property
    def registry(self) -> DataSourceRegistry:
        """Where the session comes from."""
        ...


def current_session() -> DataSession:
    """The session of the request, or of the `registry.session()` block, that runs here.

    Raises:
        DataError: QUERY: there is none.
    """
    runner = current_runner.get()
    if runner is None:
        raise no_session()
    return cast("DataSession", runner.session)


def in_transaction() -> bool:
    """Whether a transaction is open where this is called; False where there is no session."""
    runner = current_runner.get()
    return runner is not None and runner.session.in_transaction()


if TYPE_CHECKING:

    def session(request: HTTPConnection | MutableMapping[str, Any]) -> DataSession:
        """The request's handle on its tenant's data; see below."""
        ...

else:
    # FastAPI hands in the request by this annotation: `Annotated[DataSession, Depends(session)]`.
    def session(request: HTTPConnection) -> DataSession:
        """The request's handle on its tenant's data.

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
        # The innermost scope: the matched endpoint stands there.
        db.scope = scope
        return db
