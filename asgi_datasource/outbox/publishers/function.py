"""The publisher of a function of the application."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from ...drivers import import_object
from ...errors import ConfigError
from ..entry import OutboxEntry
from ..protocols import OutboxPublisher
from .keyed import KeyedPublisher


class FunctionPublisher(KeyedPublisher):
    """Calls a function with each event, one at a time for each key.

    What it raises decides: `Unreachable`, `OSError` and `TimeoutError` mean that its destination is away; everything
    else refuses this message.

    Args:
        function: Async, or not: then it runs in a thread.
    """

    def __init__(self, function: Callable[[OutboxEntry], Any]) -> None:
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - to find an async `__call__`
        )

    async def send(self, entry: OutboxEntry) -> None:
        """Call the function."""
        if self._is_async:
            await self._function(entry)
        else:
            made = await asyncio.to_thread(self._function, entry)
            if inspect.isawaitable(made):
                await made


def load_publisher(path: str) -> OutboxPublisher:
    """The publisher of `package.module:name`: a function, an object with `publish(batch)`, or a class of such objects.

    Raises:
        ConfigError: There is no such thing.
    """
    try:
        found = import_object(path)
    except ImportError as error:
        raise ConfigError(f"outbox.publisher.callable: {path} cannot be imported: {error}") from error
    if inspect.isclass(found):
        found = found()
    if isinstance(found, OutboxPublisher):
        return found
    if callable(found):
        return FunctionPublisher(found)
    raise ConfigError(f"outbox.publisher.callable: {path} is neither a function nor an object with publish(batch)")
