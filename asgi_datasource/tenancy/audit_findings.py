"""What an audit of a server asks about, and what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, LiteralString, Protocol, TypeVar


class Ask(Protocol):
    """Runs a query on a server."""

    async def __call__(self, sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """The rows of its answer."""
        ...


class Hole(StrEnum):
    """The kinds of holes."""

    ROLE_BYPASSES = "role_bypasses"
    """A role that tenants run as, or the login, passes every policy by: it is a superuser, or has BYPASSRLS."""
    TABLE_WITHOUT_POLICY = "table_without_policy"
    """A table that tenants reach has no row security, so that each sees all rows of it."""
    OPEN_POLICY = "open_policy"
    """A policy lets each tenant see all rows, always or where no tenant is set; or reads a setting that nobody sets."""
    POLICY_NOT_FORCED = "policy_not_forced"
    """The role owns the table, and the policies do not hold for the owner."""
    VIEW_OF_OWNER = "view_of_owner"
    """A view reads its tables with the rights of its owner, for whom the policies do not hold."""
    SEARCH_PATH = "search_path"
    """A name that is missing in the tenant's schema is found in a shared one."""
    MISSING_SCHEMA = "missing_schema"
    """The tenant's schema is not there, or its role may not use it."""
    MISSING_ROLE = "missing_role"
    """The tenant's role is not there, or the login may not become it."""
    DEFINER_FUNCTION = "definer_function"
    """A SECURITY DEFINER function whose caller's search_path decides which tables it uses, or whose owner sees all."""
    SHARED_ROLE = "shared_role"
    """A role may use the schemas of several tenants that nothing but their schema keeps apart."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One hole.

    Attributes:
        hole: Its kind.
        name: What it is in: a role, or a table, view, function or schema with its schema's name.
        message: What is wrong, without full stop.
        fix: What to do, a sentence; the statement where there is one.
        tenant: The tenant that it is about; None when it is about all of them.
    """

    hole: Hole
    name: str
    message: str
    fix: str
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Home:
    """Where a tenant lives on the server that is asked.

    Attributes:
        name: The tenant's name; that of nobody where it stands for tenants that are yet to come.
        schema: Its own schema; `""` is one that is not known yet.
        role: The role its transactions run as; `""` as well.
        has_row_security: Whether policies keep it apart.
        settings: The custom settings that its transactions set.
    """

    name: str
    schema: str | None = None
    role: str | None = None
    has_row_security: bool = False
    settings: tuple[str, ...] = field(default=(), compare=False)


_T = TypeVar("_T")


def sample(whole: Sequence[_T], most: int) -> list[_T]:
    """As many as can be looked at, spread over the whole, and the same ones each time."""
    if len(whole) <= most:
        return list(whole)
    return [whole[number * len(whole) // most] for number in range(most)]


MOST_ROLES: Final = 100
"""How many roles of tenants are looked at; where each has one, what is wrong with one is mostly wrong with all."""

MOST_SCHEMAS: Final = 1000
"""How many schemas of tenants are looked into."""


class Findings:
    """Each hole once, however many ways lead to it."""

    def __init__(self) -> None:
        self._found: dict[tuple[Hole, str], Finding] = {}

    def add(self, hole: Hole, name: str, message: str, fix: str) -> None:
        self._found.setdefault((hole, name), Finding(hole, name, message, fix))

    def all(self) -> list[Finding]:
        return list(self._found.values())


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    if name.isascii() and name.islower() and name.replace("_", "a").isalnum() and not name[0].isdigit():
        return name
    return '"' + name.replace('"', '""') + '"'
