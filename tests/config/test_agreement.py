"""The JSON Schema and the models accept exactly the same documents."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from jsonschema import Draft202012Validator

import asgi_datasource
from asgi_datasource.config import Code, json_schema, references
from asgi_datasource.config.keys import sections
from asgi_datasource.config.references import Outside, Surroundings
from asgi_datasource.config.structure import check_structure
from asgi_datasource.config.values import VALUES, Value
from tests.config.documents import SECRET_FILES, Written, full, full_with, mutated_documents, put, valid_documents

SCHEMA = Draft202012Validator(json_schema())
FROM_OUTSIDE = (Code.VARIABLE_NOT_SET, Code.SECRET_NOT_READABLE)

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
    _, found = check_structure(resolved)
    return [f"{problem.code}: {problem}" for problem in (*outside.diagnostics, *found)]


def problems_of_the_form(written: Written, folder: Path) -> list[str]:
    """The same; a document whose variables are missing is no example."""
    found = problems(written, folder)
    assume(not any(one.startswith(FROM_OUTSIDE) for one in found))
    return found


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
        said = problems_of_the_form(written, secrets)
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


def places_of_values() -> Iterator[tuple[tuple[str, ...], str]]:
    """A key of each kind of value that is a string."""
    seen: set[str] = set()
    for path, place in sections().items():
        for key, info in place.fields.items():
            kind = next((one for one in info.metadata if isinstance(one, Value)), None)
            if kind is not None and kind.name not in seen and "string" in kind.types:
                seen.add(kind.name)
                yield path, key


@pytest.mark.parametrize(("path", "key"), list(places_of_values()), ids=str)
def test_a_line_break_at_the_end_is_judged_alike(path: tuple[str, ...], key: str, secrets: Path) -> None:
    info = sections()[path].fields[key]
    kind = next(one for one in info.metadata if isinstance(one, Value))
    example = next((one for one in (*info.examples, *kind.choices) if isinstance(one, str) and "$" not in one), "x")
    assert SCHEMA.is_valid(full_with(path))
    judged = set[bool]()
    for written in (f"{example}\n", "${V0}\n", "\x7f${V0}", "a\x00${V0}", "range \x01", f"{example}\r"):
        document = put(full_with(path), path, key, written)
        said = problems(Written(document, {"V0": example}), secrets)
        assert bool(said) != SCHEMA.is_valid(document), f"{written!r}: {said}"
        judged.add(bool(said))
    # Only secrets may have line breaks.
    assert judged == ({True, False} if kind.is_secret and kind.name != "DatabaseUrl" else {True})


@pytest.mark.parametrize(
    "url", [{"command": ["vault\n"]}, {"command": ["${V0}\n"]}, {"file": "a\n"}, {"file": "${V0}\n"}], ids=str
)
def test_a_line_break_in_the_place_of_a_secret_is_refused_by_both(url: object, secrets: Path) -> None:
    document = put(full(), ("datasources", "*", "primary"), "url", url)
    assert problems(Written(document, {"V0": "primary.url"}), secrets)
    assert not SCHEMA.is_valid(document)


@pytest.mark.parametrize("share", ["90%", "90%\n", "\n9%"])
def test_a_share_of_tenants_is_judged_alike(share: str) -> None:
    document = put(full(), ("health",), "ready", {"tenants": share})
    assert SCHEMA.is_valid(document) is (check_structure(document)[1] == []) is (share == "90%")


def test_no_check_ends_in_front_of_a_line_break() -> None:
    for module in pkgutil.walk_packages(asgi_datasource.__path__, "asgi_datasource."):
        with contextlib.suppress(ImportError):
            importlib.import_module(module.name)
    patterns = {
        f"{name}.{key}": value.pattern
        for name, module in list(sys.modules.items())
        if name.startswith("asgi_datasource.")
        for key, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }
    assert len(patterns) > 80
    for name, pattern in patterns.items():
        text = pattern.decode() if isinstance(pattern, bytes) else pattern
        outside_of_classes = re.sub(r"\[(?:\\.|[^\]\\])*\]|\\.", "", text)
        assert "$" not in outside_of_classes, f"{name} = {text!r}: write \\Z, since $ also matches before a last \\n"


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
