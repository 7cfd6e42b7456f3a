"""Checks of resolvers that are never reached, or cannot yield any of the tenants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Severity
from .kinds import EVERY_OTHER
from .models import Config, ResolverConfig

_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")


def _is_label(name: str) -> bool:
    return _LABEL.fullmatch(name) is not None


def _is_segment(name: str) -> bool:
    return "/" not in name


_NAMES: Final[dict[str, tuple[str, Callable[[str], bool]]]] = {
    "subdomain_of": ("a label of a host name", _is_label),
    "path_prefix": ("a segment of a path", _is_segment),
}
"""The form that a tenant's name needs for some resolvers."""


def check_resolvers(config: Config) -> Iterator[Diagnostic]:
    """Resolvers after one that always answers, below exempt paths, or for names that no tenant has."""
    settled: int | None = None
    exempt: dict[str, int] = {}
    for index, prefix in enumerate(config.tenancy.exempt.paths):
        exempt.setdefault(prefix.rstrip("/"), index)
    for index, resolver in enumerate(config.tenancy.resolve):
        path: Path = ("tenancy", "resolve", index)
        if settled is not None:
            first: Path = ("tenancy", "resolve", settled)
            message = "this resolver is never used: the one in front of it answers every request"
            yield _warning(Code.UNREACHABLE, path, message, "Move it in front of that one.", (first,))
        elif resolver.kind == "fixed":
            settled = index
        else:
            yield from _exempt(config, resolver, path, exempt)
            yield from _nameless(config, resolver, path)


def _exempt(config: Config, resolver: ResolverConfig, path: Path, exempt: dict[str, int]) -> Iterator[Diagnostic]:
    if resolver.path_prefix is None or resolver.path_prefix == "/":
        return
    segments = resolver.path_prefix.rstrip("/").split("/")
    above = ["/".join(segments[:length]) for length in range(2, len(segments) + 1)]
    first = min((exempt[front] for front in above if front in exempt), default=None)
    if first is not None:
        message = "this resolver can never answer: all paths below its prefix are exempt"
        related: Path = ("tenancy", "exempt", *config.tenancy.exempt.place(first))
        yield _warning(Code.NEVER_ANSWERS, path, message, "Take the prefix out of exempt.", (related,))


def _nameless(config: Config, resolver: ResolverConfig, path: Path) -> Iterator[Diagnostic]:
    if resolver.kind not in _NAMES:
        return
    what, can_name = _NAMES[resolver.kind]
    if not config.tenants or EVERY_OTHER in config.tenants or config.tenants_from is not None:
        return
    if any(map(can_name, config.tenants)):
        return
    if any(can_name(alias) for tenant in config.tenants.values() for alias in tenant.aliases or ()):
        return
    message = f"this resolver can never answer: none of the tenants has a name that is {what}"
    yield _warning(Code.NEVER_ANSWERS, path, message, "Rename the tenants, or remove it.", (("tenants",),))


def _warning(code: Code, path: Path, message: str, fix: str, related: tuple[Path, ...]) -> Diagnostic:
    edit = Edit(EditKind.REMOVE, path)
    return Diagnostic(code, path, message, fix, severity=Severity.WARNING, related=related, edit=edit)
