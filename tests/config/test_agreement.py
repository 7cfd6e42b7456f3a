"""The JSON Schema and the models accept exactly the same documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from jsonschema import Draft202012Validator

from asgi_datasource.config import Code, json_schema, references
from asgi_datasource.config.keys import sections
from asgi_datasource.config.references import Outside, Surroundings
from asgi_datasource.config.structure import check_structure
from asgi_datasource.config.values import VALUES
from tests.config.documents import SECRET_FILES, Written, full, mutated_documents, put, valid_documents

SCHEMA = Draft202012Validator(json_schema())
FROM_OUTSIDE = {Code.VARIABLE_NOT_SET, Code.SECRET_NOT_READABLE}

thorough = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("secrets")
    for name, content in SECRET_FILES.items():
        (folder / name).write_text(content)
    with pytest.MonkeyPatch.context() as patch:
        # The programs of generated documents are not run; test_offline.py runs programs.
        patch.setattr(references, "ask_program", lambda *_: "host=db")
        yield folder


def problems(written: Written, folder: Path) -> list[str]:
    """The problems that the models find in the form of a document."""
    outside = Outside(Surroundings(written.environ, lambda _: folder, allow_commands=True))
    resolved = outside.resolve(written.document)
    # A missing variable is not a mistake of the document.
    assume(not any(problem.code in FROM_OUTSIDE for problem in outside.diagnostics))
    _, found = check_structure(resolved)
    return [str(problem) for problem in (*outside.diagnostics, *found)]


def test_valid_documents_are_accepted_by_both(secrets: Path, whole: bool) -> None:
    @settings(thorough, max_examples=500 if whole else 120)
    @given(written=valid_documents())
    def check(written: Written) -> None:
        assert problems(written, secrets) == []
        assert [error.message for error in SCHEMA.iter_errors(written.document)] == []

    check()


@pytest.mark.timeout(600)
def test_mutated_documents_are_judged_alike(secrets: Path, whole: bool) -> None:
    @settings(thorough, max_examples=1_500 if whole else 200)
    @given(written=mutated_documents())
    def check(written: Written) -> None:
        said = problems(written, secrets)
        errors = [f"{error.json_path}: {error.message}" for error in SCHEMA.iter_errors(written.document)]
        assert bool(said) == bool(errors), f"models: {said}\nschema: {errors}\n{written.document}"

    check()


def test_a_planned_key_is_refused_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("telemetry",)
    monkeypatch.setitem(cast("dict[str, str]", sections()[place].planned), "profiles", "leave it out")
    document = put(full(), place, "profiles", {})
    assert not SCHEMA.is_valid(document)
    _, found = check_structure(document)
    [problem] = [problem for problem in found if problem.path[-1:] == ("profiles",)]
    assert problem.code is Code.NOT_YET_SUPPORTED
    assert "not yet supported" in problem.message
    assert problem.fix == "Leave it out."


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, value in VALUES.items() for word in value.planned])
def test_a_planned_value_is_refused_by_both(name: str, word: str) -> None:
    kind = VALUES[name]
    place, key = next(
        (path, key) for path, place in sections().items() for key, info in place.fields.items() if kind in info.metadata
    )
    value: object = {"true": True, "*": 3}.get(word, word)
    document = put(full(), place, key, value)
    assert not SCHEMA.is_valid(document)
    _, [problem] = check_structure(document)
    assert problem.code is Code.NOT_YET_SUPPORTED
    assert problem.fix == f"Use {kind.expects}."


def test_a_key_may_contain_line_breaks_but_no_nul() -> None:
    for secret, is_right in (
        ("-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n", True),
        ("a\x00b" * 9, False),
    ):
        document = {
            "version": 1,
            "datasources": {"orders": {"primary": {"url": "host=db"}}},
            "consistency": {"token": "cookie", "secret": secret},
        }
        assert SCHEMA.is_valid(document) is is_right
        assert (check_structure(document)[1] == []) is is_right
