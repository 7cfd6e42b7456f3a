"""SQLAlchemy's suite for dialects, as it is but for what it knows by the names of drivers."""

from __future__ import annotations

from sqlalchemy.testing.suite import *  # noqa: F403
from sqlalchemy.testing.suite import ServerSideCursorsTest as _ServerSideCursorsTest

from asgi_datasource.db.link import ServerCursor


class ServerSideCursorsTest(_ServerSideCursorsTest):
    def _is_server_side(self, cursor: object) -> bool:
        return isinstance(cursor, ServerCursor)
