"""Events and spans of a transaction besides its statements: savepoints, doom, retries, hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_tracer

from asgi_datasource import (
    DataError,
    DataSession,
    DataSourceRegistry,
    UnexpectedRollback,
    current_session,
    transactional,
)
from tests.sessions.requests import Body, request
from tests.world import World

INSERT = "insert into orders (item) values (%s)"


async def traced(
    registry: DataSourceRegistry, spans: InMemorySpanExporter, body: Body, *, status: int = 201
) -> tuple[list[tuple[str, Mapping[str, Any]]], dict[str, Mapping[str, Any]]]:
    """The events of all spans of a request, in order, and the attributes of the spans by name."""
    with get_tracer("test").start_as_current_span("server"):
        await request(registry, body, status=status)
    await registry.background.drain(5.0)
    found = spans.get_finished_spans()
    ordered = sorted((event for span in found for event in span.events), key=lambda event: event.timestamp)
    events = [(event.name, dict(event.attributes or {})) for event in ordered]
    return events, {span.name: dict(span.attributes or {}) for span in found}


async def test_doom_is_an_event_with_its_reason_which_the_rollback_has_too(
    world: World, spans: InMemorySpanExporter
) -> None:
    @transactional
    async def fails() -> None:
        raise LookupError("secret-of-acme")

    async def body(db: DataSession) -> None:
        await db.execute(INSERT, ["tea"])
        with pytest.raises(LookupError):
            await fails()

    async with world.registry() as registry:
        events, attributes = await traced(registry, spans, body)
    reason = "asgi_datasource.transaction.rollback_reason"
    assert events == [("asgi_datasource.transaction.doomed", {reason: "LookupError was raised"})]
    assert attributes["ROLLBACK"][reason] == "doomed by LookupError"
    assert "COMMIT" not in attributes
    assert "secret-of-acme" not in str(events) + str(attributes)


async def test_the_last_failed_attempt_is_an_event_with_its_reason(world: World, spans: InMemorySpanExporter) -> None:
    async def body(db: DataSession) -> None:
        await db.execute(INSERT, ["tea"])
        db.set_rollback_only("a dry run")

    async with world.registry() as registry:
        events, attributes = await traced(registry, spans, body)
    reason = "asgi_datasource.transaction.rollback_reason"
    assert events == [("asgi_datasource.transaction.doomed", {reason: "a dry run"})]
    assert attributes["ROLLBACK"][reason] == "a dry run"


async def test_the_attempts_of_a_function_are_rows(world: World, spans: InMemorySpanExporter) -> None:
    attempts = 0

    @transactional(retry=1, propagation="requires_new")
    async def lose(times: int) -> None:
        nonlocal attempts
        attempts += 1
        state = "raise exception using errcode = '40P01';" if attempts <= times else ""
        await current_session().execute(f"do $$ begin {state} end $$")

    async def body(db: DataSession) -> None:
        nonlocal attempts
        await lose(1)
        attempts = 0
        with pytest.raises(DataError):
            await lose(2)

    async with world.registry() as registry:
        events, _ = await traced(registry, spans, body)
    attempt = "asgi_datasource.retry.attempt"
    assert events == [("asgi_datasource.transaction.retry.given_up", {attempt: 2})]
    waits = [dict(span.attributes or {}) for span in spans.get_finished_spans() if span.name == "retry"]
    assert [wait[attempt] for wait in waits] == [1, 1]
    assert all(float(wait["asgi_datasource.retry.delay_ms"]) > 0 for wait in waits)
    opened = [span for span in spans.get_finished_spans() if span.name.startswith("transaction")]
    numbers = [dict(span.attributes or {})["asgi_datasource.transaction.attempt"] for span in opened]
    assert numbers == [1, 2, 1, 2]


async def test_a_failed_before_commit_hook_is_an_error_on_its_span(world: World, spans: InMemorySpanExporter) -> None:
    def check() -> None:
        raise ZeroDivisionError

    async def body(db: DataSession) -> None:
        await db.execute(INSERT, ["tea"])
        db.before_commit(check)

    async with world.registry() as registry:
        with pytest.raises(ZeroDivisionError):
            await traced(registry, spans, body)
    [span] = [span for span in spans.get_finished_spans() if span.name == "before_commit"]
    assert [event.name for event in span.events] == ["asgi_datasource.hook.failed"]
    assert str(dict(span.attributes or {})["asgi_datasource.hook"]).endswith("check")


async def test_without_spans_there_are_no_events(world: World, spans: InMemorySpanExporter) -> None:
    async def body(db: DataSession) -> None:
        async with db.transaction():
            await db.execute(INSERT, ["tea"])
        db.after_commit(lambda: None)
        db.set_rollback_only("a dry run")

    async def lose(db: DataSession) -> None:
        await db.execute("do $$ begin raise exception using errcode = '40001'; end $$")

    async with world.registry(telemetry={"spans": False}, transactions={"retry": 1}) as registry:
        events, attributes = await traced(registry, spans, lose)
        assert (events, attributes) == ([], {"server": {}})
        spans.clear()
        events, attributes = await traced(registry, spans, body)
        assert events == []
        assert set(attributes) == {"server"}
        with pytest.raises(UnexpectedRollback):
            async with registry.session("acme") as db:
                with pytest.raises(ZeroDivisionError):
                    async with transactional():
                        raise ZeroDivisionError
                await db.execute(INSERT, ["tea"])
