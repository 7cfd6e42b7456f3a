"""YAML by the core schema of 1.2: types, duplicate keys, bounds of aliases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from asgi_datasource.config import Code, Diagnostic
from asgi_datasource.config.yaml_text import read_yaml

Read = Callable[[str], tuple[Any, list[Diagnostic]]]


@pytest.fixture(params=[yaml.CSafeLoader, yaml.SafeLoader], ids=["libyaml", "python"])
def read(request: pytest.FixtureRequest) -> Read:
    """Reads with each parser of PyYAML; the build decides which one is available."""
    return lambda text: read_yaml(text, "x.yaml", loader=request.param)


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "off", "y", "n", "Yes", "NO", "tRUE", "1:30", "2026-01-01", "1_000"]
)
def test_words_are_strings(read: Read, word: str) -> None:
    assert read(f"a: {word}") == ({"a": word}, [])


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("007", 7),
        ("-3", -3),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-.inf", float("-inf")),
        ("0b1", "0b1"),
        ("'-'", "-"),
        (".", "."),
        ("3s", "3s"),
        ("9e", "9e"),
        ("'true'", "true"),
        ('"42"', "42"),
        ("!!str 42", "42"),
        ("! 42", "42"),
        ("!!int 42", 42),
        ("!!bool true", True),
        ("!!null ~", None),
        ("!!float 1.5", 1.5),
        ("|-\n  two\n  lines", "two\nlines"),
    ],
)
def test_scalars(read: Read, word: str, value: object) -> None:
    document, problems = read(f"a: {word}")
    assert problems == []
    assert document == {"a": value}
    assert type(document["a"]) is type(value)


def test_keys_are_strings_as_written(read: Read) -> None:
    document, problems = read("{no: 1, 42: 1, null: 1, true: 1, 1.50: 1, 'a b': 1, !!str x: 1}")
    assert problems == []
    assert list(document) == ["no", "42", "null", "true", "1.50", "a b", "x"]


def test_anchors_and_aliases(read: Read) -> None:
    document, problems = read("pool: &pool {max_size: 3, name: &n x}\na: *pool\nb: [*pool, *n]\n")
    assert problems == []
    assert document["a"] == {"max_size": 3, "name": "x"}
    assert document["b"] == [{"max_size": 3, "name": "x"}, "x"]


REFUSED = [
    ("a: 1\nb: 2\na: 3\n", Code.DUPLICATE_KEY, ("a",), (3, 1)),
    ("x: {y: [{z: 1, 'z': 2}]}", Code.DUPLICATE_KEY, ("x", "y", 0, "z"), (1, 16)),
    ("a: {<<: {x: 1}, <<: {y: 2}}", Code.DUPLICATE_KEY, ("a", "<<"), (1, 17)),
    ("a: 1\n---\nb: 2\n", Code.SYNTAX, (), (2, 1)),
    ("a: *b", Code.SYNTAX, ("a",), (1, 4)),
    ("a: &a {b: [*a]}", Code.TOO_LARGE, ("a", "b", 0), (1, 12)),
    ("a: !secret x", Code.NOT_PLAIN, ("a",), (1, 4)),
    ("a: !!python/object/apply:os.system [ls]", Code.NOT_PLAIN, ("a",), (1, 4)),
    ("a: !!set {x}", Code.NOT_PLAIN, ("a",), (1, 4)),
    ("a: !!timestamp 2026-01-01", Code.NOT_PLAIN, ("a",), (1, 4)),
    ("? [a]\n: b", Code.NOT_PLAIN, (), (1, 3)),
    ("a: &x b\n*x : c", Code.NOT_PLAIN, (), (2, 1)),
    ("&x a: b", Code.NOT_PLAIN, ("a",), (1, 1)),
]


@pytest.mark.parametrize(("text", "code", "path", "place"), REFUSED)
def test_refused_yaml(read: Read, text: str, code: Code, path: tuple[str | int, ...], place: tuple[int, int]) -> None:
    _, [problem] = read(text)
    assert problem.code is code
    assert problem.path == path
    assert problem.position is not None
    assert (problem.position.line, problem.position.column) == place
    assert problem.fix


def test_a_second_merge_key_is_told_what_it_is(read: Read) -> None:
    for text, fix in (("a: {<<: {x: 1}, <<: {y: 2}}", "Merge keys are not part"), ("a: 1\na: 2", "Keep one of them.")):
        _, [problem] = read(text)
        assert problem.fix.startswith(fix)


def test_an_alias_bomb_is_refused_before_its_expansion(read: Read) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    document, [problem] = read("\n".join(lines))
    assert document is None
    assert problem.code is Code.TOO_LARGE


def test_after_a_duplicate_key_the_rest_is_read(read: Read) -> None:
    document, problems = read("a: 1\na: 2\nb: {c: 3, c: 4}\nd: 5")
    assert [problem.path for problem in problems] == [("a",), ("b", "c")]
    assert document["d"] == 5
