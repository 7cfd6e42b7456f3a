"""Values of a document with their paths, so that an error names the key that it is about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

Path = tuple[str | int, ...]
"""Keys, and indexes of list entries."""

MAX_ID_LENGTH: Final = 32


class Malformed(Exception):
    """Raised when a document is not of the form that it should be.

    Args:
        path: The path of the value.
        problem: What is wrong with it, without quoting it: a trace may hold anything.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path_text(path)} {problem}")
        self.path = path


def path_text(path: Path) -> str:
    """A path as it is written in JavaScript: `data[0].spans[3].startTime`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "the document"


class Part:
    """A mapping of a document.

    Args:
        value: The mapping.
        path: Its path.

    Raises:
        Malformed: It is no mapping.
    """

    __slots__ = ("path", "value")

    def __init__(self, value: object, path: Path = ()) -> None:
        if not isinstance(value, dict):
            raise Malformed(path, f"is {_kind(value)}, and should be a mapping")
        self.value = cast("dict[str, Any]", value)
        self.path = path

    def malformed(self, key: str, problem: str) -> Malformed:
        """An error about one of its keys."""
        return Malformed((*self.path, key), problem)

    def part(self, key: str) -> Part:
        """The mapping at a key; an empty one without it."""
        found: object = self.value.get(key)
        return Part({} if found is None else found, (*self.path, key))

    def parts(self, key: str) -> Iterator[Part]:
        """The mappings of the list at a key; none without it.

        Raises:
            Malformed: It is no list of mappings.
        """
        found: object = self.value.get(key)
        if found is None:
            return
        if not isinstance(found, list):
            raise self.malformed(key, f"is {_kind(found)}, and should be a list")
        for number, entry in enumerate(cast("list[object]", found)):
            yield Part(entry, (*self.path, key, number))

    def text(self, key: str, default: str | None = None) -> str:
        """The text at a key.

        Raises:
            Malformed: It is no text, or missing without a default.
        """
        found: object = self.value.get(key, default)
        if not isinstance(found, str):
            raise self.malformed(key, "is missing" if found is None else f"is {_kind(found)}, and should be text")
        return found

    def whole(self, key: str) -> int:
        """The whole number at a key, which may be written as text.

        Raises:
            Malformed: It is missing or no whole number, or negative.
        """
        found: object = self.value.get(key)
        if isinstance(found, str) and found.isascii() and found.isdecimal() and len(found) <= MAX_ID_LENGTH:
            return int(found)
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            return found
        problem = "is missing" if found is None else f"is {_kind(found)}, and should be a whole number"
        raise self.malformed(key, problem)

    def hexadecimal(self, key: str, length: int, *, is_optional: bool = False) -> str:
        """The id at a key in lower case; empty if it is optional and missing, empty or zero.

        Args:
            key: The key.
            length: The most digits; shorter ids are filled with zeros, as Jaeger leaves these out.
            is_optional: Whether it may be missing.

        Raises:
            Malformed: It is no such id.
        """
        if is_optional and self.value.get(key) in (None, ""):
            return ""
        found = self.text(key).lower()
        if not found or len(found) > length or not set(found) <= set("0123456789abcdef"):
            raise self.malformed(key, f"should be up to {length} hexadecimal digits")
        return "" if is_optional and not found.strip("0") else found.zfill(length)


def _kind(value: object) -> str:
    """The type of a value in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "a mapping"
