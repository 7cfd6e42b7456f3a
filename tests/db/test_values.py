"""What cannot be sent is a `DataError` too: user input that is no value is 422, a mistake in the statement 500."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from asgi_datasource import DataError, DataErrorKind, session
from tests.apps import client
from tests.pools import borrowed
from tests.world import World

QUERY, VALUE = DataErrorKind.QUERY, DataErrorKind.VALUE

CASES: dict[str, tuple[str, Any, DataErrorKind, type[Exception]]] = {
    "NUL": ("select %s::text", ["a\x00b"], VALUE, psycopg.DataError),
    "lone surrogate": ("select %s::text", ["\ud800"], VALUE, UnicodeEncodeError),
    "malformed": ("select %s::uuid", ["hunter2"], VALUE, psycopg.DataError),
    "out of range": ("select %s::int", ["99999999999"], VALUE, psycopg.DataError),
    "too few": ("select %s, %s", ["hunter2"], QUERY, psycopg.ProgrammingError),
    "a name is missing": ("select %(a)s", {"b": "hunter2"}, QUERY, psycopg.ProgrammingError),
    "not a sequence": ("select %s", "hunter2", QUERY, TypeError),
    "no adapter": ("select %s", [object()], QUERY, psycopg.ProgrammingError),
    "copy": ("copy orders to stdout", None, QUERY, psycopg.ProgrammingError),
}


@pytest.mark.parametrize(("query", "params", "kind", "cause"), CASES.values(), ids=CASES.keys())
async def test_the_kind_of_what_cannot_be_sent(
    world: World, query: str, params: Any, kind: DataErrorKind, cause: type[Exception]
) -> None:
    async with world.registry() as registry:
        for is_batch in (False, True):
            with pytest.raises(DataError) as caught:
                async with registry.session("acme") as db:
                    if is_batch:
                        await db.executemany(query, [params])
                    else:
                        await db.read.fetch_all(query, params)
            assert caught.value.kind is kind
            assert isinstance(caught.value.__cause__, cause)
            assert "hunter2" not in str(caught.value)
        assert borrowed(registry) == 0


async def test_user_input_that_is_no_value_is_422(world: World) -> None:
    async def find(request: Request) -> Response:
        name = request.query_params["name"]
        return JSONResponse(await session(request).fetch_all("select item from orders where item = %s", [name]))

    async with client(world, [Route("/", find)]) as http:
        response = await http.get("/", params={"name": "a\x00b"})
        assert response.status_code == 422
        assert response.json()["kind"] == "value"
        assert (await http.get("/", params={"name": "tea"})).status_code == 200
