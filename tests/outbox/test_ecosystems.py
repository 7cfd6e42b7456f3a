"""Events from the ORM's units of work, and from code that is not async: they go with the same transaction."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, DataSession, session
from asgi_datasource.outbox.entry import new_id
from tests.apps import client
from tests.db.models import Order
from tests.guarantees.test_cost import always, open_meter
from tests.outbox.delivery import OUTBOX
from tests.outbox.tables import events
from tests.world import World


async def place_by_orm(request: Request) -> Response:
    db = session(request)
    db.sqlalchemy.add(Order(item=str(uuid4())))
    await db.outbox.publish("orders.placed", key="1")
    return Response(status_code=201)


def place_in_a_thread(request: Request) -> Response:
    db = session(request).blocking
    db.execute("insert into orders (item) values (gen_random_uuid())")
    db.outbox.publish("orders.placed", key="1", payload={"number": 1})
    return Response(status_code=int(request.path_params["status"]))


ROUTES = [
    Route("/orm", place_by_orm, methods=["POST"]),
    Route("/thread/{status}", place_in_a_thread, methods=["POST"]),
]


class TestSqlalchemy:
    async def test_an_event_beside_the_orm_costs_no_round_trip(self, world: World) -> None:
        async with open_meter(world, ROUTES, **OUTBOX) as meter:
            assert await meter.costs("POST", "/orm", status=201) == always({"primary": 2})
        assert set(await events(world)) == {"orders.placed"}

    async def test_it_goes_with_commit_rollback_and_savepoint_of_the_orm(self, world: World) -> None:
        async with world.registry(**OUTBOX) as registry, registry.session(tenant="acme") as db:
            orm = db.sqlalchemy
            orm.add(Order(item="kept"))
            await db.outbox.publish("kept")
            async with orm.begin_nested() as nested:
                orm.add(Order(item="undone"))
                await db.outbox.publish("undone")
                await nested.rollback()
            async with orm.begin_nested():
                await db.outbox.publish("kept in a savepoint")
            await orm.commit()
            # Nothing is flushed here: what SQLAlchemy itself would roll back is empty.
            orm.add(Order(item="rolled back"))
            await db.execute("insert into orders (item) values ('rolled back, by hand')")
            await db.outbox.publish("rolled back")
            await orm.rollback()
            await db.outbox.publish("committed by itself")
            await orm.commit()
            await orm.rollback()
            orm.add(Order(item="last"))
            await db.outbox.publish("last")
        assert await world.items() == ["kept", "last"]
        assert await events(world) == ["kept", "kept in a savepoint", "committed by itself", "last"]

    async def test_a_flush_that_fails_at_the_end_leaves_none(self, world: World) -> None:
        async with world.registry(**OUTBOX) as registry:
            with pytest.raises(DataError):
                async with registry.session(tenant="acme") as db:
                    await db.outbox.publish("never")
                    db.sqlalchemy.add(Order(item="forbidden"))
        assert await world.items() == []
        assert await events(world) == []


class TestBlocking:
    async def test_a_handler_in_a_thread_publishes_with_its_transaction(self, world: World) -> None:
        async with client(world, ROUTES, registry=world.registry(**OUTBOX)) as http:
            assert (await http.post("/thread/409")).status_code == 409
            assert await events(world) == []
            assert (await http.post("/thread/201")).status_code == 201
        assert await events(world, "topic, tenant, data::text") == [("orders.placed", "acme", '{"number":1}')]

    async def test_blocks_of_a_thread_take_their_events_with_them(self, world: World) -> None:
        event = new_id()

        def work(db: DataSession) -> list[bool]:
            blocking = db.blocking
            blocking.outbox.publish("before")
            with pytest.raises(LookupError), blocking.transaction():
                blocking.outbox.publish("undone")
                raise LookupError
            with blocking.transaction():
                blocking.outbox.publish("kept")
            blocking.commit()
            blocking.outbox.publish("rolled back")
            blocking.rollback()
            return [blocking.inbox.once("mailer", event) for _ in range(2)]

        async with world.registry(**OUTBOX) as registry, registry.session(tenant="acme") as db:
            assert await asyncio.to_thread(work, db) == [True, False]
            with pytest.raises(DataError) as caught:
                db.blocking.outbox.publish("on the loop")
            assert caught.value.kind is DataErrorKind.QUERY
        assert await events(world) == ["before", "kept"]
