"""`@transactional` keeps the signature of a function, for mypy and for pyright."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

SAMPLE = Path(__file__).with_name("annotations.py")
ROOT = Path(__file__).parent.parent.parent
LIMIT_S = 300

EXPECTED_ERRORS = {number for number, line in enumerate(SAMPLE.read_text().splitlines(), 1) if line.endswith("# error")}


def test_mypy_keeps_the_signatures() -> None:
    # With the cache of the package, so that only the sample is checked.
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(SAMPLE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stderr == ""
    lines = [re.fullmatch(r".*annotations\.py:(\d+): (\w+): (.*)", line) for line in done.stdout.splitlines()]
    found = [(int(line[1]), line[2], line[3]) for line in lines if line is not None]
    assert {number for number, severity, _ in found if severity == "error"} == EXPECTED_ERRORS, done.stdout
    revealed = [text for _, severity, text in found if severity == "note" and "Revealed type" in text]
    function = "(item: str, *, size: int =) -> Coroutine[Any, Any, bool]"
    assert [plain(text) for text in revealed] == [function, function, "(item: str) -> bytes"]


def plain(text: str) -> str:
    """A type as revealed by mypy, without module names."""
    inside = re.fullmatch(r'Revealed type is "(?:def )?(.*)"', text)
    assert inside is not None
    return re.sub(r"\b(?:builtins|typing|collections\.abc|types)\.", "", inside[1])


def test_pyright_keeps_the_signatures() -> None:
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(SAMPLE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    report = json.loads(done.stdout)["generalDiagnostics"]
    errors = {one["range"]["start"]["line"] + 1 for one in report if one["severity"] == "error"}
    assert errors == EXPECTED_ERRORS, report
    revealed = [one["message"] for one in report if one["severity"] == "information"]
    function = "(item: str, *, size: int = 1) -> CoroutineType[Any, Any, bool]"
    assert [re.fullmatch(r'Type of "\w+" is "(.*)"', text)[1] for text in revealed] == [  # type: ignore[index]
        function,
        function,
        "(item: str) -> bytes",
    ]
