"""The type of what `db.connection()` lends, for type checkers alone: at run time it is whatever the driver lends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import AsyncConnection

    RawConnection = AsyncConnection[Any]
else:
    RawConnection = Any
