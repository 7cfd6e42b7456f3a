"""Libraries that build on SQLAlchemy's `AsyncSession` take the one on the request's session."""

from __future__ import annotations

import pytest
from advanced_alchemy.exceptions import IntegrityError
from advanced_alchemy.filters import LimitOffset
from advanced_alchemy.repository import SQLAlchemyAsyncRepository
from advanced_alchemy.service import SQLAlchemyAsyncRepositoryService
from sqlmodel import Field, SQLModel, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import session
from tests.apps import client
from tests.db.models import Order
from tests.world import World


class OrderRow(SQLModel, table=True):
    __tablename__ = "orders"

    id: int | None = Field(default=None, primary_key=True)
    item: str


class OrderRepository(SQLAlchemyAsyncRepository[Order]):
    model_type = Order


class OrderService(SQLAlchemyAsyncRepositoryService[Order, OrderRepository]):
    repository_type = OrderRepository


async def test_sqlmodel_reads_and_writes(world: World) -> None:
    async def place(request: Request) -> Response:
        orm = session(request).sqlalchemy
        row = OrderRow(item="tea")
        orm.add(row)
        await orm.flush()
        return JSONResponse(row.model_dump(), status_code=201)

    async def orders(request: Request) -> Response:
        found = await session(request).sqlalchemy.scalars(select(OrderRow))
        return JSONResponse([row.model_dump() for row in found])

    async with client(world, [Route("/", place, methods=["POST"]), Route("/", orders)]) as http:
        assert (await http.post("/")).json() == {"id": 1, "item": "tea"}
        await world.cluster.caught_up()
        assert (await http.get("/")).json() == [{"id": 1, "item": "tea"}]


async def test_a_repository_of_advanced_alchemy_is_part_of_the_request(world: World) -> None:
    async def place(request: Request) -> Response:
        db = session(request)
        repository = OrderRepository(session=db.sqlalchemy)
        added = await repository.add_many([Order(item=item) for item in ("tea", "milk", "coffee")])
        await repository.update(Order(id=added[0].id, item="green tea"))
        await repository.delete(added[1].id)
        with pytest.raises(IntegrityError):
            async with db.sqlalchemy.begin_nested():
                await repository.add(Order(item="coffee"))
        return Response(status_code=request.path_params["status"])

    async def orders(request: Request) -> Response:
        service = OrderService(session=session(request).sqlalchemy)
        found, total = await service.get_many_and_count(LimitOffset(10, 0))
        return JSONResponse([total, sorted(order.item for order in found)])

    routes = [Route("/{status:int}", place, methods=["POST"]), Route("/", orders)]
    async with client(world, routes) as http:
        assert (await http.post("/409")).status_code == 409
        assert await world.items() == []
        assert (await http.post("/201")).status_code == 201
        await world.cluster.caught_up()
        assert (await http.get("/")).json() == [2, ["coffee", "green tea"]]


async def test_a_service_that_commits_by_itself_commits_the_requests_transaction(world: World) -> None:
    async with world.registry() as registry, registry.session("acme") as db:
        await db.execute("insert into orders (item) values ('by hand')")
        service = OrderService(session=db.sqlalchemy)
        await service.create(Order(item="by the service"), auto_commit=True)
        assert await world.items() == ["by hand", "by the service"]
