"""What a session has under way: a transaction or a snapshot, the hooks that wait for its end, and that end."""

from __future__ import annotations

import asyncio
from typing import Protocol

from .background import BackgroundTasks
from .errors import CommitUnknown, DataError, DataErrorKind
from .plan import SessionPolicy
from .routing import ReadAfterWritePin
from .transaction import Hook, Hooks, Transaction, WaitingHooks, unexpected_rollback


class WorkOwner(Protocol):
    """Whose work it is: the session."""

    stopped_by: DataError | None
    """Why only the rollback is left, where that is so."""

    @property
    def rollback_reason(self) -> str | None:
        """What was given as the reason to roll back whatever the outcome."""
        ...

    @property
    def pin(self) -> ReadAfterWritePin:
        """Learns the position of a commit in the write-ahead log."""
        ...


class Work:
    """The transaction and the snapshot of a session, from its first statement to a known end."""

    __slots__ = ("_background", "_hooks", "_owner", "_policy", "committing", "lock", "snapshot", "transaction")

    def __init__(self, owner: WorkOwner, policy: SessionPolicy, background: BackgroundTasks) -> None:
        self._owner = owner
        self._policy = policy
        self._background = background
        self._hooks: Hooks | None = None
        self.lock = asyncio.Lock()
        """Serialises the statements."""
        self.transaction: Transaction | None = None
        self.snapshot: Transaction | None = None
        """The READ ONLY transaction of a block or a stream."""
        self.committing: asyncio.Task[None] | None = None

    @property
    def transaction_in_use(self) -> Transaction | None:
        """The transaction that statements run in; one that has failed stays until it is ended."""
        return self.transaction or self.snapshot

    # -- hooks

    @property
    def hook_count(self) -> int:
        """How many hooks wait for the end of the transaction."""
        return 0 if self._hooks is None else len(self._hooks)

    @property
    def has_due_hooks(self) -> bool:
        """Whether there is something for `run_due_hooks`."""
        return self._hooks is not None and self._hooks.has_due

    def add_hook(self, function: Hook, *, on_commit: bool) -> None:
        """Wait with `function` for a commit, or else for a rollback."""
        if self._hooks is None:
            self._hooks = Hooks()
        self._hooks.add(function, on_commit=on_commit)

    def take_hooks(self, since: int = 0) -> WaitingHooks:
        """The hooks added after there were `since`; `settle` them when the outcome is known."""
        return [] if self._hooks is None else self._hooks.take(since)

    def settle(self, hooks: WaitingHooks, *, committed: bool | None) -> None:
        """Those that waited for this outcome become due; none of them when nobody can tell what it was."""
        if self._hooks is not None:
            self._hooks.settle(hooks, committed=committed)

    async def run_due_hooks(self) -> None:
        """Run the hooks whose transaction has ended, each isolated from the others."""
        if self._hooks is not None:
            await self._hooks.run_due()

    # -- the end

    async def finish(self, *, commit: bool, reason: str, deadline: float | None, hooks_since: int = 0) -> None:
        """End whatever is open; the caller holds the lock.

        Args:
            commit: Commit; otherwise roll back.
            reason: Why it is rolled back, for the span.
            deadline: Event-loop time at which the time is up.
            hooks_since: The hooks before these wait for another end.

        Raises:
            DataError: It was to be committed and was not (for CommitUnknown: nobody could tell).
        """
        hooks = self.take_hooks(hooks_since)
        committed = False
        transaction, self.transaction = self.transaction, None
        owner = self._owner
        try:
            try:
                await self.end_snapshot()
            except BaseException:
                if transaction is not None:
                    self._background.spawn(transaction.rollback("cancelled"))
                raise
            stopped_by = owner.stopped_by
            if transaction is None:
                if commit and stopped_by is not None:
                    raise stopped_by
                committed = commit
                return
            loop = asyncio.get_running_loop()
            if commit and stopped_by is None and deadline is not None and loop.time() >= deadline:
                stopped_by = deadline_passed()
            if commit and stopped_by is not None:
                await transaction.rollback(stopped_by.kind.value)
                raise stopped_by
            rollback_reason = owner.rollback_reason
            if not commit:
                await transaction.rollback(rollback_reason or reason)
                return
            if rollback_reason is not None:
                await transaction.rollback(rollback_reason)
                raise unexpected_rollback(DataError(DataErrorKind.OTHER, rollback_reason))
            if deadline is None:
                deadline = loop.time() + self._policy.commit_timeout_s
            # From here on it is the commit's own task that knows what becomes of the hooks, whoever still waits for it.
            committing = self.committing = self._background.spawn(self._commit(transaction, hooks, deadline))
            hooks = []
            await asyncio.shield(committing)
        finally:
            self.settle(hooks, committed=committed)

    async def _commit(self, transaction: Transaction, hooks: WaitingHooks, deadline: float) -> None:
        committed: bool | None = None
        try:
            await transaction.commit(deadline=deadline, doubt_timeout_s=self._policy.doubt_timeout_s)
            committed = True
        except CommitUnknown:
            raise
        except DataError:
            committed = False
            raise
        finally:
            self.settle(hooks, committed=committed)
        if transaction.wal_position is not None:
            self._owner.pin.lsn = transaction.wal_position

    async def end_snapshot(self) -> None:
        """End the READ ONLY transaction of a block or a stream."""
        snapshot, self.snapshot = self.snapshot, None
        if snapshot is not None:
            await snapshot.rollback("end of the snapshot")

    def abandon(self) -> None:
        """Somebody else holds the lock for too long: take the connections away from under it."""
        for transaction in (self.transaction, self.snapshot):
            if transaction is not None and transaction.is_open:
                self._background.spawn(transaction.rollback("abandoned"))
        self.transaction = self.snapshot = None
        self.settle(self.take_hooks(), committed=False)


def deadline_passed() -> DataError:
    """The error of a request whose time is up."""
    return DataError(DataErrorKind.TIMEOUT, "the request's deadline has passed; nothing was committed")
