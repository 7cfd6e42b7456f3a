"""Nothing of a tenant's runs inside the library's own statements, whatever stands in the tenant's schema."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from asgi_datasource import AccessIntent, DataError, compile
from asgi_datasource.transaction.commit_outcome import Fate, find_fate
from tests.world import World

PACKAGE: Final = Path(__file__).parent.parent.parent / "asgi_datasource"
SENT_INSIDE_TENANTS: Final = (
    *("transaction/control_statements.py", "transaction/commit_outcome.py", "transaction/transaction.py"),
    *("sessions/advisory_lock.py", "tenancy/catalog.py"),
    *("tenancy/isolation_audit.py", "tenancy/audit_roles.py", "tenancy/audit_tables.py"),
    *("drivers/statements.py", "drivers/psycopg/transaction_settings.py"),
    *("drivers/psycopg/health_check.py", "drivers/psycopg/multi_host.py"),
)
"""Modules with statements that run with a search_path which is not the library's."""

GRAMMAR: Final = frozenset(
    (
        *("case", "when", "then", "else", "end", "select", "from", "where", "and", "or", "not", "is", "null", "in"),
        *("any", "array", "coalesce", "greatest", "extract", "exists", "cast", "operator", "as", "order", "by"),
        *("values", "int", "bigint", "bit", "for", "cursor", "recursive", "filter", "with", "union", "all"),
    )
)
"""Words in front of a parenthesis, or behind `::`, that PostgreSQL's grammar resolves by itself."""

_SQL: Final = re.compile(r"\b(?:select|case when|operator\(|set_config)\b|pg_\w+\(", re.IGNORECASE)
_CALL: Final = re.compile(r"(?<![\w.])([a-z_]\w*)\((?![\w, ]*\)(?: as \(|\n))")
"""A name in front of a parenthesis; not one that is given to columns."""
_CAST: Final = re.compile(r"::([a-z_]\w*)(?![\w.])")
_OPERATOR: Final = re.compile(r"(?<![.(:'])(\|\||<>|&&|<=|>=|(?<![<>!:])=(?!>)|~)")


def texts(module: str) -> Iterator[str]:
    """What looks like SQL among a module's strings; what is put into them stands as `?`."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    docs = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    inner = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docs | inner:
            text = node.value
        else:
            continue
        if _SQL.search(text):
            yield text


@pytest.mark.parametrize("module", SENT_INSIDE_TENANTS)
def test_every_name_in_them_says_its_schema(module: str) -> None:
    for text in texts(module):
        plain = re.sub(r"'[^']*'", "''", text)
        assert [name for name in _CALL.findall(plain) if name not in GRAMMAR] == [], text
        assert [name for name in _CAST.findall(plain) if name not in (*GRAMMAR, "pg_catalog")] == [], text
        assert _OPERATOR.findall(re.sub(r"operator\(pg_catalog\.[^)]*\)", "", plain)) == [], text


def test_there_are_such_statements() -> None:
    assert all(any(texts(module)) for module in SENT_INSIDE_TENANTS if not module.endswith("transaction.py"))


# -- a tenant that has shadows of everything

TYPES: Final = ("text", "xid8", "pg_lsn", "bool", "oid")
FUNCTIONS: Final = (
    *("set_config(text, text, bool)", "current_setting(text)", "current_setting(text, bool)"),
    *("pg_backend_pid()", "pg_is_in_recovery()", "pg_current_wal_insert_lsn()", "pg_last_wal_replay_lsn()"),
    *("pg_walfile_name(pg_lsn)", "left(text, int)", "chr(int)", "hashtextextended(text, bigint)"),
    *("hashtextextended(text, int)", "pg_advisory_xact_lock(bigint)", "pg_try_advisory_xact_lock(bigint)"),
    *("pg_current_xact_id_if_assigned()", "pg_stat_get_bgwriter_stat_reset_time()", "quote_ident(text)"),
    *("has_schema_privilege(text, text)", "has_schema_privilege(oid, text)", "to_regnamespace(text)", "md5(text)"),
    *("pg_xact_status(xid8)", "date_part(text, timestamptz)"),
)
OPERATORS: Final = (
    *(("||", "text", "text"), ("||", "text", "numeric"), ("||", "text", "float8"), ("=", "int", "int")),
    *(
        ("=", "text", "text"),
        ("<>", "int", "int"),
        ("=", "xid", "xid"),
        ("=", "name", "text"),
        ("&&", "text[]", "text[]"),
    ),
)


async def shadow(world: World) -> None:
    """Give acme a function, an operator and a type for everything; each one writes down that it ran."""
    await world.sql("grant all on schema acme to app; create table acme.ran (what text)")
    await world.sql("grant insert on acme.ran to public")

    def writes(what: str) -> str:
        return f"language plpgsql as $$begin insert into acme.ran values ('{what}'); return null; end$$"

    def type_of(written: str) -> str:
        return re.sub(r"\b(text|xid8|pg_lsn|bool|oid|timestamptz|xid|name|numeric|float8)\b", r"pg_catalog.\1", written)

    for number, (operator, left, right) in enumerate(OPERATORS):
        returns = "pg_catalog.text" if operator == "||" else "pg_catalog.bool"
        arguments = f"{type_of(left)}, {type_of(right)}"
        name = f"acme.op_{number}"
        await world.sql(f"create function {name}({arguments}) returns {returns} {writes(f'operator {operator}')}")
        sides = f"leftarg = {type_of(left)}, rightarg = {type_of(right)}"
        await world.sql(f"create operator acme.{operator} ({sides}, function = {name})")
    for function in FUNCTIONS:
        said = writes(function)
        await world.sql(f"create function acme.{type_of(function)} returns pg_catalog.text {said}", schema="pg_catalog")
    for name in TYPES:
        await world.sql(f"create domain acme.{name} as pg_catalog.int4 check (false)", schema="pg_catalog")


@pytest.mark.parametrize("replicas", [(), ("r1",)])
async def test_no_function_operator_or_type_of_a_tenants_runs_inside_of_them(
    world: World, replicas: tuple[str, ...]
) -> None:
    await shadow(world)
    await world.cluster.caught_up()
    consistency = {"token": "header", "secret": "0123456789abcdef", "monotonic": True}
    config = world.config(replicas=replicas, consistency=consistency)
    # The tenant's schema in front of PostgreSQL's own: so it stands in the worst of search_paths.
    config["datasources"]["orders"]["search_path"] = ["pg_catalog"]
    async with compile(config) as registry:
        token = None
        for _ in range(2):
            async with registry.session("acme", token=token) as db:
                assert [row["item"] for row in await db.read.fetch_all("select item from orders")] in ([], ["tea"])
                await db.write.execute("delete from orders")
                await db.execute("insert into orders (item) values ('tea')")
                transaction = db.current_transaction
                assert transaction is not None
                identity = transaction.identity
                assert identity is not None
                assert identity.timeline == 1
                async with db.transaction():
                    await db.read.fetch_value("select 1")
                await db.lock("of mine")
                await db.lock("of mine too", timeout=1)
                await db.lock((1, 2), timeout=0)
                async with db.connection(AccessIntent.WRITE) as connection:
                    await connection.execute("set local search_path = acme, pg_catalog")
                with pytest.raises(DataError, match="unique constraint"):
                    async with db.transaction():
                        await db.execute("insert into orders (item) values ('tea')")
            token = db.token
            assert token
            primary = registry.datasources["orders"].servers["primary"]
            assert await find_fate(primary, identity, timeout_s=5) is Fate.COMMITTED
            async with registry.session("acme", token=token) as db:
                assert await db.read.fetch_value("select item from orders") == "tea"
            async with registry.session("acme", read_only=True, token=token) as db:
                rows: list[Any] = [row async for row in db.stream("select item from orders")]
                assert len(rows) == 1
    assert await world.sql("select what from ran") == []
