"""Requests that meet what traces are for: reads, writes, a failed COMMIT, a retry, a deadline, a client that leaves."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataSession, session, transactional

INSERT: Final = "insert into orders (item) values (%s)"
SELECT: Final = "select item from orders"


async def read(request: Request) -> Response:
    await session(request).read.fetch_all(SELECT)
    return Response()


async def write_and_read(request: Request) -> Response:
    db = session(request)
    await db.execute(INSERT, ["tea"])
    await db.commit()
    await db.read.fetch_all(SELECT)
    return Response()


async def break_a_promise(request: Request) -> Response:
    """Write what only COMMIT checks."""
    await session(request).execute("insert into children (parent) values (99)")
    return Response(status_code=201)


attempts: Final[list[int]] = []
"""The attempts of `lose_once`."""


@transactional(retry=1)
async def lose_once(request: Request) -> Response:
    attempts.append(1)
    db = session(request)
    await db.execute(INSERT, ["tea"])
    if len(attempts) == 1:
        await db.execute("do $$ begin raise exception using errcode = '40001'; end $$")
    return Response()


@transactional(timeout=0.3)
async def wait(request: Request) -> Response:
    db = session(request)
    await db.execute(INSERT, ["tea"])
    await db.execute("select pg_sleep(30)")
    return Response()


@transactional
async def wait_for_ever(request: Request) -> Response:
    db = session(request)
    await db.execute(INSERT, ["tea"])
    await db.execute("select pg_sleep(30)")
    return Response()


@transactional(propagation="requires_new")
async def audit(db: DataSession) -> None:
    await db.execute(INSERT, ["audit"])


async def place_with_audit(request: Request) -> Response:
    db = session(request)
    await db.execute(INSERT, ["tea"])
    await audit(db)
    return JSONResponse({})


ROUTES: Final = [
    Route("/orders", read, methods=["GET"]),
    Route("/orders", write_and_read, methods=["POST"]),
    Route("/children", break_a_promise, methods=["POST"]),
    Route("/conflict", lose_once, methods=["POST"]),
    Route("/slow", wait, methods=["POST"]),
    Route("/abandoned", wait_for_ever, methods=["POST"]),
    Route("/audited", place_with_audit, methods=["POST"]),
]
