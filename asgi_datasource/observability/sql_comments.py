"""Comments of SQL, which may contain others."""

from __future__ import annotations

import re
from typing import Final

_EDGE: Final = re.compile(r"/\*|\*/")


def end_of_comment(sql: str, position: int) -> int | None:
    """Where a block comment ends; None if it is not closed.

    Source: PostgreSQL manual, "Comments": block comments nest.

    Args:
        sql: The text.
        position: Index behind the comment's `/*`.
    """
    depth = 1
    while depth:
        edge = _EDGE.search(sql, position)
        if edge is None:
            return None
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position
