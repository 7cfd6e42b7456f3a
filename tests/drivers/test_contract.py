"""The same statements and values through a psycopg cursor and the driver: equal rows, types, tags and errors."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import math
import os
import uuid
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import rows, sql
from psycopg.adapt import Dumper, Loader
from psycopg.types.json import Json, Jsonb
from psycopg.types.multirange import Int4Multirange, Multirange
from psycopg.types.numeric import Int2, Int8
from psycopg.types.range import Int4Range, Range, TimestamptzRange

from asgi_datasource.drivers.psycopg import PsycopgConnection
from asgi_datasource.drivers.statements import Statement
from asgi_datasource.testing import EmbeddedCluster
from tests.drivers.conftest import Connect

Outcome = tuple[Any, ...]


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 70000


class Unknown:
    pass


Point = namedtuple("Point", "x y")

UTC = dt.UTC
PLUS5 = dt.timezone(dt.timedelta(hours=5, minutes=30))

VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    32767,
    32768,
    2**31,
    2**63 - 1,
    2**63,
    -(10**40),
    Int2(5),
    Int8(5),
    0.0,
    -1.5,
    math.pi,
    math.inf,
    -math.inf,
    Decimal("1.10"),
    Decimal("-0"),
    Decimal("1e-30"),
    Decimal("Infinity"),
    "",
    "it's",
    'quo"te \\ back',
    "grüße 😀",
    "%s %(x)s %%",
    "x" * 5000,
    "nul\x00",
    "lone \udc80",
    b"",
    b"\x00\xff'\\",
    bytearray(b"array"),
    memoryview(b"view"),
    dt.date(2024, 2, 29),
    dt.date.min,
    dt.date.max,
    dt.time(23, 59, 59, 999999),
    dt.time(1, 2, tzinfo=PLUS5),
    dt.datetime(2024, 2, 29, 12, 30),
    dt.datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=UTC),
    dt.datetime(2024, 2, 29, 12, 30, tzinfo=PLUS5),
    dt.timedelta(days=-3, seconds=5, microseconds=7),
    uuid.UUID(int=7),
    ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_address("::1"),
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_interface("10.0.0.1/8"),
    [],
    [1, 2, 3],
    [1, 70000],
    [1, None, 2**40],
    [[1, 2], [3, 4]],
    [[1, 2], [3]],
    ["a", None, 'b"c', "d,e"],
    [b"a", b"\x00"],
    [Decimal("1.5"), 2],
    [1, "mixed"],
    [dt.date(2024, 1, 1)],
    [Unknown()],
    (1, "a"),
    Point(1, 2.5),
    Mood.GOOD,
    Size.SMALL,
    Size.LARGE,
    Json({"a": [1, None, "x"]}),
    Jsonb({"a": 'quo"te'}),
    Int4Range(1, 5),
    Range(1, 5),
    Range(empty=True),
    TimestamptzRange(dt.datetime(2024, 1, 1, tzinfo=UTC), None, "(]"),
    Int4Multirange([Int4Range(1, 3), Int4Range(7, 9)]),
    Multirange([]),
    {"a": 1},
    {1, 2},
    Unknown(),
    object,
    1j,
]

TEMPLATES: list[str] = [
    "select %s as v",
    "select %t as v",
    "select %b as v",
    "select %s::text as v",
    "select pg_typeof(%s)::text as v",
    "select %s is null as v",
]

QUERIES: list[str | bytes | sql.Composable] = [
    "select 1 as a, 'x' as b, null as c",
    b"select 2 as a",
    sql.SQL("select {} as {}, {}").format(sql.Literal("it's"), sql.Identifier('A "b"'), sql.Literal(5)),
    "select",
    "select from generate_series(1, 3)",
    "select 1 as a, 2 as a",
    "select 1 where false",
    "select generate_series(1, 2000) as n",
    "",
    "-- nothing",
    ";",
    "show search_path",
    "explain (costs off) select 1",
    "values (1, 'a'), (2, null)",
    "set application_name = 'contract'",
    "do $$ begin perform 1; end $$",
    "notify contract, 'payload'",
    "listen contract",
    "unlisten *",
    "select '100%' as percent, 'a' like '%' as like",
    # queries
    "select 't'::bool, 1::int2, 2::int4, 3::int8, 4::oid, 1.5::float4, 'NaN'::float8, '1.50'::numeric, 'NaN'::numeric",
    "select 'c'::\"char\", 'n'::name, 'b'::bpchar(3), 'v'::varchar(5), 't'::text, '\\x00ff'::bytea, '1.50'::money",
    "select '2024-02-29'::date, '23:59:59.5'::time, '01:02:03+05:30'::timetz, '2024-02-29 12:30'::timestamp",
    "select '2024-07-01 12:30+02'::timestamptz, '1 year 2 mons -3 days 04:05:06.7'::interval",
    "select '{1,2,NULL}'::int[], '{{a,b},{\"c,d\",null}}'::text[], '{}'::int[], '{2024-01-01 00:00+00}'::timestamptz[]",
    "select '[1,5)'::int4range, 'empty'::numrange, '{[1,3),[7,9)}'::int4multirange, '[2024-01-01,)'::daterange",
    "select '{\"a\": [1, null]}'::json, '{\"a\": \"x\"}'::jsonb, 'null'::jsonb",
    "select '10.0.0.1'::inet, '10.0.0.0/8'::cidr, '::1'::inet, '08:00:2b:01:02:03'::macaddr",
    "select 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, '101'::bit(3), '(1,2)'::point, 'a b'::tsvector",
    "select row(1, 'a', null), row('x', row(2, 3)), array[row(1, 'a')]",
    "select 'good'::mood, 5::positive, array['good', 'bad']::mood[], row(1, 'x')::pair, pg_sleep(0)",
    "select 'infinity'::date",
    "select '-infinity'::timestamptz",
    "select '10000-01-01'::date",
    "select 'infinity'::interval",
    "select '24:00'::time",
    # statements with effects
    "create temp table things (id int primary key, name text not null check (name <> 'bad'))",
    "insert into things values (1, 'a'), (2, 'b')",
    "insert into things values (3, 'c') returning id, name",
    "insert into things select 1, 'x' where false",
    "update things set name = name || 'x' where id < 3",
    "update things set name = 'y' where id = 99 returning id",
    "delete from things where id = 3",
    "merge into things t using (values (1)) v (id) on t.id = v.id when matched then update set name = 'm'",
    "select * from things order by id",
    "table things",
    "select count(*) into temp counted from things",
    "create temp table copied as select * from things",
    "truncate things",
    "drop table things, counted, copied",
    # errors found by the server
    "selec 1",
    "select * from nowhere",
    "select nothing",
    "select 1/0",
    "select 1/(5 - n) from generate_series(1, 10) n",
    "select 'x'::int",
    "select unknown_function(1)",
    "select pg_read_file('/etc/passwd')",
    "insert into parents values (1), (1)",
    "insert into parents values (null)",
    "insert into parents values (-1)",
    "insert into children values (99)",
    "do $$ begin raise exception 'boom' using errcode = 'ZZ123', detail = 'd', hint = 'h'; end $$",
    "do $$ begin raise notice 'a notice'; end $$",
    "set nonsense = 1",
    "commit",
    "rollback",
    "execute missing",
]

WITH_PARAMS: list[tuple[str | bytes | sql.Composable, Any]] = [
    ("select %s + %s as sum", [1, 2]),
    ("select %s + %s as sum", (1, 2)),
    ("select %(a)s::int + %(b)s::int + %(a)s::int as sum", {"a": 1, "b": 2, "unused": 3}),
    ("select %(a)b::int + %(b)t::int as sum", {"a": 1, "b": 2}),
    ("select %(with space)s::int as a", {"with space": 1}),
    ("select '100%%' as percent, %s::int as n", [1]),
    ("select '100%%' as percent", []),
    ("select '100%%' as percent", {}),
    ("select 7 %% 4 as modulo", ()),
    (b"select %s::text as a", ["x"]),
    (sql.SQL("select {} = {} as same").format(sql.Placeholder(), sql.Placeholder()), [1, 1]),
    (sql.SQL("select {}::text as named").format(sql.Placeholder("n")), {"n": "x"}),
    ("select %s::int as a, %s::int as b, %s::text as c", range(3)),
    ("insert into parents values (%s) returning id", [7]),
    ("update parents set id = %s where id = %s", [8, 7]),
    ("delete from parents where id = any(%s)", [[8]]),
    ("select * from unnest(%s::text[], %s::int[]) as t (a, b)", [["x", "y"], [1, 2]]),
    ("select %s", ["text"]),
    ("select %s::int", ["not a number"]),
    ("insert into parents values (%s)", [-1]),
    ("values (%s), (%s)", [1, "a"]),
    # errors of the caller
    ("select %s", []),
    ("select %s", [1, 2]),
    ("select 1", [1]),
    ("select %(a)s", {"b": 1}),
    ("select %(a)s", {}),
    ("select %(a)s, %(b)s", {"c": 1}),
    ("select %(a)s %(a)s", [1]),
    ("select %(a)s", [1]),
    ("select %s", {"a": 1}),
    ("select %s %(a)s", {"a": 1}),
    ("select %(a)s %s", [1]),
    ("select %(a)s %(a)b", {"a": 1}),
    ("select %d", [1]),
    ("select %(a)d", {"a": 1}),
    ("select 10% 3, %s", [1]),
    ("select 10 %", [1]),
    ("select 10 %", []),
    ("select %(a", {"a": 1}),
    ("select %(", {"a": 1}),
    ("select %()s", {"": 1}),
    ("select %s", "x"),
    ("select %s", b"x"),
    ("select %s", {1}),
    ("select 1", "x"),
]


def describe(description: Any) -> Any:
    return None if description is None else [tuple(column) for column in description]


def describe_error(error: BaseException) -> Outcome:
    if not isinstance(error, psycopg.Error):
        return ("error", type(error), str(error))
    fields = ("sqlstate", "message_detail", "message_hint", "constraint_name", "table_name", "column_name", "context")
    return ("error", type(error), str(error), error.sqlstate, *(getattr(error.diag, field) for field in fields))


def show(value: Any) -> Any:
    """Values with their types, recursively, because 1 == True == 1.0 == Decimal(1)."""
    if isinstance(value, list | tuple):
        return (type(value), [show(item) for item in value])
    if isinstance(value, dict):
        return [(show(key), show(item)) for key, item in value.items()]
    if isinstance(value, dt.datetime):
        return (type(value), repr(value), str(value.tzinfo))
    return (type(value), repr(value))


async def through_psycopg(
    connection: psycopg.AsyncConnection[Any], query: Any, params: Any, row_factory: Any = rows.dict_row
) -> Outcome:
    try:
        async with connection.cursor(row_factory=row_factory) as cursor:
            await cursor.execute(query, params)
            rowcount, tag = cursor.rowcount, cursor.statusmessage
            fetched = await cursor.fetchall() if cursor.description is not None else None
            return ("ok", show(fetched), rowcount, tag)
    except Exception as error:
        return describe_error(error)


async def through_ours(connection: PsycopgConnection, query: Any, params: Any, row_factory: Any = None) -> Outcome:
    try:
        exchange = await connection.exchange([Statement(query, params)])
        if exchange.error is not None:
            return describe_error(exchange.error)
        result = exchange.results[0]
        assert result is not None
        fetched = result.rows(row_factory) if result.returns_rows else None
        return ("ok", show(fetched), result.rowcount, result.status_message)
    except Exception as error:
        return describe_error(error)


SCHEMA = """
create type mood as enum ('good', 'bad');
create domain positive as int check (value > 0);
create type pair as (a int, b text);
create table parents (id int primary key check (id >= 0));
create table children (parent int references parents deferrable initially deferred);
"""


@pytest.fixture(scope="module")
def database(cluster: EmbeddedCluster) -> Iterator[str]:
    """One database for the module: its tests do not change the schema."""
    name = f"contract_{os.getpid()}"
    cluster.make_database(name)
    with psycopg.connect(cluster.primary.url(name), autocommit=True) as connection:
        connection.execute(SCHEMA)
    yield name
    cluster.remove_database(name)


@pytest.fixture
async def theirs(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("truncate parents, children")
        yield connection


@pytest.fixture
async def ours(connect: Connect, theirs: Any) -> PsycopgConnection:
    return await connect()


async def compare(theirs: Any, ours: PsycopgConnection, query: Any, params: Any) -> None:
    """The first execution, the one that prepares, and a prepared one."""
    expected = await through_psycopg(theirs, query, params)
    for use in range(3):
        assert await through_ours(ours, query, params) == expected, f"use {use} of {query!r} with {params!r}"
        assert ours.is_idle, f"use {use} of {query!r} with {params!r} left the connection {ours.transaction_status!r}"


@pytest.mark.parametrize("template", TEMPLATES)
async def test_values_equal_those_of_psycopg(theirs: Any, ours: PsycopgConnection, template: str) -> None:
    for value in VALUES:
        await compare(theirs, ours, template, [value])


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns"])
@pytest.mark.parametrize("date_style", ["ISO, DMY", "SQL, MDY", "German"])
async def test_adapters_see_session_settings(theirs: Any, ours: PsycopgConnection, zone: str, date_style: str) -> None:
    await ours.exchange([Statement("select now(), current_date, '1 day'::interval")])
    for setting, value in (("TimeZone", zone), ("DateStyle", date_style)):
        await compare(theirs, ours, "select set_config(%s, %s, false)", [setting, value])
    await compare(
        theirs, ours, "select '2024-07-01 12:30+02'::timestamptz, '2024-02-03'::date, '1 day'::interval", None
    )


async def test_results_of_statements_equal_those_of_psycopg(theirs: Any, connect: Connect) -> None:
    # One execution each, because most have effects. The connections do not see each other's temporary tables.
    ours = await connect()
    for query in QUERIES:
        expected = await through_psycopg(theirs, query, None)
        assert await through_ours(ours, query, None) == expected, query
        assert ours.is_idle


async def test_results_of_prepared_queries_equal_those_of_psycopg(theirs: Any, ours: PsycopgConnection) -> None:
    for query in QUERIES:
        text = query if isinstance(query, str) else ""
        if text.startswith(("select", "values", "show", "insert into parents", "insert into children", "selec")):
            await compare(theirs, ours, query, None)


@pytest.mark.parametrize(("query", "params"), WITH_PARAMS)
async def test_parameters_and_errors_equal_those_of_psycopg(
    theirs: Any, connect: Connect, query: Any, params: Any
) -> None:
    expected = await through_psycopg(theirs, query, params)
    await theirs.execute("delete from parents")
    ours = await connect()
    for prepare in (False, True):
        assert await through_ours_prepared(ours, query, params, prepare) == expected
        await theirs.execute("delete from parents")


async def test_no_parameters_for_placeholders_fail_as_in_psycopg(theirs: Any, ours: PsycopgConnection) -> None:
    expected = await through_psycopg(theirs, "select %s", {})
    assert expected[1:4:2] == (psycopg.errors.UndefinedParameter, "42P02")
    with pytest.raises(psycopg.errors.UndefinedParameter):
        await ours.exchange([Statement("select %s", {})])


@pytest.mark.parametrize(
    ("query", "params", "message"),
    [
        (5, None, "a query is str, bytes or composed by psycopg.sql, got int"),
        (None, None, "a query is str, bytes or composed by psycopg.sql, got NoneType"),
        ("select %s", 5, "query parameters should be a sequence or a mapping, got int"),
        ("select %s", iter([1]), "query parameters should be a sequence or a mapping, got list_iterator"),
    ],
)
async def test_invalid_arguments_raise_type_errors_as_in_psycopg(
    theirs: Any, ours: PsycopgConnection, query: Any, params: Any, message: str
) -> None:
    assert (await through_psycopg(theirs, query, params))[1] is TypeError
    with pytest.raises(TypeError, match=message):
        await ours.exchange([Statement(query, params)])


async def through_ours_prepared(connection: PsycopgConnection, query: Any, params: Any, prepare: bool) -> Outcome:
    try:
        exchange = await connection.exchange([Statement(query, params, prepare)])
        if exchange.error is not None:
            return describe_error(exchange.error)
        result = exchange.results[0]
        assert result is not None
        fetched = result.rows() if result.returns_rows else None
        return ("ok", show(fetched), result.rowcount, result.status_message)
    except Exception as error:
        return describe_error(error)


@dataclass
class Thing:
    a: int
    b: str | None = None


def columns_row(cursor: Any) -> Callable[[Any], Any]:
    """A user's row factory that uses all documented attributes of the cursor."""
    names = [(c.name, c.type_code, c.type_display, c.precision, c.internal_size) for c in cursor.description]
    seen = (cursor.rowcount, cursor.statusmessage, cursor.pgresult.nfields, cursor.description[0].name)
    return lambda values: (names, seen, tuple(values))


FACTORIES = {
    "dict": rows.dict_row,
    "tuple": rows.tuple_row,
    "namedtuple": rows.namedtuple_row,
    "class": rows.class_row(Thing),
    "args": rows.args_row(lambda *args: list(args)),
    "kwargs": rows.kwargs_row(lambda **kwargs: sorted(kwargs)),
    "scalar": rows.scalar_row,
    "of the user's": columns_row,
}


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    "query",
    [
        "select 1::int as a, 'x'::text as b",
        "select n as a, null as b from generate_series(1, 3) n",
        "select 1 as a where false",
        "select 1.5::numeric(10, 2) as a",
        "select 1 as a, 2 as c",
        "select '2024-07-01 12:30+02'::timestamptz as a, '{1,2}'::int[] as b",
    ],
)
async def test_row_factories_return_the_same_as_with_a_psycopg_cursor(
    theirs: Any, ours: PsycopgConnection, name: str, query: str
) -> None:
    factory: Any = FACTORIES[name]
    expected = await through_psycopg(theirs, query, None, factory)
    for _ in range(3):
        assert await through_ours(ours, query, None, factory) == expected


async def test_a_row_factory_works_after_the_connection_has_closed(connection: PsycopgConnection) -> None:
    exchange = await connection.exchange([Statement("select '{2024-07-01 12:30+02}'::timestamptz[] as a")])
    await connection.close()
    result = exchange.results[0]
    assert result is not None
    moment = dt.datetime(2024, 7, 1, 10, 30, tzinfo=UTC)
    assert result.rows() == [{"a": [moment]}]
    assert result.rows(rows.namedtuple_row)[0].a == [moment]
    assert result.first(columns_row)[0][0][0] == "a"


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __repr__(self) -> str:
        return f"Money({self.cents})"


class MoneyDumper(Dumper):
    oid = 20

    def dump(self, obj: Money) -> bytes:
        return str(obj.cents).encode()


class MoneyLoader(Loader):
    def load(self, data: Any) -> Money:
        return Money(int(bytes(data)))


async def test_an_adapter_registered_on_the_connection_applies_from_then_on(
    theirs: Any, ours: PsycopgConnection
) -> None:
    await compare(theirs, ours, "select %s::int8 as v", [Money(5)])
    await compare(theirs, ours, "select 7::int8 as v", None)
    for connection in (theirs, ours):
        connection.adapters.register_dumper(Money, MoneyDumper)
        connection.adapters.register_loader("int8", MoneyLoader)
    await compare(theirs, ours, "select %s::int8 as v", [Money(5)])
    await compare(theirs, ours, "select 7::int8 as v", None)
    exchange = await ours.exchange([Statement("select %s::int8 as v", [Money(9)])])
    assert exchange.results[0] is not None
    assert isinstance(exchange.results[0].scalar(), Money)


async def test_types_registered_on_the_connection_are_used(theirs: Any, ours: PsycopgConnection) -> None:
    from psycopg.types.composite import CompositeInfo, register_composite
    from psycopg.types.enum import EnumInfo, register_enum

    for connection in (theirs, ours):
        pair = await CompositeInfo.fetch(theirs, "pair")
        mood = await EnumInfo.fetch(theirs, "mood")
        assert pair is not None
        assert mood is not None
        register_composite(pair, connection)
        register_enum(mood, connection, Mood, mapping=[(Mood.GOOD, "good"), (Mood.BAD, "bad")])
    await compare(theirs, ours, "select row(1, 'x')::pair as p, array[row(2, null)::pair] as ps", None)
    await compare(theirs, ours, "select 'good'::mood as m, %s::mood[] as ms", [[Mood.BAD]])


async def test_an_unreadable_value_fails_only_its_own_statement(connection: PsycopgConnection) -> None:
    exchange = await connection.exchange([Statement("select 'infinity'::date as d"), Statement("select 1 as a")])
    assert exchange.error is None
    broken, fine = exchange.results
    assert broken is not None
    assert fine is not None
    assert fine.rows() == [{"a": 1}]
    for read in (broken.rows, broken.first, broken.scalar):
        with pytest.raises(psycopg.DataError, match="infinity"):
            read()
    assert broken.returns_rows
    assert broken.rowcount == 1


async def test_more_parameters_than_the_protocol_holds_are_refused_before_anything_is_sent(
    theirs: Any, ours: PsycopgConnection
) -> None:
    query = "select " + ",".join(["%s"] * 65536)
    with pytest.raises(psycopg.OperationalError, match="number of parameters must be between 0 and 65535"):
        await ours.exchange([Statement(query, [1] * 65536)])
    with pytest.raises(psycopg.OperationalError, match="number of parameters must be between 0 and 65535"):
        await theirs.execute(query, [1] * 65536)
    assert (await ours.exchange([Statement("select 1")])).error is None


async def test_an_invalid_second_statement_prevents_sending_the_first(connection: PsycopgConnection) -> None:
    with pytest.raises(psycopg.ProgrammingError):
        await connection.exchange([Statement("insert into parents values (100)"), Statement("select %s", [])])
    exchange = await connection.exchange([Statement("select count(*) from parents where id = 100")])
    assert exchange.results[0] is not None
    assert exchange.results[0].scalar() == 0
