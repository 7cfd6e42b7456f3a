"""Background tasks: work that must end even when the request that started it is gone."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

logger = logging.getLogger("asgi_datasource.background")


class BackgroundTasks:
    """Runs coroutines that their caller's cancellation does not reach, and awaits them at shutdown.

    An anyio shield does not stop a native `Task.cancel()`, and repeated waits on `asyncio.shield` spin under an anyio
    scope, which cancels at every wait. So the work runs in a task of its own, and the caller awaits it once under a
    shield. A cancelled caller leaves; the task ends by itself, within its own deadline.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return sum(not task.done() for task in self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], *, waiter: asyncio.Future[T] | None = None) -> asyncio.Task[T]:
        """Start `work` in a task that only `drain` awaits.

        Args:
            work: The coroutine to run.
            waiter: Receives the outcome as well: a task that awaits it resumes one or two loop iterations earlier than
                with a shield around the task. It may be cancelled.
        """
        task: asyncio.Task[T]
        if waiter is not None:
            work = _resolve_waiter(work, waiter)
        if sys.version_info >= (3, 12):
            # An eager start saves a loop iteration for each COMMIT.
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
        """Start `work` and await it; a cancelled caller leaves at once and the work goes on.

        Raises:
            asyncio.CancelledError: The caller was cancelled.
            Exception: What `work` raised.
        """
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.spawn(work, waiter=waiter)
        return await waiter

    async def drain(self, timeout_s: float) -> int:
        """Await the running tasks for at most `timeout_s` seconds, then cancel the rest.

        Returns:
            Number of tasks that were cancelled.
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
            # Retrieve the exception here: a cancelled caller does not, and asyncio would log it at exit.
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
