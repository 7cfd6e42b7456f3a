"""The same service with asgi_datasource: the middleware provides tenant, pool, transaction and COMMIT."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from asgi_datasource import DataSourceMiddleware, session
from benchmarks.sides.asgi import TENANT, TENANT_HEADER, TENANT_SETTING, ASGIApp, Row, Scope, service
from benchmarks.sides.statements import LOCKED, READ, REPORT, WRITE


def config(url: str, pool_size: int, replica: str | None = None) -> dict[str, Any]:
    """The configuration document of the service; `replica` is the URL of a replica."""
    document: dict[str, Any] = {
        "version": 1,
        "datasources": {
            "main": {
                "primary": {"url": url},
                # The other sides do not refuse requests that would wait for a connection.
                "pool": {"min_size": pool_size, "max_size": pool_size, "max_waiting": 0, "acquire_timeout": "60s"},
            }
        },
        "tenancy": {"resolve": [{"header": TENANT_HEADER.decode("ascii")}]},
        "tenants": {TENANT: {"datasource": "main", "row_security": {TENANT_SETTING: TENANT}}},
    }
    if replica is not None:
        document["datasources"]["main"]["replicas"] = {"r1": {"url": replica}}
    return document


class _Session:
    async def open(self) -> None:
        """Do nothing: the middleware opens the pool."""

    async def close(self) -> None:
        """Do nothing: the middleware closes the pool."""

    async def read(self, scope: Scope, item: int) -> Row:
        return _found(await session(scope).fetch_one(READ, [item]))

    async def write(self, scope: Scope, item: int) -> Row:
        return _found(await session(scope).fetch_one(WRITE, [item]))

    async def batch(self, scope: Scope, items: Iterable[int]) -> Row:
        db = session(scope)
        count = 0
        for item in items:
            await db.execute(WRITE, [item])
            count += 1
        return {"count": count}

    async def reads(self, scope: Scope, items: Iterable[int]) -> Row:
        db = session(scope)
        return {"count": len([await db.fetch_one(READ, [item]) for item in items])}

    async def change(self, scope: Scope, item: int) -> Row:
        db = session(scope)
        await db.fetch_one(LOCKED, [item])
        return _found(await db.fetch_one(WRITE, [item]))

    async def report(self, scope: Scope) -> Row:
        return {"digits": [dict(row) for row in await session(scope).fetch_all(REPORT, [])]}


def _found(row: Mapping[str, Any] | None) -> Row:
    if row is None:
        raise LookupError("no such item")
    return row


def application() -> ASGIApp:
    """The service without its middleware."""
    return service(_Session())


def plain(url: str, pool_size: int) -> ASGIApp:
    return DataSourceMiddleware(application(), config=config(url, pool_size))


def with_replica(url: str, pool_size: int) -> ASGIApp:
    """The service with a replica: `url` is the primary's, a space, and the replica's."""
    primary, _, replica = url.partition(" ")
    return DataSourceMiddleware(application(), config=config(primary, pool_size, replica))
