"""How a call that is not async waits for the event loop: in a greenlet of SQLAlchemy's, or in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from ..errors import DataError, DataErrorKind, SessionClosed
from ..sessions.core import SessionCore

T = TypeVar("T")

ON_THE_LOOP: Final = (
    "db.blocking was used in the event loop's own thread, which would stand still until the database answers: write"
    " `await db.fetch_all(...)` or `db.sqlalchemy` there, or move the code into a function that is not async"
    " (`def` handlers, `run_in_threadpool`, `asyncio.to_thread`)"
)


def is_on_a_loop() -> bool:
    """Whether an event loop runs in this thread."""
    return asyncio._get_running_loop() is not None


def loop_of(session: SessionCore) -> asyncio.AbstractEventLoop:
    """The event loop that the session belongs to.

    Raises:
        SessionClosed: Its registry is closed.
    """
    loop = session.registry_loop
    if loop is None or loop.is_closed():
        raise SessionClosed("the registry of this session is closed, and its event loop gone")
    return loop


def wait_in_thread(session: SessionCore, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the session's event loop, and wait for it in this thread, which has no loop.

    The coroutine sees the context of the calling thread: its annotations and blocks hold for it.

    Raises:
        DataError: QUERY: this is the event loop's own thread.
    """
    if is_on_a_loop():
        coroutine.close()
        raise DataError(DataErrorKind.QUERY, ON_THE_LOOP)
    try:
        loop = loop_of(session)
    except BaseException:
        coroutine.close()
        raise
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
