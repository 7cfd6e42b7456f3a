"""A statement as spans and metrics describe it: operations and tables, and a text without literals."""

from __future__ import annotations

import pytest

from asgi_datasource.observability.summary import MAX_READ, MAX_SUMMARY, analyze, combine, summarize

SUMMARIES = [
    ("select * from wuser_table where username = %s", "SELECT wuser_table"),
    (
        "insert into shipping_details (order_id, address) select order_id, address from orders where order_id = %s",
        "INSERT shipping_details SELECT orders",
    ),
    ("select * from songs, artists where songs.artist_id = artists.id", "SELECT songs artists"),
    (
        "select order_date from (select * from orders o join customers c on o.customer_id = c.customer_id)",
        "SELECT SELECT orders customers",
    ),
    ('select * from "song list", "artists"', 'SELECT "song list" "artists"'),
    ("select * from orders o join customers c on c.id = o.id", "SELECT orders customers"),
    ("select 1 from t where x in (select y from u)", "SELECT t SELECT u"),
    ("with a as (insert into o values (1) returning id) select * from a", "INSERT o SELECT a"),
    ("call place('x')", "CALL place"),
    ("explain (analyze, verbose) select 1 from t", "EXPLAIN SELECT t"),
    ("explain (analyze", "EXPLAIN"),
    ("create table t (id int)", "CREATE TABLE t"),
    ("drop table orders", "DROP TABLE orders"),
    ("truncate orders", "TRUNCATE orders"),
    ("select * from unnest(%s::int[])", "SELECT unnest"),
    ("update a set x = b.x from b where a.id = b.id", "UPDATE a b"),
    ("copy orders from stdin", "COPY orders"),
    ("select * from generate_series(1,3)", "SELECT generate_series"),
    ("lock table orders", "LOCK TABLE orders"),
    ("refresh materialized view v", "REFRESH MATERIALIZED VIEW v"),
    ("explain analyze select * from orders", "EXPLAIN SELECT orders"),
    ("do $$ begin end $$", "DO"),
    ("table orders", "TABLE orders"),
    ("values (1),(2)", "VALUES"),
    ("insert into orders default values", "INSERT orders"),
    ("insert into orders (item) values ('x from secret')", "INSERT orders"),
    ('select * from a . "B c" where x', 'SELECT a."B c"'),
    ("select extract(hour from departed), trim(both from name) from flights", "SELECT flights"),
    ("select a is distinct from b from pairs", "SELECT pairs"),
    ("select a is distinct from b", "SELECT"),
    ("select total from (select sum(x) as total from items) sums", "SELECT SELECT items"),
    ("with x as (select 1 from t) update orders set a = 1", "SELECT t UPDATE orders"),
    ("delete from only shop.orders where id in (select 1 from old)", "DELETE shop.orders SELECT old"),
    ("-- for a report from accounting\n/* from x */ select 1 from daily", "SELECT daily"),
    ("select $tag$ from secret $tag$, 'it''s from here' from notes", "SELECT notes"),
    ("merge into stock using delivered on true", "MERGE stock delivered"),
    ("select nextval('numbers')", "SELECT"),
    ("vacuum", "VACUUM"),
    ("", "statement"),
    ("create unique index concurrently if not exists i on t (x)", "CREATE INDEX i"),
    ("create or replace view v as select * from a join b using (id) where a.x = 1", "CREATE VIEW v SELECT a b"),
    ("select * from a left join b using (id), lateral (select 1 from c) d", "SELECT a b SELECT c"),
    ("insert into a values (1) on conflict (id) do update set x = excluded.x", "INSERT a"),
    ("select * from a for update of a skip locked", "SELECT a"),
    ("delete from a using b, c where a.x=b.x", "DELETE a b c"),
    ("select 1 union all select 2 from b", "SELECT SELECT b"),
    ("(select 1 from a) union (select 2 from b)", "SELECT a SELECT b"),
    ("copy (select * from a) to stdout", "COPY SELECT a"),
    ("update only a set x = 1", "UPDATE a"),
    ("alter table a add column x int default 3", "ALTER TABLE a"),
    ("select a.from_x from (a join b on a.i=b.i) where 1=2", "SELECT a b"),
    ("fetch forward 5 from c1", "FETCH"),
    ("select * from only (a)", "SELECT a"),
    ("create user u password 'secret'", "CREATE USER u"),
    (
        "merge into s using (select * from d) x on true when matched then update set a = 1 when"
        " not matched then insert (id) values (1)",
        "MERGE s SELECT d",
    ),
]


@pytest.mark.parametrize(("sql", "summary"), SUMMARIES)
def test_summary(sql: str, summary: str) -> None:
    assert summarize(sql) == summary


@pytest.mark.parametrize(
    ("sql", "operation"),
    [
        ("with a as (select 1 from t) update o set x = 1", "UPDATE"),
        ("(select 1) union select 2", "SELECT"),
        ("create table t (id int)", "CREATE TABLE"),
        ("explain select 1", "EXPLAIN"),
        ("?", "statement"),
    ],
)
def test_operation(sql: str, operation: str) -> None:
    assert analyze(sql).operation == operation


SECRETS = [
    "select * from a where x = 'secret' and y = %s",
    "select 'it''s secret', E'a\\'secret', U&'secret', B'1', N'secret', 'secret \\'",
    "select $$ secret $$, $q$ secret $$ secret $q$, 4711, 47.11e3, 0x4711, .4711, 4_711",
    "select 1 -- secret\n /* secret /* secret */ secret */ from a",
    "create user u password 'secret'",
    "select 'secret without an end",
    "select $a$ secret without an end",
    "select 1 /* secret without an end",
    "do $$ begin perform 'secret'; end $$",
    f"select {'x, ' * MAX_READ} 'secret'",
]


@pytest.mark.parametrize("sql", SECRETS)
def test_no_literal_and_no_comment_is_in_text_or_summary(sql: str) -> None:
    found = analyze(sql)
    for text in (found.text, found.summary, found.operation):
        assert "secret" not in text
        assert "47" not in text
        assert len(text) <= MAX_READ


def test_text_keeps_placeholders_and_names() -> None:
    sql = "select a1, %(name)s\nfrom orders where x = $1 and y = %s and z = 'a'"
    assert analyze(sql).text == "select a1, %(name)s from orders where x = $1 and y = %s and z = ?"


def test_a_summary_is_bounded_and_ends_with_a_whole_name() -> None:
    summary = summarize("select * from " + ", ".join(f"table_{number}" for number in range(100)))
    assert MAX_SUMMARY - 10 < len(summary) <= MAX_SUMMARY
    assert summary.split()[-1].startswith("table_")


def test_batches() -> None:
    insert, other, select = (
        analyze("insert into a values (1)"),
        analyze("insert into b values (2)"),
        analyze("select 1"),
    )
    assert combine([insert, insert]).summary == "BATCH INSERT a"
    assert (combine([insert, other]).operation, combine([insert, other]).summary) == ("BATCH INSERT", "BATCH")
    assert combine([insert, select]).operation == "BATCH"
    assert combine([insert, select]).text == "insert into a values (?); select ?"
