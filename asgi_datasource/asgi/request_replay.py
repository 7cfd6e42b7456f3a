"""Retrying a request: its scope and body as they were before the application changed them.

Created only if an annotation, a rule or the configuration sets `retry`.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from starlette.types import Message

from ..transaction import backoff_s


class Recording:
    """Records the messages of a request's body that the application has received.

    Args:
        limit: Bytes of body that are kept; a longer body cannot be replayed.
    """

    __slots__ = ("_messages", "_room", "is_too_large")

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._messages: list[Message] = []
        self.is_too_large = False
        """Whether the body is longer than the limit; nothing is kept of it then."""

    def note(self, message: Message) -> None:
        """Record a message that the application receives."""
        if message["type"] != "http.request" or self.is_too_large:
            return
        self._room -= len(message.get("body", b""))
        self._messages.append(message)
        if self._room < 0:
            self.is_too_large = True
            self._messages.clear()

    def take(self) -> list[Message]:
        """Remove and return the recorded messages."""
        messages, self._messages = self._messages, []
        self._room += sum(len(message.get("body", b"")) for message in messages)
        return messages


class RequestReplay:
    """The original scope of a request and the recording of its body, kept until its last attempt has ended.

    Args:
        scope: The ASGI scope, before the application has seen it.
        body_limit: Bytes of body that are kept.
    """

    __slots__ = ("_dicts", "_lists", "_scope", "attempt", "recording")

    def __init__(self, scope: MutableMapping[str, Any], body_limit: int) -> None:
        self._scope = dict(scope)
        # Outer middlewares hold these objects and read them after the request: restore them in place.
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
        """The scope for another attempt, without the changes of the last one."""
        for mapping, content in self._dicts:
            mapping.clear()
            mapping.update(content)
        for items, before in self._lists:
            items[:] = before
        return dict(self._scope)

    def next_delay_s(self) -> float:
        """Seconds to wait before another attempt."""
        return backoff_s(self.attempt)
