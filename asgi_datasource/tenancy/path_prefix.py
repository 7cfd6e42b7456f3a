"""The path of a request as the application's routes know it, and sets of path prefixes."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Scope


def route_path(scope: Scope, root: str | None = None) -> str:
    """The path that the application's routes match: without `root_path`, which holds mount points and tenant prefixes.

    Args:
        scope: The request's scope.
        root: The application's `root_path`; None uses the scope's, which the application's own mounts extend.
    """
    path: str = scope["path"]
    if root is None:
        root = scope.get("root_path", "")
    if not root or not path.startswith(root):
        return path
    rest = path[len(root) :]
    return path if rest and not rest.startswith("/") else rest or "/"


def move_path(scope: Scope, prefix: str) -> Scope:
    """A copy of the scope with a prefix of the path moved to `root_path`.

    Args:
        scope: The request's scope.
        prefix: The prefix that the routes must not see.
    """
    root: str = scope.get("root_path", "")
    path: str = scope["path"]
    if not path.startswith(root):
        # A server that predates version 2.3 of the ASGI specification leaves it off; with the prefix it is needed.
        path = root + path
    return {**scope, "root_path": root + prefix, "path": path}


class PathPrefixes:
    """A set of path prefixes, matched on whole segments: `/docs` covers `/docs` and `/docs/x`, but not `/docsx`.

    Args:
        prefixes: The prefixes.
        pages: Paths that are in the set without what is below them.
    """

    __slots__ = ("_exact", "_starts")

    def __init__(self, prefixes: Iterable[str], *, pages: Iterable[str] = ()) -> None:
        cleaned = [prefix.rstrip("/") for prefix in prefixes]
        self._exact = frozenset((*(prefix or "/" for prefix in cleaned), *pages))
        self._starts = tuple(prefix + "/" for prefix in cleaned)

    def __bool__(self) -> bool:
        return bool(self._exact)

    def matches(self, path: str) -> bool:
        """Whether the path is one of them or lies below one."""
        return path in self._exact or path.startswith(self._starts)
