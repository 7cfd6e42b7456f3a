"""What is left of a document without its wrong parts, so that the rest can be checked for sense in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .diagnostics import Diagnostic, Path
from .models import Config
from .sense import check_sense
from .structure import check_structure

_MOST_ROUNDS: Final = 8
"""Taking a part out may leave its section without a key that it needs, so that the section goes as well, and so on."""


def check_remainder(document: object, problems: Iterable[Diagnostic], *, needs_resolver: bool) -> list[Diagnostic]:
    """What makes no sense in the parts of a document that are right.

    Args:
        document: The document with its references resolved.
        problems: What is wrong with its form.
        needs_resolver: Whether the document alone must be able to tell tenants from requests.

    Returns:
        The problems of sense in which no wrong part has a share.
    """
    wrong = {problem.path for problem in problems}
    config = _remainder(document, wrong)
    if config is None:
        return []
    return [
        problem
        for problem in check_sense(config, needs_resolver=needs_resolver)
        if not any(_touch(path, other) for path in (problem.path, *problem.related) for other in wrong)
    ]


def _touch(path: Path, other: Path) -> bool:
    """Whether one of two places is inside the other."""
    length = min(len(path), len(other))
    return path[:length] == other[:length]


def _remainder(document: object, wrong: Iterable[Path]) -> Config | None:
    rest: Any = document
    paths = set(wrong)
    for _ in range(_MOST_ROUNDS):
        # Longest and last first: taking out a list's entry moves those behind it.
        for path in sorted(paths, key=lambda path: [(isinstance(part, int), str(part).zfill(9)) for part in path])[
            ::-1
        ]:
            if not path:
                return None
            rest = _without(rest, path)
        config, problems = check_structure(rest)
        if config is not None:
            return config
        paths = {problem.path if _has(rest, problem.path) else problem.path[:-1] for problem in problems}
    return None


def _has(document: Any, path: Path) -> bool:
    value: Any = document
    for part in path:
        try:
            value = value[part]
        except (LookupError, TypeError):
            return False
    return True


def _without(document: Any, path: Path) -> Any:
    """The document without what stands at a path; everything beside the path is shared."""
    if not _has(document, path):
        return document
    key, *rest = path
    copy: Any = document.copy()
    if rest:
        copy[key] = _without(copy[key], tuple(rest))
    else:
        del copy[key]
    return copy
