"""Errors as raised by the session: the right kind, a helpful message, and no values in it."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import psycopg
import pytest

from asgi_datasource.drivers.psycopg import PsycopgServer
from asgi_datasource.drivers.psycopg.settings import without_location
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.errors import DataError, DataErrorKind
from asgi_datasource.routing import Role
from asgi_datasource.testing import EmbeddedCluster
from tests.drivers.conftest import OpenServer

SETUP = [
    "create table parents (id int primary key check (id >= 0), name text not null unique)",
    "create table children (parent int references parents)",
    "create type mood as enum ('good', 'bad')",
    "insert into parents values (1, 'planted-value')",
]


async def fail(server: PsycopgServer, query: str, params: Any = None, *, is_write: bool = True) -> DataError:
    connection = await server.acquire(deadline=None)
    try:
        for statement in SETUP:
            await connection.exchange([Statement(statement)])
        exchange = await connection.exchange([Statement(query, params)])
        assert exchange.error is not None
        error = server.error_of(exchange, is_write=is_write)
        assert server.classify(exchange.error, is_write=is_write).kind == error.kind
        return error
    finally:
        await server.reclaim(connection)


@pytest.mark.parametrize(
    ("query", "kind", "status", "sqlstate"),
    [
        ("selec 1", DataErrorKind.QUERY, 500, "42601"),
        ("select * from missing", DataErrorKind.QUERY, 500, "42P01"),
        ("select 1/0", DataErrorKind.VALUE, 422, "22012"),
        ("insert into parents values (1, 'x')", DataErrorKind.CONSTRAINT, 409, "23505"),
        ("insert into children values (99)", DataErrorKind.CONSTRAINT, 409, "23503"),
        ("insert into parents values (-1, 'x')", DataErrorKind.CONSTRAINT, 422, "23514"),
        ("insert into parents values (2, null)", DataErrorKind.CONSTRAINT, 422, "23502"),
        ("select $1::int", DataErrorKind.QUERY, 500, "42P02"),
        ("execute missing", DataErrorKind.QUERY, 500, "26000"),
        (
            "do $$ begin raise exception 'own words' using errcode = '40001'; end $$",
            DataErrorKind.CONFLICT,
            409,
            "40001",
        ),
        ("do $$ begin raise exception 'x' using errcode = '40P01'; end $$", DataErrorKind.CONFLICT, 409, "40P01"),
        ("do $$ begin raise exception 'x' using errcode = '53200'; end $$", DataErrorKind.RESOURCE, 503, "53200"),
        ("do $$ begin raise exception 'x' using errcode = '57014'; end $$", DataErrorKind.TIMEOUT, 504, "57014"),
        ("do $$ begin raise exception 'x' using errcode = 'XX000'; end $$", DataErrorKind.OTHER, 500, "XX000"),
    ],
)
async def test_the_servers_errors_are_classified(
    server: PsycopgServer, query: str, kind: DataErrorKind, status: int, sqlstate: str
) -> None:
    error = await fail(server, query)
    assert (error.kind, error.http_status, error.sqlstate) == (kind, status, sqlstate)
    assert error.message.startswith("orders.primary: ")
    assert error.server == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("10.0.0.5:5432: Connection refused", "Connection refused"),
        ("10.0.0.5:5432: Connection refused; ::1:5432: Connection refused", "Connection refused"),
        (
            "/run/pg:5432: No such file or directory; db:5433: timeout expired",
            "No such file or directory; timeout expired",
        ),
        (
            "db.internal:5432: failed to resolve host 'db.internal': [Errno -2] Name or service not known",
            "failed to resolve host '...': [Errno -2] Name or service not known",
        ),
        (
            'db:5432: no pg_hba.conf entry for host "10.0.0.7", user "app", database "x", no encryption',
            'no pg_hba.conf entry for host \'...\', user "app", database "x", no encryption',
        ),
    ],
)
def test_a_reason_without_its_location_names_no_host_and_no_port(reason: str, told: str) -> None:
    assert without_location(reason) == told


async def test_several_statements_in_one_text_are_named(server: PsycopgServer) -> None:
    error = await fail(server, "select 1; select 2")
    assert "the text has several statements: send each in a call of its own" in error.message


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("select * from missing", 'there is no such table or view: "missing" (SQLSTATE 42P01)'),
        (
            'select * from public."Missing one"',
            'there is no such table or view: "public.Missing one" (SQLSTATE 42P01)',
        ),
        ("select p.nmae from parents p", 'there is no such column: "p.nmae" (SQLSTATE 42703)'),
        ("select 'ä', nmae from parents", 'there is no such column: "nmae" (SQLSTATE 42703)'),
        ("select missing(1)", 'there is no such function or operator: "missing" (SQLSTATE 42883)'),
        ("select 1 || 2", 'there is no such function or operator: "||" (SQLSTATE 42883)'),
        ("selec 1", 'syntax error: "selec" (SQLSTATE 42601)'),
        ("select 1 'planted-value'", "syntax error (SQLSTATE 42601)"),
        ("select (", "syntax error (SQLSTATE 42601)"),
        ("select 'planted-value'::regclass", "there is no such table or view (SQLSTATE 42P01)"),
        ("insert into parents values (1, 'x')", 'a row breaks a unique constraint: "public.parents", "parents_pkey"'),
        ("insert into parents values (2, null)", 'a column that must have a value has none: "public.parents", "name"'),
        (
            "do $$ begin raise exception 'planted-value' using table = 'planted-value'; end $$",
            "a function of the database",
        ),
    ],
)
async def test_the_object_of_a_mistake_is_named(server: PsycopgServer, query: str, told: str) -> None:
    error = await fail(server, query)
    assert error.message.startswith(f"orders.primary: {told}")
    assert "planted" not in error.message


async def test_the_object_without_a_privilege_is_named(server: PsycopgServer) -> None:
    connection = await server.acquire(deadline=None)
    exchange = await connection.exchange([Statement("select * from pg_catalog.pg_authid")])
    error = server.error_of(exchange, is_write=False)
    assert error.message == 'orders.primary: permission denied: "pg_authid" (SQLSTATE 42501)'
    await server.reclaim(connection)


async def test_a_constraint_is_named(server: PsycopgServer) -> None:
    error = await fail(server, "insert into parents values (1, 'x')")
    assert (error.constraint, error.table, error.column) == ("parents_pkey", "parents", None)
    error = await fail(server, "insert into parents values (2, null)")
    assert (error.constraint, error.table, error.column) == (None, "parents", "name")


@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("insert into parents values (5, %s)", ["planted-value"]),
        ("select %s::int", ["planted-value"]),
        ("select %s::text::int", ["planted-value"]),
        ("select %s::text::mood", ["planted-value"]),
        ("select %s::text::date", ["planted-value"]),
        ("select %s::text::uuid", ["planted-value"]),
        ("select %s::text::json", ["planted-value"]),
        ("select %s::text::inet", ["planted-value"]),
        ("select %s::text::interval", ["planted-value"]),
        ("select %s::text::bool", ["planted-value"]),
        ("select %s::text::int[]", ["{planted-value}"]),
        ("select set_config('timezone', %s, true)", ["planted-value"]),
        ("insert into parents values (-1, %s)", ["planted-value"]),
        ("insert into parents values (null, %s)", ["planted-value"]),
        ("select %s::text::int", ['a"planted-value']),
        ("select to_tsquery(%s)", ["planted-value &"]),
        ("select %s::text::regclass", ["planted-value"]),
        ("select pg_database_size(%s::text)", ["planted-value"]),
        ("select nextval(%s)", ["planted-value"]),
        ("do $$ begin raise exception 'no »planted-value«' using errcode = '22P02'; end $$", None),
        ("do $$ begin raise exception 'no planted-value' using errcode = '42P01'; end $$", None),
    ],
)
async def test_the_message_contains_no_value(server: PsycopgServer, query: str, params: list[str] | None) -> None:
    error = await fail(server, query, params)
    assert "planted" not in "".join(traceback.format_exception(error))
    assert "planted" not in repr(error)


async def test_a_write_with_read_intent_names_the_annotation(
    cluster: EmbeddedCluster, open_server: OpenServer, server: PsycopgServer
) -> None:
    read_only = "set transaction read only"
    connection = await server.acquire(deadline=None)
    exchange = await connection.exchange([Statement(read_only), Statement("create table t (n int)")])
    error = server.error_of(exchange, is_write=False)
    assert (error.kind, error.http_status) == (DataErrorKind.READ_ONLY, 500)
    assert "give its route @transactional, or use `db.write`" in error.message
    # With write intent, the same error means that the server is not a primary.
    error = server.error_of(exchange, is_write=True)
    assert (error.kind, error.is_retryable) == (DataErrorKind.CONNECTION, True)
    await server.reclaim(connection)

    replica = await open_server(cluster.replicas["r1"].url("postgres"), role=Role.REPLICA)
    connection = await replica.acquire(deadline=None)
    for query in ("create table t (n int)", "select pg_current_wal_lsn()"):
        exchange = await connection.exchange([Statement(query)])
        assert replica.error_of(exchange, is_write=False).kind is DataErrorKind.READ_ONLY
    await replica.reclaim(connection)


async def test_a_lost_connection_and_an_expired_deadline_have_different_kinds(server: PsycopgServer) -> None:
    loop = asyncio.get_running_loop()
    connection = await server.acquire(deadline=None)
    exchange = await connection.exchange([Statement("select pg_sleep(30)")], deadline=loop.time() + 0.1)
    error = server.error_of(exchange, is_write=False)
    assert (error.kind, error.http_status, error.is_retryable) == (DataErrorKind.TIMEOUT, 504, False)
    assert "the deadline passed before the statement ended; it was stopped" in error.message
    exchange = await connection.exchange([Statement("select pg_terminate_backend(pg_backend_pid())")])
    error = server.error_of(exchange, is_write=False)
    assert (error.kind, error.http_status, error.is_retryable) == (DataErrorKind.CONNECTION, 503, True)
    assert error.sqlstate == "57P01"
    await server.reclaim(connection)


async def test_a_successful_exchange_has_no_error(server: PsycopgServer) -> None:
    connection = await server.acquire(deadline=None)
    exchange = await connection.exchange([Statement("select 1")])
    with pytest.raises(ValueError, match="has not failed"):
        server.error_of(exchange, is_write=False)
    server.release(connection)


async def test_a_connection_failure_without_a_sqlstate(server: PsycopgServer) -> None:
    error = server.classify(psycopg.OperationalError("server closed the connection\nunexpectedly"), is_write=False)
    assert error.kind is DataErrorKind.CONNECTION
    assert error.message.endswith(": server closed the connection")
