"""The pattern of tenant names: matched as a whole, in linear time."""

from __future__ import annotations

import re
import time

import pytest

from asgi_datasource import DataError, compile
from asgi_datasource.config import Code, examine
from asgi_datasource.config.name_pattern import compile_name_pattern
from tests.config.documents import small

NAMES = [
    "acme",
    "acme-inc",
    "a",
    "",
    "ACME",
    "acme\n",
    "acme!",
    "\u00e4",
    "a b",
    "-a",
    "a-",
    "_",
    "0",
    "a" * 63,
    "a" * 64,
]


@pytest.mark.parametrize(
    "pattern",
    [
        "^[a-z0-9][a-z0-9_-]{0,62}$",
        "[a-z]+|[A-Z]+",
        "a|acme",
        r"\w+",
        r"\d",
        "(?i)acme",
        "^([a-z0-9]+-?)+$",
        "^[a-z0-9]+(?:-[a-z0-9]+)*$",
        "(?x) [a-z]+  # letters",
        "(?P<name>[a-z]+)",
        ".*",
        "a$",
        "^$",
        "[^ ]+",
    ],
)
def test_names_match_like_in_python(pattern: str) -> None:
    matches = compile_name_pattern(pattern)
    for name in NAMES:
        assert matches(name) == (re.fullmatch(pattern, name) is not None), name


@pytest.mark.parametrize(
    "pattern",
    ["^([a-z0-9]+-?)+$", "(a*)*", "(a|a)*", "(a|aa)+", "(.*a){20}", "(a?){30}a{30}", r"(\w+\s?)*", "([a-z]+)*[0-9]"],
)
def test_matching_takes_linear_time(pattern: str) -> None:
    matches = compile_name_pattern(pattern)
    started = time.perf_counter()
    for name in ("a" * 254 + "!", "a" * 40 + "!", "a-" * 100 + "!"):
        assert not matches(name)
    assert time.perf_counter() - started < 0.5


def test_names_with_surrogates_never_match() -> None:
    assert not compile_name_pattern(".*")("\ud800")


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("[a-z", "unclosed character class"),
        ("a)(b", "unopened group"),
        ("(?!admin)[a-z]+", "look-around, including look-ahead and look-behind, is not supported"),
        (r"(a)\1", "backreferences are not supported"),
        ("(?:[a-z]{1,1000}){1,1000}", "exceeds size limit"),
    ],
)
def test_a_pattern_without_linear_time_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        compile_name_pattern(pattern)
    [problem] = examine(small(tenancy={"resolve": [{"header": "X"}], "pattern": pattern})).errors
    assert (problem.code, problem.key) == (Code.PATTERN, "tenancy.pattern")
    assert reason in problem.message


def test_a_long_name_is_not_matched_at_all() -> None:
    document = small(tenancy={"resolve": [{"header": "X"}], "pattern": ".*"})
    document["tenants"]["*"] = {"datasource": "orders", "schema": "{tenant}"}
    made = compile(document)
    for length, status in ((63, 200), (64, 404), (255, 404), (256, 400)):
        try:
            made.tenant("x" * length)
            found = 200
        except DataError as error:
            found = error.http_status
        assert found == status
    # A prefix that matches is no match.
    document["tenancy"]["pattern"] = "[a-z]+"
    with pytest.raises(DataError) as caught:
        compile(document).tenant("acme'; drop")
    assert caught.value.http_status == 400
