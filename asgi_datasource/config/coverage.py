"""Finds route rules that are unreachable because an earlier rule matches the same requests."""

from __future__ import annotations

from typing import Final

_ANY: Final = "*"
_REST: Final = "**"


def split_match(match: str) -> tuple[str | None, tuple[str, ...]]:
    """Split a rule's `match`.

    Returns:
        The method, None for any; and the path's segments: `*` is any segment, a final `**` any number of them.
    """
    method, space, path = match.partition(" ")
    if not space:
        method, path = "*", match
    return None if method == "*" else method, tuple(path[1:].split("/"))


class _Node:
    """A node of the tree: the rules whose paths start with the same segments."""

    __slots__ = ("children", "exact", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.exact: dict[str | None, int] = {}
        """The first rule of each method that ends at this node."""
        self.rest: dict[str | None, int] = {}
        """The first rule of each method that matches everything below this node."""


class Coverage:
    """Rules as a tree of path segments: the lookup of a covering rule does not compare it with every other rule."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, match: str, index: int) -> None:
        """Add a rule; rules are added in the order of the document."""
        method, segments = split_match(match)
        is_rest = segments[-1] == _REST
        node = self._root
        for segment in segments[:-1] if is_rest else segments:
            node = node.children.setdefault(segment, _Node())
        (node.rest if is_rest else node.exact).setdefault(method, index)

    def find(self, match: str) -> int | None:
        """The first rule that matches every request that a rule with this `match` would match."""
        method, segments = split_match(match)
        found: list[int] = []

        def note(rules: dict[str | None, int]) -> None:
            found.extend(rules[key] for key in {method, None} if key in rules)

        nodes = [self._root]
        for segment in segments:
            # `/a/**` also matches `/a`, so `rest` counts before each segment and after the last one.
            for node in nodes:
                note(node.rest)
            wanted = (segment,) if segment in (_ANY, _REST, "") else (segment, _ANY)
            nodes = [node.children[each] for node in nodes for each in wanted if each in node.children]
        for node in nodes:
            note(node.rest)
            note(node.exact)
        return min(found, default=None)
