"""A statement's summary: its operation and first table, never a literal."""

from __future__ import annotations

import pytest

from asgi_datasource.observability.tracing import summarize


@pytest.mark.parametrize(
    ("sql", "summary"),
    [
        ("insert into orders (item) values ('x from secret')", "INSERT orders"),
        ('select * from a . "B c" where x', 'SELECT a."B c"'),
        ("select extract(hour from departed), trim(both from name) from flights", "SELECT flights"),
        ("select a is distinct from b from pairs", "SELECT pairs"),
        ("select a is distinct from b", "SELECT"),
        ("select total from (select sum(x) as total from items) sums", "SELECT items"),
        ("with x as (select 1 from t) update orders set a = 1", "UPDATE orders"),
        ("with a as (insert into o values (1) returning id) select * from a", "SELECT a"),
        ("delete from only shop.orders where id in (select 1 from old)", "DELETE shop.orders"),
        ("-- for a report from accounting\n/* from x */ select 1 from daily", "SELECT daily"),
        ("select $tag$ from secret $tag$, 'it''s from here' from notes", "SELECT notes"),
        ("merge into stock using delivered on true", "MERGE stock"),
        ("select nextval('numbers')", "SELECT"),
        ("vacuum", "VACUUM"),
        ("", "statement"),
    ],
)
def test_summary(sql: str, summary: str) -> None:
    assert summarize(sql) == summary
