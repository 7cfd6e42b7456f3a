"""What is left of a document without its wrong parts, so that the rest can be checked for sense in the same run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Path
from .models import Config
from .sense import check_sense
from .structure import check_structure

_MOST_ROUNDS: Final = 8
"""A part that is taken out may leave its section without a key that it needs, so that the section goes as well."""


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
    config = _remainder(document, problems)
    if config is None:
        return []
    return [
        problem
        for problem in check_sense(config, needs_resolver=needs_resolver)
        if not any(_touch(path, other) for path in (problem.path, *problem.related) for other in wrong)
        and not (problem.code is Code.UNKNOWN_DATASOURCE and ("datasources",) in wrong)
    ]


def _touch(path: Path, other: Path) -> bool:
    """Whether one of two places is inside the other."""
    length = min(len(path), len(other))
    return path[:length] == other[:length]


def _remainder(document: object, problems: Iterable[Diagnostic]) -> Config | None:
    rest: object = document
    for _ in range(_MOST_ROUNDS):
        # The last entry of a list first: taking one out moves those behind it.
        for problem in sorted(problems, key=_last_first, reverse=True):
            rest = _without(rest, problem)
        config, problems = check_structure(rest)
        if config is not None:
            return config
    return None


def _last_first(problem: Diagnostic) -> list[tuple[int, str]]:
    return [(part, "") if isinstance(part, int) else (-1, part) for part in problem.path]


def _stand_in(path: Path) -> object:
    """What takes the place of a part that others refer to, by its name or its number; None where it can just go."""
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


def _without(document: object, problem: Diagnostic) -> object:
    """The document without what is wrong, or with a stand-in there; what is beside it is shared."""
    path = problem.path
    stand_in = None if problem.is_about_key or not path else _stand_in(path)
    if stand_in is None and problem.code is Code.MISSING_KEY:
        path = path[:-1]
    return _replaced(document, path, stand_in) if path else document


def _replaced(document: Any, path: Path, stand_in: object) -> Any:
    key, *rest = path
    try:
        copy = document.copy()
        if rest:
            copy[key] = _replaced(copy[key], tuple(rest), stand_in)
        elif stand_in is None:
            del copy[key]
        else:
            copy[key] = stand_in
    except (LookupError, TypeError, AttributeError):
        return document  # It went together with what it stood in.
    return copy
