"""Tasks of the library's own: what must end even when the request that started it is gone."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("asgi_datasource.background")


class BackgroundTasks:
    """Runs coroutines out of reach of their caller's cancellation, and waits for them at shutdown.

    A shield of anyio does not stop a native `Task.cancel()`, and waiting again and again on `asyncio.shield` spins
    under an anyio scope, which cancels at every wait. So the work gets a task of its own, the caller awaits it once
    under a shield, and leaves when it is cancelled; the task ends by itself, within its own deadline.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return sum(not task.done() for task in self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], *, waiter: asyncio.Future[T] | None = None) -> asyncio.Task[T]:
        """Start `work` in a task that only `drain` waits for.

        Args:
            work: What to run.
            waiter: Gets the outcome too, as soon as it is known: whoever awaits it goes on a turn or two of the loop
                before a shield around the task would let him. It may be cancelled.
        """
        task: asyncio.Task[T]
        if waiter is not None:
            work = _resolve_waiter(work, waiter)
        if sys.version_info >= (3, 12):
            # Starting at once saves a turn of the loop for each COMMIT.
            task = asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)
        else:
            task = asyncio.get_running_loop().create_task(work)
        if task.done():
            self._forget(task)
        else:
            self._tasks.add(task)
            task.add_done_callback(self._forget)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Start `work` and wait for it; a cancelled caller leaves at once and the work goes on.

        Raises:
            asyncio.CancelledError: The caller was cancelled.
            Exception: What `work` raised.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.spawn(work, waiter=waiter)
        return await waiter

    async def drain(self, timeout_s: float) -> int:
        """Wait for what is still running, `timeout_s` seconds at most, then cancel the rest.

        Returns:
            How many had to be cancelled.
        """
        current = asyncio.current_task()
        waiting = {task for task in self._tasks if task is not current}
        if not waiting:
            return 0
        _, late = await asyncio.wait(waiting, timeout=timeout_s)
        for task in late:
            task.cancel()
        if late:
            logger.warning("%d clean-up task(s) did not end within %.1f s and were cancelled", len(late), timeout_s)
            await asyncio.wait(late, timeout=1.0)
        return len(late)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Retrieved here because a caller that was cancelled will not, and asyncio would complain at exit.
            task.exception()


async def _resolve_waiter(work: Coroutine[Any, Any, T], waiter: asyncio.Future[T]) -> T:
    try:
        result = await work
    except asyncio.CancelledError:
        waiter.cancel()
        raise
    except BaseException as error:
        if not waiter.done():
            waiter.set_exception(error)
        raise
    if not waiter.done():
        waiter.set_result(result)
    return result
