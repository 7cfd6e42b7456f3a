"""One line, one timer: who is still there is called back in order, and in nobody else's context."""

from __future__ import annotations

import asyncio
import weakref
from contextvars import ContextVar

from asgi_datasource.concurrency.deferred_calls import DeferredCalls
from tests.drivers.polling import until

mine: ContextVar[str] = ContextVar("mine", default="nobody's")


async def test_everybody_is_called_once_in_order_not_before_the_time() -> None:
    loop = asyncio.get_running_loop()
    deferred = DeferredCalls(0.05)
    called: list[tuple[int, float]] = []
    added: list[float] = []

    for number in range(5):
        added.append(loop.time())
        deferred.add(lambda number=number: called.append((number, loop.time())), loop.time())  # type: ignore[misc]
        await asyncio.sleep(0.01)
    await until(lambda: len(called) == 5)
    assert [number for number, _ in called] == [0, 1, 2, 3, 4]
    assert all(at >= added[number] + 0.05 for number, at in called)


async def test_one_that_is_added_by_a_callback_has_its_turn_as_well() -> None:
    loop = asyncio.get_running_loop()
    deferred = DeferredCalls(0.01)
    called: list[str] = []

    def first() -> None:
        called.append("first")
        deferred.add(lambda: called.append("second"), loop.time())

    deferred.add(first, loop.time())
    await until(lambda: called == ["first", "second"])


async def test_callbacks_do_not_see_the_context_of_whoever_came_first() -> None:
    loop = asyncio.get_running_loop()
    deferred = DeferredCalls(0.01)
    seen: list[str] = []
    mine.set("the first one's")
    deferred.add(lambda: seen.append(mine.get()), loop.time())
    await until(lambda: bool(seen))
    assert seen == ["nobody's"]


async def test_what_is_taken_back_is_not_called_nor_kept() -> None:
    loop = asyncio.get_running_loop()
    deferred = DeferredCalls(0.01)
    called: list[str] = []

    class Request:
        def __init__(self, name: str) -> None:
            self.name = name

        def call(self) -> None:
            called.append(self.name)

    done, slow = Request("done"), Request("slow")
    gone = weakref.ref(done)
    deferred.add(done.call, loop.time())
    deferred.add(slow.call, loop.time())
    deferred.due.pop(done.call, None)
    del done
    assert gone() is None
    await until(lambda: bool(called))
    assert called == ["slow"]
    deferred.due.pop(slow.call, None)


async def test_one_that_is_taken_back_by_a_callback_before_it_is_not_called() -> None:
    loop = asyncio.get_running_loop()
    deferred = DeferredCalls(0.01)
    called: list[str] = []

    def second() -> None:
        called.append("second")

    def first() -> None:
        called.append("first")
        deferred.due.pop(second, None)

    now = loop.time()
    deferred.add(first, now)
    deferred.add(second, now)
    await until(lambda: bool(called))
    assert called == ["first"]


async def test_nobody_is_called_after_closing() -> None:
    loop = asyncio.get_running_loop()
    deferred = DeferredCalls(0.01)
    called: list[int] = []
    deferred.add(lambda: called.append(1), loop.time())
    deferred.close()
    await asyncio.sleep(0.05)
    assert called == []
    deferred.add(lambda: called.append(2), loop.time())
    await until(lambda: called == [2])
