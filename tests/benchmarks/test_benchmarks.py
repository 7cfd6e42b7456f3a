"""The benchmarks run, and write the file that `benchmarks/README.md` describes. Their figures are not tested."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load_client
from benchmarks.load import parse_wrk
from benchmarks.report import Report, Target
from benchmarks.rounds import interleaved, paired_ratios

ROOT = Path(__file__).parent.parent.parent

RATIO = {"benchmark", "case", "metric", "side", "against", "value", "low", "high", "target", "is_met"}
MEASUREMENT = {"benchmark", "case", "side", "metric", "unit", "median", "rounds"}
ONLY = ("--only", "in_process", "--only", "choice", "--only", "boot", "--only", "validate")
UNITS = {"us", "ns", "ms", "s", "1/s", "MB", "count"}


def test_a_quick_run_of_the_fast_parts_writes_the_documented_file(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick", *ONLY),
            *("--json", str(result)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert "in_process" in ran.stdout
    document = json.loads(result.read_text(encoding="utf-8"))
    assert_documented_shape(document)
    assert document["quick"] is True
    assert {ratio["benchmark"] for ratio in document["ratios"]} == {"in_process", "choice", "boot", "validate"}


def assert_documented_shape(document: dict[str, Any]) -> None:
    assert document.keys() == {"version", "started_at", "quick", "environment", "ratios", "measurements"}
    assert document["version"] == 1
    assert {"python", "implementation", "system", "machine", "cpus", "packages"} <= document["environment"].keys()
    measured = set()
    for measurement in document["measurements"]:
        assert measurement.keys() == MEASUREMENT
        assert measurement["unit"] in UNITS
        assert measurement["rounds"]
        measured.add(tuple(measurement[key] for key in ("benchmark", "case", "side", "metric")))
    for ratio in document["ratios"]:
        assert ratio.keys() == RATIO
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
        assert (ratio["benchmark"], ratio["case"], ratio["side"], ratio["metric"]) in measured
        if ratio["target"] is None:
            assert ratio["is_met"] is None
        else:
            assert ratio["target"].keys() == {"op", "value"}
            assert ratio["is_met"] in (True, False)


def test_sides_take_turns_and_each_starts_a_round() -> None:
    turns = list(interleaved(["a", "b", "c"], 3))

    assert turns == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_a_ratio_is_taken_round_by_round_so_that_noise_on_both_sides_cancels() -> None:
    quiet, noisy = 1.0, 10.0

    assert paired_ratios([2 * quiet, 2 * noisy, 2 * quiet], [quiet, noisy, quiet]) == (2.0, 2.0, 2.0)


def test_rounds_too_short_to_measure_are_refused() -> None:
    with pytest.raises(ValueError, match="raise the number of calls"):
        paired_ratios([1.0, 2.0], [0.0, -1.0])


@pytest.mark.parametrize(
    ("target", "value", "is_met"),
    [
        (Target("<=", 0.35), 0.35, True),
        (Target("<=", 0.35), 0.36, False),
        (Target(">=", 4.0), 4.0, True),
        (Target(">=", 4.0), 3.9, False),
        (Target("==", 1.0), 1.0, True),
        (Target("==", 1.0), 2.0, False),
    ],
)
def test_a_target_includes_its_bound(target: Target, value: float, is_met: bool) -> None:
    assert target.is_met_by(value) is is_met


def test_a_missed_target_is_shown_in_the_table() -> None:
    report = Report(quick=True)
    report.measured("load", "one read", "ours", "requests per second", "1/s", [300.0, 310.0])
    report.measured("load", "one read", "theirs", "requests per second", "1/s", [100.0, 100.0])
    report.compare("load", "one read", "requests per second", "ours", "theirs", Target(">=", 4.0))

    *_, line = report.table().splitlines()

    assert " ".join(line.split()) == "load one read requests per second ours theirs 3.05x 3..3.1 >= 4 MISSED"


def test_the_report_of_wrk_is_parsed_in_each_unit() -> None:
    padding = " "  # wrk pads seconds to the width of milliseconds
    output = f"""Running 3s test @ http://127.0.0.1:8000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    17.27ms    9.29ms  95.04ms   96.05%
    Req/Sec     1.97k   312.02     2.36k    86.67%
  Latency Distribution
     50%  950.00us
     75%   16.53ms
     90%   18.96ms
     99%    1.01s{padding}
  5891 requests in 3.01s, 1.02MB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 4
Requests/sec:   1960.15
"""

    assert parse_wrk(output) == {"requests": 5891, "seconds": 3.01, "p50_ms": 0.95, "p99_ms": 1010.0, "errors": 7}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"{}" * 40_000  # more than one read
        self.send_response(200 if self.headers["X-Tenant"] == "acme" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Do not log."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """The generator disconnects during its last responses."""


@pytest.fixture
def http_port() -> Iterator[int]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("tenant", "answered_200"), [("acme", True), ("nobody", False)])
def test_the_built_in_load_generator_counts_complete_responses_and_errors(
    http_port: int, tenant: str, answered_200: bool
) -> None:
    result = load_client.run("127.0.0.1", http_port, "GET", 2, 0.05, tenant, 10)

    assert result["requests"] > 0
    assert result["errors"] == (0 if answered_200 else result["requests"])
    assert 0 < result["p50_ms"] <= result["p99_ms"]
