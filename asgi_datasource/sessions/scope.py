"""Nested scopes: savepoint, own transaction, or autocommit, each inside another one of the same session.

A `Scope` only holds state: its parent, savepoint and unit of work. `TransactionBlock` enters and leaves it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final, Protocol

from ..concurrency.shared_lock import SharedLock
from ..drivers.statements import Control
from ..errors import DataError, DataErrorKind
from ..transaction import PropagationAction, control_statements
from .unit_of_work import UnitOfWork


class ScopeOwner(Protocol):
    """The session that a scope belongs to."""

    def next_savepoint(self) -> str:
        """A name for a savepoint, unique in this session."""
        ...


class Scope:
    """One scope of a session; its lock serialises the statements inside it.

    Args:
        owner: The session.
        reads_only: Writes inside are refused.
    """

    def __init__(self, owner: ScopeOwner, *, reads_only: bool) -> None:
        self._owner = owner
        self._reads_only = reads_only
        self.lock: Final = SharedLock()
        self.parent: Scope | None = None
        """The scope of the same session that it is inside of."""
        self.around: Scope | None = None
        """The scope that was current where it was entered, which may be another session's."""
        self.is_open = False
        self.action = PropagationAction.JOIN
        self.own_work: UnitOfWork | None = None
        """The unit of work that it has pushed."""
        self.outer_work: UnitOfWork | None = None
        """The unit of work around it."""
        self.savepoint: str | None = None
        """The savepoint's name; None until SAVEPOINT is queued."""
        self.doomed_by: DataError | None = None
        """The error that made the savepoint rollback-only, although the server would release it."""

    def belongs_to(self, owner: object) -> bool:
        """Whether it is a scope of this session; sessions of one request may be nested."""
        return self._owner is owner

    def is_inside(self, other: object) -> bool:
        """Whether it is `other`, or nested in it."""
        scope: Scope | None = self
        while scope is not None and scope is not other:
            scope = scope.parent
        return scope is not None

    @property
    def work(self) -> UnitOfWork | None:
        """The unit of work of its statements; None before it is open."""
        return self.own_work or self.outer_work

    @property
    def is_cut_off(self) -> bool:
        """Whether a surrounding scope was cancelled and ended before it: everything inside is rolled back."""
        scope = self.parent
        while scope is not None and scope.is_open:
            scope = scope.parent
        return scope is not None

    def check_surroundings(self) -> None:
        """Raise if a surrounding scope has ended.

        Raises:
            DataError: QUERY: it has.
        """
        if self.is_cut_off:
            raise cut_off()

    @property
    def lost_by(self) -> DataError | None:
        """The conflict (40001, 40P01) that its own transaction failed with; None without one."""
        return None if self.own_work is None else self.own_work.lost_by

    @property
    def is_guarded(self) -> bool:
        """Whether a savepoint makes its statements READ ONLY in a writing transaction."""
        return any(scope._reads_only for scope in self._savepoints())

    def _savepoints(self) -> list[Scope]:
        """The savepoints that are open in the same transaction, outermost first."""
        scopes: list[Scope] = []
        scope: Scope | None = self
        while scope is not None and scope.own_work is None:
            if scope.action is PropagationAction.SAVEPOINT:
                scopes.append(scope)
            scope = scope.parent
        return scopes[::-1]

    def savepoints_to_send(self) -> list[Control]:
        """The statements that must follow BEGIN in a transaction that is opened inside."""
        return [
            statement
            for scope in self._savepoints()
            if scope.savepoint is None
            for statement in scope.name_savepoint(is_guarded=True)
        ]

    def name_savepoint(self, *, is_guarded: bool) -> list[Control]:
        """Give the savepoint its name.

        Args:
            is_guarded: If the scope only reads, set READ ONLY inside the savepoint.

        Returns:
            The statements to send.
        """
        self.savepoint = name = self._owner.next_savepoint()
        # Releasing the savepoint, or rolling back to it, restores the mode.
        guard = control_statements.READ_ONLY if self._reads_only and is_guarded else ()
        return [control_statements.savepoint(name), *guard]

    def doom(self, error: DataError) -> bool:
        """Mark the innermost savepoint rollback-only; False without a savepoint.

        Args:
            error: The cause of the exception that its end will raise.
        """
        savepoints = self._savepoints()
        if savepoints and savepoints[-1].doomed_by is None:
            savepoints[-1].doomed_by = error
        return bool(savepoints)


current_scope: ContextVar[Scope | None] = ContextVar("asgi_datasource_scope", default=None)


def cut_off() -> DataError:
    """The error inside a scope whose surrounding scope was cancelled."""
    return DataError(
        DataErrorKind.QUERY,
        "the block around this one was cancelled, and everything inside of it was rolled back; wait for the tasks of a"
        " block before it ends",
    )
