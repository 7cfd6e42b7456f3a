"""Where keys stand in a text: found on demand, for the keys that a message is about.

A document of 100,000 tenants would need more memory for its positions than for itself, and nobody asks for them while
nothing is wrong. So a reader takes a `Place` tree of the wanted paths with it and fills in what it passes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .diagnostics import Path

Mark = tuple[int, int]
"""Line and column, counted from 1."""


Compact = Callable[[dict[str, Any]], object]
"""Makes a mapping smaller as soon as it is read, or hands it back as it is."""


class Place:
    """One node of the tree of wanted paths."""

    __slots__ = ("children", "key", "value")

    def __init__(self) -> None:
        self.children: dict[str | int, Place] = {}
        self.key: Mark | None = None
        """Where the key stands; None for list entries and for what was not found."""
        self.value: Mark | None = None
        """Where the value starts."""

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Place:
        """A tree of these paths, still without marks."""
        root = cls()
        for path in paths:
            node = root
            for part in path:
                node = node.children.setdefault(part, cls())
        return root

    def find(self, path: Path, *, is_about_key: bool) -> Mark | None:
        """The mark of a path; for one that is not in the text, that of the innermost part of it that is.

        Args:
            path: One of the wanted paths.
            is_about_key: Whether the key's place is wanted, not its value's.
        """
        node = self
        best = self.value
        for depth, part in enumerate(path, start=1):
            child = node.children.get(part)
            if child is None or child.value is None:
                break
            is_wanted_value = depth == len(path) and not is_about_key
            best = child.value if is_wanted_value else child.key or child.value
            node = child
        return best


@dataclass(frozen=True, slots=True)
class Span:
    """A key or a scalar as it stands in a text.

    Attributes:
        path: The way to it; inside of a key, to the value that it is the key of.
        is_key: Whether this is the key.
        start: Where it starts.
        end: Behind its last character.
    """

    path: Path
    is_key: bool
    start: Mark
    end: Mark


class Spans:
    """Collects the keys and scalars on some lines of a text, while it is read.

    Args:
        lines: The lines, from 1.
    """

    def __init__(self, lines: Iterable[int]) -> None:
        self.lines = sorted(set(lines))
        self.found: list[Span] = []

    def wants(self, first: int, last: int) -> bool:
        """Whether one of the lines is among these."""
        number = bisect_left(self.lines, first)
        return number < len(self.lines) and self.lines[number] <= last

    def add(self, path: Path, start: Mark, end: Mark, *, is_key: bool = False) -> None:
        """Add what stands on a wanted line."""
        self.found.append(Span(path, is_key, start, end))
