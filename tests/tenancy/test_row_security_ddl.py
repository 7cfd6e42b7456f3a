"""The DDL that `tenants sql` prints does what it says, on a real server."""

from __future__ import annotations

import pytest

from asgi_datasource import DataError, compile
from asgi_datasource.tenancy import PolicyRules, policy_sql
from asgi_datasource.tenancy.row_security_ddl import split_name
from tests.world import World


@pytest.mark.parametrize(
    ("kind", "mine", "theirs"), [("text", "41", "42"), ("bigint", "41", "42"), ("integer", "1", "2")]
)
async def test_tables_under_it_show_each_tenant_its_own_rows(world: World, kind: str, mine: str, theirs: str) -> None:
    await world.sql(f'create table shared."Odd.Name" (id int, owner_id {kind})', schema="shared")
    await world.sql('alter table shared."Odd.Name" owner to app', schema="shared")
    rules = PolicyRules(setting="app.tenant", column="owner_id", type=kind)
    for _ in range(2):  # it can be run again
        for statement in policy_sql(['shared."Odd.Name"'], rules).split(";\n"):
            await world.sql(statement, schema="shared")
    document = world.config(replicas=())
    for name, number in (("initech", mine), ("umbrella", theirs)):
        document["tenants"][name]["row_security"] = {"app.tenant": number}
    async with compile(document) as made:
        for number, name in enumerate(("initech", "umbrella")):
            async with made.session(name) as db:
                await db.execute('insert into "Odd.Name" (id) values (%s)', (number,))
        for number, name in enumerate(("initech", "umbrella")):
            async with made.session(name) as db:
                assert await db.fetch_all('select id from "Odd.Name"') == [{"id": number}]
                assert await db.execute('update "Odd.Name" set id = id') == 1
                with pytest.raises(DataError, match="42501"):
                    other = theirs if name == "initech" else mine
                    await db.execute(f"""insert into "Odd.Name" values (9, '{other}')""")
                await db.rollback()
        # Without a tenant no row is visible.
        async with made.session("acme") as db:
            assert await db.read.fetch_value('select count(*) from shared."Odd.Name"') == 0


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("orders", ("orders",)),
        ("shop.orders", ("shop", "orders")),
        ('"a.b".c', ("a.b", "c")),
        ('"a""b"', ('a"b',)),
        ("x;drop", ("x;drop",)),
    ],
)
def test_names_of_tables(written: str, parts: tuple[str, ...]) -> None:
    assert split_name(written) == parts
    assert '"; drop' not in policy_sql([written], PolicyRules())


@pytest.mark.parametrize("written", ["", ".", "a.", ".a", "a.b.c", 'a"b', "a b", '"a', "x" * 64])
def test_what_is_no_name_of_a_table(written: str) -> None:
    with pytest.raises(ValueError, match="not the name of a table"):
        policy_sql([written], PolicyRules())


def test_rules_that_are_none() -> None:
    with pytest.raises(ValueError, match="with a dot"):
        PolicyRules(setting="x'; drop table y; --")
    with pytest.raises(ValueError, match="one of the types"):
        PolicyRules(type="text; drop")
