"""Detecting from a statement's text whether its effects outlive the transaction."""

from __future__ import annotations

import pytest

from asgi_datasource.drivers.statement_analysis import (
    may_end_transaction,
    outlives_transaction,
    transaction_command,
    transaction_command_in,
)


@pytest.mark.parametrize(
    "text",
    [
        "set search_path = globex",
        "SET SESSION search_path TO globex",
        "set role acme",
        "set session authorization acme",
        "set session characteristics as transaction read only",
        "set time zone 'UTC'",
        "/* a comment */ set role acme",
        "-- a comment\nset role acme",
        "set/**/role acme",
        "/* a /* nested */ comment */ set role acme",
        "reset role",
        "select set_config('role', 'acme', false)",
        "select pg_catalog.set_config('app.tenant', '42', false), set_config('a.b', 'c', true)",
        "select set_config('a.b', ', true)', false)",
        "with x as (select set_config('a.b', 'c', false)) select * from x",
        "update pg_settings set setting = 'globex' where name = 'search_path'",
        "listen news",
        "unlisten *",
        "prepare p as select 1",
        "deallocate all",
        "discard all",
        "load 'auto_explain'",
        "do $$ begin set role acme; end $$",
        "create temp table t (a int)",
        "create temporary view t as select 1",
        "create or replace temp view t as select 1",
        "create local temporary table t (a int)",
        "create /* */ temp table t (a int)",
        "create table pg_temp.t (a int)",
        "create function pg_temp.f() returns int language sql as 'select 1'",
        "select 1 as a into temp t",
        "declare c cursor with hold for select 1",
        "select pg_advisory_lock(1)",
        "select pg_try_advisory_lock_shared(1)",
        "select set_config('a.b', $1, is_local => false)",
        "create /* /* */ */ temp table t (a int)",
    ],
)
def test_a_statement_that_may_change_the_session(text: str) -> None:
    assert outlives_transaction(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ;",
        "select 1",
        "(select 1) union (select 2)",
        " -- a comment\n select 1",
        "with x as (select 1) select * from x",
        "insert into orders (item) values ($1)",
        "select temp, temperature, hold from sensors where temp > 3",
        "select temporary from contracts",
        "set local search_path = globex",
        "set local role acme",
        "set transaction read only",
        "set constraints all immediate",
        "select set_config($1,$2,true),set_config($3,$4,true)",
        "select set_config('transaction_read_only','on',true)",
        "select pg_advisory_xact_lock(1)",
        "declare ads_1 no scroll cursor for select 1",
        "fetch forward 500 from ads_1",
        "savepoint ads_1",
        "begin isolation level serializable",
        "commit",
        "call settle_accounts()",
        "create table t (a int)",
        "copy orders to '/tmp/x'",
        "select set_config('x.y', 'z', is_local => true)",
        "select set_config('x.y', 'z', is_local := TRUE)",
        "select 'pg_advisory_lock(1)' as example",
        "select item from orders where note = 'with hold' -- create temp table t (a int)",
        "select name, setting from pg_settings",
        "select relname from pg_class where relnamespace = pg_my_temp_schema()",
        "insert into notes (text) values ('select set_config(''a.b'', ''c'', false)')",
        "/* /* set role acme */ */ select 1",
        # Not to be judged by its text: the reset before another tenant's statement is for these.
        "select set_config('role', $1, $2)",
        "select U&\"set\\005fconfig\"('app.flag', 'evil', false)",
        "select \"set_config\"('a.b', 'c', false)",
        "select report()",
    ],
)
def test_a_statement_whose_effects_end_with_the_transaction(text: str) -> None:
    assert not outlives_transaction(text.encode())


@pytest.mark.parametrize(
    "text", ["call p()", "CALL p()", "do 'begin commit; end'", "/* x */ call p()", "/* /* */ */ call p()"]
)
def test_procedures_and_blocks_may_commit_from_inside(text: str) -> None:
    assert may_end_transaction(text.encode())


@pytest.mark.parametrize("text", ["select 1", "with x as (select 1) table x", "(values (1))", "-- call p()\nselect 1"])
def test_queries_cannot_commit(text: str) -> None:
    assert not may_end_transaction(text.encode())


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("commit", "COMMIT"),
        ("Commit;", "COMMIT"),
        ("  ; end", "END"),
        ("rollback to savepoint a", "ROLLBACK"),
        ("start transaction", "START"),
        ("/* a /* nested */ one */ begin", "BEGIN"),
        ("-- ends with a carriage return\rabort", "ABORT"),
        ("/* 'a literal' */ commit prepared 'x'", "COMMIT"),
        ("prepare transaction 'x'", "PREPARE TRANSACTION"),
        ("prepare p as select 1", None),
        ("savepoint a", None),
        ("release a", None),
        ("select 'commit'", None),
        ("-- commit\nselect 1", None),
        ("call commit()", None),
        ("", None),
    ],
)
def test_the_verb_tells_what_begins_or_ends_a_transaction(text: str, command: str | None) -> None:
    assert transaction_command(text.encode()) == command


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("commit", "COMMIT"),
        ("select 1; -- not yet;\nrollback;", "ROLLBACK"),
        ("savepoint a; rollback to savepoint a; rollback work to a", None),
        ("rollback /* all of it */", "ROLLBACK"),
        ("select ';commit'; select $$;commit;$$", None),
        ("create function f() returns int begin atomic select 1; end", None),
        ("", None),
    ],
)
def test_a_command_that_ends_a_transaction_is_found_behind_other_statements(text: str, command: str | None) -> None:
    assert transaction_command_in(text.encode()) == command
