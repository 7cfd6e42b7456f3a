"""Completion in the real shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from asgi_datasource.cli.commands import COMMANDS
from tests.cli.run import run


def script(shell: str, folder: Path) -> Path:
    done = run("completion", shell)
    assert done.code == 0, done.err
    path = folder / f"completion.{shell}"
    path.write_text(done.out)
    return path


def program(shell: str) -> str:
    found = shutil.which(shell)
    assert found, f"{shell} is not installed; scripts/test installs it"
    return found


def bash(words: list[str], folder: Path) -> set[str]:
    """The completions of the last word in bash."""
    quoted = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script('bash', folder)}\nCOMP_WORDS=({quoted})\nCOMP_CWORD={len(words) - 1}\n"
        '_asgi_datasource\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [program("bash"), "--norc", "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd=folder
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["asgi-datasource", ""], {*COMMANDS, "--help", "--version"}),
        (["asgi-datasource", "va"], {"validate"}),
        (["asgi-datasource", "validate", "--st"], {"--strict"}),
        (["asgi-datasource", "validate", "--format", "s"], {"sarif"}),
        (["asgi-datasource", "diff", "--format", ""], {"text", "markdown", "json"}),
        (["asgi-datasource", "completion", "z"], {"zsh"}),
        (["asgi-datasource", "validate", "data"], {"datasource.yaml"}),
    ],
)
def test_bash(words: list[str], expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "datasource.yaml").write_text("")
    assert bash(words, tmp_path) == expected


def test_zsh_takes_the_script(tmp_path: Path) -> None:
    code = (
        f"autoload -U compinit && compinit -u -D\nsource {script('zsh', tmp_path)}\n"
        'words=(asgi-datasource va); print -r -- "${_comps[asgi-datasource]}"; whence -w _asgi_datasource'
    )
    done = subprocess.run(
        [program("zsh"), "-f", "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd=tmp_path
    )
    assert "_bash_complete" in done.stdout
    assert "_asgi_datasource: function" in done.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("asgi-datasource va", {"validate"}),
        ("asgi-datasource validate --format sa", {"sarif"}),
        ("asgi-datasource validate --stri", {"--strict"}),
    ],
)
def test_fish(line: str, expected: set[str], tmp_path: Path) -> None:
    code = f"source {script('fish', tmp_path)}; complete -C '{line}'"
    done = subprocess.run(
        [program("fish"), "--no-config", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert {found.split("\t")[0] for found in done.stdout.splitlines()} == expected
