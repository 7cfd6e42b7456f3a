"""The inputs and findings of an isolation audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString, Protocol, TypeVar


class Ask(Protocol):
    """Runs a query on a server."""

    async def __call__(self, sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of the result."""
        ...


class Hole(StrEnum):
    """The kinds of holes in the isolation of tenants."""

    ROLE_BYPASSES = "role_bypasses"
    """A tenants' role, or the login, bypasses every policy: it is a superuser, or has BYPASSRLS."""
    TABLE_WITHOUT_POLICY = "table_without_policy"
    """A table that tenants can read has no row security, so that each sees all of its rows."""
    OPEN_POLICY = "open_policy"
    """A policy shows all rows to each tenant, always or while no tenant is set; or reads a setting that is not set."""
    POLICY_NOT_FORCED = "policy_not_forced"
    """The role owns the table, and the policies do not apply to the owner."""
    VIEW_OF_OWNER = "view_of_owner"
    """A view reads its tables with the rights of its owner, to whom the policies do not apply."""
    SEARCH_PATH = "search_path"
    """A name that is missing in the tenant's schema resolves to a shared schema."""
    MISSING_SCHEMA = "missing_schema"
    """The tenant's schema does not exist, or its role may not use it."""
    MISSING_ROLE = "missing_role"
    """The tenant's role does not exist, or the login may not SET ROLE to it."""
    DEFINER_FUNCTION = "definer_function"
    """A SECURITY DEFINER function uses the caller's search_path, or its owner sees all rows."""
    SHARED_ROLE = "shared_role"
    """A role may use the schemas of several tenants that only their schemas isolate."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One hole.

    Attributes:
        hole: Its kind.
        name: The role, or the qualified table, view, function or schema.
        message: What is wrong, without a full stop.
        fix: What to do, a sentence; with the statement, if there is one.
        tenant: The affected tenant; None if all are.
    """

    hole: Hole
    name: str
    message: str
    fix: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Home:
    """The place of a tenant on the audited server.

    Attributes:
        name: The tenant's name; a placeholder if it represents tenants that are not known yet.
        schema: Its own schema; `""` if it is not known yet.
        role: The role of its transactions; `""` if it is not known yet.
        has_row_security: Whether policies isolate it.
        settings: The custom settings that its transactions set.
    """

    name: str
    schema: str | None = None
    role: str | None = None
    has_row_security: bool = False
    settings: tuple[str, ...] = field(default=(), compare=False)


_T = TypeVar("_T")


def sample(whole: Sequence[_T], most: int) -> list[_T]:
    """At most `most` items, evenly spread and deterministic."""
    if len(whole) <= most:
        return list(whole)
    return [whole[number * len(whole) // most] for number in range(most)]


MOST_ROLES: Final = 100
"""Most tenants' roles that are audited; if each tenant has one, a hole of one is mostly a hole of all."""

MOST_SCHEMAS: Final = 1000
"""Most tenants' schemas that are audited."""


class Findings:
    """Collects findings without duplicates."""

    def __init__(self) -> None:
        self._found: dict[tuple[Hole, str], Finding] = {}

    def add(self, hole: Hole, name: str, message: str, fix: str) -> None:
        self._found.setdefault((hole, name), Finding(hole, name, message, fix))

    def all(self) -> list[Finding]:
        return list(self._found.values())


def quoted(name: str) -> str:
    """A name, quoted as a SQL identifier if necessary."""
    if name.isascii() and name.islower() and name.replace("_", "a").isalnum() and not name[0].isdigit():
        return name
    return '"' + name.replace('"', '""') + '"'
