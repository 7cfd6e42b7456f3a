"""`scripts/demo` as a separate process, with real servers and a real collector."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from asgi_datasource.testing import EmbeddedCluster
from scripts.browser import Browser, Page
from starlette_app import tracing
from starlette_app.demo import Console
from starlette_app.smoke import check_all
from tests.cli.run import call
from tests.examples.otlp_collector import Collector, ReceivedSpan

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 60
SERVER_KIND, CLIENT_KIND = 2, 3  # SpanKind of opentelemetry/proto/trace/v1/trace.proto


class Demo:
    """A running `scripts/demo`."""

    def __init__(self, process: subprocess.Popen[str], output: list[str]) -> None:
        self.process = process
        self.output = output

    @property
    def address(self) -> str:
        found = re.search(r"The desk is open: (http://\S+)/ui/", "".join(self.output))
        assert found, "".join(self.output)
        return found[1]

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and read the output until the process has ended."""
        self.process.send_signal(number)
        assert self.process.stdout
        self.output += self.process.stdout.readlines()
        return self.process.wait(timeout=30)


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.Popen(
        [REPOSITORY / "scripts" / "demo", "--data", "week", *arguments],
        env={**environment, "PYTHON": sys.executable, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextmanager
def running(*arguments: str, **variables: str) -> Iterator[Demo]:
    """A demo that has printed that it is open."""
    process = start("--port", "0", *arguments, **variables)
    demo = Demo(process, [])
    assert process.stdout
    try:
        for line in process.stdout:
            demo.output.append(line)
            if "Ctrl-C ends everything" in line:
                break
        else:
            pytest.fail("it ended by itself:\n" + "".join(demo.output))
        yield demo
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
        process.stdout.close()


def family(pid: int) -> set[int]:
    """A process and all its descendants."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            found |= family(int(child))
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def trace_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def demo(collector: Collector, trace_files: Path) -> Iterator[Demo]:
    with running("--traces", str(trace_files), OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint) as demo:
        yield demo


def test_spans_of_a_request_arrive_at_a_collector_and_in_a_file(
    demo: Demo, collector: Collector, trace_files: Path
) -> None:
    trace_id = os.urandom(16).hex()
    headers = {"X-Tenant": "dl", "traceparent": f"00-{trace_id}-{os.urandom(8).hex()}-01"}
    with httpx.Client(base_url=demo.address) as client:
        flight = client.get("/flights?limit=1", headers={"X-Tenant": "dl"}).json()[0]["id"]
        answer = client.post(f"/flights/{flight}/notes", headers=headers, json={"body": "secret of the desk"})
    assert answer.status_code == 201

    spans = collector.wait(trace_id, lambda found: any(span.kind == SERVER_KIND for span in found))

    by_name = {span.name: span for span in spans}
    request = by_name["POST /flights/{id:int}/notes"]
    assert request.attributes["http.response.status_code"] == 201
    routes = [span for span in spans if "asgi_datasource.reason" in span.attributes]
    assert [span.attributes["asgi_datasource.reason"] for span in routes] == ["balanced", "write", "pinned"]
    assert [span.attributes["asgi_datasource.role"] for span in routes] == ["replica", "primary", "primary"]
    assert {span.attributes["asgi_datasource.tenant.id"] for span in routes} == {"dl"}
    assert by_name["COMMIT"].attributes["asgi_datasource.transaction.outcome"] == "committed"
    transaction = by_name["transaction airlines.primary"]
    inside = {span.name for span in spans if span.parent_id == transaction.span_id}
    assert {"airlines → primary (write)", "INSERT notes", "SELECT notes", "COMMIT"} <= inside
    assert "SELECT flights" in by_name
    assert {by_name[name].kind for name in ("INSERT notes", "COMMIT")} == {CLIENT_KIND}
    assert {span.service for span in spans} == {"flight-desk"}
    ids = {span.span_id for span in spans}
    assert all(span.parent_id in ids for span in spans if span is not request)
    assert "secret" not in repr(spans)

    assert wait_until(lambda: any(trace_files.glob(f"*-POST-flights*-{trace_id[:8]}.json")))
    printed = call("trace", *trace_files.glob(f"*-{trace_id[:8]}.json"), "--trace-id", trace_id)
    assert printed.code == 0, printed.err
    assert "├─ airlines → primary (write)" in printed.out


async def test_a_dead_collector_does_not_hold_up_the_end() -> None:
    """The exporter would retry for seconds: the end waits for it in a thread, and no longer than its limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        provider.get_tracer("test").start_span("last").end()
        ticks = 0
        ending = asyncio.create_task(tracing.shut_down(provider))
        async with asyncio.timeout(tracing.SEND_LIMIT_S + 3):
            while not ending.done():
                ticks += 1
                await asyncio.wait({ending}, timeout=0.05)
    # The event loop went on meanwhile.
    assert ticks > 3


def test_a_failed_commit_is_on_the_trace(demo: Demo, collector: Collector) -> None:
    trace_id = os.urandom(16).hex()
    headers = {"X-Tenant": "ua", "traceparent": f"00-{trace_id}-{os.urandom(8).hex()}-01"}
    with httpx.Client(base_url=demo.address) as client:
        flights = client.get("/flights?date=2013-08-28&limit=500", headers={"X-Tenant": "ua"}).json()
        one, two = next(
            (one, two)
            for one in flights
            for two in flights
            if one["id"] != two["id"] and (one["origin"], one["dest"]) == (two["origin"], two["dest"])
        )
        wish = {"to": two["id"], "passengers": 400}
        answer = client.post(f"/flights/{one['id']}/rebook", headers=headers, json=wish)
    assert answer.status_code == 422

    def has_ended(found: list[ReceivedSpan]) -> bool:
        return any(span.kind == SERVER_KIND for span in found)

    commit = next(span for span in collector.wait(trace_id, has_ended) if span.name == "COMMIT")
    assert commit.attributes["asgi_datasource.transaction.outcome"] == "rolled_back"
    assert commit.attributes["db.response.status_code"] == "23514"


def test_the_feed_has_server_and_reason_of_each_request(demo: Demo) -> None:
    with httpx.Client(base_url=demo.address) as client:
        page = client.get("/")
        assert page.status_code == 307
        assert page.headers["location"] == "/ui/"
        answer = client.get("/reports/airports", headers={"X-Tenant": "mq"})
        number = int(answer.headers["x-request-number"])
        told = client.get(f"/ui/requests?after={number - 1}&limit=1").json()
        gone = client.get("/ui/requests/99999999")
        assert (gone.status_code, gone.json()["title"]) == (404, "the desk keeps its last 500 requests")
    candidates = " ".join(told["requests"][0]["steps"][0].pop("candidates"))
    assert re.fullmatch(r"r1 (up|lag \d+ ms) r2 (up|lag \d+ ms) primary up", candidates), candidates
    assert told["requests"][0] | {"at": 0, "ms": 0} == {
        "number": number,
        "method": "GET",
        "path": "/reports/airports",
        "tenant": "mq",
        "at": 0,
        "status": 200,
        "ms": 0,
        "page": False,
        "outcome": None,
        "steps": [
            {
                "datasource": "airlines",
                "intent": "read",
                "node": answer.headers["x-served-by"].split()[0],
                "role": "replica",
                "reason": "balanced",
                "statements": ["SELECT flights"],
                "is_failed": False,
            }
        ],
    }
    assert {name: server["up"] for name, server in told["servers"].items()} == {"primary": True, "r1": True, "r2": True}


async def test_smoke_reports_failed_checks(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    # Before a replica is stopped, because a recovered one regains its share of reads gradually.
    # A cluster that the desk does not use and that is not started, and a wrong number of flights.
    status = await check_all(demo.address, EmbeddedCluster(replicas=2), 1, Console())
    output = capsys.readouterr().out
    assert status == 1
    assert re.search(r"ok +reads take turns on the replicas", output)
    assert re.search(r"FAIL +airlines apart, under load +6,262 flights seen, 1 loaded", output)
    assert re.search(r"FAIL +no primary +ClusterError", output)


def test_the_page_stops_and_starts_a_replica(demo: Demo) -> None:
    with httpx.Client(base_url=demo.address, headers={"X-Desk-Page": "1", "X-Tenant": "dl"}, timeout=30) as client:
        servers = client.post("/ui/control", json={"action": "stop", "server": "r1"}).json()["servers"]
        assert servers["r1"]["up"] is False
        answers = [client.get("/reports/airports") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert answers[-1].headers["x-served-by"] == "r2 (balanced)"
        servers = client.post("/ui/control", json={"action": "start", "server": "r1"}).json()["servers"]
        assert servers["r1"]["up"] is True

        def r1_serves() -> bool:
            return client.get("/reports/airports").headers["x-served-by"] == "r1 (balanced)"

        assert wait_until(r1_serves)


def test_the_console_of_the_desk_is_for_this_machine(demo: Demo) -> None:
    address = f"{demo.address}/ui/ops/state.json"
    state = httpx.get(address).json()
    assert [one["name"] for one in state["datasources"]] == ["airlines", "united"]
    assert {one["name"] for one in state["outbox"]["databases"]} == {"airlines", "united"}
    # The schemas of the airlines, and the tables of the outbox in both databases.
    assert state["migrations"]["counts"] == {"at_head": 10}
    assert httpx.get(address, headers={"Host": "evil.example:80"}).status_code == 403


def test_pages_of_other_origins_cannot_control_the_servers(demo: Demo) -> None:
    order = {"action": "stop", "server": "r1"}
    assert httpx.post(f"{demo.address}/ui/control", json=order).status_code == 403
    own = {"X-Desk-Page": "1"}
    assert httpx.post(f"{demo.address}/ui/control", json={"action": "stop"}, headers=own).status_code == 400
    assert httpx.post(f"{demo.address}/ui/control", json=order | {"server": "r9"}, headers=own).status_code == 400
    assert httpx.post(f"{demo.address}/ui/control", json=order | {"action": "drop"}, headers=own).status_code == 400


def action(words: str) -> str:
    """Press a button under "Try it"."""
    return f"[...document.querySelectorAll('.action')].find(one => one.innerText.includes({words!r})).click()"


async def command(page: Page, server: str, name: str, *, until: str) -> None:
    """Press a button of a server, and wait until its card has a class, or a button."""
    await page.run(f"document.querySelector('.server[data-node={server}] [data-action={name}]').click()")
    await page.until(f"document.querySelector('.server[data-node={server}]').matches({until!r})")


async def answers(page: Page, words: str) -> str:
    """The text about the last button that was pressed, once it has these words."""
    await page.until(f"document.getElementById('answer').innerText.includes({words!r})")
    return await page.text("#answer")


async def test_the_page_shows_what_happened(demo: Demo, browser: Browser) -> None:
    async with browser.page(width=1280, height=900) as page:
        await page.go(f"{demo.address}/ui/")
        await page.until("document.querySelectorAll('#log tr').length > 3")
        assert await page.run("document.getElementById('why').getBoundingClientRect().bottom < 900")

        # Another airline's flight; and a plane without a server bounces.
        await page.run(action("Another airline"))
        found = await answers(page, "ways.")
        assert "DL got nothing of" in found
        assert await page.run("document.querySelectorAll('.contest .good').length") == 8
        await page.until("Number(document.getElementById('sky').dataset.bounced) > 0")

        # A token leads past the replicas that lag.
        await page.run(action("Read your own write"))
        found = await answers(page, "X-Datasource-Token")
        assert "The client has read its own write each time" in found
        assert re.search(r"with the token\s+200\s+primary \(behind\): sees the note", found), found
        assert re.search(r"without it\s+200\s+r\d \(balanced\): does not have it yet", found), found
        assert re.search(r"with it\s+200\s+r\d \(proved\): sees the note", found), found

        # By keyboard: the details of a request that has written.
        await page.run("document.querySelector('[data-filter=write]').click()")
        note = "[...document.querySelectorAll('#log tr')].find(row => /notes[^]*committed/.test(row.innerText))"
        await page.until(f"{note} !== undefined")
        await page.run(f"{note}.querySelector('button').focus()")
        await page.press("Enter")
        await page.until("document.querySelector('#detail').open && !!document.querySelector('.choice')")
        found = await page.text("#detail")
        assert re.search(r"begin;\s+select set_config\('search_path', .+, true\);\s+insert into notes", found), found
        assert "transaction airlines.primary" in found or "transaction united.primary" in found
        assert re.search(r"r1\s+takes no writes\s+a replica takes no writes", found), found
        await page.press("Escape")
        await page.until("!document.querySelector('#detail').open")
        assert await page.run("document.activeElement.closest('#log') !== null")

        # Without a primary: 503, told as one. Then r1 is promoted.
        await command(page, "primary", "stop", until=".stopped")
        await page.run(action("Add a note"))
        found = await answers(page, "503")
        assert "The primary did not answer: the client was answered with 503. Nothing was stored" in found
        assert "noticed nothing" not in found
        await command(page, "r1", "promote", until=".leader")
        while "201" not in await page.text("#answer"):
            await page.run(f"document.getElementById('answer').replaceChildren(), {action('Add a note')}")
            await answers(page, "note")
        await command(page, "primary", "start", until=":has([data-action=promote])")
        await command(page, "primary", "promote", until=".leader")
        await command(page, "r1", "start", until=":has([data-action=promote])")

        # The desk is gone, and comes back.
        offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await page.send("Network.emulateNetworkConditions", offline=True, **offline)
        await page.until("document.getElementById('gone').innerText.includes('does not answer')")
        assert "grayscale" in await page.run("getComputedStyle(document.getElementById('hub')).filter")
        await page.send("Network.emulateNetworkConditions", offline=False, **offline)
        await page.until("document.getElementById('gone').hidden")

        # Dark, light, and a phone.
        shades: set[str] = set()
        for scheme in ("dark", "light"):
            await page.prefer(scheme)
            shades.add(await page.run("getComputedStyle(document.body).backgroundColor"))
        assert len(shades) == 2
        phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        await page.send("Emulation.setDeviceMetricsOverride", **phone)
        assert await page.run("document.documentElement.scrollWidth") == 390
        assert [one for one in page.complaints if "Failed to load resource" not in one] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_demo_cleanly(number: signal.Signals) -> None:
    with running() as demo:
        processes = family(demo.process.pid)
        assert len(processes) > 10  # the desk, three servers and their workers
        with socket.create_connection(("127.0.0.1", httpx.URL(demo.address).port or 0)):
            # An idle connection must not delay the shutdown.
            assert demo.end(number) == 0
    assert "Nothing is left running" in demo.output[-1]
    assert wait_until(lambda: not any(map(is_running, processes)), 5)


def test_ctrl_c_during_set_up_stops_the_demo_cleanly() -> None:
    process = start("--port", "0")
    assert process.stdout
    assert "a primary and two replicas" in process.stdout.readline()
    processes = family(process.pid)
    process.terminate()
    output = process.stdout.read()
    assert process.wait(timeout=30) == 0
    assert "Nothing is left running" in output
    assert "open" not in output
    assert wait_until(lambda: not any(map(is_running, processes)), 5)
    process.stdout.close()


def test_no_process_is_left_when_the_demo_is_killed() -> None:
    with running() as demo:
        processes = family(demo.process.pid)
        demo.process.kill()
        demo.process.wait()
        assert wait_until(lambda: not any(map(is_running, processes)), 15)


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", str(taken.getsockname()[1]))
        output, _ = process.communicate(timeout=START_TIMEOUT_S)
    assert process.returncode == 1
    assert "cannot listen on 127.0.0.1:" in output
    assert "--port 0" in output


def test_smoke_passes() -> None:
    process = start("--smoke")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert re.search(r"(\d+) of \1 checks passed", output), output
    assert "All is well" in output
