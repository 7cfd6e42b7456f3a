"""The program around the commands: help, exit codes, output, and imports."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import asgi_datasource
from asgi_datasource import cli
from asgi_datasource.cli import CannotRun, ExitCode, Style, console
from asgi_datasource.cli.commands import COMMANDS
from tests.cli.run import run

HEAVY = {"pydantic", "psycopg", "psycopg_pool", "starlette", "yaml", "opentelemetry", "asyncio", "dataclasses_json"}
GOOD = "version: 1\ndatasources: {orders: {primary: {url: host=db}}}\ntenancy: {default: orders}\n"


def loaded_by(code: str) -> set[str]:
    """The top-level packages that some code imports in a fresh process."""
    script = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["--help"], [], ["--nothing"], ["nothing"]], ids=" ".join)
def test_help_imports_no_heavy_package(arguments: list[str]) -> None:
    code = (
        "from asgi_datasource.cli import main\nimport io, sys\nerr, sys.stderr = sys.stderr, io.StringIO()\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\nsys.stderr = err"
    )
    assert not loaded_by(code) & HEAVY


def test_validating_loads_neither_driver_nor_framework(tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(GOOD)
    loaded = loaded_by(f"from asgi_datasource.cli import main\nassert main(['validate', {str(path)!r}]) == 0")
    assert "pydantic" in loaded
    assert not loaded & {"psycopg", "psycopg_pool", "starlette", "opentelemetry"}


def test_help_names_every_command() -> None:
    done = run("--help")
    assert (done.code, done.err) == (0, "")
    for name, entry in COMMANDS.items():
        assert f"  {name} " in done.out
        assert entry.summary in done.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"asgi-datasource {name}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert run("--version").out == f"asgi-datasource {version('asgi-datasource')}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validat", "x.yaml"], "error: there is no command 'validat'. Did you mean 'validate'?"),
        (["zzz"], f"error: there is no command 'zzz'. There are: {', '.join(COMMANDS)}."),
        (["--verbos"], "error: there is no option --verbos. See asgi-datasource --help."),
        (["--format", "json", "validate"], "error: there is no command 'json'"),
    ],
)
def test_bad_usage_exits_with_2(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


def test_without_arguments_help_goes_to_stderr() -> None:
    done = run()
    assert (done.code, done.out) == (2, "")
    assert "usage: asgi-datasource COMMAND" in done.err


def test_the_result_can_go_to_a_file(tmp_path: Path) -> None:
    done = run("schema", "--output", "schema.json", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert json.loads((tmp_path / "schema.json").read_text()) == asgi_datasource.json_schema()
    done = run("schema", "--output", "nowhere/schema.json", cwd=tmp_path)
    assert done.code == 2
    assert "nowhere/schema.json cannot be written: No such file or directory" in done.err


def test_a_closed_pipe_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "asgi_datasource", "schema"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_internal_error_exits_with_2_and_not_like_findings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr("asgi_datasource.cli.commands.schema.run", fail)
    assert cli.main(["schema"]) == ExitCode.CANNOT_RUN
    printed = capsys.readouterr().err
    assert "RuntimeError inside asgi-datasource" in printed
    assert "in fail" in printed
    assert "hunter2" not in printed.replace('raise RuntimeError("hunter2")', "")


def test_ctrl_c_exits_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("asgi_datasource.cli.commands.schema.run", interrupt)
    assert cli.main(["schema"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_command_that_cannot_run_prints_the_fix() -> None:
    assert str(CannotRun("the door is shut", "Open it.")) == "the door is shut. Open it."


class Terminal(io.StringIO):
    """A stream that reports to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("choice", "stream", "environ", "expected"),
    [
        ("auto", Terminal(), {}, True),
        ("auto", io.StringIO(), {}, False),
        ("auto", Terminal(), {"NO_COLOR": "1"}, False),
        ("auto", Terminal(), {"NO_COLOR": ""}, True),
        ("auto", Terminal(), {"TERM": "dumb"}, False),
        ("auto", io.StringIO(), {"FORCE_COLOR": "1"}, True),
        ("auto", io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ("always", io.StringIO(), {"NO_COLOR": "1"}, True),
        ("never", Terminal(), {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colour_is_for_terminals(choice: str, stream: Any, environ: dict[str, str], expected: bool) -> None:
    assert console.wants_colour(choice, stream, environ) is expected


def test_plain_text_has_no_escapes() -> None:
    assert Style().red("x") == "x"
    assert Style(True).red("x") == "\x1b[1;31mx\x1b[0m"
    assert Style(True).red("") == ""
