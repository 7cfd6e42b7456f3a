"""What runs after a transaction has ended."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import cast

Hook = Callable[[], object]
"""Sync or async, without arguments."""

WaitingHooks = list[tuple[bool, Hook]]
"""Hooks, each with whether it waits for a commit, or else for a rollback."""

logger = logging.getLogger("asgi_datasource.transaction")


class Hooks:
    """The hooks of one session: those of the transaction that is open, and those whose transaction has ended."""

    __slots__ = ("_due", "_waiting")

    def __init__(self) -> None:
        self._waiting: WaitingHooks = []
        self._due: list[Hook] = []

    def __len__(self) -> int:
        """How many wait for the end of the transaction."""
        return len(self._waiting)

    @property
    def has_due(self) -> bool:
        """Whether there is something for `run_due`."""
        return bool(self._due)

    def add(self, function: Hook, *, on_commit: bool) -> None:
        """Wait with `function` for a commit, or else for a rollback."""
        self._waiting.append((on_commit, function))

    def take(self, since: int = 0) -> WaitingHooks:
        """Those added after there were `since`: their transaction ends. `settle` them when its outcome is known."""
        taken = self._waiting[since:]
        del self._waiting[since:]
        return taken

    def settle(self, taken: WaitingHooks, *, committed: bool | None) -> None:
        """The ones that waited for this outcome become due; none of them when nobody can tell what it was."""
        self._due += [function for on_commit, function in taken if on_commit is committed]

    async def run_due(self) -> None:
        """Run what is due, each isolated from the others: a failure is logged and changes nothing."""
        while self._due:
            function = self._due.pop(0)
            try:
                result = function()
                if isinstance(result, Awaitable):
                    await cast("Awaitable[object]", result)
            except Exception:
                name = getattr(function, "__qualname__", type(function).__name__)
                logger.exception("the hook %s failed; the transaction's outcome stands", name)
