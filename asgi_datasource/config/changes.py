"""Compares two valid configurations: what a change means for the tenants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .consequences import danger_of
from .diagnostics import Path, show, show_path
from .masking import is_masked, show_at
from .models import Config, TenantConfig
from .references import at
from .shapes import is_list, is_mapping


class Weight(StrEnum):
    """How closely a change needs review."""

    DANGER = "danger"
    """Tenants may see each other's data, data is not where it is read from, or what was rolled back is committed."""
    NOTICE = "notice"
    """Requests are served differently."""
    PLAIN = "plain"
    """No tenant notices it."""


class Kind(StrEnum):
    """What was changed."""

    TENANT_ADDED = "tenant-added"
    TENANT_REMOVED = "tenant-removed"
    TENANT_MOVED = "tenant-moved"
    """The tenant has another datasource or schema: its data must be moved there."""
    ISOLATION_WEAKENED = "isolation-weakened"
    ISOLATION_CHANGED = "isolation-changed"
    DATASOURCE_ADDED = "datasource-added"
    DATASOURCE_REMOVED = "datasource-removed"
    PRIMARY_CHANGED = "primary-changed"
    REPLICA_LOST = "replica-lost"
    REPLICA_ADDED = "replica-added"
    REPLICA_CHANGED = "replica-changed"
    SETTING = "setting"


@dataclass(frozen=True, slots=True)
class Change:
    """One change.

    Attributes:
        kind: What has changed.
        weight: How much it matters.
        key: The key that has changed.
        message: What it means, without secrets.
        tenants: Some of the affected tenants.
        tenant_count: The number of affected tenants.
    """

    kind: Kind
    weight: Weight
    key: str
    message: str
    tenants: tuple[str, ...] = ()
    tenant_count: int = 0


_SHOWN_TENANTS: Final = 20
_SHOWN_ENTRIES: Final = 8


def find_changes(old: Config, new: Config) -> list[Change]:
    """The changes, the most dangerous first.

    Args:
        old: The configuration before.
        new: The configuration after.
    """
    found = [*_tenants(old, new), *_datasources(old, new), *_settings(old, new)]
    order = list(Weight)
    return sorted(found, key=lambda change: order.index(change.weight))


def _change(kind: Kind, weight: Weight, path: Path, message: str, tenants: list[str] | None = None) -> Change:
    names = tenants or []
    shown = tuple(show(name).strip("'") for name in names[:_SHOWN_TENANTS])
    return Change(kind, weight, show_path(path), message, shown, len(names))


def _tenants(old: Config, new: Config) -> Iterator[Change]:
    groups: dict[tuple[Kind, Weight, str], list[str]] = {}

    def note(kind: Kind, weight: Weight, message: str, name: str) -> None:
        groups.setdefault((kind, weight, message), []).append(name)

    for name, tenant in new.tenants.items():
        before = old.tenants.get(name)
        if before is None:
            note(Kind.TENANT_ADDED, Weight.PLAIN, f"comes to datasource {tenant.datasource}", name)
            continue
        if before == tenant:
            continue
        if before.datasource != tenant.datasource:
            message = f"moves from datasource {before.datasource} to {tenant.datasource}: its data has to be there"
            note(Kind.TENANT_MOVED, Weight.DANGER, message, name)
        for kind, weight, message in _isolation(before, tenant):
            note(kind, weight, message, name)
        others = [field for field in _OTHER_FIELDS if getattr(before, field, None) != getattr(tenant, field, None)]
        if others:
            note(Kind.SETTING, Weight.NOTICE, f"{', '.join(others)} changed", name)
    for name, tenant in old.tenants.items():
        if name not in new.tenants:
            message = f"is gone from datasource {tenant.datasource}: its requests are refused"
            note(Kind.TENANT_REMOVED, Weight.DANGER, message, name)
    for (kind, weight, message), names in groups.items():
        yield _change(kind, weight, ("tenants", names[0]) if len(names) == 1 else ("tenants",), message, names)


_OTHER_FIELDS: Final = tuple(
    name
    for name in TenantConfig.__dataclass_fields__
    if name not in ("datasource", "schema_name", "row_security", "role")
)


def _isolation(old: TenantConfig, new: TenantConfig) -> Iterator[tuple[Kind, Weight, str]]:
    """Changes of what isolates a tenant."""
    had = {"a schema": old.schema_name, "row security": old.row_security, "a role": old.role}
    has = {"a schema": new.schema_name, "row security": new.row_security, "a role": new.role}
    for what, before in had.items():
        after = has[what]
        if before == after:
            continue
        if after is None:
            yield Kind.ISOLATION_WEAKENED, Weight.DANGER, f"is no longer kept apart by {what}"
        elif before is None:
            yield Kind.ISOLATION_CHANGED, Weight.NOTICE, f"is kept apart by {what} as well"
        elif what == "a schema":
            message = f"moves from schema {show(before)} to {show(after)}: its data has to be there"
            yield Kind.TENANT_MOVED, Weight.DANGER, message
        elif what == "row security" and (lost := sorted(set(before) - set(after))):
            yield Kind.ISOLATION_WEAKENED, Weight.DANGER, f"no longer sets {', '.join(lost)}"
        else:
            yield Kind.ISOLATION_CHANGED, Weight.DANGER, f"has other values for {what}"


def _on(config: Config, datasource: str) -> list[str]:
    return [name for name, tenant in config.tenants.items() if tenant.datasource == datasource]


def _datasources(old: Config, new: Config) -> Iterator[Change]:
    for name, after in new.datasources.items():
        path: Path = ("datasources", name)
        before = old.datasources.get(name)
        if before is None:
            yield _change(Kind.DATASOURCE_ADDED, Weight.PLAIN, path, "is new")
            continue
        here = _on(new, name)
        if before.primary.url.get_secret_value() != after.primary.url.get_secret_value():
            message = f"leads to {after.primary.url} now, was {before.primary.url}"
            yield _change(Kind.PRIMARY_CHANGED, Weight.DANGER, (*path, "primary"), message, here)
        for replica in before.replicas:
            if replica not in after.replicas:
                left = len(after.replicas)
                rest = f"{left} left" if left else "none is left: all reads go to the primary"
                message = f"replica {replica} is gone, {rest}"
                yield _change(Kind.REPLICA_LOST, Weight.NOTICE, (*path, "replicas", replica), message, here)
        for replica, server in after.replicas.items():
            known = before.replicas.get(replica)
            if known is None:
                message = f"replica {replica} is new"
                yield _change(Kind.REPLICA_ADDED, Weight.PLAIN, (*path, "replicas", replica), message, here)
            elif known != server:
                message = f"replica {replica} is reached otherwise, or weighs otherwise"
                yield _change(Kind.REPLICA_CHANGED, Weight.NOTICE, (*path, "replicas", replica), message, here)
        yield from _values(before, after, path, skip=("primary", "replicas"), tenants=here)
    for name in old.datasources:
        if name not in new.datasources:
            yield _change(Kind.DATASOURCE_REMOVED, Weight.DANGER, ("datasources", name), "is gone", _on(old, name))


def _settings(old: Config, new: Config) -> Iterator[Change]:
    yield from _values(old, new, (), skip=("tenants", "datasources", "include", "version"), tenants=[])


def _values(old: Any, new: Any, path: Path, *, skip: tuple[str, ...], tenants: list[str]) -> Iterator[Change]:
    """Changed settings, one change per key, with values as a file writes them."""
    # JSON dumps have values as a file writes them, with secrets masked; only Python dumps show that a secret differs.
    shown = [each.model_dump(mode="json", by_alias=True, exclude=set(skip)) for each in (old, new)]
    held = [each.model_dump(by_alias=True, exclude=set(skip)) for each in (old, new)]
    for inner in _differing(held[0], held[1], ()):
        here = (*path, *inner)
        before, after = (at(each, inner) for each in shown)
        message = _becomes(here, before, after)
        danger = danger_of(here, before, after)
        if danger is None:
            yield _change(Kind.SETTING, Weight.NOTICE, here, message, tenants)
        else:
            yield _change(Kind.SETTING, Weight.DANGER, here, f"{message}: {danger}", tenants)


def _differing(old: Any, new: Any, path: Path) -> Iterator[Path]:
    if is_mapping(old) and is_mapping(new):
        for key in dict.fromkeys([*old, *new]):
            yield from _differing(old.get(key), new.get(key), (*path, key))
    elif old != new:
        yield path


def _becomes(path: Path, before: Any, after: Any) -> str:
    if before == after or (is_masked(path) and None not in (before, after)):
        return "has another value"
    return f"{_show(path, before)} becomes {_show(path, after)}"


def _show(path: Path, value: Any) -> str:
    if is_list(value):
        if len(value) > _SHOWN_ENTRIES or any(is_list(entry) or is_mapping(entry) for entry in value):
            return f"a list of {len(value)}"
        entries = [show_at((*path, index), entry).strip("'") for index, entry in enumerate(value)]
        return f"[{', '.join(entries)}]"
    return "nothing" if value is None else show_at(path, value)
