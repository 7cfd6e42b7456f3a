"""Functions with `@transactional`, for type checkers; `test_annotations.py` runs mypy and pyright on this file.

A line that must be an error ends with `# error`; all other lines must be correct.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, assert_type, reveal_type

from psycopg.rows import scalar_row
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response

from asgi_datasource import AccessIntent, DataSession, Row, current_session, session, transactional

T = TypeVar("T")


@dataclass
class Number:
    n: int


@transactional
async def bare(item: str, *, size: int = 1) -> bool:
    return bool(item) and size > 0


@transactional(isolation="serializable", retry=3, propagation="requires_new")
async def with_options(item: str, *, size: int = 1) -> bool:
    return bool(item) and size > 0


@transactional()
def not_async(item: str) -> bytes:
    return item.encode()


@transactional
async def generic(values: list[T], pick: Callable[[T], Awaitable[bool]]) -> T | None:
    return next(iter(values), None)


class Shop:
    @transactional(read_only=True)
    async def method(self, item: str) -> list[Row]:
        return await current_session().fetch_all("select %s", [item])

    @staticmethod
    @transactional
    async def static(item: str) -> int:
        return len(item)

    @classmethod
    @transactional
    async def of_class(cls, item: str) -> Shop:
        return cls()


@transactional(timeout=5)
class Orders(HTTPEndpoint):
    @transactional
    async def get(self, request: Request) -> Response:
        assert_type(session(request), DataSession)
        return Response()


reveal_type(bare)
reveal_type(with_options)
reveal_type(not_async)


async def use(request: Request) -> None:
    assert_type(await bare("tea", size=2), bool)
    assert_type(await with_options("tea"), bool)
    assert_type(not_async("tea"), bytes)
    assert_type(await Shop().method("tea"), list[Row])
    assert_type(await Shop.static("tea"), int)
    assert_type(await Shop.of_class("tea"), Shop)
    assert_type(Orders, type[Orders])

    async def is_first(value: int) -> bool:
        return value == 1

    assert_type(await generic([1, 2], is_first), int | None)

    async with transactional() as db:
        assert_type(db, DataSession)
        assert_type(await db.fetch_one("select 1"), Row | None)
    async with transactional(read_only=True, propagation="nested", timeout=1) as db, db.transaction() as same:
        assert_type(same, DataSession)
    async with db.connection(AccessIntent.READ):
        pass
    assert_type(await db.fetch_all("select 1 as n", row_factory=Number), list[Number])
    assert_type(await db.fetch_one("select 1 as n", row_factory=scalar_row), Any | None)
    assert_type(await db.executemany("select 1", [()], returning=True, row_factory=Number), list[Number])
    assert_type(await db.executemany("select 1", [()]), int)
    assert_type(db.blocking.fetch_one("select $1", [1], row_factory=Number, style="numeric"), Number | None)
    await db.lock("invoices", timeout=1.5)
    await db.lock((1, 2))

    await bare(1)  # error
    await bare("tea", 2)  # error
    await with_options("tea", colour="green")  # error
    not_async()  # error
    await Shop().method(1)  # error
    transactional(retries=3)  # error
    transactional(timeout="1s")  # error
    await db.lock(1.5)  # error
    transactional("required")  # error
