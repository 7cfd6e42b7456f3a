"""Common fixtures: one cluster for each worker, and a new database with tenants for each test."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi_datasource.drivers.psycopg import PsycopgConnection
from asgi_datasource.observability import decision_log
from asgi_datasource.testing import EmbeddedCluster, write_traces
from scripts.browser import Browser
from tests.world import World

# A shell without job control starts background processes with SIGINT ignored, which child processes inherit, but some
# tests stop their children with SIGINT. With a handler, children get the default instead.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST: Final = (
    "tests/consistency/test_consistency.py",
    "tests/examples/test_demo.py",
    "tests/db/test_compliance.py",
    "tests/guarantees/test_silence.py",
    "tests/guarantees/test_broken.py",
    "tests/sessions/test_cancellation.py",
    "tests/cli/test_masking.py",
    "tests/drivers/test_server.py",
    "tests/outbox/test_publishers.py",
    "tests/tenancy/test_provisioning_cancel.py",
    "tests/guarantees/test_doubt.py",
    "tests/cli/test_ci.py",
    "tests/faults/test_failover.py",
)
"""The files that take longest begin first, so that no worker ends long after the others."""

_exporter = InMemorySpanExporter()
_processor = SimpleSpanProcessor(_exporter)
_reader = InMemoryMetricReader()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--whole`, `--way` and `--write-matrix`."""
    parser.addoption("--whole", action="store_true", help="run long tests with all their examples, not with a sample")
    parser.addoption(
        "--write-matrix", action="store_true", help="write the results of tests/frameworks to its matrix.json"
    )
    parser.addoption(
        "--way",
        choices=("short", "long"),
        default="short",
        help="long: nothing is sent without waiting, so that every statement and COMMIT takes the longer way",
    )
    parser.addoption(
        "--traces", type=Path, metavar="DIR", help="write the spans of each test into a file, which Jaeger's page opens"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Close the short path with `--way long`, as if each statement had to wait before it is sent."""
    if config.getoption("whole"):
        os.environ.setdefault("ADS_PROGRAMS", "150")
        os.environ.setdefault("ADS_EXAMPLES", "1.0")
    if config.getoption("way") == "long":

        def nothing_at_once(*_: object, **__: object) -> None:
            return None

        for name in ("send_one", "send_controls"):
            setattr(PsycopgConnection, name, nothing_at_once)


SAME_BOTH_WAYS: Final = frozenset(
    {
        "test_walk.py",  # counts the short path
        "test_multiplexed_reads.py",  # only reads on the short path share connections
        "test_server.py",
        "test_patroni.py",
        "test_haproxy.py",
        "test_several_servers.py",
        "test_outbox_failover.py",
        "test_start.py",
    }
)
"""Files about pools, processes and the choice of a server, which do not depend on how a statement is sent."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--way long`, skip the files for which it makes no difference."""
    return True if config.getoption("way") == "long" and collection_path.name in SAME_BOTH_WAYS else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST` first."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(LONGEST)))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of pages."""
    with Browser() as running:
        yield running


@pytest.fixture(scope="session")
def is_short_way(pytestconfig: pytest.Config) -> bool:
    """Whether the short path is open: statements are sent without waiting if possible."""
    return pytestconfig.getoption("way") == "short"


@pytest.fixture(scope="session")
def whole(pytestconfig: pytest.Config) -> bool:
    """Whether a long test runs all its examples; without `--whole` it runs a fixed sample."""
    return bool(pytestconfig.getoption("whole"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Print failures at once, because an interrupted run has no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} failed:\n{report.longreprtext}", file=sys.stderr, flush=True)


@pytest.fixture(autouse=True)
def nothing_logged_before() -> None:
    """The first decision of a test is logged, even if another test had the same one a moment ago."""
    decision_log._repeated.clear()


@pytest.fixture(scope="session")
def cluster() -> Iterator[EmbeddedCluster]:
    """A primary and two replicas for tests that do not change the servers; tests of faults start their own clusters."""
    with EmbeddedCluster(replicas=2, settings={"max_connections": 300}) as running:
        yield running


@pytest.fixture
async def world(cluster: EmbeddedCluster) -> AsyncIterator[World]:
    """A new database with the tenants of `tests/world.py`, on the shared cluster."""
    async with World.create(cluster) as made:
        yield made


@pytest.fixture
def spans(request: pytest.FixtureRequest) -> Iterator[InMemorySpanExporter]:
    """The spans that end during a test, which `--traces DIR` writes into a file.

    The tracer provider of a process is permanent: the first test sets it.
    """
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(_processor)
        trace.set_tracer_provider(provider)
    folder: Path | None = request.config.getoption("traces")
    all_spans = InMemorySpanExporter()
    if folder is not None:
        # A test may clear the spans in between.
        provider.add_span_processor(SimpleSpanProcessor(all_spans))
    _exporter.clear()
    yield _exporter
    _exporter.clear()
    if folder is not None:
        write_traces(
            folder / f"{re.sub(r'[^A-Za-z0-9_.]+', '-', request.node.nodeid)}.json", all_spans.get_finished_spans()
        )
        all_spans.shutdown()


@pytest.fixture
def metric_reader() -> InMemoryMetricReader:
    """Reads all metrics of the process. Its meter provider is permanent, so tests compare with earlier values."""
    if not isinstance(metrics.get_meter_provider(), MeterProvider):
        metrics.set_meter_provider(MeterProvider([_reader]))
    return _reader
