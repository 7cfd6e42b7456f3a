"""What the middleware does beside passing messages on: to the scope, to errors, to a client that has left or waits."""

from __future__ import annotations

import asyncio
import copy
import logging
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from asgi_datasource import DataSourceMiddleware, session
from tests.asgi_call import Call
from tests.drivers.polling import until
from tests.world import World


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_scope_can_be_copied_and_the_copy_has_the_same_session(world: World, kind: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        copied = copy.deepcopy(scope)
        assert session(copied) is session(scope)
        seen.append(copied["type"])

    seen: list[str] = []
    async with world.registry(replicas=()) as registry:
        await Call(type=kind).run(DataSourceMiddleware(app, registry=registry))
    assert seen == [kind]


@pytest.mark.parametrize("has_used", [False, True])
async def test_a_websockets_own_error_survives_a_cancellation_at_its_end(world: World, has_used: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if has_used:
            await session(scope).fetch_value("select 1")
        # As Starlette's test client does, when the test leaves its block.
        asyncio.get_running_loop().call_soon(running.cancel)
        raise ValueError("boom")

    async with world.registry(replicas=()) as registry:
        running = asyncio.ensure_future(Call(type="websocket").run(DataSourceMiddleware(app, registry=registry)))
        with pytest.raises(ValueError, match="boom"):
            await running
        await registry.background.drain(5.0)


async def test_a_client_that_has_left_is_no_error_of_the_server(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await db.execute("insert into orders (item) values ('tea')")
        call.leave()
        # Not in a statement: nothing of the application's is interrupted.
        await until(lambda: db.stopped_by is not None)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    call = Call()
    call._messages.get_nowait()
    async with world.registry(replicas=()) as registry:
        caplog.clear()
        await call.run(DataSourceMiddleware(app, registry=registry))
    assert call.sent == []
    assert await world.items() == []
    assert "the client left; its transaction was rolled back" in caplog.messages
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("wants_body", [False, True])
async def test_the_body_of_a_client_that_waits_for_permission_is_read_by_the_application_only(
    world: World, wants_body: bool
) -> None:
    asked_by: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        watching = registry.deferred_calls.due
        await session(scope).fetch_value("select 1")
        assert watching
        # Until the watcher for the client's leaving has started.
        await until(lambda: not watching)
        await session(scope).fetch_value("select 1")
        asked_by.append("nobody")
        if wants_body:
            assert (await receive())["body"] == b"x"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Watched(Call):
        async def receive(self) -> Any:
            asked_by.append("application")
            return await super().receive()

    call = Watched(headers=[(b"x-tenant", b"acme"), (b"expect", b"100-continue")], body=b"x")
    async with world.registry(replicas=()) as registry:
        await call.run(DataSourceMiddleware(app, registry=registry))
    assert call.status == 200
    # Behind the first message the watcher reads on.
    assert asked_by[:2] == (["nobody", "application"] if wants_body else ["nobody"])
