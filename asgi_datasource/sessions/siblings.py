"""Sessions of one request on several datasources: each has a pin, routes and a transaction of its own.

They end with the main session. Their COMMITs come before its own, so that a failure of theirs rolls it back; several
COMMITs are not atomic, and so a second session that writes is refused unless `multiple_writers` allows it.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import DataError
from ..transaction import is_conflict


class MainSession(Protocol):
    """The session of the request."""

    def note_conflict(self, error: DataError, /) -> None:
        """Record a conflict of a session on another datasource."""
        ...


class SiblingSession(Protocol):
    """A session on another datasource."""

    @property
    def is_open(self) -> bool:
        """Whether it may still be used."""
        ...

    async def commit_as_part(self) -> None:
        """Commit what was written so far."""
        ...

    def abandon(self) -> None:
        """End it without waiting: what was not committed is rolled back in the background."""
        ...

    def release_references(self) -> None:
        """Break reference cycles of a closed session."""
        ...


class Sibling:
    """A session on another datasource, as a participant of its main session.

    Args:
        session: The session.
        main: The main session.
    """

    __slots__ = ("_main", "session")

    def __init__(self, session: SiblingSession, main: MainSession) -> None:
        self.session = session
        self._main = main

    @property
    def has_pending(self) -> bool:
        """Whether it is open: it must be ended before the main session."""
        return self.session.is_open

    async def flush(self) -> None:
        """Commit what it has written so far.

        Raises:
            DataError: The commit failed.
            Exception: Raised by a before-commit hook.
        """
        if not self.session.is_open:
            return
        try:
            await self.session.commit_as_part()
        except DataError as error:
            if is_conflict(error):
                # The main session's transaction did not fail, but a retry of the request may succeed.
                self._main.note_conflict(error)
            raise

    def ended(self, *, committed: bool) -> None:
        """The main session's transaction has ended midway; `end_midway` has ended this one."""

    def close(self) -> None:
        """The main session is closed."""
        if self.session.is_open:
            self.session.abandon()
        self.session.release_references()
