"""Large and malicious documents are validated quickly, whatever grows in them.

The bounds are far above the measured times: they catch hangs and quadratic time.
"""

from __future__ import annotations

import glob
import os
import socket
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from asgi_datasource.cli import Style
from asgi_datasource.cli.rendering import Report
from asgi_datasource.config import Code, Findings, Severity, edit_text, examine
from asgi_datasource.config.files import Search, TooManyEntries
from asgi_datasource.config.limits import MAX_DIAGNOSTICS

HEAD = 'version: 1\ndatasources: {a: {primary: {url: "${A}"}}}\n'
RESOLVE = "tenancy: {resolve: [{header: X-T}]}\n"
ACME = "tenants: {acme: {datasource: a}}\n"
MANY = 10_000
BOUND_S = 20


def lines(form: str, count: int = MANY) -> str:
    return "".join(form.replace("#", str(number)) for number in range(count))


def listed(form: str, count: int = MANY) -> str:
    return ",".join(form.replace("#", str(number)) for number in range(count))


LARGE: Final = (
    "rules",
    "unknown keys",
    "unknown keys of tenants",
    "unknown datasources",
    "many datasources to choose from",
    "words",
    "resolvers",
    "the same resolvers",
    "exempt prefixes",
    "hosts of unknown tenants",
    "statuses",
    "comments",
    "comments at findings",
    "duplicate keys",
    "one line",
    "secrets in files",
)


@cache
def large() -> dict[str, str]:
    """The documents by name, made when they are needed: they take a second."""
    return {
        "rules": f"{HEAD}{RESOLVE}{ACME}routes:\n" + lines("  - {match: 'GET /x#', intent: read}\n"),
        "unknown keys": f"{HEAD}{RESOLVE}{ACME}" + lines("k#: 1\n", 3 * MANY),
        "unknown keys of tenants": f"{HEAD}{RESOLVE}tenants:\n" + lines("  t#: {datasource: a, shema: t#}\n"),
        "unknown datasources": f"{HEAD}{RESOLVE}tenants:\n" + lines("  t#: {datasource: b#}\n"),
        "many datasources to choose from": "version: 1\ndatasources:\n"
        + lines("  d#: {primary: {url: host=h#}}\n", 3_000)
        + f"{RESOLVE}tenants:\n"
        + lines("  t#: {datasource: x#}\n", 3_000),
        "words": f"{HEAD}{RESOLVE}{ACME}routes:\n" + lines("  - {match: '/x#', intent: raed#, priority: hihg}\n"),
        "resolvers": f"{HEAD}tenancy:\n  resolve:\n" + lines("    - {header: X-#}\n") + ACME,
        "the same resolvers": f"{HEAD}tenancy:\n  resolve:\n" + lines("    - {header: X}\n") + ACME,
        "exempt prefixes": f"{HEAD}tenancy:\n  exempt: [{listed('/e#')}]\n  resolve:\n"
        + lines("    - {path_prefix: /p#}\n")
        + ACME,
        "hosts of unknown tenants": f"{HEAD}tenancy:\n  resolve:\n    - domain:\n"
        + lines("        h#.test: t#\n")
        + "tenants:\n"
        + lines("  u#: {datasource: a, schema: u#}\n"),
        "statuses": f"{HEAD}{RESOLVE}{ACME}routes:\n"
        + f"  - {{match: /x, commit_on: [{listed('409')}], rollback_on: [{listed('410')}]}}\n",
        "comments": f"{HEAD}{RESOLVE}{ACME}" + lines("# ads: ignore[ADS041] reason #\n"),
        "comments at findings": f"{HEAD}{RESOLVE}tenants:\n" + lines("  u#: {datasource: a} # ads: ignore[ADS041] x\n"),
        "duplicate keys": f"{HEAD}{RESOLVE}{ACME}" + lines("routes: []\n"),
        "one line": f"{HEAD}{RESOLVE}tenants: {{{listed(' t#: {datasource: b}')}}}\n",
        "secrets in files": "version: 1\ndatasources:\n"
        + lines("  d#: {primary: {url: {file: s#}}}\n", 3_000)
        + RESOLVE,
    }


@pytest.mark.parametrize("name", LARGE)
def test_a_large_document_is_validated_quickly(name: str, tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(large()[name])
    answer(path)


def test_each_large_document_is_tried() -> None:
    assert tuple(large()) == LARGE


DEEP = {
    "dotted key": "a" + ".a" * 50_000 + " = 1\n",
    "dotted table": "[a" + ".a" * 50_000 + "]\nb = 1\n",
    "quoted key": '"a"' + '."a"' * 50_000 + " = 1\n",
    "nested tables": "a = " + "{b = " * 50_000,
}


@pytest.mark.parametrize("name", DEEP)
def test_a_deep_toml_key_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "datasource.toml"
    path.write_text(DEEP[name])
    assert [problem.code for problem in answer(path).errors] in ([Code.TOO_LARGE], [Code.SYNTAX])
    path.write_text("version = 1\n" + "x = 'a" + ".a" * 50_000 + "'\n")
    assert Code.TOO_LARGE not in {problem.code for problem in answer(path).errors}


def answer(path: Path) -> Findings:
    """Validate a file and render the findings, within a bound on their time and number."""
    started = time.process_time()
    findings = examine(path, environ={"A": "host=db"}, is_offline=False)
    Report.of("validate", [str(path)], [findings], is_strict=False).render("text", Style())
    assert time.process_time() - started < BOUND_S
    assert len(findings.diagnostics) <= 4 * MAX_DIAGNOSTICS
    return findings


def test_many_fixes_are_applied_quickly(tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(f"{HEAD}{RESOLVE}tenants:\n" + lines("  t#: {datasource: a, shema: t#}\n", 2_000))
    started = time.process_time()
    findings = examine(path, environ={"A": "host=db"})
    [edits] = findings.safe_edits().values()
    text, made = edit_text(findings.texts[0], edits)
    assert len(made) == len(edits) == MAX_DIAGNOSTICS
    assert text.content.count("schema: t") == MAX_DIAGNOSTICS
    assert time.process_time() - started < BOUND_S


def test_findings_in_many_included_files_are_located_quickly(tmp_path: Path) -> None:
    for number in range(1_500):
        (tmp_path / f"t{number}.yaml").write_text(f"tenants:\n  t{number}: {{datasource: b}}\n")
    for number in range(1_500):
        (tmp_path / f"x{number}.txt").write_text("")
    path = tmp_path / "datasource.yaml"
    path.write_text(f"{HEAD}{RESOLVE}include: ['t*.yaml', '*.txt']\n")
    findings = answer(path)
    assert sum(problem.code is Code.INCLUDE for problem in findings.diagnostics) == MAX_DIAGNOSTICS


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


OTHERS = [(pipe, "it is a pipe"), (device, "it is a device"), (listener, "it is a socket")]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make", "says"), OTHERS, ids=lambda part: getattr(part, "__name__", ""))
def test_files_that_are_not_regular_are_refused(
    make: Callable[[Path], None], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    make(Path("other.yaml"))
    for source in ("other.yaml", "including.yaml"):
        Path("including.yaml").write_text(f"{HEAD}{RESOLVE}{ACME}include: [other.yaml]\n")
        [problem] = examine(source, environ={"A": "host=db"}).errors
        assert problem.code is (Code.INCLUDE if source == "including.yaml" else Code.NOT_READABLE)
        assert f"the file cannot be read: {says}, not a regular file" in problem.message
    Path("secret.yaml").write_text(
        f"{RESOLVE}version: 1\ndatasources: {{a: {{primary: {{url: {{file: other.yaml}}}}}}}}\n"
    )
    [problem] = examine("secret.yaml").errors
    assert problem.code is Code.SECRET_NOT_READABLE
    assert says in problem.message


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ["/**", "/**/*.yaml", "../../../../../../**/**/x"])
def test_a_pattern_over_the_whole_machine_is_refused(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_datasource.config.files.MAX_ENTRIES", 5_000)
    path = tmp_path / "datasource.yaml"
    path.write_text(f"{HEAD}{RESOLVE}{ACME}include: ['{pattern}']\n")
    [problem] = answer(path).errors
    assert (problem.code, problem.severity) == (Code.TOO_LARGE, Severity.ERROR)
    assert problem.message == "the patterns look at more than 100,000 files and folders"


def test_cyclic_links_are_followed_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yaml").write_text("")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "other").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to(tmp_path)
    found = Search(most=1_000).find(tmp_path, "**/*.yaml")
    assert {"a/a.yaml", "b/b.yaml", "a/other/b.yaml", "b/other/a.yaml"} <= set(found)


def test_patterns_find_the_same_files_as_glob(tmp_path: Path) -> None:
    for name in ("a/b/c.yaml", "a/.hidden/c.yaml", "a/.c.yaml", "x.y/c.json", "c.yaml", "d/e/f/g.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("d")
    patterns = ["*", "**", "**/*.yaml", "*/*", "a/**", "a/**/c.yaml", "./*.yaml", "[ac]*", "**/.*", ".*/*", "**/.h*/*"]
    patterns += ["a/../*", "**/e/**/*", "nope/*", "*/", "c.yaml", "nope", f"{tmp_path}/**/*.yml", "*.y?ml", "**/**/g*"]
    for pattern in patterns:
        expected = glob.glob(pattern, root_dir=tmp_path, recursive=True)  # noqa: PTH207 - for comparison
        found = Search().find(tmp_path, pattern)
        assert sorted(found) == list(found)
        assert {os.path.normpath(name) for name in found} == {
            os.path.normpath(name) for name in expected if not (tmp_path / name).is_dir()
        }, pattern
    with pytest.raises(TooManyEntries):
        Search(most=5).find(tmp_path, "**")
