"""The DDL of row security policies, printed for a migration; the library itself never runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from .isolation import quote_identifier

TYPES: Final = ("text", "uuid", "bigint", "integer")
"""The types of a tenant column."""

_SETTING: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRules:
    """The policy of a table: the tenant's setting and column.

    Attributes:
        setting: The custom setting with the current tenant, as in the configuration's `row_security`.
        column: The column with the tenant of a row.
        type: The type of that column, one of `TYPES`.
        policy: The policy's name.

    Raises:
        ValueError: The setting's name or the type is not valid.
    """

    setting: str = "app.tenant"
    column: str = "tenant"
    type: str = "text"
    policy: str = "own_rows"

    def __post_init__(self) -> None:
        if _SETTING.fullmatch(self.setting) is None:
            raise ValueError("a custom setting has a name with a dot in it: app.tenant")
        if self.type not in TYPES:
            raise ValueError(f"the tenant's column is of one of the types {', '.join(TYPES)}")

    @property
    def asking(self) -> str:
        """The current tenant as a SQL expression; NULL, which matches no row, while no tenant is set."""
        # Once set, a custom setting reads '' and not NULL in later transactions.
        text = f"nullif(current_setting('{self.setting}', true), '')"
        return text if self.type == "text" else f"{text}::{self.type}"


def policy_sql(tables: Sequence[str], rules: PolicyRules) -> str:
    """The DDL for some tables.

    Args:
        tables: `orders` or `shop.orders`; a quoted name may hold a dot.
        rules: The policy.

    Raises:
        ValueError: A table's name is not valid.
    """
    return "\n".join(line for table in tables for line in _of_table(split_name(table), rules))


def _of_table(name: tuple[str, ...], rules: PolicyRules) -> Iterator[str]:
    table = ".".join(map(quote_identifier, name))
    column, policy = quote_identifier(rules.column), quote_identifier(rules.policy)
    index = quote_identifier(f"{name[-1]}_{rules.column}_idx"[:63])
    yield f"-- {'.'.join(name)}"
    yield f"alter table {table} enable row level security;"
    yield f"alter table {table} force row level security;"
    yield f"drop policy if exists {policy} on {table};"
    # A sub-select is evaluated once for the statement, not for each row.
    yield f"create policy {policy} on {table}"
    yield f"    using ({column} = (select {rules.asking}))"
    yield f"    with check ({column} = (select {rules.asking}));"
    yield f"alter table {table} alter column {column} set default {rules.asking};"
    yield f"alter table {table} alter column {column} set not null;"
    yield "-- Every query has the tenant in its condition now: indexes want it in front, as in"
    yield f"-- create index concurrently {index} on {table} ({column});"
    yield ""


_NAME_PART: Final = re.compile(r'"((?:[^"]|"")+)"|([^".\s]+)')


def split_name(written: str) -> tuple[str, ...]:
    """Split a table's name from the command line into its parts: `shop.orders`, `"my shop".orders`.

    Raises:
        ValueError: It is not a name.
    """
    parts: list[str] = []
    position = 0
    while True:
        found = _NAME_PART.match(written, position)
        if found is None:
            break
        parts.append(found[1].replace('""', '"') if found[1] is not None else found[2])
        position = found.end()
        if position == len(written):
            if len(parts) <= 2 and all(len(part.encode()) <= 63 and "\x00" not in part for part in parts):
                return tuple(parts)
            break
        if written[position] != ".":
            break
        position += 1
    raise ValueError(f"{written!r} is not the name of a table: write orders or shop.orders")
