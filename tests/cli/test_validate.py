"""`validate`: files, options, and exit codes; and that it uses no network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.run import call, run

GOOD = """\
version: 1
datasources: {orders: {primary: {url: "${ORDERS_URL}"}, pool: {max_size: "${SIZE:-10}"}}}
tenancy: {resolve: [{header: X-Tenant}]}
tenants: {acme: {datasource: orders}}
"""
WARNED = GOOD.replace("tenants: {", "tenants: {globex: {datasource: orders}, ")
BAD = GOOD.replace("datasource: orders}", "datasource: order}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "datasource.yaml").write_text(GOOD)
    (tmp_path / "bad.yaml").write_text(BAD)
    (tmp_path / "warned.yaml").write_text(WARNED)
    (tmp_path / "prod.yaml").write_text("tenants: {acme: {datasource: ordes}}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["datasource.yaml"], 0, "datasource.yaml: nothing found"),
        ([], 0, "datasource.yaml: nothing found"),
        (["bad.yaml"], 1, "error[ADS040]"),
        (["datasource.yaml", "bad.yaml"], 1, "2 files: 1 error"),
        (["warned.yaml"], 0, "warning[ADS041]"),
        (["warned.yaml", "--strict"], 1, "warning[ADS041]"),
        (["nowhere.yaml"], 2, "error[ADS001]"),
        (["bad.yaml", "nowhere.yaml"], 2, "error[ADS040]"),
        (["--overlay", "prod.yaml"], 1, "prod.yaml:1:30"),
        (["--environment"], 1, "error[ADS010]"),
        (["--env-file", "good.env"], 0, "nothing found"),
        (["--env-file", "wrong.env"], 1, "expected a whole number from 1 to 10000"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, says: str, folder: Path) -> None:
    (folder / "good.env").write_text("# names\nexport ORDERS_URL='host=db'\n\nSIZE=20\n")
    (folder / "wrong.env").write_text("ORDERS_URL=host=db\nSIZE=hunter2\n")
    done = run("validate", *arguments, cwd=folder)
    assert (done.code, done.err) == (code, "")
    assert says in done.out
    assert "hunter2" not in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env-file", "nowhere.env"], "nowhere.env cannot be read: No such file or directory"),
        (["--env-file", "prod.yaml"], "prod.yaml:1 is not NAME=value"),
        (["--format", "xml"], "argument --format: invalid choice"),
    ],
)
def test_bad_usage_exits_with_2(arguments: list[str], says: str, folder: Path) -> None:
    done = run("validate", *arguments, cwd=folder)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--hook", "--strict", "datasource.yaml", "--environment.yaml"], 1, "--environment.yaml:2:"),
        (["--hook", "--strict", "--", "--environment.yaml"], 1, "--environment.yaml:2:"),
        (["--hook", "--overlay", "prod.yaml", "datasource.yaml"], 1, "prod.yaml:1:30"),
        (["--", "--environment.yaml"], 1, "--environment.yaml:2:"),
        (["--hook", "--unknown.yaml"], 2, ""),
    ],
)
def test_a_file_name_may_look_like_an_option(arguments: list[str], code: int, says: str, folder: Path) -> None:
    (folder / "--environment.yaml").write_text(BAD.replace("primary", "prmary"))
    done = call("validate", *arguments, cwd=folder)
    assert done.code == code
    assert says in done.out


def test_the_default_file_must_exist(tmp_path: Path) -> None:
    done = run("validate", cwd=tmp_path)
    assert done.code == 2
    assert "there is no datasource.yaml, datasource.yml, datasource.toml or datasource.json here" in done.err


def test_resolvers_in_code_replace_those_of_the_document(folder: Path) -> None:
    path = folder / "code.yaml"
    path.write_text(GOOD.replace("tenancy: {resolve: [{header: X-Tenant}]}\n", ""))
    assert run("validate", path).code == 1
    assert run("validate", path, "--resolvers-in-code").code == 0


def test_validate_does_not_use_the_network(folder: Path) -> None:
    """`unshare --net` removes all addresses, so that every connection and name lookup fails."""
    import subprocess
    import sys

    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "asgi_datasource", "validate", "--format", "json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["diagnostics"] == []
