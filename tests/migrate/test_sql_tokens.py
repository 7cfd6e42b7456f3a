"""The lexer of migrations: statements are split as PostgreSQL splits them, and layout never changes a checksum."""

from __future__ import annotations

import itertools
import random

import pglast
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_datasource.migrate import SqlError, checksum, split

FILES = [
    "select 1; select 2",
    "select ';'; select $$;$$; select $a$ $$ ; $b$ $a$; select 3",
    "select 'it''s'; select E'a\\';b'; select e'\\\\'; select 1",
    "select E'a'\n  '\\';' ; select 2",
    "select 'a' -- why\n  ';b'; select 2",
    "/* ; /* nested ; */ ; */ select 1; -- ;\nselect 2",
    'create table ";" (a int); drop table ";"',
    "select U&'\\0061;', U&\";\"; select B'01', X'ff', N'n;'",
    "create function f() returns int language sql begin atomic select 1; select case when true then 1 else 2 end; end;"
    " select 1",
    "create or replace procedure p() begin atomic insert into t values (1); end; select 2",
    "create rule r as on insert to t do also (insert into u values (1); delete from v); select 1",
    "create function f() returns trigger language plpgsql as $body$ begin return new; end $body$; select 1",
    "do $$ begin perform 1; end $$; select a$b$c from t; select 1",
    "select 1 +-1, 2 @- 3, a->>'x', b #>> '{a}', c::text, d[1:2], 1.5e-3, 0x1F, 1_000; select c :: text",
    "create table t (a int check (a > 0), b text default ';'); ; ; insert into t values (1, ';')",
    'select 1 as "begin"; create index concurrently i on t (a); select 2',
]


@pytest.mark.parametrize("text", FILES)
def test_statements_are_split_as_the_parser_of_postgresql_splits_them(text: str) -> None:
    wanted = [part.rstrip(";").strip() for part in pglast.split(text)]
    tokens = [checksum(part) for part in wanted if part]
    assert [checksum(found.text) for found in split(text)] == tokens


def test_bodies_and_dollar_names_do_not_split() -> None:
    assert [len(split(text)) for text in FILES] == [2, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 2, 3]
    assert [found.line for found in split("\n-- head\nselect 1;\n\n/* two\nlines */ select 2")] == [3, 6]


@pytest.mark.parametrize(
    ("text", "told", "line"),
    [
        ("select 1;\nselect 'a", "the quote ' is not closed", 2),
        ("select 1;\n\n/* a /* b */", "comment", 3),
        ("select $a$ b $b$", "the quote $a$", 1),
        ("select 1;\n\\copy t from 'f'", "a command of psql", 2),
        ("\nselect (1;", "a parenthesis", 2),
        ("create function f() returns int begin atomic select 1;", "BEGIN ATOMIC", 1),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(text: str, told: str, line: int) -> None:
    with pytest.raises(SqlError, match=told.replace("$", "\\$")) as caught:
        split(text)
    assert caught.value.line == line


def test_a_changed_literal_changes_the_checksum_and_layout_does_not() -> None:
    one = "create table items (id int default 1); -- comment"
    assert checksum(one) == checksum("\tCREATE TABLE Items\n(id  INT DEFAULT 1)\n\n;;\n/* other */")
    for other in (one.replace("1", "2"), one.replace("items", '"Items"'), one.replace("int ", "bigint ")):
        assert checksum(other) != checksum(one)
    assert checksum("select 'a b'") != checksum("select 'a  b'")
    assert checksum("select 'a', 'b'") != checksum("select 'a, b'")
    assert checksum("select 1; select 2") != checksum("select 1 select 2")


_WORDS = st.sampled_from(["select", "FROM", "t", "a$b", "é", "x1", "begin", "case", "end"])
_LITERALS = st.builds(
    lambda text: "'" + text.replace("'", "''") + "'", st.text(st.characters(exclude_characters="\r"), max_size=6)
)
_ESCAPES = st.sampled_from(["E'\\''", "E'\\\\'", "$$ ; ' $$", "$q$ $$ -- $q$", '"a"";"', "U&'\\0061'", "b'01'"])
_MARKS = st.sampled_from([",", "::", "<=", "=", "->>", "-", "*", ".", "1", "2.5", "0x1f", "$1", "@-"])
_GAPS = st.sampled_from([" ", "\n", "\t ", " /* ; ' */ ", "\n-- ' ; $$\n", " /* a /* b */ c */\n", "\f"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(_WORDS, _LITERALS, _ESCAPES, _MARKS), min_size=1, max_size=12), st.data())
def test_the_same_tokens_have_the_same_checksum_in_any_layout(tokens: list[str], data: st.DataObject) -> None:
    plain = " ".join(tokens)
    # Two literals one after the other with a line break between them are one, in any layout or in none.
    if any(one[-1:] == "'" and other[:1] == "'" for one, other in itertools.pairwise(tokens)):
        return
    laid_out = "".join(token + data.draw(_GAPS) for token in tokens)
    assert checksum(plain) == checksum(laid_out)
    assert checksum(plain + ";" + laid_out) != checksum(plain)
    assert [found.text for found in split(f"{plain};\n{plain};")] == [plain, plain]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab1 \n'\"$;-/*\\E()"), max_size=40))
def test_any_text_is_split_or_refused_and_nothing_of_it_is_lost(text: str) -> None:
    try:
        found = split(text)
    except SqlError as error:
        line = error.line
        found = []
    else:
        line = 1
    assert 1 <= line <= text.count("\n") + 1
    for statement in found:
        assert text[statement.start :].startswith(statement.text)
        assert [token.text for token in split(statement.text)[0].tokens] == [token.text for token in statement.tokens]


def test_long_files_are_read_in_time_that_grows_with_their_length() -> None:
    rows = ",\n".join(f"({number}, 'row {random.Random(number).random()}')" for number in range(3_000))
    assert len(split(f"insert into t values {rows}; select 1")) == 2
