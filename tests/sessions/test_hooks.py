"""Hooks before COMMIT, after COMMIT and after ROLLBACK, and snapshots for streamed exports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode, get_current_span, get_tracer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from asgi_datasource import (
    DataError,
    DataErrorKind,
    DataSession,
    DataSourceMiddleware,
    UnexpectedRollback,
    current_session,
    session,
    transactional,
)
from tests.apps import client
from tests.asgi_call import Call
from tests.pools import assert_whole, until
from tests.sessions.requests import request
from tests.world import World

INSERT = "insert into orders (item) values (%s)"


async def put(db: DataSession, item: str) -> None:
    await db.execute(INSERT, [item])


# -- before COMMIT


async def test_before_commit_runs_in_the_transaction_and_may_write(world: World) -> None:
    ran: list[object] = []

    async def body(db: DataSession) -> None:
        async def last() -> None:
            count = await db.fetch_value("select count(*) from orders")
            ran.append((count, db.in_transaction()))
            db.before_commit(lambda: ran.append("added by a hook"))
            db.after_commit(lambda: ran.append("after"))
            await put(db, "from the hook")

        db.before_commit(last)
        await put(db, "tea")
        db.before_commit(lambda: ran.append("second"))

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
        assert ran == [(1, True), "second", "added by a hook", "after"]
        assert await world.items() == ["tea", "from the hook"]
        ran.clear()
        await world.sql("truncate orders")
        async with registry.session("acme") as db:
            await body(db)
        assert ran == [(1, True), "second", "added by a hook", "after"]


async def test_before_commit_does_not_run_before_a_rollback(world: World) -> None:
    ran: list[str] = []

    async def body(db: DataSession) -> None:
        await put(db, "tea")
        db.before_commit(lambda: ran.append("never"))

    async def undone(db: DataSession) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.transaction():
                await body(db)
                raise ZeroDivisionError

    async with world.registry() as registry:
        await request(registry, body, status=404)
        await request(registry, undone)
        async with registry.session("acme") as db:
            await body(db)
            await db.rollback()
    assert ran == []


async def test_before_commit_does_not_run_in_a_rollback_only_transaction(world: World) -> None:
    @transactional
    async def fails() -> None:
        raise LookupError

    async def give_up(db: DataSession) -> None:
        db.set_rollback_only("a dry run")

    async def be_doomed(db: DataSession) -> None:
        with pytest.raises(LookupError):
            await fails()

    async def fail(db: DataSession) -> None:
        with pytest.raises(DataError):
            await db.execute("select 1 / 0")

    async with world.registry() as registry:
        for spoil in (give_up, be_doomed, fail):
            ran: list[str] = []

            @transactional(propagation="requires_new")
            async def own(db: DataSession, spoil: Any, ran: list[str]) -> None:
                await put(db, "tea")
                db.before_commit(lambda: ran.append("never"))
                await spoil(db)

            async def body(db: DataSession, spoil: Any = spoil, ran: list[str] = ran, own: Any = own) -> None:
                with contextlib.suppress(UnexpectedRollback):
                    await own(db, spoil, ran)
                # The end of the request does not run them either.
                await put(db, "milk")
                db.before_commit(lambda: ran.append("never"))
                await spoil(db)

            assert (await request(registry, body)).status == (201 if spoil is give_up else 500)
            with contextlib.suppress(UnexpectedRollback):
                async with registry.session("acme") as db:
                    await body(db)
            assert ran == []
        await assert_whole(registry, world)
    assert await world.items() == []


@pytest.mark.parametrize("hook_fails", [False, True])
async def test_before_commit_runs_when_commit_on_commits_an_exception(world: World, hook_fails: bool) -> None:
    """Otherwise unchecked data would be committed."""
    ran: list[str] = []

    @transactional(commit_on=[LookupError])
    async def place(request: Request) -> Response:
        db = session(request)
        await put(db, "tea")

        async def check() -> None:
            ran.append("before")
            await put(db, "from the hook")
            if hook_fails:
                raise PermissionError

        db.before_commit(check)
        db.after_commit(lambda: ran.append("committed"))
        db.after_rollback(lambda: ran.append("rolled back"))
        raise LookupError

    registry = world.registry()
    handlers = {PermissionError: lambda request, error: JSONResponse("checked", status_code=403)}
    async with client(
        world, [Route("/", place, methods=["POST"])], registry=registry, exception_handlers=handlers
    ) as http:
        response = await http.post("/")
        await until(lambda: len(ran) == 2, "no hook has run behind the end")
        await assert_whole(registry, world)
    assert response.status_code == (403 if hook_fails else 500)
    assert await world.items() == ([] if hook_fails else ["tea", "from the hook"])
    assert ran == ["before", "rolled back" if hook_fails else "committed"]


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
async def test_a_before_commit_hook_is_interrupted_by_deadline_and_cancellation(world: World, how: str) -> None:
    waits = asyncio.Event()

    @transactional(commit_on=[LookupError])
    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        db = session(scope)
        await put(db, "tea")

        async def wait() -> None:
            waits.set()
            await asyncio.Event().wait()

        db.before_commit(wait)
        raise LookupError

    async with world.registry(transactions={"deadline": "300ms" if how == "deadline" else "60s"}) as registry:
        call = Call(endpoint=endpoint)
        task = asyncio.create_task(call.run(DataSourceMiddleware(endpoint, registry=registry)))
        async with asyncio.timeout(20):
            await waits.wait()
            if how == "deadline":
                await task
                assert call.status == 504
            else:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert call.sent == []
        await assert_whole(registry, world)
    assert await world.items() == []


async def test_an_exception_in_before_commit_rolls_back_even_if_commit_on_names_it(world: World) -> None:
    @transactional(propagation="requires_new", commit_on=[KeyError])
    async def place() -> None:
        def check() -> None:
            raise KeyError

        db = current_session()
        await put(db, "tea")
        db.before_commit(check)

    async def body(db: DataSession) -> None:
        with pytest.raises(KeyError):
            await place()

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert await world.items() == []


@pytest.mark.parametrize("error", [ValueError("bad"), DataError(DataErrorKind.CONSTRAINT, "bad")])
@pytest.mark.parametrize("has_handler", [True, False])
async def test_an_exception_in_before_commit_fails_the_request(
    world: World, error: Exception, has_handler: bool
) -> None:
    ran: list[str] = []

    async def place(request: Request) -> Response:
        db = session(request)
        await put(db, "tea")
        db.after_rollback(lambda: ran.append("rolled back"))

        async def check() -> None:
            await put(db, "more")
            raise error

        db.before_commit(check)
        return JSONResponse("done", status_code=201)

    async def answer(request: Request, error: Exception) -> Response:
        return JSONResponse({"sorry": str(error)}, status_code=418)

    registry = world.registry()
    handlers = {type(error): answer} if has_handler else {}
    routes = [Route("/", place, methods=["POST"])]
    async with client(world, routes, registry=registry, exception_handlers=handlers) as http:
        response = await http.post("/")
        await assert_whole(registry, world)
    if has_handler:
        assert (response.status_code, response.json()) == (418, {"sorry": "bad"})
    else:
        # The framework outside the middleware renders it, like an exception of the route.
        assert response.status_code == (409 if isinstance(error, DataError) else 500)
    assert await world.items() == []
    assert ran == ["rolled back"]


async def test_a_caught_statement_failure_in_before_commit_fails_the_commit(world: World) -> None:
    async def body(db: DataSession) -> None:
        async def swallow() -> None:
            with pytest.raises(DataError):
                await put(db, "forbidden")

        await put(db, "tea")
        db.before_commit(swallow)

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 500
        async with registry.session("acme") as db:
            with pytest.raises(UnexpectedRollback):
                await body(db)
                await db.commit()
            await db.rollback()
    assert await world.items() == []


async def test_before_commit_may_set_rollback_only(world: World) -> None:
    async def body(db: DataSession) -> None:
        await put(db, "tea")
        db.before_commit(lambda: db.set_rollback_only("on second thoughts"))

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        async with registry.session("acme") as db:
            await body(db)
    assert await world.items() == []


async def test_before_commit_is_bound_to_the_deadline(world: World) -> None:
    async def body(db: DataSession) -> None:
        await put(db, "tea")
        db.before_commit(asyncio.Event().wait)

    async with world.registry(transactions={"deadline": "300ms"}) as registry:
        assert (await request(registry, body)).status == 504
        await assert_whole(registry, world)
    assert await world.items() == []


async def test_before_commit_of_a_function_is_bound_to_its_timeout(world: World) -> None:
    ran: list[str] = []

    @transactional(timeout=0.2, propagation="requires_new")
    async def place() -> None:
        db = current_session()
        await put(db, "tea")
        db.before_commit(asyncio.Event().wait)
        db.after_rollback(lambda: ran.append("rolled back"))

    async def body(db: DataSession) -> None:
        with pytest.raises(DataError, match="the timeout of the function") as caught:
            await place()
        assert caught.value.kind is DataErrorKind.TIMEOUT
        await put(db, "milk")

    async with world.registry() as registry:
        async with asyncio.timeout(20):
            assert (await request(registry, body)).status == 201
        await assert_whole(registry, world)
    assert ran == ["rolled back"]
    assert await world.items() == ["milk"]


async def test_each_transaction_runs_its_own(world: World) -> None:
    ran: list[str] = []

    @transactional(propagation="requires_new")
    async def inner() -> None:
        db = current_session()
        await put(db, "inner")
        db.before_commit(lambda: ran.append("inner"))

    async def body(db: DataSession) -> None:
        await put(db, "outer")
        db.before_commit(lambda: ran.append("outer"))
        await inner()
        assert ran == ["inner"]
        async with db.transaction():
            db.before_commit(lambda: ran.append("savepoint"))
        assert ran == ["inner"]
        await db.commit()
        assert ran == ["inner", "outer", "savepoint"]

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201


# -- after the end


async def test_hooks_know_the_session_and_its_tenant(world: World) -> None:
    seen: list[tuple[str | None, bool]] = []

    async def receipt() -> None:
        db = current_session()
        async with db.registry.session(tenant=db.tenant.name) as later:
            await put(later, "receipt")
        seen.append((db.tenant.name, db.in_transaction()))

    async def body(db: DataSession) -> None:
        await put(db, "tea")
        db.after_commit(receipt)

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
        async with registry.session("globex") as db:
            await body(db)
    assert seen == [("acme", False), ("globex", False)]
    assert await world.items("globex") == ["tea", "receipt"]


async def test_a_hook_of_a_nested_transaction_may_use_the_session(world: World) -> None:
    @transactional
    async def inner() -> None:
        db = current_session()
        await put(db, "inner")
        db.after_commit(lambda: put(db, "from the hook"))

    async def body(db: DataSession) -> None:
        async with asyncio.timeout(10):
            await inner()

    async with world.registry(transactions={"default": "annotated"}) as registry:
        assert (await request(registry, body)).status == 201
    assert await world.items() == ["inner", "from the hook"]


async def test_a_hook_that_raises_cancelled_error_does_not_stop_the_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[str] = []

    async def cancels_something() -> None:
        task = asyncio.create_task(asyncio.Event().wait())
        task.cancel()
        await task

    async def body(db: DataSession) -> None:
        await put(db, "tea")
        db.after_commit(cancels_something)
        db.after_commit(lambda: ran.append("ran"))

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert ran == ["ran"]
    assert "cancels_something failed; the transaction's outcome stands" in caplog.text


async def test_hooks_interrupted_by_a_cancellation_run_at_the_end(world: World) -> None:
    ran: list[str] = []

    async def wait() -> None:
        ran.append("waits")
        await asyncio.Event().wait()

    async def body(db: DataSession) -> None:
        await put(db, "tea")
        db.after_commit(wait)
        db.after_commit(lambda: ran.append("ran"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await db.commit()
        assert ran == ["waits"]

    async with world.registry() as registry:
        assert (await request(registry, body)).status == 201
    assert ran == ["waits", "ran"]
    assert await world.items() == ["tea"]


async def test_a_failing_hook_is_logged_with_its_span_and_keeps_the_outcome(
    world: World, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    logged_in: list[int] = []

    class Correlates(logging.Filter):
        """Like OpenTelemetry's logging instrumentation: adds the current span to the record."""

        def filter(self, record: logging.LogRecord) -> bool:
            logged_in.append(get_current_span().get_span_context().span_id)
            return True

    def fails() -> None:
        raise ZeroDivisionError

    async def body(db: DataSession) -> None:
        await put(db, "tea")
        db.after_commit(fails)
        db.after_commit(lambda: None)

    correlates = Correlates()
    logging.getLogger("asgi_datasource.transaction").addFilter(correlates)
    try:
        async with world.registry() as registry:
            with get_tracer("test").start_as_current_span("server"):
                assert (await request(registry, body)).status == 201
            await registry.background.drain(5.0)
    finally:
        logging.getLogger("asgi_datasource.transaction").removeFilter(correlates)
    assert "fails failed; the transaction's outcome stands" in caplog.text
    failed, fine = (span for span in spans.get_finished_spans() if span.name == "after_commit")
    assert logged_in == [failed.get_span_context().span_id]
    [transaction] = [span for span in spans.get_finished_spans() if span.name.startswith("transaction")]
    assert failed.parent is not None
    assert failed.parent.span_id == transaction.get_span_context().span_id
    assert failed.status.status_code is StatusCode.ERROR
    assert [event.name for event in failed.events] == ["asgi_datasource.hook.failed"]
    assert dict(failed.attributes or {})["error.type"] == "ZeroDivisionError"
    assert fine.status.status_code is not StatusCode.ERROR
    assert await world.items() == ["tea"]


# -- exports


async def test_an_export_reads_one_snapshot_after_the_response_has_started(world: World) -> None:
    started, written = asyncio.Event(), asyncio.Event()

    @transactional(read_only=True, stream=True)
    async def export(request: Request) -> Response:
        db = session(request)

        async def rows() -> AsyncIterator[str]:
            yield f"{await db.fetch_value('select count(*) from orders')}\n"
            started.set()
            await written.wait()
            async for row in db.stream("select item from orders order by id", size=2):
                yield f"{row['item']}\n"
            yield f"{await db.fetch_value('show transaction_isolation')}\n"
            yield f"{await db.fetch_value('select pg_is_in_recovery()')}\n"

        return StreamingResponse(rows())

    await world.sql("insert into orders (item) select 'item ' || n from generate_series(1, 5) n")
    await world.cluster.caught_up()
    registry = world.registry()
    async with client(world, [Route("/", export)], registry=registry) as http:
        async with http.stream("GET", "/") as response:
            assert response.status_code == 200
            lines = response.aiter_lines()
            assert await anext(lines) == "5"
            await started.wait()
            assert sum(endpoint.borrowed for endpoint in registry.for_tenant("acme").servers.values()) == 1
            await world.sql("insert into orders (item) values ('too late')")
            await world.cluster.caught_up()
            written.set()
            assert [line async for line in lines] == [
                *(f"item {n}" for n in range(1, 6)),
                "repeatable read",
                "True",
            ]
        await assert_whole(registry, world)


async def test_a_rule_may_stream_and_writes_are_refused(world: World) -> None:
    async def export(request: Request) -> Response:
        db = session(request)

        async def rows() -> AsyncIterator[str]:
            with pytest.raises(DataError) as caught:
                await db.write.execute(INSERT, ["no"])
            yield f"{caught.value.kind} {await db.fetch_value('select count(*) from orders')}"

        return StreamingResponse(rows())

    registry = world.registry(routes=[{"match": "/export", "read_only": True, "stream": True}])
    async with client(world, [Route("/export", export), Route("/plain", export)], registry=registry) as http:
        assert (await http.get("/export")).text == "read_only 0"
        await assert_whole(registry, world)


async def test_an_export_with_set_rollback_only_is_complete(world: World) -> None:
    """As with any response; a READ ONLY transaction has nothing to undo."""
    ran: list[str] = []

    @transactional(read_only=True, stream=True)
    async def export(request: Request) -> Response:
        db = session(request)

        async def rows() -> AsyncIterator[str]:
            yield f"{await db.fetch_value('select 1')}\n"
            db.before_commit(lambda: ran.append("never"))
            db.after_rollback(lambda: ran.append("rolled back"))
            db.set_rollback_only("the export is discarded")
            yield "end\n"

        return StreamingResponse(rows())

    registry = world.registry()
    async with client(world, [Route("/", export)], registry=registry) as http:
        assert (await http.get("/")).text == "1\nend\n"
        await until(lambda: ran != [], "no hook has run")
        await assert_whole(registry, world)
    assert ran == ["rolled back"]


async def test_an_export_that_fails_late_is_aborted(world: World) -> None:
    @transactional(read_only=True, stream=True, timeout=0.5)
    async def export(request: Request) -> Response:
        db = session(request)

        async def rows() -> AsyncIterator[str]:
            yield "begun\n"
            if request.query_params["how"] == "an error":
                await db.fetch_value("select 1 / 0")
            elif request.query_params["how"] == "a deadline in a statement":
                await db.fetch_value("select pg_sleep(30)")
            else:
                await db.fetch_value("select 1")
                await asyncio.Event().wait()

        return StreamingResponse(rows())

    registry = world.registry()
    async with client(world, [Route("/", export)], registry=registry) as http:
        for how in ("an error", "a deadline in a statement", "a deadline in between"):
            with pytest.raises(Exception, match="peer closed connection"):
                await http.get("/", params={"how": how})
            await assert_whole(registry, world)


async def test_an_export_whose_client_disconnects_returns_its_connection(world: World) -> None:
    begun = asyncio.Event()

    @transactional(read_only=True, stream=True)
    async def export(request: Request) -> Response:
        db = session(request)

        async def rows() -> AsyncIterator[str]:
            yield "begun\n"
            begun.set()
            yield str(await db.fetch_value("select pg_sleep(60)"))

        return StreamingResponse(rows())

    registry = world.registry()
    async with client(world, [Route("/", export)], registry=registry) as http:
        async with http.stream("GET", "/") as response:
            assert response.status_code == 200
            await begun.wait()
        async with asyncio.timeout(15):
            while any(endpoint.borrowed for endpoint in registry.for_tenant("acme").servers.values()):
                await asyncio.sleep(0.02)
        await assert_whole(registry, world)


async def test_a_serializable_deferrable_snapshot_runs_on_the_primary(world: World) -> None:
    @transactional(read_only=True, isolation="serializable", deferrable=True)
    async def report(db: DataSession) -> list[str]:
        settings = ["transaction_isolation", "transaction_deferrable", "transaction_read_only"]
        found = [await db.fetch_value(f"show {name}") for name in settings]
        assert db.last_route is not None
        return [*found, db.last_route.node]

    async with world.registry() as registry:
        call = await request(registry, report, method="GET")
        assert call.body == b'["serializable","on","on","primary"]'


async def test_the_snapshot_of_an_unfinished_response_is_closed(world: World) -> None:
    """The application starts a response and returns without finishing it."""

    @transactional(read_only=True, stream=True)
    async def export(scope, receive, send):  # type: ignore[no-untyped-def]
        await session(scope).fetch_value("select 1")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await session(scope).fetch_value("select 2")

    async with world.registry() as registry:
        call = Call("GET", endpoint=export)
        await call.run(DataSourceMiddleware(export, registry=registry))
        assert call.types == ["http.response.start"]
        await assert_whole(registry, world)
