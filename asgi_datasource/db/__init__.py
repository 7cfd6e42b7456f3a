"""Other ecosystems on the same session: each is a facade that runs its statements through the session's own methods.

So tenant, routing, pin, lazy BEGIN, deadline, retry, tokens, spans and round trips are the library's, whatever has
composed the SQL. A facade is made when it is first asked for, and dies with its session.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from typing import Any, Final

from ..errors import ConfigError
from ..sessions.core import SessionCore

_HOMES: Final = {
    "dbapi_connection": "link",
    "sqlalchemy": "sqlalchemy",
    "sqlalchemy_connection": "sqlalchemy",
}
"""The module of each facade, imported when it is first asked for."""


def make_facade(name: str, session: SessionCore) -> Any:
    """Make a facade of a session.

    Args:
        name: The attribute of `DataSession` that it is asked for by.
        session: Runs its statements.

    Raises:
        ConfigError: The library that it is for is not installed.
    """
    return _load(_HOMES[name], f"db.{name}").FACADES[name](session)


def make_engine(open_session: Callable[[], Awaitable[SessionCore]], options: Mapping[str, Any]) -> Any:
    """Make an engine of SQLAlchemy's whose connections are sessions; errors: `make_facade`.

    Args:
        open_session: Makes a session for each connection.
        options: Of `create_async_engine`.
    """
    return _load("sqlalchemy", "registry.sqlalchemy_engine()").engine_for(open_session, **options)


def _load(module: str, what: str) -> Any:
    try:
        return import_module(f".{module}", __name__)
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("sqlalchemy", "greenlet"):
            raise
        raise ConfigError(
            f"{what} needs SQLAlchemy 2.1 with greenlet: pip install 'asgi-datasource[sqlalchemy]'"
        ) from error
