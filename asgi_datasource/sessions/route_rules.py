"""Matching of requests against the rules of `routes`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .policy import NO_RULE, RouteRule


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule of `routes`, ready to match.

    Attributes:
        match: The pattern, as it is configured.
        method: The method; None for any.
        path: Matches the whole path.
        rule: Its settings.
    """

    match: str
    method: str | None
    path: re.Pattern[str]
    rule: RouteRule


def compile_pattern(match: str) -> tuple[str | None, re.Pattern[str]]:
    """Compile a rule's `match`: `GET /reports/**`, `* /health`, `/search`.

    `*` stands for one segment or a part of one, `**` for any number of them. Decoded paths may contain line breaks.

    Returns:
        The method (None for any) and the pattern of the path.
    """
    method, _, path = match.rpartition(" ")
    parts = re.split(r"(/\*\*|\*\*|\*)", path.strip())
    glob = {"/**": "(?:/.*)?", "**": ".*", "*": "[^/]*"}
    pattern = re.compile("".join(glob.get(part) or re.escape(part) for part in parts), re.DOTALL)
    method = method.strip().upper()
    return None if method in ("", "*") else method, pattern


class RouteRules:
    """The rules of `routes`; the first that matches wins."""

    __slots__ = ("have_limits", "may_retry", "rules")

    def __init__(self, rules: Sequence[CompiledRule] = ()) -> None:
        self.rules = tuple(rules)
        options = [compiled.rule.options for compiled in self.rules]
        self.may_retry = any(one is not None and one.retry for one in options)
        """Whether any rule sets `retry`."""
        self.have_limits = any(compiled.rule.concurrency_limit is not None for compiled in self.rules)
        """Whether any rule limits the requests in progress."""

    def __iter__(self) -> Iterator[CompiledRule]:
        return iter(self.rules)

    def find(self, method: str, path: str) -> CompiledRule | None:
        """The first rule that matches a request. HEAD without a rule of its own uses the rule of GET.

        Both are requests for one resource (RFC 9110, section 9.3.2), so a limit of one holds for the other.
        """
        own: CompiledRule | None = None
        for compiled in self.rules:
            if compiled.method in (None, method) and compiled.path.fullmatch(path) is not None:
                own = compiled
                break
        return self.find("GET", path) if method == "HEAD" and (own is None or own.method is None) else own

    def match(self, method: str, path: str) -> RouteRule:
        """The rule for a request; `NO_RULE` if none matches."""
        found = self.find(method, path)
        return NO_RULE if found is None else found.rule
