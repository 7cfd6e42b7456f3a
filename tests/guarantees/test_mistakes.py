"""What the driver refuses or cannot read on the client arrives as a DataError, without values."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from asgi_datasource import DataError, DataErrorKind, DataSession, DataSourceRegistry
from tests.pools import assert_whole
from tests.world import World

SECRET = "HUNTER2"


class Unadaptable:
    """No adapter is registered for this."""


NOT_SENT: dict[str, tuple[Any, Any, type[BaseException]]] = {
    "NUL": ("select %s::text", [f"{SECRET}\x00"], psycopg.DataError),
    "a lone surrogate": ("select %s::text", [f"{SECRET}\ud800"], UnicodeEncodeError),
    "a surrogate in the text": (f"select '{SECRET}\ud800'", None, UnicodeEncodeError),
    "no adapter": ("select %s", [Unadaptable()], psycopg.ProgrammingError),
    "an adapter that fails": ("select %s", [Jsonb({SECRET: Unadaptable()})], TypeError),
    "too many values": ("select %s", [SECRET, SECRET], psycopg.ProgrammingError),
    "a name that is missing": ("select %(a)s", {"b": SECRET}, psycopg.ProgrammingError),
    "a mapping for positions": ("select %s", {"b": SECRET}, TypeError),
    "a malformed placeholder": ("select %x", [SECRET], psycopg.ProgrammingError),
    "70,000 parameters": ("select " + ",".join(["%s"] * 70_000), [SECRET] * 70_000, psycopg.OperationalError),
    "COPY": ("copy orders from stdin", None, psycopg.ProgrammingError),
    "no text": (5, None, TypeError),
}

NOT_READ: dict[str, str] = {
    "infinity": "select 'infinity'::timestamptz",
    "before Christ": "select '0044-03-15 BC'::date",
    "after year 9999": "select '54321-01-01'::date",
}


@pytest.fixture
async def registry(world: World) -> AsyncIterator[DataSourceRegistry]:
    async with world.registry() as made:
        yield made
        await assert_whole(made, world)


NO_VALUES: tuple[type[BaseException], ...] = (psycopg.DataError, UnicodeEncodeError)
"""Raised for user input that cannot be a value of PostgreSQL."""


def assert_mistake(error: DataError, cause: type[BaseException], *, is_sent: bool = False) -> None:
    is_value = not is_sent and issubclass(cause, NO_VALUES)
    wanted = (DataErrorKind.VALUE, 422) if is_value else (DataErrorKind.QUERY, 500)
    assert (error.kind, error.http_status, error.is_retryable) == (*wanted, False)
    assert isinstance(error.__cause__, cause)
    for text in (str(error), repr(error), "".join(traceback.format_exception(error.__cause__))):
        assert SECRET not in text.partition("Traceback")[0]
        assert SECRET not in "".join(line for line in text.splitlines() if not line.startswith("    "))


async def ask(db: DataSession, place: str, query: Any, params: Any) -> None:
    match place:
        case "read":
            await db.read.fetch_all(query, params)
        case "write":
            await db.write.fetch_all(query, params)
        case "snapshot":
            async with db.transaction(read_only=True):
                await db.read.fetch_all(query, params)
        case _:
            async for _ in db.read.stream(query, params):
                pass


@pytest.mark.parametrize("place", ["read", "write", "snapshot", "in a transaction"])
async def test_what_cannot_be_sent_is_a_data_error_and_the_transaction_goes_on(
    world: World, registry: DataSourceRegistry, place: str
) -> None:
    for what, (query, params, cause) in NOT_SENT.items():
        await world.sql("truncate orders")
        async with registry.session("acme") as db:
            if place == "in a transaction":
                await db.execute("insert into orders (item) values ('tea')")
            with pytest.raises(DataError) as caught:
                await ask(db, "write" if place == "in a transaction" else place, query, params)
            assert_mistake(caught.value, cause)
            await db.execute("insert into orders (item) values ('rum')")
        assert await world.items() == (["tea", "rum"] if place == "in a transaction" else ["rum"]), what


@pytest.mark.parametrize("place", ["read", "write", "snapshot", "cursor"])
async def test_what_cannot_be_read_is_a_query_error_and_the_session_goes_on(
    registry: DataSourceRegistry, place: str
) -> None:
    for query in NOT_READ.values():
        async with registry.session("acme") as db:
            with pytest.raises(DataError) as caught:
                await ask(db, place, query, None)
            assert_mistake(caught.value, psycopg.DataError, is_sent=True)
            for value in ("infinity", "0044", "54321"):
                assert value not in f"{caught.value} {caught.value.__cause__}"
            assert await db.fetch_value("select 1") == 1


async def test_what_a_row_factory_raises_is_its_own_affair(registry: DataSourceRegistry) -> None:
    def factory(cursor: Any) -> Any:
        make = dict_row(cursor)

        def fail(values: Any) -> Any:
            raise KeyError(make(values)["a"])

        return fail

    async with registry.session("acme") as db:
        for view in (db.read, db.write):
            with pytest.raises(KeyError) as caught:
                await view.fetch_all("select 1 as a", row_factory=factory)
            assert caught.value.__cause__ is None
