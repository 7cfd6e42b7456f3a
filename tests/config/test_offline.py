"""Validation without environment and secrets, as for pull requests; and secrets from programs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asgi_datasource.config import Code, ConfigFile, examine, json_schema, load, programs
from asgi_datasource.config.keys import secret_places
from asgi_datasource.config.limits import MAX_SECRET_BYTES
from asgi_datasource.config.loading import ALLOW_COMMANDS
from tests.config.documents import PASSWORD, full, put, small

URLS = """\
version: 1
datasources:
  orders:
    primary: {url: "${PRIMARY}"}
    replicas: {r1: {url: {file: /nowhere}}, r2: {url: {command: [vault, read, r2]}}}
    pool: {max_size: "${SIZE}", min_size: "${LEAST:-2}"}
tenancy: {resolve: [{header: X-Tenant}]}
tenants: {acme: {datasource: "${WHERE}", schema: acme}, globex: {datasource: orders, schema: globex}}
"""


def test_offline_no_reference_is_resolved(tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(URLS)
    findings = examine(path, is_offline=True, environ={"PRIMARY": "no url", "SIZE": "many"})
    assert findings.diagnostics == ()
    config = findings.config
    assert config is not None
    assert config.datasources["orders"].pool.min_size == 2
    assert config.datasources["orders"].pool.max_size == 10
    assert list(config.datasources["orders"].replicas) == ["r1", "r2"]
    assert list(config.tenants) == ["globex"]


def test_offline_all_other_problems_are_found(tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(
        URLS.replace("${LEAST:-2}", "${LEAST:-two}").replace(
            "globex: {datasource: orders", "globex: {datasource: order"
        )
        + "nonsense: ${X}\n"
    )
    found = [(problem.code, problem.key) for problem in examine(path, is_offline=True).errors]
    assert found == [
        (Code.WRONG_VALUE, "datasources.orders.pool.min_size"),
        (Code.UNKNOWN_DATASOURCE, "tenants.globex.datasource"),
        (Code.UNKNOWN_KEY, "nonsense"),
    ]


def test_offline_a_malformed_reference_is_an_error() -> None:
    [problem] = examine(small(tenants={"acme": {"datasource": "${"}}), is_offline=True).errors
    assert problem.code is Code.MALFORMED_REFERENCE


def test_ten_thousand_unset_variables_are_reported_in_bounded_time(tmp_path: Path) -> None:
    tenants = {f"t{number}": {"datasource": f"${{NAME_{number}}}"} for number in range(10_000)}
    environ = {f"VARIABLE_{number}": "" for number in range(50)}
    started = time.process_time()
    problems = examine(small(tenants=tenants), environ=environ).errors
    assert len(problems) == 1_000
    assert examine(small(tenants=tenants), is_offline=True).errors == ()
    assert time.process_time() - started < 30


def program(tmp_path: Path, code: str) -> list[str]:
    script = tmp_path / "secret.py"
    script.write_text(code)
    return [sys.executable, str(script)]


def with_command(arguments: object) -> dict[str, Any]:
    return put(full(), ("datasources", "*", "primary"), "url", {"command": arguments})


def write(tmp_path: Path, arguments: list[str]) -> Path:
    import json

    path = tmp_path / "datasource.json"
    path.write_text(json.dumps(with_command(arguments)))
    return path


def test_a_program_provides_a_secret_if_allowed(tmp_path: Path) -> None:
    code = "import os, sys; print('host=' + os.environ['PLACE'], *sys.argv[1:], 'application_name=' + os.getcwd())"
    path = write(tmp_path, [*program(tmp_path, code), "dbname=${NAME:-x}"])
    environ = {"PLACE": "db", "NAME": "$HOME"}
    config = load(ConfigFile(path, allow_commands=True), environ=environ)
    url = config.datasources["orders"].primary.url.get_secret_value()
    assert url == f"host=db dbname=$HOME application_name={os.path.realpath(tmp_path)}"
    assert load(path, environ={**environ, ALLOW_COMMANDS: "1"}) == config


def test_a_program_is_not_run_unless_allowed(tmp_path: Path) -> None:
    mark = tmp_path / "was run"
    path = write(tmp_path, program(tmp_path, f"open({str(mark)!r}, 'w')"))
    for findings in (
        examine(path, environ={}),
        examine(path, environ={ALLOW_COMMANDS: "yes"}),
        examine(ConfigFile(path, allow_commands=True), is_offline=True, environ={ALLOW_COMMANDS: "1"}),
    ):
        assert {problem.code for problem in findings.errors} <= {Code.COMMAND}
    assert not mark.exists()


FAILING = [
    (f"import sys; print('{PASSWORD}'); print('{PASSWORD}', file=sys.stderr); sys.exit(3)", "it exited with 3"),
    (f"print('{PASSWORD}' * {MAX_SECRET_BYTES})", "it prints more than 64 kB"),
    ("import sys; sys.stdout.buffer.write(bytes([255]))", "what it prints is not UTF-8"),
    ("import os; os.kill(os.getpid(), 9)", "it exited with -9"),
]


@pytest.mark.parametrize(("code", "says"), FAILING, ids=[says for _, says in FAILING])
def test_a_failed_program_is_reported(code: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, program(tmp_path, code))
    [problem] = examine(ConfigFile(path, allow_commands=True)).errors
    assert problem.code is Code.COMMAND
    assert says in problem.message
    assert PASSWORD not in str(problem)
    assert capfd.readouterr() == ("", "")


def test_a_missing_program_is_reported(tmp_path: Path) -> None:
    [problem] = examine(ConfigFile(write(tmp_path, ["/nowhere/vault"]), allow_commands=True)).errors
    assert problem.code is Code.COMMAND
    assert "it cannot be started: No such file or directory" in problem.message


def test_a_program_that_does_not_end_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "COMMAND_TIMEOUT_S", 1.0)
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(note)!r}, 'w').write(str(child.pid))\ntime.sleep(600)\n"
    )
    path = write(tmp_path, program(tmp_path, code))
    [problem] = examine(ConfigFile(path, allow_commands=True)).errors
    assert "it took longer than 1 s" in problem.message
    pid = int(note.read_text())
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the program's child still runs")


@pytest.mark.parametrize("arguments", [[], "vault read", [1], [""], {"a": 1}, None])
def test_an_invalid_command_is_reported(arguments: object) -> None:
    document = with_command(arguments)
    assert not Draft202012Validator(json_schema()).is_valid(document)
    [problem] = examine(document, environ={ALLOW_COMMANDS: "1"}).errors
    assert problem.key == "datasources.orders.primary.url"
    assert Draft202012Validator(json_schema()).is_valid(with_command(["vault"]))


def test_the_paths_of_secrets_are_found() -> None:
    assert ("datasources", "*", "primary", "url") in secret_places()
    assert ("datasources", "*", "replicas", "*", "url") in secret_places()


PLAIN = [
    (f"postgresql://app:{PASSWORD}@db/orders", True),
    (f"postgres://app:{PASSWORD}@a,b/orders", True),
    (f"host=db password={PASSWORD}", True),
    (f"host=db password = '{PASSWORD} x'", True),
    (f"postgresql://db/orders?user=x&password={PASSWORD}", True),
    ("postgresql://app@db/orders", False),
    ("postgresql://app:${PASSWORD}@db/orders", False),
    ("postgresql://app:${PASSWORD:-}@db/orders", False),
    ("postgresql://${LOGIN}@db/orders", False),
    ("host=db passfile=/run/pass", False),
    ("host=db password=${PASSWORD}", False),
    ("service=orders", False),
    ("${URL}", False),
    ("postgresql://[::1]:5432/orders", False),
]


@pytest.mark.parametrize(("url", "is_plain"), PLAIN)
def test_a_password_in_the_file_is_a_warning(url: str, is_plain: bool, tmp_path: Path) -> None:
    document = put(full(), ("datasources", "*", "primary"), "url", url)
    path = tmp_path / "datasource.json"
    path.write_text(json.dumps(document))
    findings = examine(path, is_offline=True)
    # A secret in a mapping is not in a file.
    assert examine(document, is_offline=True).diagnostics == ()
    assert [problem.code for problem in findings.diagnostics] == ([Code.PLAIN_SECRET] if is_plain else [])
    for problem in findings.diagnostics:
        assert problem.fix == ("Take it from the environment, ${ORDERS_PRIMARY_URL}, or from a file, {file: path}.")
        assert PASSWORD not in f"{problem}{problem!r}"
