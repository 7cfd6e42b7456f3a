"""One application, written for each framework; `tests/frameworks/test_matrix.py` runs it on each server.

| request | |
| --- | --- |
| POST /orders?item= | inserts: 201; a duplicate is rendered by the application's own handler for `DataError` |
| GET /orders | the items |
| POST /orphans | inserts a row whose foreign key fails at COMMIT |
| POST /pin?item= | reads, inserts and reads; the roles of the servers |
| POST /sync?item= | inserts in a sync handler: 201 |
| POST /keep | keeps its session |
| GET /late | uses the session that was kept; the name of what that raises |
"""

from __future__ import annotations

import os
from typing import Any

from asgi_datasource import DataError, DataSession

CONFIG = os.environ.get("ADS_CONFIG", "datasource.json")
ORIGIN = "https://shop.example"

INSERT = "insert into orders (item) values (%s)"
ORPHAN = "insert into children (parent) values (99)"

kept: list[DataSession] = []


async def items(db: DataSession) -> list[str]:
    """The items of the tenant, read where they are certainly there."""
    return [row["item"] for row in await db.fetch_all("select item from orders order by item")]


async def roles(db: DataSession, item: str) -> list[str]:
    """The roles of the servers of a read, a write, and a read of one request."""
    found: list[str] = []
    for statement, params in (("select 1", None), (INSERT, [item]), ("select 1", None)):
        await (db.read.fetch_all(statement) if params is None else db.execute(statement, params))
        route: Any = db.last_route
        found.append(route.role.value)
    return found


async def use_late() -> str:
    """The name of what using the session of an ended request raises."""
    try:
        await kept[-1].execute(INSERT, ["late"])
    except DataError as error:
        return type(error).__name__
    return "nothing"


def text_of(error: DataError) -> str:
    """What the application's own handler answers."""
    return f"own: {error.kind}"
