"""Every kind of ASGI message passes unchanged, and lifespan works with applications that do not implement it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from asgi_datasource import DataError, DataSourceMiddleware, DataSourceRegistry, compile, session
from tests.world import World

INSERT = "insert into orders (item) values ('tea')"
Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"x", "more_body": False}


async def call(
    world: World, registry: DataSourceRegistry, app: App, seen: Callable[[Message], Awaitable[None]]
) -> None:
    """Call an application through the middleware; `seen` gets each message as the server would."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        await seen(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "root_path": "",
        "headers": [(b"x-tenant", b"acme")],
        "query_string": b"",
    }
    await DataSourceMiddleware(app, registry=registry)(scope, receive, send)


@pytest.mark.parametrize(
    "messages",
    [
        [START, BODY],
        [START, {"type": "http.response.pathsend", "path": "/etc/hostname"}],
        [START, {"type": "http.response.zerocopysend", "file": 3}],
        [
            {**START, "trailers": True},
            {"type": "http.response.body", "body": b"x", "more_body": True},
            BODY,
            {"type": "http.response.trailers", "headers": [], "more_trailers": False},
        ],
        [{"type": "http.response.early_hint", "links": [b"</a.css>"]}, START, BODY],
        [{"type": "http.response.debug", "info": {}}, {**START, "status": 103}, START, BODY],
    ],
    ids=["plain", "pathsend", "zerocopysend", "trailers", "early hint", "1xx"],
)
async def test_messages_pass_unchanged_and_only_the_final_response_start_waits_for_commit(
    world: World, messages: list[Message]
) -> None:
    sent: list[Message] = []
    committed_before: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await session(scope).execute(INSERT)
        for message in messages:
            await send(message)

    async def seen(message: Message) -> None:
        sent.append(message)
        committed_before.append(await world.items() == ["tea"])

    async with world.registry() as registry:
        await call(world, registry, app, seen)
    assert sent == messages
    final = next(index for index, message in enumerate(messages) if message is START or message.get("status") == 200)
    assert committed_before == [index >= final for index in range(len(messages))]


async def test_a_call_without_a_response_is_rolled_back(world: World) -> None:
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await session(scope).execute(INSERT)

    async def seen(message: Message) -> None:
        sent.append(message)

    async with world.registry() as registry:
        await call(world, registry, app, seen)
        assert [endpoint.borrowed for endpoint in registry.for_tenant("acme").servers.values()] == [0, 0, 0]
    assert sent == []
    assert await world.items() == []


async def test_a_second_response_start_is_passed_to_the_server(world: World) -> None:
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await session(scope).execute(INSERT)
        await send(START)
        await send({**START, "status": 500})

    async def seen(message: Message) -> None:
        sent.append(message)

    async with world.registry() as registry:
        await call(world, registry, app, seen)
    assert [message["status"] for message in sent] == [200, 500]
    assert await world.items() == ["tea"]


class Lifespan:
    """The server side of the lifespan protocol."""

    def __init__(self, registry: DataSourceRegistry) -> None:
        self.registry = registry
        self.sent: list[str] = []
        self.was_open: list[bool] = []
        self._messages = ["lifespan.startup", "lifespan.shutdown"]

    async def receive(self) -> Message:
        return {"type": self._messages.pop(0)}

    async def send(self, message: Message) -> None:
        self.sent.append(message["type"])
        self.was_open.append(self.registry.is_open)

    async def run(self, app: App) -> None:
        await DataSourceMiddleware(app, registry=self.registry)({"type": "lifespan"}, self.receive, self.send)


COMPLETE = ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_the_registry_is_open_during_the_applications_start_up_and_shutdown(world: World) -> None:
    registry = world.registry()
    inside: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for answer in COMPLETE:
            await receive()
            inside.append(registry.is_open)
            await send({"type": answer})

    server = Lifespan(registry)
    await server.run(app)
    assert server.sent == COMPLETE
    assert inside == [True, True]
    assert server.was_open == [True, False]


async def test_lifespan_is_handled_for_an_application_that_returns_from_it(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return

    server = Lifespan(world.registry())
    await server.run(app)
    assert server.sent == COMPLETE
    assert server.was_open == [True, False]


async def test_the_server_gets_what_an_application_raises_in_front_of_the_first_message(world: World) -> None:
    """Whether that is an application without lifespan, or one that could not be built, the server decides."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("only http")

    server = Lifespan(world.registry())
    with pytest.raises(AssertionError, match="only http"):
        await server.run(app)
    assert server.sent == []
    assert server.registry.is_open
    await server.registry.close()


async def test_a_refused_start_is_raised_although_the_application_goes_on(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with suppress(DataError):
            await receive()

    superuser = world.cluster.primary.url(world.dbname, user="postgres")
    server = Lifespan(compile(world.config(urls={"primary": superuser}, audit={})))
    with pytest.raises(DataError, match="is a superuser"):
        await server.run(app)
    assert server.sent == ["lifespan.startup.failed"]
    assert not server.registry.is_open


@pytest.mark.parametrize("app_raises", [False, True])
async def test_what_the_server_raises_at_a_refused_start_reaches_it_again(app_raises: bool, world: World) -> None:
    """hypercorn ends its start with an exception out of `send`, which must come out of the application."""

    class Refusal(Exception):
        pass

    class Hypercorn(Lifespan):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "lifespan.startup.failed":
                raise Refusal(message["message"])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if app_raises:
            raise AssertionError("only http")
        with suppress(DataError):
            await receive()

    superuser = world.cluster.primary.url(world.dbname, user="postgres")
    config = world.config(urls={"primary": superuser}, audit={})
    server = Hypercorn(compile(config))
    with pytest.raises(Refusal, match="is a superuser"):
        await server.run(app)
    assert server.sent == ["lifespan.startup.failed"]
    assert not server.registry.is_open


async def test_a_failed_start_up_is_passed_on_and_closes_the_registry(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    server = Lifespan(world.registry())
    await server.run(app)
    assert server.sent == ["lifespan.startup.failed"]
    assert not server.registry.is_open

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise KeyError("no")

    server = Lifespan(world.registry())
    with pytest.raises(KeyError):
        await server.run(raises)
    assert not server.registry.is_open


async def test_a_registry_opened_by_the_caller_stays_open(world: World) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for answer in COMPLETE:
            await receive()
            await send({"type": answer})

    async with world.registry() as registry:
        server = Lifespan(registry)
        await server.run(app)
        assert server.was_open == [True, True]
        assert registry.is_open


async def test_a_server_without_lifespan_opens_the_registry_at_the_first_request(world: World) -> None:
    registry = world.registry()
    sent: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await session(scope).execute(INSERT)
        await send(START)
        await send(BODY)

    async def seen(message: Message) -> None:
        sent.append(message)

    assert not registry.is_open
    await call(world, registry, app, seen)
    assert registry.is_open
    await registry.close()
    assert await world.items() == ["tea"]
