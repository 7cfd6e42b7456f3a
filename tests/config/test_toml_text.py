"""Positions in TOML: every key and value, in every syntax."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

from asgi_datasource.config.diagnostics import Path
from asgi_datasource.config.places import Place, Spans
from asgi_datasource.config.toml_text import locate_toml

TEXT = """\
# a comment = 1
version = 1
title = "x # no" # yes = 1
"quoted key"."a.b".c = 1.5
[datasources.orders]
primary = { url = "a=b", 'x y' = [1, [2,
  3], {z = 1}] }
multi = \"\"\"
[not.a.table]
key = 1 \\\\" \"\"\"\"
lit = '''
'a' ''''
when = 1979-05-27T07:32:00Z
time = 07:32:00.5
number = +1_000.5e-3
list = [ # comment ]
  "a", # b
  "b",
]
[[tenancy.resolve]]
header = "X"
[[tenancy.resolve]]
path_prefix = "/t"
[tenancy.resolve.sub]
k = 1
[[tenancy.resolve.inner]]
k = 1
[[tenancy.resolve.inner]]
k = 2
  [  tenants . "a b" ]
datasource = "orders"
row_security."app.tenant" = "42"
[a]
b.c.d = true
[a.e]
f = []
g = {}
"""


def paths(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*path, key))


def test_every_key_and_value_is_found() -> None:
    wanted = list(paths(tomllib.loads(TEXT)))
    assert len(wanted) > 40
    places = Place.of([path for path, _ in wanted])
    locate_toml(TEXT, places)
    lines = TEXT.splitlines()
    for path, value in wanted[1:]:
        key = places.find(path, is_about_key=True)
        place = places.find(path, is_about_key=False)
        assert key is not None, path
        assert place is not None, path
        written = lines[key[0] - 1][key[1] - 1 :]
        if isinstance(path[-1], str):
            assert written.lstrip("\"'").startswith(path[-1]), path
        text = lines[place[0] - 1][place[1] - 1 :]
        if isinstance(value, bool):
            assert text.startswith("true")
        elif isinstance(value, int):
            assert text.startswith(str(value)), path
        elif isinstance(value, str):
            assert text[0] in "\"'", path
        elif isinstance(value, list) and path[-1] not in ("resolve", "inner"):
            assert text.startswith("["), path


def test_a_reopened_table_keeps_its_first_position() -> None:
    places = Place.of([("tenancy", "resolve", 1), ("tenancy",), ("tenancy", "resolve", 1, "sub")])
    locate_toml(TEXT, places)
    lines = TEXT.splitlines()
    assert places.find(("tenancy",), is_about_key=True) == (lines.index("[[tenancy.resolve]]") + 1, 3)
    assert places.find(("tenancy", "resolve", 1), is_about_key=False) == (lines.index('path_prefix = "/t"'), 11)
    assert places.find(("tenancy", "resolve", 1, "sub"), is_about_key=False) == (
        lines.index("[tenancy.resolve.sub]") + 1,
        18,
    )


def test_a_string_of_several_lines_is_found_on_each_of_them() -> None:
    for line in (1, 2, 3):
        spans = Spans([line])
        locate_toml('secret = """\nab\ncd"""\nother = 1\n', Place.of([]), spans)
        span = spans.found[-1]
        assert (span.path, span.is_key, span.start, span.end) == (("secret",), False, (1, 10), (3, 6))
