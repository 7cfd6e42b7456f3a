"""Running a request again: what it was before the application saw it, and whether it may be.

Nothing here is made for an application that never asks for it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.types import Message

from ..transaction import backoff_s


class Recording:
    """The messages of a request's body, as the application has got them, as long as they are not too many.

    Args:
        limit: Bytes of body that are kept; what is longer cannot be sent again.
    """

    __slots__ = ("_messages", "_room", "is_too_large")

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._messages: list[Message] = []
        self.is_too_large = False
        """Whether something of the body is lost."""

    def note(self, message: Message) -> None:
        """The application gets this message."""
        if message["type"] != "http.request" or self.is_too_large:
            return
        self._room -= len(message.get("body", b""))
        self._messages.append(message)
        if self._room < 0:
            self.is_too_large = True
            self._messages.clear()

    def take(self) -> list[Message]:
        """The messages so far, to be handed out again."""
        messages, self._messages = self._messages, []
        self._room += sum(len(message.get("body", b"")) for message in messages)
        return messages


class RequestReplay:
    """A request as it came in, kept until nobody can ask for it again.

    Args:
        scope: The ASGI scope, before the application has seen it.
        body_limit: Bytes of body that are kept.
    """

    __slots__ = ("_dicts", "_lists", "_scope", "attempt", "recording")

    def __init__(self, scope: MutableMapping[str, Any], body_limit: int) -> None:
        self._scope = dict(scope)
        # Other middlewares hold these very objects, and look into them when the request is over.
        values: list[Any] = list(scope.values())
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = [
            (value, value.copy()) for value in values if type(value) is dict
        ]
        self._lists: list[tuple[list[Any], list[Any]]] = [
            (value, value.copy()) for value in values if type(value) is list
        ]
        self.recording = Recording(body_limit)
        self.attempt = 1

    def fresh_scope(self) -> dict[str, Any]:
        """The scope for another attempt: nothing that the last one has put there is left."""
        for mapping, content in self._dicts:
            mapping.clear()
            mapping.update(content)
        for items, before in self._lists:
            items[:] = before
        return dict(self._scope)

    def next_delay_s(self) -> float:
        """Seconds to wait before another attempt."""
        return backoff_s(self.attempt)
