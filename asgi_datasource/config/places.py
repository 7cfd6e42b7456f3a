"""Positions of keys and values in a text, searched on demand for the paths of problems.

The positions of 100,000 tenants would need more memory than the tenants, and are not needed while there is no problem.
So the text is read a second time with a `Place` tree of the wanted paths, which the reader fills in.
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
"""Replaces a mapping by a smaller object as soon as it is read, or returns it unchanged."""


class Place:
    """A node of the tree of wanted paths."""

    __slots__ = ("children", "key", "value")

    def __init__(self) -> None:
        self.children: dict[str | int, Place] = {}
        self.key: Mark | None = None
        """The position of the key; None for list entries, and when the path was not found."""
        self.value: Mark | None = None
        """The start of the value."""

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Place:
        """A tree of these paths, without marks."""
        root = cls()
        for path in paths:
            node = root
            for part in path:
                node = node.children.setdefault(part, cls())
        return root

    def find(self, path: Path, *, is_about_key: bool) -> Mark | None:
        """The mark of a path; when it is not in the text, the mark of the innermost path above it that is.

        Args:
            path: One of the wanted paths.
            is_about_key: Whether the position of the key is wanted, not that of its value.
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
    """A key or a scalar in a text.

    Attributes:
        path: The path of the scalar, or of the value that the key belongs to.
        is_key: Whether this is a key.
        start: Its first character.
        end: The position after its last character.
    """

    path: Path
    is_key: bool
    start: Mark
    end: Mark


class Spans:
    """Collects the keys and scalars on some lines of a text while it is read.

    Args:
        lines: The lines, counted from 1.
    """

    def __init__(self, lines: Iterable[int]) -> None:
        self.lines = sorted(set(lines))
        self.found: list[Span] = []

    def wants(self, first: int, last: int) -> bool:
        """Whether one of the lines is in this range."""
        number = bisect_left(self.lines, first)
        return number < len(self.lines) and self.lines[number] <= last

    def add(self, path: Path, start: Mark, end: Mark, *, is_key: bool = False) -> None:
        """Add a key or a scalar on a wanted line."""
        self.found.append(Span(path, is_key, start, end))
