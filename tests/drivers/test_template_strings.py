"""T-strings: on Python 3.14 and newer `string.templatelib`'s classes, before that others with the same interface."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import sql

from asgi_datasource.drivers.statements import Statement
from asgi_datasource.drivers.template_strings import bind
from asgi_datasource.errors import DataError, DataErrorKind
from tests.world import World

if sys.version_info >= (3, 14):
    from string.templatelib import Interpolation, Template
else:

    @dataclass
    class Interpolation:
        value: object
        expression: str = ""
        conversion: str | None = None
        format_spec: str = ""

    class Template:
        def __init__(self, *parts: str | Interpolation) -> None:
            self.interpolations = tuple(part for part in parts if isinstance(part, Interpolation))
            self.strings = tuple(_joined(parts))


def _joined(parts: tuple[Any, ...]) -> Iterator[str]:
    """The literal parts between the interpolations, as `string.templatelib.Template` joins them."""
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            yield text
            text = ""
    yield text


def field(value: object, spec: str = "", conversion: Any = None) -> Interpolation:
    return Interpolation(value, "value", conversion, spec)


def test_values_are_parameters_and_never_text() -> None:
    hostile = "'; drop table orders; --%s"
    text, values = bind(Template("select '50%', ", field(hostile), "::text, ", field(7, "b"), " where ", field(None)))
    assert text == "select '50%%', %s::text, %b where %s"
    assert values == [hostile, 7, None]


def test_nested_parts_keep_the_order_of_their_values() -> None:
    condition = Template("item = ", field("tea"), " and ", field('or"d%er', "i"), " > ", field(2))
    text, values = bind(Template("select ", field(1), " where ", field(condition, "q"), " limit ", field(3)))
    assert text == 'select %s where item = %s and "or""d%%er" > %s limit %s'
    assert values == [1, "tea", 2, 3]
    assert bind(Template("select ", field(sql.Identifier("a", "b"), "i"), field(sql.SQL(" % 2"), "q")))[0] == (
        'select "a"."b" %% 2'
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (field("secret", conversion="r"), "{value!r} has a conversion"),
        (field("secret", "l"), "{value:l} has a format that is none of"),
        (field("secret", ">20"), "{value:>20} has a format"),
        (field(b"secret", "i"), "{value:i} is no name"),
        (field("", "i"), "{value:i} is no name"),
        (field("secret", "q"), "{value:q} is no SQL"),
        (field(Template("secret")), "is a t-string: write {value:q}"),
        (field(sql.SQL("secret")), "is a composed query: write {value:q}"),
    ],
)
def test_other_formats_are_refused_without_the_value(part: Interpolation, message: str) -> None:
    with pytest.raises(DataError) as caught:
        bind(Template("select ", part))
    assert caught.value.kind is DataErrorKind.QUERY
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_statement_shows_the_text_without_the_values() -> None:
    statement = Statement(Template("select ", field("secret")))
    assert (statement.text, statement.params) == ("select %s", ["secret"])
    assert "secret" not in repr(statement)
    with pytest.raises(DataError, match="without parameters"):
        Statement(Template("select ", field(1)), [2])


async def test_every_method_of_a_session_binds_the_values(world: World) -> None:
    item = "it's 100%"
    async with world.registry() as registry, registry.session(tenant="acme") as db:
        insert = Template("insert into orders (item) values (", field(item), ") returning id")
        number = await db.fetch_value(insert)
        select = Template("select item from ", field("orders", "i"), " where id = ", field(number))
        assert await db.fetch_one(select) == {"item": item}
        assert await db.fetch_all(select, row_factory=tuple) == [(item,)]
        assert [row async for row in db.stream(select)] == [{"item": item}]
        assert await db.execute(Template("delete from orders where id = ", field(number))) == 1
        with pytest.raises(DataError, match="without parameters"):
            await db.fetch_all(select, [1])
        with pytest.raises(DataError, match="COMMIT as a statement"):
            await db.execute(Template("commit"))
        await db.rollback()


if sys.version_info >= (3, 14):

    def test_a_literal_is_bound() -> None:
        literal = eval("t'select {value}, {name:i}'", {"value": 1, "name": "a b"})  # no syntax of Python 3.11
        assert bind(literal) == ('select %s, "a b"', [1])
