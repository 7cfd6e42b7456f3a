"""Type of the connection that `db.connection()` gives, for type checkers only: at run time the driver decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    RawConnection = AsyncConnection[Any]
else:
    RawConnection = Any
