"""Every way from a tenant's role to a stranger's rows is found, and none where there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
import pytest

from asgi_datasource import ConfigError, compile
from asgi_datasource.tenancy import Finding, Hole, Home, find_holes
from tests.world import World

STRICT = "tenant = (select nullif(current_setting('app.tenant', true), ''))"


@dataclass
class Shop:
    """A schema with a guarded table, a role that tenants run as, and a login that inherits nothing of it."""

    world: World
    role: str
    login: str
    asked: list[str] = field(default_factory=list[str])

    async def sql(self, *statements: str) -> None:
        for statement in statements:
            await self.world.sql(statement.format(role=self.role, login=self.login), schema="shop")

    def home(self, **changes: Any) -> Home:
        known = {"schema": "shop", "role": self.role, "has_row_security": True, "settings": ("app.tenant",)}
        return Home("acme", **{**known, **changes})

    async def audit(self, *homes: Home, user: str | None = None, **options: Any) -> list[Finding]:
        url = self.world.cluster.nodes["primary"].url(dbname=self.world.dbname, user=user or self.login)
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:

            async def ask(sql: LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
                self.asked.append(sql)
                return await (await connection.execute(sql, parameters or None)).fetchall()

            return await find_holes(ask, homes or [self.home()], **options)

    async def holes(self, *homes: Home, **options: Any) -> list[tuple[Hole, str]]:
        return [(finding.hole, finding.name) for finding in await self.audit(*homes, **options)]


@asynccontextmanager
async def role(world: World, name: str, options: str = "") -> AsyncIterator[str]:
    made = f"{world.dbname}_{name}"
    await world.cluster.create_role(made, options=options)
    try:
        yield made
    finally:
        await world.sql(f"drop owned by {made} cascade; drop role {made}")


@pytest.fixture
async def shop(world: World) -> AsyncIterator[Shop]:
    async with role(world, "tenants") as tenants, role(world, "login", "noinherit") as login:
        made = Shop(world, tenants, login)
        await world.sql(f"grant {tenants} to {login} with inherit false, set true; create schema shop")
        await made.sql(
            "grant usage on schema shop to {role}",
            "create table orders (tenant text, item text, is_public bool, at date default '2026-01-05')",
            "alter table orders enable row level security, force row level security",
            f"create policy own on orders using ({STRICT})",
            "grant select, insert, update, delete on orders to {role}",
        )
        yield made


async def test_what_is_right_is_left_alone(shop: Shop) -> None:
    await shop.sql(
        "create view mine with (security_invoker = on) as select * from orders",
        "create view of_mine with (security_invoker = on) as select * from mine",
        "grant select on mine, of_mine to {role}",
        # What tenants cannot reach is not reported.
        "create table private (id int)",
        "create view of_private as select * from orders",
        "create function secret() returns int language sql security definer as 'select 1'",
        "revoke execute on function secret() from public",
    )
    assert await shop.audit() == []
    assert len(shop.asked) <= 6


async def test_a_table_that_only_the_tenants_role_may_read_is_looked_at(shop: Shop) -> None:
    await shop.sql("create table open (id int)", "grant select (id) on open to {role}", "create table closed (id int)")
    assert await shop.holes() == [(Hole.TABLE_WITHOUT_POLICY, "shop.open")]
    for shared in ("open", "shop.open"):
        assert await shop.holes(shared_tables=[shared]) == []


async def test_nor_is_a_table_reached_in_a_schema_that_its_role_may_not_use(shop: Shop) -> None:
    await shop.sql("create table open (id int)", "grant select on open to {role}")
    await shop.sql("revoke usage on schema shop from {role}")
    [finding] = await shop.audit()
    assert (finding.hole, finding.name, finding.tenant) == (Hole.MISSING_SCHEMA, "shop", "acme")
    assert f"the role {shop.role} may not use the schema shop" in finding.message
    assert finding.fix == f"Grant it: grant usage on schema shop to {shop.role}."


# -- partitions


PARTITIONED = (
    "create table sales (tenant text, at date) partition by range (at)",
    "alter table sales enable row level security, force row level security",
    f"create policy own on sales using ({STRICT})",
    "grant select on sales to {role}",
    "create table sales_1 partition of sales for values from ('2026-01-01') to ('2027-01-01')",
    "create table parts.sales_2 partition of sales for values from ('2027-01-01') to ('2028-01-01')",
    "create table sales_3 partition of sales for values from ('2028-01-01') to ('2029-01-01') partition by range (at)",
    "create table sales_4 partition of sales_3 for values from ('2028-01-01') to ('2029-01-01')",
)


async def test_a_partition_that_may_be_read_by_its_own_name(shop: Shop) -> None:
    await shop.sql("create schema parts; grant usage on schema parts to {role}", *PARTITIONED)
    assert await shop.audit() == []
    for name in ("sales_1", "parts.sales_2", "sales_4"):
        await shop.sql(f"grant select on {name} to {{role}}")
        full = name if "." in name else f"shop.{name}"
        [finding] = await shop.audit()
        assert (finding.hole, finding.name) == (Hole.TABLE_WITHOUT_POLICY, full)
        assert f"the table {full}, a part of shop.sales, has no row security of its own" in finding.message
        assert f"revoke all on {full} from {shop.role}" in finding.fix
        await shop.sql(f"revoke select on {name} from {{role}}")
    await shop.sql("grant select on all tables in schema shop, parts to {role}")
    [finding] = await shop.audit()
    assert "and 3 more, a part of shop.sales" in finding.message
    assert await shop.holes(shared_tables=["sales"]) == []
    for name in ("sales_1", "parts.sales_2", "sales_3", "sales_4"):
        await shop.sql(
            f"alter table {name} enable row level security, force row level security",
            f"create policy own on {name} using ({STRICT})",
        )
    assert await shop.audit() == []


async def test_partitions_of_a_table_without_row_security_are_that_tables_affair(shop: Shop) -> None:
    await shop.sql("create schema parts", *PARTITIONED)
    await shop.sql(
        "alter table sales disable row level security", "grant select on all tables in schema shop to {role}"
    )
    assert await shop.holes() == [(Hole.TABLE_WITHOUT_POLICY, "shop.sales")]


async def test_a_table_that_inherits_has_policies_of_its_own_or_none(shop: Shop) -> None:
    await shop.sql("create table special () inherits (orders)", "grant select on special to {role}")
    [finding] = await shop.audit()
    assert "shop.special, a part of shop.orders" in finding.message


async def test_a_foreign_table_has_no_policies(shop: Shop) -> None:
    await shop.sql(
        "create foreign data wrapper nothing; create server nowhere foreign data wrapper nothing",
        "create foreign table far (id int) server nowhere",
        "grant select on far to {role}",
    )
    [finding] = await shop.audit()
    assert (finding.hole, finding.name) == (Hole.TABLE_WITHOUT_POLICY, "shop.far")


# -- views


async def test_a_view_that_reads_as_its_owner(shop: Shop) -> None:
    await shop.sql("create view through as select * from orders", "grant select on through to {role}")
    assert await shop.holes() == [(Hole.VIEW_OF_OWNER, "shop.through")]
    await shop.sql("alter view through set (security_invoker = on)")
    assert await shop.audit() == []
    # An ordinary owner has policies as well; without FORCE they do not hold for the table's own.
    await shop.sql("alter view through set (security_invoker = off)", "alter view through owner to app")
    await shop.sql("grant usage on schema shop to app; grant select on orders to app")
    assert await shop.audit() == []
    await shop.sql("grant create on schema shop to app; alter table orders owner to app")
    assert await shop.audit() == []
    await shop.sql("alter table orders no force row level security")
    assert await shop.holes() == [(Hole.VIEW_OF_OWNER, "shop.through")]


async def test_views_are_followed_to_the_end(shop: Shop) -> None:
    await shop.sql(
        "create schema inner_one",
        "create view inner_one.third as select * from orders",
        "create view second as select * from inner_one.third",
        "create view first with (security_invoker = on) as select * from second",
        "grant select on first, second to {role}",
    )
    assert await shop.holes() == [(Hole.VIEW_OF_OWNER, "shop.first"), (Hole.VIEW_OF_OWNER, "shop.second")]


async def test_a_materialized_view_over_views(shop: Shop) -> None:
    await shop.sql(
        "create view mine with (security_invoker = on) as select * from orders",
        "create materialized view stored as select * from mine",
        "create materialized view twice as select * from stored",
        "create view of_stored as select * from stored",
        "grant select on stored, twice, of_stored to {role}",
    )
    found = await shop.audit()
    assert [(finding.hole, finding.name) for finding in found] == [
        (Hole.VIEW_OF_OWNER, "shop.of_stored"),
        (Hole.VIEW_OF_OWNER, "shop.stored"),
        (Hole.VIEW_OF_OWNER, "shop.twice"),
    ]
    assert "the view shop.of_stored reads the materialized view stored" in found[0].message


async def test_a_view_of_a_table_that_nothing_guards(shop: Shop) -> None:
    await shop.sql(
        "create schema base; create table base.everything (tenant text, item text)",
        "create view all_of_it as select item from base.everything",
        "create view of_tenant as select item from base.everything where tenant = current_setting('app.tenant')",
        "grant select on all_of_it, of_tenant to {role}",
    )
    assert await shop.holes() == [(Hole.VIEW_OF_OWNER, "shop.all_of_it")]
    # A view that no role may read fails.
    await shop.sql("alter view all_of_it set (security_invoker = on)")
    assert await shop.audit() == []


# -- policies


async def test_a_policy_that_says_yes_beside_a_strict_one(shop: Shop) -> None:
    await shop.sql("create policy everything on orders for select using (true)")
    [finding] = await shop.audit()
    assert (finding.hole, finding.name) == (Hole.OPEN_POLICY, "shop.orders")
    assert finding.message.endswith("lets each tenant see all rows, whatever the others say")
    assert "drop policy everything on shop.orders" in finding.fix
    assert await shop.holes(shared_tables=["orders"]) == []
    # A restrictive one is joined by AND.
    await shop.sql(f"create policy only_own on orders as restrictive using ({STRICT})")
    assert await shop.audit() == []
    await shop.sql("drop policy only_own on orders", "create policy x on orders as restrictive using (true)")
    assert await shop.holes() == [(Hole.OPEN_POLICY, "shop.orders")]


@pytest.mark.parametrize(
    ("policy", "verb"),
    [
        ("for insert with check (true)", "write"),
        ("for update using (true)", "change"),
        ("for delete using (true)", "delete"),
        ("for all using (false) with check (true)", "write"),
    ],
)
async def test_what_a_policy_lets_tenants_do(shop: Shop, policy: str, verb: str) -> None:
    await shop.sql(f"create policy more on orders {policy}")
    [finding] = await shop.audit()
    assert f"the policy more of the table shop.orders lets each tenant {verb} all rows" in finding.message
    # Nothing comes of it without the right to.
    await shop.sql("revoke insert, update, delete on orders from {role}")
    assert await shop.audit() == []


@pytest.mark.parametrize(
    "policy",
    [
        "tenant = current_setting('app.tenant', true) or current_setting('app.tenant', true) is null",
        "tenant = coalesce(nullif(current_setting('app.tenant', true), ''), tenant)",
        "current_setting('app.tenant', true) = '' or tenant = current_setting('app.tenant', true)",
    ],
)
async def test_a_policy_that_is_open_where_no_tenant_is_set(shop: Shop, policy: str) -> None:
    await shop.sql("drop policy own on orders", f"create policy own on orders using ({policy})")
    [finding] = await shop.audit()
    assert finding.message.endswith("lets each tenant see all rows where no tenant is set")


async def test_a_policy_counts_for_the_roles_that_it_is_for(shop: Shop) -> None:
    async with role(shop.world, "staff") as staff:
        await shop.sql(f"create policy of_staff on orders to {staff} using (true)")
        assert await shop.audit() == []
        await shop.sql(f"grant {staff} to {{role}}")
        assert await shop.holes() == [(Hole.OPEN_POLICY, "shop.orders")]


async def test_a_policy_that_reads_what_nobody_sets(shop: Shop) -> None:
    await shop.sql("drop policy own on orders")
    await shop.sql("create policy own on orders using (tenant = current_setting('app.customer', true))")
    [finding] = await shop.audit()
    assert (finding.hole, finding.name) == (Hole.OPEN_POLICY, "shop.orders")
    assert "reads app.customer, which no tenant sets: they set app.tenant" in finding.message
    assert await shop.holes(shop.home(settings=("App.Customer",))) == []
    # One that is for something else beside is the application's own affair.
    await shop.sql(f"create policy of_tenant on orders using ({STRICT})")
    assert await shop.audit() == []


async def test_the_policies_of_whoever_a_view_reads_as(shop: Shop) -> None:
    await shop.sql(
        "create policy of_app on orders to app using (true)",
        "grant usage on schema shop to app; grant select on orders to app",
        "create view through as select * from orders; grant create on schema shop to app",
        "alter view through owner to app; grant select on through to {role}",
    )
    assert await shop.holes() == [(Hole.OPEN_POLICY, "shop.orders")]


# -- roles


async def test_the_login_beside_a_role_is_vetted(shop: Shop) -> None:
    [finding] = await shop.audit(user="postgres")
    assert (finding.hole, finding.name) == (Hole.ROLE_BYPASSES, "postgres")
    assert "the role postgres is a superuser, and logs in" in finding.message
    assert await shop.holes(user="postgres", allowed_roles=["postgres"]) == []
    await shop.sql("alter role {login} bypassrls")
    [finding] = await shop.audit()
    assert f"the role {shop.login} has BYPASSRLS, and logs in" in finding.message
    # Where a role alone keeps tenants apart as well.
    assert await shop.holes(shop.home(has_row_security=False)) == [(Hole.ROLE_BYPASSES, shop.login)]
    assert await shop.holes(shop.home(has_row_security=False, role=None, schema="public")) == []
    await shop.sql("alter role {login} nobypassrls")
    await shop.sql("grant create on schema shop to {login}; alter table orders owner to {login}")
    assert await shop.audit() == []
    await shop.sql("alter table orders no force row level security")
    assert await shop.holes() == [(Hole.POLICY_NOT_FORCED, "shop.orders")]


async def test_a_role_that_the_login_may_not_become_is_missing_and_no_more(shop: Shop) -> None:
    for has_row_security in (True, False):
        home = shop.home(role="postgres", has_row_security=has_row_security)
        assert (Hole.MISSING_ROLE, "postgres") in await shop.holes(home)
        assert (Hole.ROLE_BYPASSES, "postgres") not in await shop.holes(home)


async def test_a_start_with_such_a_login_is_refused(shop: Shop) -> None:
    url = shop.world.cluster.nodes["primary"].url(dbname=shop.world.dbname, user="postgres")
    document = shop.world.config(replicas=(), urls={"primary": url}, audit={})
    tenant = {"datasource": "orders", "schema": "shop", "row_security": {"app.tenant": "acme"}, "role": shop.role}
    document["tenants"] = {"acme": tenant}
    made = compile(document)
    with pytest.raises(ConfigError, match=r"the role postgres is a superuser.*allow_roles"):
        await made.open()


# -- functions


async def test_a_definer_function_that_only_the_tenants_role_may_call(shop: Shop) -> None:
    await shop.sql(
        "create function total() returns bigint language sql security definer as 'select 1::bigint'",
        "revoke execute on function total() from public; grant execute on function total() to {role}",
    )
    assert await shop.holes() == [(Hole.DEFINER_FUNCTION, "shop.total()")]
    await shop.sql("alter function total() set search_path = shop, pg_temp")
    [finding] = await shop.audit()
    assert "runs as postgres, for whom no policy holds" in finding.message
    assert await shop.holes(shared_tables=["shop.total"]) == []
    assert await shop.holes(allowed_roles=["postgres"]) == []
    await shop.sql("grant create on schema shop to app; alter function total() owner to app")
    assert await shop.audit() == []


# -- schemas


async def test_tenants_that_share_a_role_which_may_use_the_schemas_of_both(shop: Shop) -> None:
    homes = [Home("acme", "acme"), Home("globex", "globex")]
    await shop.sql("grant usage on schema acme, globex to {login}, {role}")
    [finding] = await shop.audit(*homes)
    assert (finding.hole, finding.name) == (Hole.SHARED_ROLE, shop.login)
    assert "may use the schemas of 2 tenants (acme, globex)" in finding.message
    assert await shop.holes(*homes, allowed_roles=[shop.login]) == []
    by_role = [Home(home.name, home.schema, shop.role) for home in homes]
    assert await shop.holes(*by_role) == [(Hole.SHARED_ROLE, shop.role)]
    await shop.sql("revoke usage on schema globex from {role}")
    assert await shop.holes(*by_role) == [(Hole.MISSING_SCHEMA, "globex")]


async def test_a_tenants_own_role_that_may_use_anothers_schema(shop: Shop) -> None:
    async with role(shop.world, "globex") as other:
        await shop.sql(f"grant {other} to {{login}} with inherit false, set true")
        await shop.sql("grant usage on schema acme to {role}", f"grant usage on schema globex to {other}")
        homes = [Home("acme", "acme", shop.role), Home("globex", "globex", other)]
        assert await shop.audit(*homes) == []
        await shop.sql(f"grant usage on schema acme to {other}")
        assert await shop.holes(*homes) == [(Hole.SHARED_ROLE, other)]


async def test_the_librarys_own_table_is_no_hole(shop: Shop) -> None:
    await shop.sql(
        "create schema asgi_datasource; create table asgi_datasource.tenants (name text)",
        "create function asgi_datasource.f() returns int language sql security definer as 'select 1'",
        "grant usage on schema asgi_datasource to {role}",
        "grant select on asgi_datasource.tenants to {role}",
    )
    assert await shop.audit(shared_schemas=["asgi_datasource"]) == []
    assert await shop.audit(shop.home(schema="asgi_datasource")) == []


async def test_a_hundred_of_many_roles_are_looked_at(shop: Shop) -> None:
    homes = [shop.home(role=f"{shop.world.dbname}_r{number}") for number in range(300)]
    found = await shop.audit(*homes)
    assert {finding.hole for finding in found} == {Hole.MISSING_ROLE}
    assert len(found) == 300
