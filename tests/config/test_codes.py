"""Every code has an explanation, and its examples have and lack the problem."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from asgi_datasource import config
from asgi_datasource.config import Code, Explained, examine, explain_code
from scripts.generate.pages import render_codes, replace_generated

PAGE = (Path(__file__).parent.parent.parent / "docs" / "diagnostics.md").read_text(encoding="utf-8")
FILE = Path(config.__file__).parent / "codes.yaml"
EXPLAINED = [explain_code(code) for code in Code]
BASE = {
    "version": "version: 1\n",
    "datasources": "datasources: {orders: {primary: {url: host=db}}}\n",
    "tenancy": "tenancy: {default: orders, resolve: [{header: X-Tenant}]}\n",
}


def completed(fragment: str) -> str:
    """A fragment with the sections that every document needs."""
    there = {line.partition(":")[0] for line in fragment.splitlines() if line[:1].isalpha()}
    return fragment + "".join(text for key, text in BASE.items() if key not in there)


def test_every_code_is_explained_in_order() -> None:
    assert list(yaml.safe_load(FILE.read_text())) == list(Code)
    for entry in EXPLAINED:
        assert entry.text.endswith(".")
        assert not entry.title.endswith(".")


def test_the_page_is_up_to_date() -> None:
    assert replace_generated(PAGE, render_codes) == PAGE, "run python -m scripts.generate"
    for code in Code:
        assert f"\n## {code.value}\n" in PAGE


@pytest.mark.parametrize("entry", [entry for entry in EXPLAINED if entry.wrong], ids=lambda entry: entry.code)
def test_the_wrong_example_has_the_problem(entry: Explained, tmp_path: Path) -> None:
    path = tmp_path / "datasource.yaml"
    path.write_text(completed(entry.wrong))
    found = examine(path, environ={}).diagnostics
    assert {problem.code for problem in found} == {entry.code}, [str(problem) for problem in found]
    path.write_text(completed(entry.right))
    assert examine(path, environ={"ORDERS_URL": "host=db"}).diagnostics == ()


def test_most_codes_have_an_example() -> None:
    without = {
        entry.code
        for entry in EXPLAINED
        if not entry.wrong and not entry.code.needs_server and not entry.code.is_about_sql
    }
    assert without == {
        Code.NOT_READABLE,
        Code.DEFINED_TWICE,
        Code.SECRET_NOT_READABLE,
        Code.COMMAND,
        Code.NOT_YET_SUPPORTED,
    }


def test_each_diagnostic_links_to_its_page() -> None:
    assert explain_code(Code.UNKNOWN_KEY).docs == "asgi-datasource rule ADS020"
    [problem] = examine({"version": 1, "datasources": {"a": {"primary": {"url": "host=db"}}}, "x": 1}).errors
    assert problem.docs == "asgi-datasource rule ADS020"
