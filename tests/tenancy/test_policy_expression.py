"""What a policy says of a row while no tenant is set, read off its text: and the server agrees."""

from __future__ import annotations

import psycopg
import pytest

from asgi_datasource.tenancy.policy_expression import is_open, settings_read
from tests.world import World

READ = "current_setting('app.tenant', true)"
NAME = f"nullif({READ}, '')"
COLUMNS = "tenant text, number bigint, id uuid, is_public boolean, other text, at timestamptz"
ROW = "'x', 7, '00000000-0000-0000-0000-000000000001', false, 'y', now()"

CLOSED = [
    f"tenant = {READ}",
    f"tenant = {NAME}",
    f"tenant = (select {NAME})",
    "tenant = current_setting('app.tenant')",
    f"number = {NAME}::bigint",
    f"number = {READ}::bigint",
    f"id = {NAME}::uuid",
    f"number::text = {NAME}",
    f"tenant = {NAME} and not is_public",
    f"tenant = {NAME} or is_public",
    f"{NAME} is not null and tenant = {NAME}",
    f"not ({NAME} is null) and tenant = {NAME}",
    f"case when {NAME} is null then false else tenant = {NAME} end",
    f"coalesce(tenant = {NAME}, false)",
    f"coalesce({NAME}, 'nobody') = tenant",
    f"tenant = any(string_to_array({NAME}, ','))",
    f"tenant in ('shared', {NAME})",
    f"tenant is not distinct from {NAME}",
    "false",
    "is_public",
    "tenant = current_user",
    "tenant is null",
    f"(tenant, other) = ({NAME}, 'x')",
    f"lower(tenant) = lower({NAME})",
    "tenant in (select 'shared')",
    "at > '2020-01-01' and false",
    f"tenant like {NAME}",
    f'tenant collate "C" = {NAME}',
    f"{READ} = 'everybody'",
    f"coalesce({READ}, '') = 'all' or tenant = {READ}",
]
OPEN = [
    "true",
    "(true)",
    "true or is_public",
    "not false",
    "1 = 1",
    "tenant = tenant",
    "case when true then true else false end",
]
OPEN_WITHOUT = [
    f"tenant = {READ} or {READ} is null",
    f"tenant = {NAME} or {NAME} is null",
    f"{NAME} is null or tenant = {NAME}",
    f"(select {NAME}) is null or tenant = (select {NAME})",
    f"coalesce({NAME}, tenant) = tenant",
    f"tenant = coalesce({NAME}, tenant)",
    f"tenant = case when {NAME} is null then tenant else {NAME} end",
    f"case when {NAME} is null then true else tenant = {NAME} end",
    f"coalesce({READ}, '') = '' or tenant = {READ}",
    f"not ({NAME} is not null) or tenant = {NAME}",
    f"coalesce(tenant = {NAME}, true)",
    f"(tenant = {NAME}) is not false",
    f"{READ} = '' or tenant = {READ}",
    f"nullif({READ}, '') is not distinct from null or tenant = {READ}",
]


async def written(world: World, expression: str) -> str:
    """A policy's expression, as the server writes it out."""
    await world.sql(f"drop table if exists t; create table t ({COLUMNS})")
    await world.sql(f"create policy p on t using ({expression})")
    [[text]] = await world.sql("select pg_get_expr(polqual, polrelid) from pg_policy where polrelid = 't'::regclass")
    return str(text)


async def seen(world: World, expression: str, tenant: str | None) -> bool:
    """Whether the row passes; an error lets none pass."""
    setting = "" if tenant is None else f"select set_config('app.tenant', '{tenant}', false);"
    names = "tenant, number, id, is_public, other, at"
    try:
        rows = await world.sql(f"{setting} select true from (values ({ROW})) as t({names}) where {expression}")
    except psycopg.Error:
        return False
    return bool(rows)


@pytest.mark.parametrize("expression", CLOSED)
async def test_a_policy_that_compares_is_closed(world: World, expression: str) -> None:
    text = await written(world, expression)
    assert not any(is_open(text, tenant=tenant) for tenant in (None, "", "somebody")), text


@pytest.mark.parametrize("expression", OPEN)
async def test_a_policy_that_says_yes_is_open(world: World, expression: str) -> None:
    text = await written(world, expression)
    assert all(is_open(text, tenant=tenant) for tenant in (None, "", "somebody")), text


@pytest.mark.parametrize("expression", OPEN_WITHOUT)
async def test_a_policy_that_is_open_where_no_tenant_is_set(world: World, expression: str) -> None:
    text = await written(world, expression)
    found = [is_open(text, tenant=tenant) for tenant in (None, "", "somebody")]
    assert found[:2] != [False, False], text
    assert not found[2], text
    assert await seen(world, expression, None) or await seen(world, expression, "")


def test_what_cannot_be_read_proves_nothing() -> None:
    for text in ("", "(", "tenant =", "true true", "true or $1", "f(", "case when true", "'open", "(" * 5000):
        assert not is_open(text, tenant=None)
    assert is_open(None, tenant=None)


def test_the_settings_that_a_policy_reads() -> None:
    text = "((tenant = current_setting('App.Tenant'::text, true)) AND (x = current_setting('app.user')))"
    assert settings_read(text) == {"app.tenant", "app.user"}
    assert settings_read("current_setting('role') = 'x'") == frozenset()
