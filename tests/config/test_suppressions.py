"""`# ads: ignore[...]`: what it applies to, what it cannot ignore, and that unused comments are reported."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from asgi_datasource.config import Code, Findings, examine, load

HEAD = "version: 1\ndatasources: {orders: {primary: {url: host=db}}}\ntenancy: {resolve: [{header: X-Tenant}]}\n"
APART = "tenants:\n  acme: {datasource: orders}\n"


def found(text: str, tmp_path: Path, suffix: str = "yaml") -> Findings:
    path = tmp_path / f"datasource.{suffix}"
    path.write_text(text)
    return examine(path)


def codes(findings: Findings) -> list[tuple[str, int | None]]:
    return [(each.code.value, each.position.line if each.position else None) for each in findings.diagnostics]


@pytest.mark.parametrize(
    "tenant",
    [
        "  globex: {datasource: orders}  # ads: ignore[ADS041] the application filters\n",
        "  # ads: ignore[ADS041] the application filters\n  globex: {datasource: orders}\n",
        "  # ads: ignore[ADS041] the application filters\n\n  # another comment\n  globex: {datasource: orders}\n",
        "  globex: {datasource: orders}  #ads:ignore [ADS041] -- the application filters\n",
        "  globex: {datasource: orders}\n# ads: ignore-file[ADS041]: the application filters\n",
    ],
)
def test_a_warning_is_ignored_with_its_reason(tenant: str, tmp_path: Path) -> None:
    findings = found(f"{HEAD}{APART}{tenant}", tmp_path)
    assert codes(findings) == []
    [ignored] = findings.suppressed
    assert ignored.diagnostic.code is Code.SHARED_PLACE
    assert ignored.reason == "the application filters"


def test_comments_work_in_toml(tmp_path: Path) -> None:
    text = (
        'version = 1\ndatasources.orders.primary.url = "host=db"\n'
        'tenancy.resolve = [{header = "X-Tenant"}]\n[tenants]\n'
        'acme = {datasource = "orders"}\nglobex = {datasource = "orders"} # ads: ignore[ADS041] filtered\n'
    )
    findings = found(text, tmp_path, "toml")
    assert codes(findings) == []
    assert len(findings.suppressed) == 1


def test_another_line_is_not_covered(tmp_path: Path) -> None:
    text = f"{HEAD}tenants:\n  acme: {{datasource: orders}}  # ads: ignore[ADS041] wrong line\n"
    findings = found(f"{text}  globex: {{datasource: orders}}\n", tmp_path)
    assert codes(findings) == [("ADS007", 5), ("ADS041", 6)]
    assert findings.suppressed == ()


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        ("# ads: ignore[ADS041]", "no reason is given"),
        ("# ads: ignore[ADS041] --", "no reason is given"),
        ("# ads: ignore filtered", "what is to be ignored is not said"),
        ("# ads: ignore[] filtered", "what is to be ignored is not said"),
        ("# ads: ignore[ADS999] filtered", "a code that there is not"),
        ("# ads: ignroe[ADS041] filtered", "says neither ignore nor ignore-file"),
    ],
)
def test_a_comment_that_cannot_ignore_is_a_finding(comment: str, says: str, tmp_path: Path) -> None:
    findings = found(f"{HEAD}{APART}  globex: {{datasource: orders}} {comment}\n", tmp_path)
    assert codes(findings) == [("ADS041", 6), ("ADS006", 6)]
    assert says in findings.diagnostics[1].message
    assert findings.config is not None


def test_an_error_cannot_be_ignored(tmp_path: Path) -> None:
    text = f"{HEAD}{APART}  globex: {{datasource: order}}  # ads: ignore[ADS040, ADS041] later\n"
    findings = found(text, tmp_path)
    assert codes(findings) == [("ADS040", 6), ("ADS006", 6)]
    assert "ADS040 is an error here" in findings.diagnostics[1].message


def test_several_codes_and_one_unused(tmp_path: Path) -> None:
    text = f"{HEAD}{APART}  globex: {{datasource: orders}}  # ads: ignore[ADS041,ADS048] filtered\n"
    findings = found(text, tmp_path)
    assert codes(findings) == [("ADS007", 6)]
    assert findings.diagnostics[0].message == "there is no ADS048 to ignore here"


def test_with_an_error_no_comment_is_reported_as_unused(tmp_path: Path) -> None:
    text = f"{HEAD}{APART}nonsense: 1\ntelemetry: {{}}  # ads: ignore[ADS041] filtered\n"
    assert codes(found(text, tmp_path)) == [("ADS020", 6)]


def test_text_that_resembles_a_comment_is_not_one(tmp_path: Path) -> None:
    findings = found(f"{HEAD}tenants: {{'x#ads: ignore[ADS041] y': {{datasource: orders}}}}\n", tmp_path)
    assert [code for code, _ in codes(findings)] == ["ADS045"]


def test_load_does_not_log_what_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "datasource.yaml"
    with caplog.at_level(logging.INFO, "asgi_datasource.config"):
        path.write_text(f"{HEAD}{APART}  globex: {{datasource: orders}}  # ads: ignore[ADS041] filtered\n")
        load(path)
        assert caplog.records == []
        path.write_text(f"{HEAD}{APART}  globex: {{datasource: orders}}\n")
        load(path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
