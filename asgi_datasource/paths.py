"""Paths of the configuration: which are exempt, and which rule of `routes` a request matches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.types import Scope

from .plan import NO_RULE, RouteRule


def route_path(scope: Scope, root: str | None = None) -> str:
    """The path as the application's routes know it: without `root_path`, where it is mounted or its tenant stands.

    Args:
        scope: The request's scope.
        root: The application's `root_path`; None takes the scope's, to which the application's own mounts are added.
    """
    path: str = scope["path"]
    if root is None:
        root = scope.get("root_path", "")
    if not root or not path.startswith(root):
        return path
    rest = path[len(root) :]
    return path if rest and not rest.startswith("/") else rest or "/"


class PathPrefixes:
    """A set of path prefixes, matched on whole segments: `/docs` covers `/docs` and `/docs/x`, but not `/docsx`."""

    __slots__ = ("_exact", "_starts")

    def __init__(self, prefixes: Iterable[str]) -> None:
        cleaned = [prefix.rstrip("/") for prefix in prefixes]
        self._exact = frozenset(prefix or "/" for prefix in cleaned)
        self._starts = tuple(prefix + "/" for prefix in cleaned)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def matches(self, path: str) -> bool:
        """Whether the path is one of them or lies below one."""
        return path in self._exact or path.startswith(self._starts)


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule of `routes`, ready to match.

    Attributes:
        method: The method; None for any.
        path: Matches the whole path.
        rule: What it says.
    """

    method: str | None
    path: re.Pattern[str]
    rule: RouteRule


def compile_pattern(match: str) -> tuple[str | None, re.Pattern[str]]:
    """Compile a rule's `match`: `GET /reports/**`, `* /health`, `/search`.

    `*` stands for one segment or a part of one, `**` for any number of them.

    Returns:
        The method (None for any) and the pattern of the path.
    """
    method, _, path = match.rpartition(" ")
    parts = re.split(r"(/\*\*|\*\*|\*)", path.strip())
    glob = {"/**": "(?:/.*)?", "**": ".*", "*": "[^/]*"}
    pattern = re.compile("".join(glob.get(part) or re.escape(part) for part in parts))
    method = method.strip().upper()
    return None if method in ("", "*") else method, pattern


class RouteRules:
    """The rules of `routes`; the first that matches wins."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Sequence[CompiledRule] = ()) -> None:
        self._rules = tuple(rules)

    def match(self, method: str, path: str) -> RouteRule:
        """The rule for a request; one that says nothing where none matches."""
        for compiled in self._rules:
            if compiled.method in (None, method) and compiled.path.fullmatch(path) is not None:
                return compiled.rule
        return NO_RULE
