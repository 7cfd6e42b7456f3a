"""Which of a request's sessions writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DataError, DataErrorKind

if TYPE_CHECKING:
    from .session import DataSession


class Writers:
    """The sessions of one request that have written: two COMMITs cannot be atomic, so it should be one."""

    __slots__ = ("_allows_several", "_first")

    def __init__(self, *, allows_several: bool) -> None:
        self._allows_several = allows_several
        self._first: DataSession | None = None

    def claim(self, session: DataSession) -> None:
        """Note that `session` is about to write.

        Raises:
            DataError: QUERY: another session of this request has, and the configuration does not allow that.
        """
        if self._first is None:
            self._first = session
        elif self._first is not session and not self._allows_several:
            raise DataError(
                DataErrorKind.QUERY,
                f"this request has already written to the datasource {self._first.datasource.name!r} and now writes to"
                f" {session.datasource.name!r}; two commits cannot be atomic. Write to one of them only, or set"
                " `transactions: {multiple_writers: allow}`",
            )
