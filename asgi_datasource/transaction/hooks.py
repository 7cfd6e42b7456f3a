"""Hooks around the end of a transaction."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import cast

from opentelemetry.context import Context

from ..observability import tracing

Hook = Callable[[], object]
"""A sync or async callable without arguments."""

logger = logging.getLogger("asgi_datasource.transaction")


class HookEvent(StrEnum):
    """The event that a hook runs on."""

    BEFORE_COMMIT = "before_commit"
    AFTER_COMMIT = "after_commit"
    AFTER_ROLLBACK = "after_rollback"


WaitingHooks = list[tuple[HookEvent, Hook]]
"""Hooks, each with its event."""


class DueHooks:
    """Hooks of one session whose transaction has ended."""

    __slots__ = ("_due",)

    def __init__(self) -> None:
        self._due: list[tuple[HookEvent, Hook, Context | None]] = []

    def settle(self, waiting: WaitingHooks, *, committed: bool | None, within: Context | None = None) -> None:
        """The outcome of the transaction is known: its hooks become due; with an unknown outcome (None), none do.

        Args:
            waiting: The hooks.
            committed: The outcome.
            within: The context of the transaction's span, which contains theirs; None without one.
        """
        if committed is not None:
            event = HookEvent.AFTER_COMMIT if committed else HookEvent.AFTER_ROLLBACK
            self._due += [(kind, function, within) for kind, function in waiting if kind is event]

    def __len__(self) -> int:
        return len(self._due)

    def forget(self, since: int = 0) -> None:
        """Drop the hooks that became due after the first `since`: their work is retried."""
        del self._due[since:]

    async def run(self, *, is_traced: bool) -> None:
        """Run the due hooks, isolated from each other: a failure is logged with its span and has no other effect."""
        while self._due:
            event, function, within = self._due.pop(0)
            name = name_of_hook(function)
            with tracing.hook_span(event.value, name, is_traced=is_traced, within=within) as fail:
                try:
                    await call_hook(function)
                except (Exception, asyncio.CancelledError) as error:
                    if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                        raise
                    fail(error)
                    logger.exception("the hook %s failed; the transaction's outcome stands", name)


def _is_cancelled() -> bool:
    """Whether the running task itself is cancelled; if not, a hook has awaited something that was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def call_hook(function: Hook) -> None:
    """Call a hook, and await its result if that is awaitable."""
    result = function()
    if isinstance(result, Awaitable):
        await cast("Awaitable[object]", result)


def name_of_hook(function: Hook) -> str:
    """A hook's name for messages."""
    name: str = getattr(function, "__qualname__", type(function).__name__)
    return name
