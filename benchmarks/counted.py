"""Counted figures of one request, which no other work on the machine changes, and the gate that compares them.

    scripts/bench --gate                    compare with benchmarks/reference/counted.json; exit with 1 after a rise
    scripts/bench --gate --write            renew that file
    scripts/bench --gate --instructions     also count instructions with valgrind (about a minute)

Figures of the wire hold on every machine. Calls, objects and system calls depend on Python's minor version and on the
versions of the packages below it; they are compared with figures of the same versions, and otherwise only printed.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final

from psycopg import pq

import asgi_datasource
from benchmarks.counted_relay import CountingRelay
from benchmarks.drive import receive_nothing, request_scope, send_nowhere, started
from benchmarks.server import Server, benchmark_server
from benchmarks.sides import ORM_OURS, OURS, build
from benchmarks.sides.asgi import ASGIApp

REFERENCE: Final = Path(__file__).parent / "reference" / "counted.json"
CASES: Final[dict[str, tuple[str, str, str]]] = {
    "no SQL": (OURS, "GET", "/plain"),
    "one read": (OURS, "GET", "/items/1"),
    "one write": (OURS, "POST", "/items/1"),
    "three reads": (OURS, "GET", "/reads/3"),
    "ORM read": (ORM_OURS, "GET", "/items/1"),
}
"""Side, method and path by name."""

WARM_UP: Final = 12
REQUESTS: Final = 10
"""The lowest count of several requests: a timer that fires during one does not count."""

PACKAGES: Final = ("psycopg", "psycopg-pool", "sqlalchemy")
SLACK: Final = {"bytes sent": 16, "bytes received": 16}
"""Digits of transaction ids and WAL positions."""

SLACK_OF_INSTRUCTIONS: Final = 0.02
MARK: Final = "/counted-figures/"
"""Folder of the paths, none of which exists, that a traced process asks for before and after each request."""

Figures = dict[str, dict[str, int]]
"""Figures by case and name."""

_LIBRARY: Final = str(Path(asgi_datasource.__file__).parent)


def build_quiet(side: str, url: str) -> ASGIApp:
    """The application of a side on a pool of one."""
    return build(side, url, 1)


async def count_wire(server: Server) -> Figures:
    """Round trips, statements, messages and bytes of each case."""
    found: Figures = {}
    for name, (side, method, path) in CASES.items():
        async with (
            CountingRelay(server.host, server.port) as relay,
            started(build_quiet(side, server.url(relay.port))) as app,
        ):
            for _ in range(WARM_UP):
                await request(app, method, path)
            counts: list[dict[str, int]] = []
            for _ in range(REQUESTS):
                relay.reset()
                await request(app, method, path)
                counts.append(relay.figures())
            found[name] = lowest(counts)
    return found


async def count_calls(server: Server) -> Figures:
    """Python calls, those of the library, calls of C functions, and objects of the library's classes."""
    found: Figures = {}
    for name, (side, method, path) in CASES.items():
        async with started(build_quiet(side, server.url())) as app:
            for _ in range(WARM_UP):
                await request(app, method, path)
            counts = [_Profile() for _ in range(REQUESTS)]
            for count in counts:
                sys.setprofile(count)
                try:
                    await request(app, method, path)
                finally:
                    sys.setprofile(None)
            found[name] = lowest([count.figures() for count in counts])
    return found


def count_system_calls(server: Server) -> Figures | None:
    """System calls of each case by strace; None without strace, or where tracing is not allowed."""
    if shutil.which("strace") is None:
        return None
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        command = ("strace", "-f", "-qq", "-o", str(trace), sys.executable, "-m", "benchmarks.counted_child")
        ran = subprocess.run((*command, server.url()), cwd=Path(__file__).parent.parent, check=False)
        if ran.returncode or not trace.exists():
            print("system calls: strace could not trace a process; they are not compared", file=sys.stderr)
            return None
        return parse_trace(trace.read_text(encoding="utf-8", errors="replace"))


def parse_trace(text: str) -> Figures:
    """The lowest count of system calls between the marks of each case, and of those that read or write a socket."""
    counts: dict[str, list[dict[str, int]]] = {}
    case: str | None = None
    for line in text.splitlines():
        mark = re.search(rf'"{MARK}([^"]*)"', line)
        if mark is not None:
            case = mark[1] or None
            if case is not None:
                counts.setdefault(case, []).append({"system calls": 0, "packets sent": 0})
        elif case is not None and "resumed>" not in line:
            counts[case][-1]["system calls"] += 1
            counts[case][-1]["packets sent"] += bool(re.match(r"\d+ +(sendto|sendmsg|write|writev)\(", line))
    return {name: lowest(found) for name, found in counts.items()}


def count_instructions(server: Server) -> Figures:
    """Instructions of each case, by valgrind's callgrind; raises RuntimeError without valgrind."""
    if shutil.which("valgrind") is None:
        raise RuntimeError("--instructions needs valgrind (Debian: apt-get install valgrind)")
    with TemporaryDirectory() as folder:
        command = ("valgrind", "-q", "--tool=callgrind", "--instr-atstart=no", "--combine-dumps=no")
        out = f"--callgrind-out-file={folder}/out"
        subprocess.run(
            (*command, out, sys.executable, "-m", "benchmarks.counted_child", server.url(), "instructions"),
            cwd=Path(__file__).parent.parent,
            env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
            check=True,
        )
        totals = {
            int(path.suffix[1:]): int(match[1])
            for path in Path(folder).glob("out.*")
            if path.suffix[1:].isdigit()
            and (match := re.search(r"^(?:summary|totals): (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE))
        }
    dumps = [totals[number] for number in sorted(totals)]
    found: Figures = {}
    for position, name in enumerate(CASES):
        few, many = dumps[2 * position], dumps[2 * position + 1]
        found[name] = {"instructions": round((many - few) / (MANY - FEW))}
    return found


FEW: Final = 5
MANY: Final = 25
"""Requests of the two runs whose difference is the instructions of a request, without those of the measurement."""


class _Profile:
    """Counts the calls of one request."""

    def __init__(self) -> None:
        self._python = self._library = self._c = 0
        self._made: list[object] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if event == "c_call":
            self._c += 1
        elif event == "call":
            self._python += 1
            code = frame.f_code
            if code.co_filename.startswith(_LIBRARY):
                self._library += 1
                if code.co_name == "__init__":
                    made = frame.f_locals[code.co_varnames[0]]
                    if not any(made is other for other in self._made):
                        self._made.append(made)

    def figures(self) -> dict[str, int]:
        return {
            "Python calls": self._python,
            "library calls": self._library,
            "C calls": self._c,
            "objects": len(self._made),
        }


async def request(app: ASGIApp, method: str, path: str) -> None:
    """Send one request without a client."""
    await app(request_scope(method, path), receive_nothing, send_nowhere)


def lowest(counts: list[dict[str, int]]) -> dict[str, int]:
    """The lowest of each figure."""
    return {name: min(count[name] for count in counts) for name in counts[0]}


def versions() -> str:
    """What calls and system calls depend on: Python's minor version, and the packages below the library."""
    minor = ".".join(platform.python_version_tuple()[:2])
    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"{platform.python_implementation()} {minor}, {packages} ({pq.__impl__})"


Document = dict[str, dict[str, Figures]]
"""The reference file: `wire` has one entry, `any`; `process` has one for each `versions()`."""


def compare(found: Mapping[str, Mapping[str, Figures]], committed: Mapping[str, Mapping[str, Figures]]) -> list[str]:
    """What has risen over the committed figures, one line each; empty if nothing has."""
    risen: list[str] = []
    for part, entries in found.items():
        for key, cases in entries.items():
            known = committed.get(part, {}).get(key)
            if known is None:
                continue
            for case, figures in cases.items():
                for name, value in figures.items():
                    limit = known.get(case, {}).get(name)
                    if limit is None:
                        risen.append(f"{case}: {name} has no committed figure (now {value})")
                    elif value > limit + _slack(name, limit):
                        risen.append(f"{case}: {name} rose from {limit} to {value}")
    return risen


def _slack(name: str, limit: int) -> int:
    return round(limit * SLACK_OF_INSTRUCTIONS) if name == "instructions" else SLACK.get(name, 0)


async def count(server: Server, *, instructions: bool) -> Document:
    """All figures, in the shape of the reference file."""
    process = await count_calls(server)
    for more in (count_system_calls(server), count_instructions(server) if instructions else None):
        for name, figures in (more or {}).items():
            process[name].update(figures)
    return {"wire": {"any": await count_wire(server)}, "process": {versions(): process}}


async def gate(admin_url: str | None, reference: Path, *, write: bool, instructions: bool) -> int:
    """Count, print, and compare or write.

    Args:
        admin_url: A superuser's URL; None starts an embedded server.
        reference: The file of the committed figures.
        write: Renew the file.
        instructions: Also count instructions.

    Returns:
        The exit status: 1 if a figure has risen, else 0.
    """
    async with benchmark_server(admin_url) as server:
        found = await count(server, instructions=instructions)
    print(_table(found))
    committed: Document = json.loads(reference.read_text(encoding="utf-8")) if reference.is_file() else {}
    if write:
        _merge(committed, found)
        reference.write_text(json.dumps(committed, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"written to {reference}", file=sys.stderr)
        return 0
    if versions() not in committed.get("process", {}):
        print(f"{reference.name} has no calls and system calls of {versions()}: they are not compared", file=sys.stderr)
    risen = compare(found, committed)
    if risen:
        print(f"scripts/bench --gate: higher than in {reference}:", *risen, sep="\n  ", file=sys.stderr)
        print("Make the request cheaper; or, if the rise is meant: scripts/bench --gate --write", file=sys.stderr)
        return 1
    print("counted figures: none has risen")
    return 0


def _merge(committed: Document, found: Document) -> None:
    """Replace what was counted; other versions, and figures that were not counted, stay."""
    for part, entries in found.items():
        for key, cases in entries.items():
            for case, figures in cases.items():
                committed.setdefault(part, {}).setdefault(key, {}).setdefault(case, {}).update(figures)


def _table(found: Document) -> str:
    columns = list(CASES)
    rows: dict[str, dict[str, int]] = {}
    for entries in found.values():
        for cases in entries.values():
            for case, figures in cases.items():
                for name, value in figures.items():
                    rows.setdefault(name, {})[case] = value
    lines = [f"{'':20}" + "".join(f"{name:>14}" for name in columns)]
    lines += [
        f"{name:20}" + "".join(f"{values.get(case, ''):>14}" for case in columns) for name, values in rows.items()
    ]
    return "\n".join(lines)
