"""The formats of a report: each is valid for its readers, and none contains a secret."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft4Validator, Draft202012Validator

from asgi_datasource.cli import ExitCode, Style
from asgi_datasource.cli.rendering import FORMATS, Report
from asgi_datasource.cli.rendering.excerpt import Excerpt, Excerpts
from asgi_datasource.config import Code, Format, Position, Severity, Text, describe_diagnostics, examine

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PASSWORD = "hunter2-Tr0ub4dor"

WRONG = f"""\
version: 1

tenancy: {{resolve: [{{header: X-Tenant}}]}}

datasources:
  orders:
    primary: {{url: "postgresql://app:{PASSWORD}@db/orders"}}   # the password is {PASSWORD}
    pool: {{max_sise: 20, acquire_timeout: 3}}
    replicas:
      r1: {{url: "host=r1 password={PASSWORD}", wieght: 1}}
      r2: {{urk: "{PASSWORD} of r2"}}

tenants:
  acme: {{datasource: order, schema: acme}}
  umbrella: {{datasource: orders}}
  globex: {{datasource: orders}}  # ads: ignore[ADS041] the application filters

routes:
  - {{match: "GET /**", intent: read}}
  - {{match: "GET /x", intent: raed}}
"""
GOOD = "version: 1\ndatasources: {orders: {primary: {url: host=db}}}\ntenancy: {default: orders}\n"


def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str = WRONG, *, is_strict: bool = False) -> Report:
    monkeypatch.chdir(tmp_path)
    Path("conf").mkdir(exist_ok=True)
    path = Path("conf/datasource.yaml")
    path.write_text(text)
    return Report.of("validate", [str(path)], [examine(path, environ={})], is_strict=is_strict)


@pytest.mark.parametrize("form", FORMATS)
def test_no_format_shows_a_password(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(tmp_path, monkeypatch)
    assert {problem.position.line for problem in found.diagnostics if problem.position} >= {8, 10, 11}
    for style in (Style(), Style(True)):
        assert PASSWORD not in found.render(form, style)


EXPECTED = """\
error[ADS020]: unknown key
 --> conf/datasource.yaml:8:12
  |
8 |     pool: {max_sise: 20, acquire_timeout: 3}
  |            ^^^^^^^^ datasources.orders.pool.max_sise
  |
  = fix: Did you mean 'max_size'?
  = asgi-datasource rule ADS020
"""


def test_text_shows_the_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = report(tmp_path, monkeypatch).render("text", Style())
    assert f"\n\n{EXPECTED}" in text
    assert '10 |       r1: {url: "…", wieght: 1}\n   |                      ^^^^^^ datasources' in text
    assert "   = see: routes[0].match at conf/datasource.yaml:19:6" in text
    assert text.endswith(
        "conf/datasource.yaml: 8 errors, 3 warnings (1 ignored, with reasons); 6 can be fixed with --fix"
    )
    assert "\x1b" not in text


def test_the_documentation_shows_the_real_output() -> None:
    shown = EXPECTED.replace("conf/datasource.yaml", "datasource.yaml")
    assert f"```\n{shown}```" in (ROOT / "docs" / "cli.md").read_text()


def test_colour_does_not_change_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(tmp_path, monkeypatch)
    for form in ("text", "concise"):
        coloured = found.render(form, Style(True))
        assert "\x1b[" in coloured
        assert re.sub("\x1b\\[[0-9;]*m", "", coloured) == found.render(form, Style())


def test_concise_prints_one_line_for_each_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(tmp_path, monkeypatch)
    lines = found.render("concise", Style()).splitlines()
    assert len(lines) == len(found.diagnostics) + 1
    assert all(re.match(r"conf/datasource\.yaml:\d+:\d+: ADS\d{3} ", line) for line in lines[:-1])


def test_a_report_without_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(tmp_path, monkeypatch, GOOD)
    assert found.render("text", Style()) == "conf/datasource.yaml: nothing found"
    assert found.render("github", Style()) == ""
    assert json.loads(found.render("gitlab", Style())) == []
    assert found.exit_code is ExitCode.CLEAN


def test_json_follows_its_published_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = json.loads((ROOT / "schemas" / "diagnostics" / "v1.json").read_text())
    Draft202012Validator.check_schema(schema)
    for text in (WRONG, GOOD, "", "a: [", "version: 1"):
        found = report(tmp_path, monkeypatch, text)
        document = json.loads(found.render("json", Style()))
        Draft202012Validator(schema).validate(document)
        assert document["counts"] == {severity.value: found.count(severity) for severity in Severity}
        assert [each["code"] for each in document["diagnostics"]] == [each.code for each in found.diagnostics]
    mapping = examine({"version": 1, "datasources": {}})
    Draft202012Validator(schema).validate(describe_diagnostics("x", [], mapping.diagnostics))


def test_sarif_follows_the_official_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = json.loads((HERE / "schemas" / "sarif-2.1.0-rtm.5.json").read_text())
    validator = Draft4Validator(schema, format_checker=Draft4Validator.FORMAT_CHECKER)
    for text in (WRONG, GOOD, ""):
        found = report(tmp_path, monkeypatch, text)
        log = json.loads(found.render("sarif", Style()))
        assert [error.message for error in validator.iter_errors(log)] == []
        [run] = log["runs"]
        rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
        for result, problem in zip(run["results"], found.diagnostics, strict=False):
            assert rules[result["ruleIndex"]] == result["ruleId"] == problem.code
            place = result["locations"][0]["physicalLocation"]
            assert place["artifactLocation"]["uri"] == "conf/datasource.yaml"
            assert problem.position is not None
            if problem.position.line is not None:
                assert place["region"]["startLine"] == problem.position.line
                assert place["region"]["startColumn"] == problem.position.column
    assert not validator.is_valid({**log, "version": "2.0.0"})


def test_sarif_contains_ignored_findings_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [run] = json.loads(report(tmp_path, monkeypatch).render("sarif", Style()))["runs"]
    [ignored] = [result for result in run["results"] if "suppressions" in result]
    assert ignored["ruleId"] == "ADS041"
    assert ignored["suppressions"] == [{"kind": "inSource", "justification": "the application filters"}]


def test_github_gets_one_command_for_each_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(tmp_path, monkeypatch)
    lines = found.render("github", Style()).splitlines()
    assert len(lines) == len(found.diagnostics)
    assert lines[1] == (
        "::error title=asgi-datasource ADS020,file=conf/datasource.yaml,line=8,col=12::"
        "datasources.orders.pool.max_sise: unknown key. Did you mean 'max_size'?"
    )
    assert any(line.startswith("::warning ") for line in lines)


def test_github_properties_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("50%,a:b.yaml")
    path.write_text("nonsense: 1\n")
    line = (
        Report.of("validate", [str(path)], [examine(path)], is_strict=False).render("github", Style()).splitlines()[0]
    )
    assert ",file=50%25%2Ca%3Ab.yaml,line=1," in line


def test_gitlab_gets_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(tmp_path, monkeypatch)
    entries: list[dict[str, Any]] = json.loads(found.render("gitlab", Style()))
    # The keys that GitLab's documentation requires of each entry.
    for entry in entries:
        assert set(entry) == {"description", "check_name", "fingerprint", "severity", "location"}
        assert entry["severity"] in {"info", "minor", "major", "critical", "blocker"}
        assert entry["location"]["path"] == "conf/datasource.yaml"
        assert entry["location"]["lines"]["begin"] >= 1
    prints = [entry["fingerprint"] for entry in entries]
    assert len(set(prints)) == len(prints) == len(found.diagnostics)
    moved = report(tmp_path, monkeypatch, f"# one line more\n{WRONG}")
    assert [entry["fingerprint"] for entry in json.loads(moved.render("gitlab", Style()))] == prints


@pytest.mark.parametrize("is_strict", [False, True])
def test_junit_reports_the_file_as_failed(is_strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(tmp_path, monkeypatch, is_strict=is_strict)
    root = ElementTree.fromstring(found.render("junit", Style()))
    assert root.tag == "testsuites"
    [suite] = root
    [case] = suite
    assert (suite.get("tests"), suite.get("failures"), case.get("name")) == ("1", "1", "conf/datasource.yaml")
    failure = case.find("failure")
    assert failure is not None
    assert failure.text is not None
    assert failure.text.count("ADS") == (len(found.diagnostics) if is_strict else 8)
    good = ElementTree.fromstring(report(tmp_path, monkeypatch, GOOD).render("junit", Style()))
    assert good.find(".//failure") is None


def test_strict_exits_with_1_on_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{GOOD}tenants: {{acme: {{datasource: orders}}, globex: {{datasource: orders}}}}\n".replace(
        "default: orders", "resolve: [{header: X}]"
    )
    found = report(tmp_path, monkeypatch, text)
    assert [problem.code for problem in found.diagnostics] == [Code.SHARED_PLACE]
    assert found.exit_code is ExitCode.CLEAN
    assert report(tmp_path, monkeypatch, text, is_strict=True).exit_code is ExitCode.FINDINGS


EXCERPTS = [
    # a line, the lines above it, the notation, the start of the position, and the shown line
    ("    url: postgresql://a:b@c/d", "datasources:\n  a:\n   primary:\n", Format.YAML, "postgres", "    url: …"),
    ("    url: host=db password=x", "datasources:\n  a:\n   primary:\n", Format.YAML, "host", "    url: …"),
    ("      hunter2", "datasources:\n  a:\n   primary:\n    url:\n", Format.YAML, "hunter2", "      …"),
    ('url = "postgresql://a:b@c/d" # b', "[datasources.a.primary]\n", Format.TOML, '"', 'url = "…" # …'),
    ('{"url": "postgresql://a:b@c/d", "x": 1}', "", Format.JSON, '"x"', '{"url": "…", "x": 1}'),
    ("{url: '${X}', b: '${Y:-z}', c: '${Z:-p w}'}", "", Format.YAML, "b", "{url: '${X}', b: '…', c: '…'}"),
    ("    - header: '${Y:-z}'", "tenancy:\n  resolve:\n", Format.YAML, "h", "    - header: '${Y:-z}'"),
    ("    - header: a@b", "tenancy:\n  resolve:\n", Format.YAML, "a@b", "    - header: …"),
    ("client_secret: abc", "", Format.YAML, "abc", "client_secret: …"),
    ("    - callable: a.b:c", "tenancy:\n  resolve:\n", Format.YAML, "a.b", "    - callable: a.b:c"),
    ('  - match: "GET /reports/**"', "routes:\n", Format.YAML, '"', '  - match: "GET /reports/**"'),
    ("urk: hunter2", "", Format.YAML, "hunter2", "urk: …"),
    ("  a: {datasource: orders, schema: b}", "tenants:\n", Format.YAML, "a:", "  a: {datasource: orders, schema: b}"),
    ("  row_security: {app.tenant: x}", "tenants:\n a:\n", Format.YAML, "x}", "  row_security: {app.tenant: …}"),
    ("  spans: no", "telemetry:\n", Format.YAML, "no", "  spans: no"),
    ("   schema: it's", "tenants:\n  a:\n", Format.YAML, "it", "   schema: …"),
    ("x: 'unclosed pass@word", "", Format.YAML, "'", "x: '… …"),
    ("  secret: hunter2: x", "consistency:\n", Format.YAML, "hunter2", "  secret: …: …"),
    ("  secret: hunter2", "consistency:\n", Format.YAML, "hunter2", "  secret: …"),
    ("  secret: '${TOKEN}'", "consistency:\n", Format.YAML, "$", "  secret: '${TOKEN}'"),
    ("  secret: '${TOKEN:-hunter2}'", "consistency:\n", Format.YAML, "$", "  secret: '…'"),
    ("  secret: {file: hunter2}", "consistency:\n", Format.YAML, "file", "  secret: {file: …}"),
    ("  old_secrets: [1234, hunter2, on]", "consistency:\n", Format.YAML, "1", "  old_secrets: […, …, …]"),
    ("    spans: hunter2", "consistency:\n  secret: |\n", Format.YAML, "spans", "    …"),
    ("x: &hunter2 !hunter2 {a: 1}", "", Format.YAML, "x", "x: … … {a: 1}"),
    ('  "consistency": {"secret": "hunter2"},', "{\n", Format.JSON, '"c', '  "consistency": {"secret": "…"},'),
]


@pytest.mark.parametrize(("line", "above", "form", "at", "shown"), EXCERPTS)
def test_an_excerpt_shows_plain_words_only(line: str, above: str, form: Format, at: str, shown: str) -> None:
    text = Text("x", form, f"{above}{line}\n")
    found = excerpt(text, above.count("\n") + 1, line.index(at) + 1)
    assert found is not None
    assert found.text == shown
    assert found.start + found.length <= len(shown) + 1


def excerpt(text: Text, line: int, column: int) -> Excerpt | None:
    position = Position(text.file, line, column)
    return Excerpts([text], [position]).at(position)


def test_a_long_line_is_shortened_around_the_position() -> None:
    line = "{" + ", ".join(f"key{number}: {number}" for number in range(500)) + "}"
    column = line.index("key300") + 1
    found = excerpt(Text("x", Format.YAML, line), 1, column)
    assert found is not None
    assert len(found.text) <= 160
    assert found.text[found.start : found.start + found.length] == "key300"


def test_an_excerpt_outside_of_the_file_is_empty() -> None:
    assert excerpt(Text("x", Format.YAML, "a: 1"), 7, 1) is None
