"""Cancel a coroutine at each of its suspension points in turn, with every kind of cancellation."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from enum import StrEnum
from typing import Any

import anyio


class Canceller(StrEnum):
    """The kinds of cancellation."""

    TASK = "task.cancel()"
    TASK_TWICE = "task.cancel() again while it cleans up"
    TIMEOUT = "asyncio.timeout"
    SCOPE = "an anyio cancel scope, which cancels at every wait until it is left"


class Steps:
    """Runs a coroutine, counts its suspension points, and calls a function at some of them."""

    def __init__(self, reached: Callable[[int], None]) -> None:
        self.count = 0
        self._reached = reached

    @types.coroutine
    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Return the coroutine's result; every suspension passes through here."""
        send: Callable[[Any], Any] = coroutine.send
        value: Any = None
        while True:
            try:
                waits_for = send(value)
            except StopIteration as done:
                return done.value
            self.count += 1
            self._reached(self.count)
            try:
                value = yield waits_for
                send = coroutine.send
            except BaseException as error:
                value = error
                send = coroutine.throw


async def cancel_at(number: int, canceller: Canceller, work: Callable[[], Awaitable[Any]]) -> bool:
    """Run `work` and cancel it at suspension point `number`.

    Returns:
        True if that point was reached; False if `work` had ended before.
    """

    async def running() -> None:
        await work()

    if canceller in (Canceller.TASK, Canceller.TASK_TWICE):
        numbers = (number,) if canceller is Canceller.TASK else (number, number + 1)

        def cancel(reached: int) -> None:
            if reached in numbers:
                task.cancel()

        steps = Steps(cancel)
        task = asyncio.get_running_loop().create_task(_awaiting(steps.run(running())))
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is not None:
            raise task.exception() or RuntimeError
    elif canceller is Canceller.TIMEOUT:
        try:
            async with asyncio.timeout(None) as timeout:

                def expire(reached: int) -> None:
                    if reached == number:
                        timeout.reschedule(asyncio.get_running_loop().time())

                steps = Steps(expire)
                await steps.run(running())
        except TimeoutError:
            assert timeout.expired()
    else:
        with anyio.CancelScope() as scope:

            def close(reached: int) -> None:
                if reached == number:
                    scope.cancel()

            steps = Steps(close)
            await steps.run(running())
    return steps.count >= number


async def _awaiting(steps: Awaitable[None]) -> None:
    await steps
