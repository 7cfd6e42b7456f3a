"""Waiting for the event loop in a thread that has none: sync handlers, and libraries that block."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from ..errors import DataError, DataErrorKind, SessionClosed

T = TypeVar("T")

ON_THE_LOOP: Final = (
    "db.blocking was used in the thread of the event loop, which would block every request until the database answers."
    " Use `await db.fetch_all(...)` or `db.sqlalchemy` there, or move the code to a function that is not async (a `def`"
    " handler, `run_in_threadpool`, `asyncio.to_thread`)"
)


def is_on_a_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None


def wait_in_thread(loop: asyncio.AbstractEventLoop | None, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the event loop, with the context of this thread, and wait for its result.

    Args:
        loop: The loop of the registry; None if that is closed.
        coroutine: Closed if it cannot run.

    Raises:
        DataError: QUERY: this is the thread of an event loop.
        SessionClosed: The loop is closed.
    """
    error: DataError | None = None
    if is_on_a_loop():
        error = DataError(DataErrorKind.QUERY, ON_THE_LOOP)
    elif loop is None or loop.is_closed():
        error = SessionClosed("the registry of this session is closed")
    if error is not None or loop is None:
        coroutine.close()
        raise error or SessionClosed("the registry of this session is closed")
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
