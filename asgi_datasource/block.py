"""Blocks inside a session: savepoints, transactions of their own, snapshots, and the loan of a connection.

Whoever is inside a block has the session to itself: statements of other tasks wait until it ends, so that they can
never slip between a savepoint and its release. Tasks started inside the block belong to it: they inherit the context.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar, Token
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from .errors import DataError, DataErrorKind
from .transaction import Frame, Isolation, TransactionOptions, commands, current_frame, unexpected_rollback

if TYPE_CHECKING:
    from .session import DataSession

T = TypeVar("T")

current_block: ContextVar[Block | None] = ContextVar("asgi_datasource_block", default=None)


class BlockKind(StrEnum):
    """What ends with the block."""

    SAVEPOINT = "savepoint"
    """A part of the transaction around it."""
    TRANSACTION = "transaction"
    """A transaction of its own."""
    SNAPSHOT = "snapshot"
    """A READ ONLY transaction of its own, on a replica where there is one."""
    SHARE = "share"
    """Nothing: it only keeps the session to itself."""


class Block:
    """`async with db.transaction():`; made by the session."""

    def __init__(
        self,
        session: DataSession,
        *,
        read_only: bool,
        isolation: Isolation | None,
        takes_savepoint: bool = True,
        deadline: float | None = None,
    ) -> None:
        self._session = session
        self._takes_savepoint = takes_savepoint
        self._read_only = read_only
        self._deadline = deadline
        self.isolation = isolation
        self.lock = asyncio.Lock()
        self.parent: Block | None = None
        self.is_open = False
        self.kind = BlockKind.SHARE
        self.savepoint: str | None = None
        """The savepoint's name, once the server has to know it."""
        self._outer_lock: asyncio.Lock | None = None
        self._hooks_before = 0
        self._tokens: tuple[Token[Block | None], Token[Frame | None]] | None = None

    async def __aenter__(self) -> DataSession:
        session = self._session
        self.parent = session.innermost_block()
        self._outer_lock = session.lock_of(self.parent)
        await self._outer_lock.acquire()
        try:
            session.check_open()
            self.kind = await self._enter()
        except BaseException:
            self._outer_lock.release()
            raise
        self.is_open = True
        self._hooks_before = session.hook_count
        outer = current_frame.get()
        options = TransactionOptions(read_only=self._read_only, isolation=self.isolation)
        deadline = self._deadline if self._deadline is not None or outer is None else outer.deadline
        frame = Frame(options, self, deadline)
        self._tokens = (current_block.set(self), current_frame.set(frame))
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        is_held = False
        try:
            # Statements of this block's own tasks that still run are waited for; later ones find the block closed.
            await self.lock.acquire()
            is_held = True
            await self._leave(error)
        except BaseException as failure:
            if not isinstance(failure, DataError):
                # Cancelled on the way out: what the block did is neither undone nor kept, so all of it must go.
                self._session.spoil("a transaction() block was cancelled while it ended")
            raise
        finally:
            self.is_open = False
            if self._tokens is not None:
                _reset(current_block, self._tokens[0])
                _reset(current_frame, self._tokens[1])
            if is_held:
                self.lock.release()
            if self._outer_lock is not None:
                self._outer_lock.release()

    async def _enter(self) -> BlockKind:
        session = self._session
        transaction = session.transaction_in_use
        if transaction is not None:
            if self.isolation is not None and self.isolation is not transaction.isolation:
                raise isolation_refused(self.isolation, transaction.isolation)
            if transaction.read_only:
                if not self._read_only:
                    raise DataError(
                        DataErrorKind.READ_ONLY,
                        "a transaction() block that writes was opened inside a read-only transaction; open it first",
                    )
                return BlockKind.SHARE
            if not self._takes_savepoint:
                return BlockKind.SHARE
            self.savepoint = session.next_savepoint()
            transaction.pending.append(commands.savepoint(self.savepoint))
            if self._read_only:
                # Releasing the savepoint, or rolling back to it, restores the mode.
                transaction.pending += commands.READ_ONLY
            return BlockKind.SAVEPOINT
        if self._read_only:
            # Where the whole route is one snapshot, the block is a part of it.
            return BlockKind.SHARE if session.is_one_snapshot else BlockKind.SNAPSHOT
        if session.is_managed or (self.parent is not None and self.parent.is_transactional):
            return BlockKind.SAVEPOINT if self._takes_savepoint else BlockKind.SHARE
        return BlockKind.TRANSACTION

    def belongs_to(self, session: DataSession) -> bool:
        """Whether it is a block of this session: sessions of one request may be nested."""
        return self._session is session

    @property
    def is_transactional(self) -> bool:
        """Whether a write inside it waits for its end, or for that of a block around it."""
        return any(block.kind in (BlockKind.TRANSACTION, BlockKind.SAVEPOINT) for block in self.with_parents())

    @property
    def is_guarded(self) -> bool:
        """Whether what runs inside is READ ONLY by a savepoint in a transaction that writes."""
        return any(block._read_only and block.kind is BlockKind.SAVEPOINT for block in self.with_parents())

    def with_parents(self) -> list[Block]:
        """This block and those around it, outermost first."""
        blocks: list[Block] = []
        block: Block | None = self
        while block is not None:
            blocks.append(block)
            block = block.parent
        return blocks[::-1]

    def name_savepoint(self) -> str | None:
        """The name to send to a transaction that is opened inside the block; None when it needs no savepoint."""
        if self.kind is BlockKind.SAVEPOINT and self.savepoint is None:
            self.savepoint = self._session.next_savepoint()
            return self.savepoint
        return None

    async def _leave(self, error: BaseException | None) -> None:
        session = self._session
        if self.kind is BlockKind.SHARE:
            return
        if self.kind is BlockKind.SAVEPOINT:
            await self._leave_savepoint(error)
            return
        if self.kind is BlockKind.SNAPSHOT:
            await session.end_snapshot()
            return
        await session.end_transaction(commit=error is None, reason=_reason(error), hooks_since=self._hooks_before)
        await session.run_due_hooks()

    async def _leave_savepoint(self, error: BaseException | None) -> None:
        session = self._session
        transaction = session.transaction_in_use
        name = self.savepoint
        if transaction is None or name is None:
            # Nothing was sent inside it.
            if error is not None:
                session.undo_hooks(self._hooks_before)
            return
        if transaction.forget_pending_savepoint(name):
            if error is not None:
                session.undo_hooks(self._hooks_before)
            return
        if error is None and transaction.failure is None:
            transaction.pending.append(commands.release(name))
            return
        session.undo_hooks(self._hooks_before)
        if transaction.is_open:
            cause = transaction.failure
            await transaction.rollback_to(name, deadline=session.deadline())
            if error is None:
                raise unexpected_rollback(cause) from cause


def isolation_refused(wanted: Isolation | None, present: Isolation | None) -> DataError:
    """The error for an isolation that the open transaction does not have."""
    return DataError(
        DataErrorKind.QUERY,
        f"isolation {wanted.value if wanted else 'default'!r} was asked for inside a transaction that has"
        f" {present.value if present else 'the default'!r}; isolation is decided where the transaction is opened",
    )


def _reset(variable: ContextVar[T], token: Token[T]) -> None:
    """Restore a context variable; in another context (a fixture's teardown) there is nothing to restore."""
    with contextlib.suppress(ValueError):
        variable.reset(token)


def _reason(error: BaseException | None) -> str:
    return "end of the block" if error is None else f"{type(error).__name__} left the block"
