"""The integrations with CI systems, run as these systems run them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
GOOD = 'version: 1\ndatasources: {orders: {primary: {url: "${ORDERS_URL}"}}}\ntenancy: {default: orders}\n'
BAD = GOOD.replace("default: orders", "default: order")


def shell(script: str, cwd: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the published files of this one."""
    folder = tmp_path_factory.mktemp("tool")
    for name in ("asgi_datasource", "schemas"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml", "action.yml"):
        shutil.copy(ROOT / name, folder / name)
    git("init", "-q", "-b", "main", cwd=folder)
    git("add", "-A", cwd=folder)
    git("commit", "-q", "-m", "all", cwd=folder)
    git("tag", "v0", cwd=folder)
    return folder


def git(*arguments: str, cwd: Path) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.hooksPath=/dev/null"]
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A virtual environment with the dependencies of the package, but without the package."""
    folder = tmp_path_factory.mktemp("venv")
    # pip is among the linked packages; installing it would take ten times as long as everything else here.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec {folder / "bin" / "python"} -m pip "$@"\n')
    pip.chmod(0o755)
    site = next((folder / "lib").glob("python*/site-packages"))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "asgi_datasource" not in entry.name and not (site / entry.name).exists() and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    # The build backend is among the linked packages, too; pip would fetch it each time. (pip spells this option `0`.)
    pip_settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1"}
    # Without PYTHONPATH, so that the installed package is imported.
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "PYTHONPATH": "", "SITE": str(site), **pip_settings}


def run_action(tool: Path, cwd: Path, environ: Mapping[str, str], **inputs: str) -> dict[str, Any]:
    """Run the steps of `action.yml` like GitHub's runner, up to the first failure."""
    action = yaml.safe_load((tool / "action.yml").read_text())
    values = {name: str(given.get("default", "")) for name, given in action["inputs"].items()} | inputs
    summary = cwd / "summary.md"

    def filled(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: values[match[1]], text)

    ran: dict[str, Any] = {}
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        if step.get("if") == "inputs.base != ''" and not values["base"]:
            continue
        variables = {name: filled(value) for name, value in step.get("env", {}).items()}
        github = {"GITHUB_ACTION_PATH": str(tool), "GITHUB_STEP_SUMMARY": str(summary)}
        ran[step["name"]] = shell(filled(step["run"]), cwd, {**environ, **variables, **github})
        if ran[step["name"]].returncode:
            break
    return ran


@pytest.mark.timeout(600)
def test_the_github_action(tool: Path, python: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "datasource.yaml").write_text(GOOD)
    (tmp_path / "main.yaml").write_text(GOOD + "transactions: {deadline: 5s}\n")
    ran = run_action(tool, tmp_path, python, base="main.yaml", strict="true", sarif="out.sarif")
    assert {name: done.returncode for name, done in ran.items()} == {"Install": 0, "Validate": 0, "Changes": 0}, ran
    assert "`transactions.deadline`" in (tmp_path / "summary.md").read_text()
    assert json.loads((tmp_path / "out.sarif").read_text())["version"] == "2.1.0"
    (tmp_path / "datasource.yaml").write_text(BAD)
    action = yaml.safe_load((tool / "action.yml").read_text())
    [validate] = [step["run"] for step in action["runs"]["steps"] if step["name"] == "Validate"]
    done = shell(
        validate, tmp_path, {**python, "FILES": "datasource.yaml", "OVERLAY": "", "STRICT": "", "SARIF": "out.sarif"}
    )
    assert done.returncode == 1
    assert done.stdout.startswith("::error title=asgi-datasource ADS040,file=datasource.yaml,line=3,col=20::")
    assert "ADS040" in (tmp_path / "out.sarif").read_text()
    # File names come from the pull request and are not options.
    (tmp_path / "datasource.yaml").write_text(GOOD.replace('"${ORDERS_URL}"', "{command: [touch, ran]}"))
    names = "datasource.yaml --environment\n--allow-commands"
    done = shell(validate, tmp_path, {**python, "FILES": names, "OVERLAY": "", "STRICT": "", "SARIF": ""})
    assert done.returncode == 2
    assert "file=--allow-commands::" in done.stdout
    assert not (tmp_path / "ran").exists()


@pytest.mark.timeout(600)
def test_the_gitlab_snippet(tool: Path, python: dict[str, str], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    job = yaml.safe_load(re.findall(r"### GitLab\n\n```yaml\n(.*?)```", page, re.DOTALL)[0])["datasource"]
    install, validate = job["script"]
    assert install == "pip install asgi-datasource"
    assert shell(install.replace("asgi-datasource", str(tool)), tmp_path, python).returncode == 0
    (tmp_path / "datasource.yaml").write_text(BAD)
    assert shell(validate, tmp_path, python).returncode == 1
    [entry] = json.loads((tmp_path / job["artifacts"]["reports"]["codequality"]).read_text())
    assert (entry["check_name"], entry["location"]["path"]) == ("ADS040", "datasource.yaml")
    (tmp_path / "datasource.yaml").write_text(GOOD)
    assert shell(validate, tmp_path, python).returncode == 0


@pytest.mark.timeout(900)
def test_the_pre_commit_hook(tool: Path, python: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    git("init", "-q", cwd=project)
    config = {"repos": [{"repo": str(tool), "rev": "v0", "hooks": [{"id": "asgi-datasource", "args": ["--strict"]}]}]}
    (project / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    (project / "datasource.yaml").write_text(BAD)
    (project / "datasource.schema.json").write_text("{}")
    (project / "other.yaml").write_text("a: [")
    git("add", "-A", cwd=project)

    def pre_commit() -> subprocess.CompletedProcess[str]:
        # pre-commit makes an environment for the hook; the dependencies come from the other environment.
        environ = {**os.environ, **python, "PATH": os.environ["PATH"], "PYTHONPATH": python["SITE"]}
        environ |= {"PRE_COMMIT_HOME": str(tmp_path / "home"), "GIT_CONFIG_GLOBAL": "/dev/null"}
        command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"]
        return subprocess.run(
            command, cwd=project, env=environ, capture_output=True, text=True, timeout=600, check=False
        )

    done = pre_commit()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "asgi-datasource validate.......Failed" in re.sub(r"\.+", ".......", done.stdout)
    assert "error[ADS040]" in done.stdout
    assert "other.yaml" not in done.stdout
    (project / "datasource.yaml").write_text(GOOD)
    git("add", "-A", cwd=project)
    done = pre_commit()
    assert done.returncode == 0, done.stdout
    # A file whose name looks like an option is validated like any other.
    folder = project / "--output=stolen"
    folder.mkdir()
    (folder / "datasource.yaml").write_text(BAD)
    (project / "stolen").mkdir()
    (project / "stolen" / "datasource.yaml").write_text(GOOD)
    git("add", "-A", cwd=project)
    done = pre_commit()
    assert done.returncode == 1
    assert "--> --output=stolen/datasource.yaml:3:20" in done.stdout
    assert (project / "stolen" / "datasource.yaml").read_text() == GOOD
