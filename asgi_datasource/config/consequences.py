"""The consequences of a changed setting that put data at risk, for the review of a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .diagnostics import Path
from .keys import ANY
from .shapes import is_list, is_mapping

Judge = Callable[[Any, Any], bool]
"""Whether a change of a value, from the first to the second, has the consequence."""

_CLASSES: Final = {"4xx", "5xx"}


def danger_of(path: Path, before: Any, after: Any) -> str | None:
    """The consequence of a change that is dangerous; None for every other change.

    Args:
        path: The key.
        before: Its value as a file writes it; None when it was absent.
        after: Its new value.
    """
    for place, judge, consequence in _DANGERS:
        if len(place) == len(path) and all(step in (ANY, part) for step, part in zip(place, path, strict=True)):
            return consequence if judge(before, after) else None
    return None


def _items(value: Any) -> list[Any]:
    return value if is_list(value) else []


def _loses_outcomes(before: Any, after: Any) -> bool:
    """Whether a status no longer rolls back; `4xx` covers `404`."""
    kept = set(_items(after))
    return any(one not in kept and f"{str(one)[:1]}xx" not in kept for one in _items(before))


def _gains(before: Any, after: Any) -> bool:
    return any(one not in _items(before) for one in _items(after))


def _is_not_a_shorter_list(before: Any, after: Any) -> bool:
    """Whether an entry is new, was moved, or was removed in front of others, which then get more to decide."""
    return _items(after) != _items(before)[: len(_items(after))]


def _routes_commit_more(before: Any, after: Any) -> bool:
    """Whether a rule of `routes` commits on an outcome on which the same rule rolled back."""
    old = {rule.get("match"): rule for rule in _items(before) if is_mapping(rule)}
    for rule in _items(after):
        if is_mapping(rule) and (known := old.get(rule.get("match"))) is not None:
            is_kept = rule.get("rollback_on") is not None and known.get("rollback_on") is not None
            if is_kept and _loses_outcomes(known["rollback_on"], rule["rollback_on"]):
                return True
            if _gains(known.get("commit_on"), rule.get("commit_on")):
                return True
    return False


def _becomes(*words: Any) -> Judge:
    return lambda before, after: after in words


def _always(before: Any, after: Any) -> bool:
    return True


_BELIEVED: Final = "more senders are believed about the host and the address of a request"
_ELSEWHERE: Final = "the data of its tenants has to be where it is read from now"
_DANGERS: Final[tuple[tuple[Path, Judge, str], ...]] = (
    (("transactions", "rollback_on"), _loses_outcomes, "what was rolled back with such a response is committed"),
    (
        ("transactions", "default"),
        _becomes("annotated"),
        "a request without @transactional keeps what it wrote before an error",
    ),
    (
        ("transactions", "multiple_writers"),
        _becomes("allow"),
        "a request may commit on one datasource and fail on another",
    ),
    (("routes",), _routes_commit_more, "a rule commits with a response that rolled back before"),
    (("tenancy", "resolve"), _is_not_a_shorter_list, "a request may be taken for another tenant's"),
    (("tenancy", "agree"), _becomes(False), "a request that names two tenants is no longer refused"),
    (("tenancy", "authorize"), _becomes(None), "every request may act for the tenant that it names"),
    (("tenancy", "trusted_proxies"), _gains, _BELIEVED),
    (("tenancy", "trusted_headers"), _gains, _BELIEVED),
    (
        ("tenancy", "default"),
        lambda before, after: after is not None,
        "requests of unknown tenants are served from there",
    ),
    (("tenants_from",), _always, "the tenants of the table come, go or move"),
    (("tenants_from", "datasource"), _always, _ELSEWHERE),
    (("tenants_from", "query"), _always, _ELSEWHERE),
    (("tenants_from", "defaults"), _always, _ELSEWHERE),
    (("tenants_from", "defaults", "datasource"), _always, _ELSEWHERE),
    (("tenants_from", "defaults", "schema"), _always, _ELSEWHERE),
    (("tenants_from", "defaults", "role"), _always, "the tenants of the table are kept apart otherwise"),
    (("tenants_from", "defaults", "row_security"), _always, "the tenants of the table are kept apart otherwise"),
    (("datasources", ANY, "driver"), _always, "another driver decides what is sent to the server"),
    (("datasources", ANY, "search_path"), _always, "a name of a table may lead to another table"),
    (("datasources", ANY, "pool", "reset"), _becomes("never"), "a session keeps what it holds for the next tenant"),
    (
        ("datasources", ANY, "audit", "on_start"),
        _becomes("warn", "off"),
        "the application starts although a role bypasses row security",
    ),
    (("datasources", ANY, "audit", "allow_roles"), _gains, "more roles may bypass row security"),
    (("datasources", ANY, "audit", "shared_tables"), _gains, "all tenants may see the rows of more tables"),
)
