"""One worker process of the service under test: `python -m tests.consistency.worker CONFIG` prints its port."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataSourceMiddleware, session
from asgi_datasource.testing import serve

TABLES = """
create table registers (key int primary key, version int not null, id text not null);
create table writes (id text primary key, key int not null, version int not null);
"""

_WRITE = """
insert into registers (key, version, id) values (%(key)s, 1, %(id)s)
on conflict (key) do update set version = registers.version + 1, id = excluded.id
returning version
"""


async def write(request: Request) -> Response:
    """Make the next version of a register: two statements in one transaction."""
    db = session(request)
    asked = {"key": int(request.path_params["key"]), "id": request.query_params["id"]}
    version = await db.fetch_value(_WRITE, asked)
    await db.execute(
        "insert into writes (id, key, version) values (%(id)s, %(key)s, %(version)s)", {**asked, "version": version}
    )
    return JSONResponse({"version": version}, status_code=201)


async def read(request: Request) -> Response:
    """Read all registers."""
    db = session(request)
    rows = await db.fetch_all("select key, version, id, not pg_is_in_recovery() as takes_writes from registers")
    route = db.last_route
    assert route is not None
    takes_writes = any(row["takes_writes"] for row in rows)
    rows = [[row["key"], row["version"], row["id"]] for row in rows]
    return JSONResponse({"rows": rows, "node": route.node, "takes_writes": takes_writes})


async def run(config: Path) -> None:
    """Serve until standard input ends."""
    app = Starlette(
        routes=[Route("/registers", read), Route("/registers/{key:int}", write, methods=["POST"])],
        middleware=[Middleware(DataSourceMiddleware, config=json.loads(config.read_text()))],
    )
    async with serve(app) as server:
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(name)s: %(message)s")
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.getLogger("asgi_datasource.problems").setLevel(logging.CRITICAL)
    asyncio.run(run(Path(sys.argv[1])))
