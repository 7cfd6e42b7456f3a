"""The library's own tables in each database, carried by the engine like the shared migrations of the application.

`own/NAME/shared/` holds their files. They have a scope of their own in the ledger, so that their versions and those of
the application's files do not meet, and they come first: triggers and functions of the application may use the tables.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, LiteralString

from ..config import Config
from ..drivers.control import ControlConnection
from .files import Folder, read_folder
from .ledger import OWN

Grant = Callable[[ControlConnection, str | None, Sequence[str]], Awaitable[None]]
"""Grants what roles need: the application's (None where it owns the tables), and those of tenants. Repeatable."""


@dataclass(frozen=True)
class OwnTables:
    """Tables of one part of the library.

    Attributes:
        name: The part, in reports and as its folder.
        grant: Grants what the roles of the application need.
    """

    name: str
    grant: Grant = field(repr=False)

    @property
    def scope(self) -> str:
        """Its scope in the ledger."""
        return f"{OWN}{self.name}"

    @cached_property
    def folder(self) -> Folder:
        """Its files."""
        return read_folder(Path(__file__).parent / "own" / self.name)


_RELAY_RIGHTS: Final[Sequence[tuple[LiteralString, LiteralString]]] = (
    ("asgi_datasource.outbox", "select, insert, delete"),
    ("asgi_datasource.outbox_lane", "select, update"),
    ("asgi_datasource.outbox_held", "select, insert, update, delete"),
    ("asgi_datasource.outbox_relay", "select, insert, update, delete"),
    ("asgi_datasource.outbox_sent", "select, insert"),
    ("asgi_datasource.inbox", "select, insert, update, delete"),
)
"""What a relay, and a writer in the same role, do."""

_WRITER_RIGHTS: Final[Sequence[tuple[LiteralString, LiteralString]]] = (
    ("asgi_datasource.outbox", "insert"),
    ("asgi_datasource.inbox", "select, insert"),
)
"""What the role of a tenant does: it publishes events, and processes them."""

_LACKING: Final[LiteralString] = """
select r.rolname::text from pg_roles r
where r.rolname = any(%s::text[]) and r.rolname <> current_user and (
    not has_schema_privilege(r.oid, 'asgi_datasource', 'usage')
    or exists (
        select from unnest(%s::text[], %s::text[]) need (relation, rights), unnest(string_to_array(rights, ', ')) one
        where not has_table_privilege(r.oid, relation, one)))
order by 1
"""
"""Which of these roles lack one of these rights."""


async def _grant_outbox(admin: ControlConnection, app: str | None, roles: Sequence[str]) -> None:
    for role in await _lacking(admin, [] if app is None else [app], _RELAY_RIGHTS):
        await _grant(admin, role, _RELAY_RIGHTS)
        await admin.command("grant execute on function asgi_datasource.outbox_tend(interval) to {}", role)
    for role in await _lacking(admin, roles, _WRITER_RIGHTS):
        await _grant(admin, role, _WRITER_RIGHTS)


async def _lacking(
    admin: ControlConnection, roles: Sequence[str], rights: Sequence[tuple[LiteralString, LiteralString]]
) -> list[str]:
    if not roles:
        return []
    relations, kinds = [relation for relation, _ in rights], [kind for _, kind in rights]
    return [str(role) for [role] in await admin.rows(_LACKING, list(roles), relations, kinds)]


async def _grant(admin: ControlConnection, role: str, rights: Sequence[tuple[LiteralString, LiteralString]]) -> None:
    await admin.command("grant usage on schema asgi_datasource to {}", role)
    for relation, kinds in rights:
        await admin.command("grant " + kinds + " on " + relation + " to {}", role)


OUTBOX: Final = OwnTables("outbox", _grant_outbox)


def own_tables(config: Config) -> tuple[OwnTables, ...]:
    """The tables that a document needs in each of its databases.

    Args:
        config: A checked configuration.
    """
    return () if config.outbox is None else (OUTBOX,)
