"""Whatever stands in a file, and whatever a mapping holds: there is an answer, never another exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgi_datasource.config import Findings, examine

from .documents import full
from .test_loading import TOML, YAML

TEXTS = {"yaml": YAML, "toml": TOML, "json": json.dumps(full(), indent=1)}
WORDS = ["${", "${A}", "$${", "<<", "---", "...", "!!", "{file: ", "\\u", "\\ud800", "[[", "]]", '"""', "'''"]
WORDS += ["true", "null", ".nan", "1e999"]
SIGNS = st.sampled_from(
    [*"{}[]()<>:,.-+*&!|>'\"%@`#$?~=\\/ \t\n\r0123456789axe_é\u2028\ufeff\x00\x7f\U0001f600", *WORDS]
)


@st.composite
def damaged(draw: st.DrawFn, notation: str) -> str:
    """A good text with a few bits taken out, put in, or doubled."""
    text = TEXTS[notation]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.sampled_from(["", text[start:end] * 2])) if draw(st.booleans()) else draw(SIGNS)
        text = text[:start] + middle + text[end:]
    return text


@pytest.mark.parametrize("notation", TEXTS)
def test_any_text_has_an_answer(notation: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp(notation) / f"datasource.{notation}"

    @settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    @given(text=st.one_of(damaged(notation), damaged(notation), st.lists(SIGNS, max_size=30).map("".join)))
    def check(text: str) -> None:
        answer(text, path)

    check()


def answer(text: str, path: Path) -> Findings:
    path.write_bytes(text.encode(errors="surrogatepass"))
    findings = examine(path, environ={"A": "x"})
    assert (findings.config is None) <= bool(findings.errors)
    for problem in findings.diagnostics:
        assert problem.mend
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


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(document=st.dictionaries(st.sampled_from(list(full())), anything, max_size=5))
def test_any_mapping_has_an_answer(document: dict[str, Any]) -> None:
    findings = examine(document, environ={})
    assert findings.errors
    assert all(problem.mend and str(problem) for problem in findings.diagnostics)
