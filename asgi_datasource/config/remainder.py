"""Checks the rest of a document whose form has errors, so that one run reports the problems of both stages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Path
from .models import Config
from .semantics import check_semantics
from .shapes import is_list, is_mapping
from .structure import check_structure

_MOST_ROUNDS: Final = 8
"""Removing a part may leave its section without a required key, so that the section is removed in the next round."""


def check_remainder(
    document: object, problems: Iterable[Diagnostic], unknown: Iterable[Path], *, needs_resolver: bool
) -> tuple[Config | None, list[Diagnostic]]:
    """Run the second stage on the valid and known parts of a document.

    Args:
        document: The document with its references resolved.
        problems: The problems of its form.
        unknown: The paths of unknown values.
        needs_resolver: Whether tenants without `tenancy.resolve` are an error.

    Returns:
        The remaining config, with stand-ins for removed parts that others refer to; and the problems that involve no
        wrong or unknown part.
    """
    parts = [*problems, *(Diagnostic(Code.VARIABLE_NOT_SET, path, "", "") for path in unknown)]
    config = _remainder(document, parts)
    if config is None:
        return None, []
    wrong = _Places(problem.path for problem in parts)
    return config, [
        problem
        for problem in check_semantics(config, needs_resolver=needs_resolver)
        if not any(wrong.touch(path) for path in (problem.path, *problem.related))
        and not (problem.code is Code.UNKNOWN_DATASOURCE and ("datasources",) in wrong)
    ]


class _Places:
    """A set of paths that finds overlaps."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = set(paths)
        self._above = {path[:length] for path in self._paths for length in range(len(path))}

    def __contains__(self, path: Path) -> bool:
        return path in self._paths

    def touch(self, path: Path) -> bool:
        """Whether one of the paths contains this one, or is contained in it."""
        return path in self._above or any(path[:length] in self._paths for length in range(len(path) + 1))


def _remainder(document: object, problems: Iterable[Diagnostic]) -> Config | None:
    rest: object = document
    for _ in range(_MOST_ROUNDS):
        rest = _without(rest, problems)
        config, problems = check_structure(rest)
        if config is not None:
            return config
    return None


def _stand_in(path: Path) -> object:
    """The stand-in for a part that others refer to; None where the part can be removed."""
    name = "-".join(map(str, path))
    match path:
        case ("version",):
            return 1
        case ("datasources",):
            return {"stand-in": {"primary": {"url": f"host={name}"}}}
        case ("datasources", _):
            return {"primary": {"url": f"host={name}"}}
        case ("datasources", _, "primary"):
            return {"url": f"host={name}"}
        case ("datasources", _, "primary", "url") | ("datasources", _, "replicas", _, "url"):
            return f"host={name}"
        case ("datasources", _, "search_path", int()):
            return "stand-in"
        case ("tenancy", "resolve", int()):
            return {"callable": f"stand.in:resolve_{path[-1]}"}
        case ("routes", int()):
            return {"match": f"/{name}"}
        case ("routes", int(), "match"):
            return f"/{name}"
        case _:
            return None


class _Node:
    """An edit of one path, or the edits inside of it."""

    __slots__ = ("children", "is_edited", "stand_in")

    def __init__(self) -> None:
        self.children: dict[str | int, _Node] = {}
        self.is_edited = False
        self.stand_in: object = None
        """The replacement; None when the part is removed."""


def _without(document: object, problems: Iterable[Diagnostic]) -> object:
    """A copy of the document without its wrong parts, or with stand-ins for them; other parts are shared."""
    root = _Node()
    for problem in problems:
        path = problem.path
        stand_in = None if problem.is_about_key or not path else _stand_in(path)
        if stand_in is None and problem.code is Code.MISSING_KEY:
            path = path[:-1]
        if path:
            node = root
            for step in path:
                node = node.children.setdefault(step, _Node())
            node.is_edited, node.stand_in = True, stand_in
    return _edited(document, root)


def _edited(document: Any, node: _Node) -> Any:
    if not is_mapping(document) and not is_list(document):
        return document
    copy: Any = document.copy()
    # Later entries of a list are removed first, because a removal shifts the entries after it.
    for step, child in sorted(node.children.items(), key=lambda item: _place_in_list(item[0]), reverse=True):
        try:
            if not child.is_edited:
                copy[step] = _edited(copy[step], child)
            elif child.stand_in is None:
                del copy[step]
            else:
                copy[step] = child.stand_in
        except (LookupError, TypeError):
            continue  # It was removed together with an outer part.
    return copy


def _place_in_list(step: str | int) -> int:
    return step if isinstance(step, int) else -1
