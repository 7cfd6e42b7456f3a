"""Other ecosystems on the same session: each is a facade that runs its statements through the session's own methods.

So tenant, routing, pin, lazy BEGIN, deadline, retry, tokens, spans and round trips are the library's, whatever has
composed the SQL. A facade is made when it is first asked for, and dies with its session.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..sessions.core import SessionCore


def make_facade(name: str, session: SessionCore) -> Any:
    """Make a facade of a session.

    Args:
        name: The attribute of `DataSession` that it is asked for by.
        session: Runs its statements.

    Raises:
        ConfigError: The library that it is for is not installed.
    """
    try:
        from . import sqlalchemy
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("sqlalchemy", "greenlet"):
            raise
        raise ConfigError(
            f"db.{name} needs SQLAlchemy 2.1 with greenlet: pip install 'asgi-datasource[sqlalchemy]'"
        ) from error
    return sqlalchemy.FACADES[name](session)
