"""`datasources.X.types` and `registry.configure`: enums, composites, ranges and types of extensions, by tenant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import psycopg
import pytest
from pgvector import Vector
from psycopg.adapt import Dumper
from psycopg.types.range import Range

from asgi_datasource import ConfigError, DataError, DataErrorKind, DataSourceRegistry, compile
from tests.pools import borrowed
from tests.world import World


class Color(Enum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    label: str | None


class Celsius:
    """A type of the application's own."""

    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


class CelsiusDumper(Dumper):
    def dump(self, obj: Celsius) -> bytes:
        return b"%.1f" % obj.degrees


TABLES = """
    create type color as enum ({labels});
    create type size as enum ('s', 'l');
    create type spot as ({fields});
    create type span as range (subtype = int);
    create table things (
        id int generated always as identity, color color, colors color[], size size[], at spot, span span
    );
    grant all on things to app;
"""


@pytest.fixture
async def typed(world: World) -> World:
    """Types of the same names in each tenant's schema, whose OIDs, labels and fields differ."""
    await world.sql(TABLES.format(labels="'red', 'green'", fields="x int, label text"), schema="acme")
    await world.sql(TABLES.format(labels="'green', 'blue', 'red'", fields="label text, x int"), schema="globex")
    return world


def registry_of(world: World, *types: str, **config: Any) -> DataSourceRegistry:
    document = world.config(**config)
    document["datasources"]["orders"]["types"] = list(types)
    return compile(document)


TYPES = (
    "enum color as tests.drivers.test_types:Color",
    "enum size",
    "composite spot as tests.drivers.test_types:Point",
    "range span",
)

INSERT = "insert into things (color, colors, size, at, span) values (%s, %s, %s, %s, %s) returning *"


async def test_each_tenant_has_types_of_its_own_on_one_connection(typed: World) -> None:
    async with registry_of(typed, *TYPES, replicas=(), pool={"max_size": 1}) as registry:
        for color in (Color.RED, Color.GREEN):
            for tenant in ("acme", "globex"):
                values = [color, [Color.GREEN, color], ["l", "s"], Point(1, "a"), Range(1, 3)]
                async with registry.session(tenant) as db:
                    row = await db.fetch_one(INSERT, values)
                    assert row is not None
                    assert list(row.values())[1:] == values
                    assert (
                        await db.read.fetch_value("select count(*) from things where color = any(%s)", [[color]]) == 1
                    )
                    rows = await db.fetch_all(
                        "select at from things where at = %s and size = %s", [values[3], ["l", "s"]]
                    )
                    assert rows[0] == {"at": Point(1, "a")}
                    async with db.connection() as connection:
                        cursor = await connection.execute("select color from things where color = %s", [color])
                        assert await cursor.fetchone() == (color,)
        async with registry.session("globex") as db:
            assert await db.fetch_value("select 'blue'::color") is Color.BLUE
        # Without the types, a tenant's values are text; a label that there is not is an error of the value.
        async with registry.session("initech") as db:
            assert await db.fetch_value("select %s::text", [Color.RED]) in ("RED", "red")
        with pytest.raises(DataError) as caught:
            async with registry.session("acme") as db:
                await db.fetch_value("select %s::text::color", ["blue"])
        assert caught.value.kind is DataErrorKind.VALUE
        assert borrowed(registry) == 0


async def test_a_type_that_changes_is_looked_up_again(typed: World) -> None:
    await typed.sql(
        "alter type acme.color owner to app; alter schema acme owner to app; alter table things owner to app"
    )
    async with registry_of(typed, *TYPES[:1], replicas=()) as registry:
        async with registry.session("acme") as db:
            assert await db.fetch_value("select 'red'::color") is Color.RED
            await db.execute("alter table things drop color, drop colors")
            await db.execute("drop type color")
            await db.execute("create type color as enum ('blue')")
        async with registry.session("acme") as db:
            assert await db.fetch_value("select %s", [Color.BLUE]) is Color.BLUE


async def test_types_of_extensions_in_a_shared_schema(world: World) -> None:
    await world.sql("create schema ext; create extension vector schema ext; grant usage on schema ext to app")
    # The text of an hstore, in a type that every server has.
    await world.sql("""create type ext.hstore as enum ('"a"=>"1", "b"=>NULL')""")
    document = world.config(replicas=())
    document["datasources"]["orders"] |= {"types": ["vector", "halfvec", "hstore"], "search_path": ["ext"]}
    async with compile(document) as registry, registry.session("acme") as db:
        found = await db.fetch_value("select %s + '[1,1]'", [Vector([1, 2])])
        assert found.to_list() == [2.0, 3.0]
        assert await db.fetch_value("""select '"a"=>"1", "b"=>NULL'::hstore""") == {"a": "1", "b": None}
    document["datasources"]["orders"]["types"] = ["enum color as tests.drivers.test_types:Point"]
    with pytest.raises(ConfigError, match="is not an Enum"):
        compile(document)
    document["datasources"]["orders"] |= {"types": ["hstore"], "driver": "tests.drivers.sqlite_driver:DRIVER"}
    with pytest.raises(ConfigError, match="psycopg converts these types"):
        compile(document)
    del document["datasources"]["orders"]["driver"]
    document["datasources"]["orders"]["types"] = ["colour"]
    with pytest.raises(ConfigError, match="hstore, vector"):
        compile(document)


async def test_configure_runs_for_each_connection(world: World) -> None:
    registry = world.registry(replicas=())
    seen: list[int] = []

    @registry.configure
    async def measure(connection: Any) -> None:
        cursor = await connection.execute("select pg_backend_pid()")
        seen.extend(await cursor.fetchone())

    @registry.configure
    def register(connection: Any) -> None:
        connection.adapters.register_dumper(Celsius, CelsiusDumper)

    async with registry:
        for _ in range(2):
            async with registry.session("acme") as db:
                assert await db.fetch_value("select %s::float8", [Celsius(21.5)]) == 21.5
                async with db.connection() as connection:
                    cursor = await connection.execute("select %s::text, pg_backend_pid()", [Celsius(3)])
                    text, pid = await cursor.fetchone() or ("", 0)
                assert text == "3.0"
                assert pid in seen
            await world.sql(f"select pg_terminate_backend({pid})")
        with pytest.raises(ConfigError, match="too late"):
            registry.configure(register)
    assert len(set(seen)) >= 2


async def test_a_function_of_configure_that_fails_is_named(world: World) -> None:
    registry = world.registry(replicas=(), pool={"acquire_timeout": "1s"})

    @registry.configure
    def fails(_: Any) -> None:
        raise psycopg.ProgrammingError("hunter2")

    async with registry:
        with pytest.raises(DataError, match=r"fails of registry\.configure\(\)") as caught:
            async with registry.session("acme") as db:
                await db.fetch_value("select 1")
        assert "hunter2" not in str(caught.value)
