"""Compares a new schema with the published one: does it accept every document that the published one accepts?

Reports every difference that may refuse a valid document: a removed key, a new required key, narrower types, bounds and
words. A changed pattern is reported too, because which of two patterns is narrower cannot be decided.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from asgi_datasource.config.shapes import is_list, is_mapping

_LOWER: Final = ("minimum", "minLength", "minItems", "minProperties")
_UPPER: Final = ("maximum", "maxLength", "maxItems", "maxProperties")
_EXACT: Final = ("pattern", "not", "allOf", "uniqueItems")
_MOST: Final = 100


def find_refusals(published: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The reasons why the new schema may refuse a document that the published one accepts."""
    found = list(dict.fromkeys(_Comparison(published, new).compare(published, new, "$")))
    return found[:_MOST]


class _Comparison:
    """Two schemas and the pairs of their parts that are already compared."""

    def __init__(self, published: dict[str, Any], new: dict[str, Any]) -> None:
        self._published = published
        self._new = new
        self._seen: set[tuple[str, str]] = set()

    def compare(self, old: Any, new: Any, path: str) -> Iterator[str]:
        """The reasons of one pair of parts."""
        old, new = _resolved(old, self._published), _resolved(new, self._new)
        key = (json.dumps(old, sort_keys=True), json.dumps(new, sort_keys=True))
        if key in self._seen or new is True or old is False:
            return
        self._seen.add(key)
        if not is_mapping(old) or not is_mapping(new):
            if old != new:
                yield f"{path}: takes less than before"
            return
        if "anyOf" in old or "anyOf" in new:
            yield from self._branches(old, new, path)
        yield from _words(old, new, path)
        yield from _bounds(old, new, path)
        yield from self._keys(old, new, path)
        if "propertyNames" in new:
            yield from self.compare(old.get("propertyNames", True), new["propertyNames"], f"{path} (names)")
        if "items" in new:
            yield from self.compare(old.get("items", True), new["items"], f"{path}[]")

    def _branches(self, old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
        """Each published alternative must be accepted by one of the new ones."""
        rest = {key: value for key, value in old.items() if key != "anyOf"}
        ways = [{**rest, **_mapping(way, self._published)} for way in old.get("anyOf", [{}])]
        others = new.get("anyOf", [{key: value for key, value in new.items() if key != "anyOf"}])
        for number, way in enumerate(ways):
            if not any(not list(_Comparison(self._published, self._new).compare(way, other, path)) for other in others):
                yield f"{path}: a way to write it ({number + 1} of {len(ways)}) may be refused"

    def _keys(self, old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
        before: dict[str, Any] = old.get("properties", {})
        now: dict[str, Any] = new.get("properties", {})
        others = new.get("additionalProperties", True)
        for name in before:
            if name in now:
                yield from self.compare(before[name], now[name], f"{path}.{name}")
            elif others is False:
                yield f"{path}.{name}: the key is unknown now"
            else:
                yield from self.compare(before[name], others, f"{path}.{name}")
        for name in new.get("required", []):
            if name not in old.get("required", []):
                yield f"{path}.{name}: the key is needed now"
        before_others = old.get("additionalProperties", True)
        if before_others is not False and others is not True:
            if others is False:
                if "object" in _types(old):
                    yield f"{path}: unknown keys are refused now"
            else:
                yield from self.compare(before_others, others, f"{path}.*")


def _mapping(part: Any, root: dict[str, Any]) -> dict[str, Any]:
    resolved = _resolved(part, root)
    return resolved if is_mapping(resolved) else {}


def _resolved(part: Any, root: dict[str, Any]) -> Any:
    """A part with its `$ref` followed; keywords beside it add to it."""
    while is_mapping(part) and "$ref" in part:
        target: Any = root
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        part = {**target, **{key: value for key, value in part.items() if key != "$ref"}}
    return part


def _types(schema: dict[str, Any]) -> set[str]:
    kinds = schema.get("type", [])
    found = set(kinds) if is_list(kinds) else {kinds}
    return found | {"integer"} if "number" in found else found


def _words(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
    before = old.get("enum", [old["const"]] if "const" in old else None)
    now = new.get("enum", [new["const"]] if "const" in new else None)
    if now is not None:
        if before is None:
            yield f"{path}: takes only certain values now"
        else:
            yield from (f"{path}: {word!r} is refused now" for word in before if word not in now)
    if "type" in new and before is None and not (_types(old) and _types(old) <= _types(new)):
        before_types = " or ".join(sorted(_types(old))) or "anything"
        yield f"{path}: takes {' or '.join(sorted(_types(new)))} now, not {before_types}"


def _bounds(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
    for name in _LOWER:
        if name in new and ("const" not in old and "enum" not in old) and old.get(name, float("-inf")) < new[name]:
            yield f"{path}: {name} is {new[name]} now"
    for name in _UPPER:
        if name in new and ("const" not in old and "enum" not in old) and old.get(name, float("inf")) > new[name]:
            yield f"{path}: {name} is {new[name]} now"
    for name in _EXACT:
        if name in new and old.get(name) != new[name]:
            yield f"{path}: {name} has changed"
