"""Raw SQL as other libraries write it: row classes, placeholder styles, RETURNING of batches, scripts, aiosql."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiosql
import psycopg
import pytest
from psycopg.rows import class_row, scalar_row
from pydantic import BaseModel, ValidationError

from asgi_datasource import DataError, DataErrorKind
from asgi_datasource.db.aiosql import AiosqlAdapter
from asgi_datasource.drivers.placeholders import restyle
from tests.pools import borrowed, until
from tests.world import World

INSERT = "insert into orders (item) values (%s)"


@dataclass
class OrderData:
    id: int
    item: str


class OrderModel(BaseModel):
    id: int
    item: str


class OrderTuple(NamedTuple):
    id: int
    item: str


class Loud:
    """A row factory written as a class, as psycopg's manual shows it."""

    def __init__(self, cursor: Any) -> None:
        self._names = [column.name for column in cursor.description]

    def __call__(self, values: Any) -> list[str]:
        return [f"{name}!" for name in self._names]


async def test_rows_are_made_by_a_class_or_a_row_factory(world: World) -> None:
    query = "select id, item from orders order by id"
    async with world.registry() as registry, registry.session("acme") as db:
        await db.executemany(INSERT, [["tea"], ["milk"]])
        made = {
            tuple: [(1, "tea"), (2, "milk")],
            dict: [{"id": 1, "item": "tea"}, {"id": 2, "item": "milk"}],
            OrderData: [OrderData(1, "tea"), OrderData(2, "milk")],
            OrderModel: [OrderModel(id=1, item="tea"), OrderModel(id=2, item="milk")],
            OrderTuple: [OrderTuple(1, "tea"), OrderTuple(2, "milk")],
            class_row(OrderData): [OrderData(1, "tea"), OrderData(2, "milk")],
            Loud: [["id!", "item!"], ["id!", "item!"]],
            scalar_row: [1, 2],
        }
        for row_factory, rows in made.items():
            assert await db.fetch_all(query, row_factory=row_factory) == rows
            assert await db.read.fetch_one(query, row_factory=row_factory) == rows[0]
            assert [row async for row in db.stream(query, row_factory=row_factory, size=1)] == rows
        assert await db.fetch_one("select 1 where false", row_factory=tuple) is None
        with pytest.raises(ValidationError):
            await db.fetch_all("select 'x' as id, 'y' as item", row_factory=OrderModel)
        with pytest.raises(TypeError, match="unexpected keyword argument 'more'"):
            await db.fetch_all("select 1 as id, 'y' as item, 2 as more", row_factory=OrderData)


async def test_a_value_that_does_not_fit_its_python_type_is_a_data_error(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        with pytest.raises(DataError, match="does not fit its Python type") as caught:
            await db.fetch_all("select 'infinity'::timestamptz as at", row_factory=tuple)
        assert caught.value.kind is DataErrorKind.QUERY
        assert isinstance(caught.value.__cause__, psycopg.DataError)


async def test_a_batch_returns_its_rows_in_order(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        query = INSERT + " on conflict do nothing returning id, item"
        assert await db.executemany(query, [["tea"], ["milk"]], returning=True, row_factory=OrderTuple) == [
            (1, "tea"),
            (2, "milk"),
        ]
        assert [row["item"] for row in await db.executemany(query, [["tea"], ["oil"]], returning=True)] == ["oil"]
        assert await db.executemany(query, [["salt"], ["tea"]]) == 1
        assert await db.executemany(query, [], returning=True) == []
        with pytest.raises(DataError, match="returns no rows"):
            await db.executemany("update orders set item = %s where false", [["x"]], returning=True)


@pytest.mark.parametrize(
    ("style", "text", "converted"),
    [
        ("named", "select :a, ':b', \":c\", x::int, f(n := :d) -- :e", "a d"),
        ("named", "select /* /* :x */ :y */ $$ :z $$, $t$ :a $t$, :b, e'\\':c', 10 % 3", "b"),
        ("named", "select id$1, :née where a like '5%'", "née"),
        ("numeric", "select $2, $1, '$3', $$ $4 $$, $2, a$5 -- $6", "2 1 2"),
    ],
)
def test_placeholders_of_other_styles(style: Any, text: str, converted: str) -> None:
    found, _ = restyle(text, [1, 2] if style == "numeric" else {}, style)
    names = [part.split(")s")[0] for part in found.split("%(")[1:]]
    assert names == converted.split()
    # What is no placeholder stays.
    values = {name: (f"${name}" if style == "numeric" else f":{name}") for name in names}
    for name, value in values.items():
        found = found.replace(f"%({name})s", value)
    assert found.replace("%%", "%") == text


async def test_statements_with_other_placeholders(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        await db.execute("insert into orders (item) values (:item)", {"item": "5% milk"}, style="named")
        await db.executemany("insert into orders (item) values ($1 || $2)", [["t", "ea"]], style="numeric")
        query = "select item from orders where item like '%' || $1 or item = $2 or item = $1 order by id"
        assert await db.fetch_all(query, ["milk", "tea"], style="numeric", row_factory=tuple) == [
            ("5% milk",),
            ("tea",),
        ]
        assert await db.fetch_one("select :a::int + :a as n", {"a": 2, "more": 1}, style="named") == {"n": 4}
        assert await db.fetch_value("select 7 % 4", style="named") == 3
        assert [row async for row in db.stream("select $1::text as x", ["y"], style="numeric")] == [{"x": "y"}]
        for params, style, message in (
            (["a"], "named", "needs a mapping"),
            ({"a": 1}, "numeric", "needs a sequence"),
            ([1], "numeric", r"up to \$2, but 1 parameters"),
            ({}, "named", "query parameter missing: a"),
            ([1], "dollar", "neither 'named'"),
        ):
            text = "select :a" if style == "named" else "select $1, $2"
            with pytest.raises(DataError, match=message) as caught:
                await db.fetch_all(text, params, style=style)  # type: ignore[call-overload]
            assert caught.value.kind is DataErrorKind.QUERY


async def test_several_statements_in_one_text(world: World) -> None:
    script = "insert into orders (item) values ('tea'); insert into orders (item) values ('milk')"
    async with world.registry() as registry:
        with pytest.raises(DataError, match=r"db\.connection\(\)") as caught:
            async with registry.session("acme") as db:
                await db.execute(script)
        assert (caught.value.kind, caught.value.sqlstate) == (DataErrorKind.QUERY, "42601")
        async with registry.session("acme") as db, db.connection() as connection:
            await connection.execute(script.encode())
        # The pool resets it first.
        await until(lambda: borrowed(registry) == 0, "the connection was not returned")
    assert await world.items() == ["tea", "milk"]


QUERIES = """
-- name: add_order(item)<!
insert into orders (item) values (:item) returning id;

-- name: add_whole_order(item)<!
insert into orders (item) values (:item) returning id, item;

-- name: add_orders*!
insert into orders (item) values (:item);

-- name: rename(old, new)!
update orders set item = :new where item = :old;

-- name: all_orders()
-- record_class: OrderData
select id, item from orders where item <> '5%' order by id;

-- name: find(item)^
select id, item from orders where item = :item;

-- name: count_orders()$
select count(*) from orders where item like '%';

-- name: prepare#
create table notes (text text);
insert into notes values ('a'), ('b');
"""


async def test_query_files_of_aiosql(world: World, tmp_path: Path) -> None:
    (tmp_path / "orders.sql").write_text(QUERIES)
    queries: Any = aiosql.from_path(tmp_path / "orders.sql", AiosqlAdapter, record_classes={"OrderData": OrderData})
    in_tuples: Any = aiosql.from_path(
        tmp_path / "orders.sql",
        lambda: AiosqlAdapter(row_factory=tuple),
        record_classes={"OrderData": OrderData},
    )
    async with world.registry() as registry:
        async with registry.session("acme") as db:
            assert await queries.add_order(db, item="tea") == 1
            assert await queries.add_orders(db, [{"item": "milk"}, {"item": "oil"}]) == 2
            assert await queries.rename(db, old="oil", new="salt") == 1
            assert await queries.find(db, item="milk") == {"id": 2, "item": "milk"}
            assert await in_tuples.find(db, item="milk") == (2, "milk")
            by_place: Any = aiosql.from_str(
                "-- name: find$\nselect id from orders where item = :item",
                AiosqlAdapter,
                kwargs_only=False,
                mandatory_parameters=False,
            )
            assert await by_place.find(db, "milk") == 2
            assert await queries.add_whole_order(db, item="rice") == (4, "rice")
            assert [row async for row in queries.all_orders(db)] == [
                OrderData(1, "tea"),
                OrderData(2, "milk"),
                OrderData(3, "salt"),
                OrderData(4, "rice"),
            ]
            async with in_tuples.all_orders_cursor(db) as rows:
                assert [row async for row in rows] == [(1, "tea"), (2, "milk"), (3, "salt"), (4, "rice")]
            with pytest.raises(DataError, match="on the session itself"):
                await queries.prepare(db.write)
        with pytest.raises(DataError) as caught:
            async with registry.session("acme") as db:
                await queries.rename(db.read, old="tea", new="water")
        assert caught.value.kind is DataErrorKind.READ_ONLY
        async with registry.session("globex") as db:
            assert await queries.count_orders(db.read) == 0
    assert await world.items() == ["tea", "milk", "salt", "rice"]
