"""Placeholders, compared with psycopg's conversion, and the analysis of statement texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql
from psycopg._queries import PostgresQuery  # compared with exactly this class
from psycopg.adapt import Transformer

from asgi_datasource.drivers.psycopg.statement import ConvertedQuery, convert
from asgi_datasource.drivers.statements import CursorDeclaration, Statement

FRAGMENTS = st.sampled_from(
    ["%s", "%b", "%t", "%%", "%(a)s", "%(b)s", "%(a)b", "%(c d)t", "%(", "%()s", "% ", "%d", "%", "%\n", "select ", "é"]
)
TEXTS = st.lists(FRAGMENTS, max_size=8).map("".join)
VALUES = st.one_of(st.integers(-100000, 100000), st.text("ab", max_size=2), st.none())
PARAMS = st.one_of(
    st.none(),
    st.lists(VALUES, max_size=4),
    st.lists(VALUES, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["a", "b", "c d", "x"]), VALUES, max_size=4),
)


def through_psycopg(text: str, params: Any) -> Any:
    query = PostgresQuery(Transformer())
    query.convert(text, params)
    return query.query, query.params and list(query.params), query.types, query.formats and list(query.formats)


def through_ours(text: str, params: Any) -> Any:
    transformer = Transformer()
    converted = convert(text, transformer, has_params=params is not None)
    if params is None:
        return converted.text, None, (), None
    values = list(transformer.dump_sequence(converted.order(params), converted.formats))
    return converted.text, values, transformer.types or (), list(transformer.formats or [])


def outcome(convert_by: Callable[[str, Any], Any], text: str, params: Any) -> Any:
    try:
        return convert_by(text, params)
    except Exception as error:
        return ("error", type(error), str(error))


@given(TEXTS, PARAMS)
@example("%(a)s%(a)b%s", [])
def test_placeholders_are_converted_as_by_psycopg(text: str, params: Any) -> None:
    expected = outcome(through_psycopg, text, params)
    if expected[0] == "error":
        assert outcome(through_ours, text, params) == expected
        return
    if params == {} and expected[1] == [] and b"$1" in expected[0]:
        # psycopg leaves this error to the server, which would report another one in a pipeline.
        with pytest.raises(psycopg.errors.UndefinedParameter):
            through_ours(text, params)
        return
    got = through_ours(text, params)
    assert (got[0], got[1] or None, got[2], got[3] or None) == (
        expected[0],
        expected[1] or None,
        expected[2],
        expected[3] or None,
    )


def converted(text: str | bytes | sql.Composable, *, has_params: bool = False) -> ConvertedQuery:
    return convert(text, Transformer(), has_params=has_params)


@pytest.mark.parametrize(
    "text",
    [
        "copy t from stdin",
        "COPY t (a, b) TO STDOUT WITH (FORMAT csv)",
        "  \n\t;; copy (select 1) to\n stdout",
        "-- a comment\ncopy t from stdin",
        "/* a /* nested */ comment */ copy t from stdin",
        "copy t from /* here */ stdin",
        "copy t from -- there\n stdin",
        b"copy t to stdout",
        sql.SQL("copy {} from stdin").format(sql.Identifier("t")),
        'copy "a \'b" from stdin',
        "copy binary t to stdout",
    ],
)
def test_copy_with_the_client_is_recognised(text: Any) -> None:
    assert converted(text).is_client_copy


@pytest.mark.parametrize(
    "text",
    [
        "select 1",
        "copy t to '/tmp/file'",
        "copy t from '/tmp/from stdin'",
        "copy t to program 'cat > to stdout'",
        "copy \"from stdin\" to '/tmp/file'",
        "select 'copy t from stdin'",
        "insert into copy values ('to stdout')",
        "-- copy t from stdin\nselect 1",
        "copyright from stdin",
        "",
    ],
)
def test_other_statements_are_not_taken_for_a_copy(text: str) -> None:
    assert not converted(text).is_client_copy


def test_long_texts_are_not_cached() -> None:
    short, long = "select 'kept'", "select '" + "x" * 5000 + "'"
    assert converted(short) is converted(short)
    assert converted(long) is not converted(long)


def test_a_statement_shows_its_text_and_not_its_parameters() -> None:
    assert repr(Statement("select %s", ["secret"])) == "Statement('select %s')"
    assert Statement(b"select %s", ["secret"]).text == "select %s"
    assert Statement(sql.SQL("select {}").format(sql.Identifier("a"))).text == 'select "a"'


def test_a_cursor_is_declared_over_any_kind_of_query() -> None:
    for query in ("select %s", b"select %s", sql.SQL("select %s")):
        declared = CursorDeclaration("ads_1", query, [1])
        assert declared.text.replace('"', "") == "declare ads_1 no scroll cursor for select %s"
        assert declared.params == [1]
        assert declared.prepare is False
