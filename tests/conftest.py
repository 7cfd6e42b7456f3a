"""What the tests share: one cluster a worker, a fresh database a test, and a small world to work in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi_datasource.testing import EmbeddedCluster

from .world import World

_exporter = InMemorySpanExporter()
_processor = SimpleSpanProcessor(_exporter)


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedCluster]:
    """A primary and two replicas for tests that leave the servers as they are; faults bring clusters of their own."""
    with EmbeddedCluster(replicas=2, settings={"max_connections": 300}) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    """A fresh database with the tenants of `tests/world.py`, on the shared cluster."""
    async with World.create(cluster) as made:
        yield made


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans that end during a test. A process has one tracer provider for good: it is set by the first test."""
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(_processor)
        trace.set_tracer_provider(provider)
    _exporter.clear()
    yield _exporter
    _exporter.clear()
