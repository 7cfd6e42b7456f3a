"""Any text and any mapping yields diagnostics, never another exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_datasource.config import ConfigFile, Findings, Format, Text, edit_text, examine, read_text
from asgi_datasource.config.structure import check_structure
from tests.config.documents import full
from tests.config.test_loading import TOML, YAML
from tests.sampling import many

TEXTS = {"yaml": YAML, "toml": TOML, "json": json.dumps(full(), indent=1)}
WORDS = ["${", "${A}", "$${", "<<", "---", "...", "!!", "{file: ", "\\u", "\\ud800", "[[", "]]", '"""', "'''"]
WORDS += ["true", "null", ".nan", "1e999"]
SIGNS = st.sampled_from(
    [*"{}[]()<>:,.-+*&!|>'\"%@`#$?~=\\/ \t\n\r0123456789axe_é\u2028\ufeff\x00\x7f\U0001f600", *WORDS]
)


@st.composite
def damaged(draw: st.DrawFn, notation: str) -> str:
    """A valid text with a few pieces removed, inserted or doubled."""
    text = TEXTS[notation]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.sampled_from(["", text[start:end] * 2])) if draw(st.booleans()) else draw(SIGNS)
        text = text[:start] + middle + text[end:]
    return text


@pytest.mark.parametrize("notation", TEXTS)
def test_any_text_yields_diagnostics_or_a_config(notation: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp(notation) / f"datasource.{notation}"

    @settings(max_examples=many(300), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(text=st.one_of(damaged(notation), damaged(notation), st.lists(SIGNS, max_size=30).map("".join)))
    def check(text: str) -> None:
        answer(text, path)

    check()


def answer(text: str, path: Path) -> Findings:
    path.write_bytes(text.encode(errors="surrogatepass"))
    findings = examine(path, environ={"A": "x"})
    assert (findings.config is None) <= bool(findings.errors)
    for problem in findings.diagnostics:
        assert problem.fix
        assert problem.position is not None
        assert problem.position.file == str(path)
        if problem.position.line is not None:
            assert 1 <= problem.position.line <= text.count("\n") + text.count("\r") + text.count("\u2028") + 2
    return findings


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(), st.dates())
keys = st.one_of(st.sampled_from(list(full())), st.text(max_size=5), st.integers(), st.none())
anything: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner, inner), st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=many(300), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(document=st.dictionaries(st.sampled_from(list(full())), anything, max_size=5))
def test_any_mapping_yields_diagnostics_or_a_config(document: dict[str, Any]) -> None:
    findings = examine(document, environ={})
    assert findings.errors
    assert all(problem.fix and str(problem) for problem in findings.diagnostics)


def test_any_combination_of_files_yields_diagnostics_or_a_config(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Includes, overlays, suppressions and offline validation of damaged texts yield diagnostics."""
    # A nested directory, because the patterns reach its parent, and pytest's own directories belong to other tests.
    folder = tmp_path_factory.mktemp("files") / "config"
    folder.mkdir()
    main, part, overlay = (folder / name for name in ("datasource.yaml", "part.yaml", "overlay.json"))
    comments = st.sampled_from(["", "# ads: ignore[ADS041] x\n", "# ads: ignore[\n", "  # ads:ignore-file[ADS048] y\n"])
    includes = st.sampled_from(
        ["", "include: [part.yaml]\n", "include: ['*']\n", "include: [../**]\n", "include: [a, 1]\n"]
    )
    overlays = anything.map(lambda value: json.dumps(value, default=str, skipkeys=True))

    @settings(max_examples=many(150), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(
        first=st.one_of(damaged("yaml"), st.just(YAML)),
        second=st.one_of(damaged("yaml"), st.sampled_from(["tenants: {x: {datasource: orders}}", "routes: [1]", "[]"])),
        third=st.one_of(damaged("json"), overlays),
        head=includes,
        comment=comments,
        is_offline=st.booleans(),
    )
    def check(first: str, second: str, third: str, head: str, comment: str, is_offline: bool) -> None:
        main.write_bytes((comment + head + first).encode(errors="surrogatepass"))
        part.write_bytes(second.encode(errors="surrogatepass"))
        overlay.write_bytes(third.encode(errors="surrogatepass"))
        for source in (main, ConfigFile(main, (overlay,))):
            findings = examine(source, environ={}, is_offline=is_offline)
            assert (findings.config is None) <= bool(findings.errors)
            assert all(problem.fix and problem.position is not None for problem in findings.diagnostics)
            findings.safe_edits()

    check()


@settings(max_examples=many(150), deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(notation=st.sampled_from(list(TEXTS)), data=st.data())
def test_any_text_is_fixed_or_unchanged(notation: str, data: st.DataObject) -> None:
    content = data.draw(damaged(notation))
    text = Text("x", Format(notation), content)
    document, problems = read_text(text)
    if problems:
        return
    edits = [problem.edit for problem in check_structure(document)[1] if problem.edit is not None]
    after, made = edit_text(text, edits)
    assert made or after.content == content
    assert not read_text(after)[1]
