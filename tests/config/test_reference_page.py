"""`docs/config.md` matches the code: keys, examples, messages, bounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from asgi_datasource.config import InvalidConfig, json_schema, limits, load
from asgi_datasource.config.keys import sections
from asgi_datasource.config.yaml_text import read_yaml
from scripts.generate.pages import BEGIN, END, render_keys, replace_generated

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
YAML = [
    block for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE) if "datasources:" in block
]
ENVIRON = {"ORDERS_PRIMARY_URL": "host=primary", "ORDERS_R1_URL": "host=r1", "TOKEN_KEY": "shared"}


def test_the_reference_of_keys_is_up_to_date() -> None:
    assert PAGE.count(BEGIN) == PAGE.count(END) == 1
    assert replace_generated(PAGE, render_keys) == PAGE, "run python -m scripts.generate"


def test_every_key_is_on_the_page() -> None:
    tables = PAGE.partition(BEGIN)[2]
    for place in sections().values():
        for key, info in place.fields.items():
            assert f"| `{key}` | {info.description}" in tables


def test_the_ten_keys_to_start_with_have_their_defaults() -> None:
    table = PAGE.partition("## The ten keys to start with")[2].partition("\n## ")[0]
    first = dict(re.findall(r"^\| `([^`]+)` \|.*\| (.*) \|$", table, re.MULTILINE))
    assert len(first) == 10
    for path, default in first.items():
        section, _, key = path.rpartition(".")
        heading = f"### `{section}`\n" if section else "### The document\n"
        if path == "tenants.NAME":
            heading, key = "### The document\n", "tenants"
        rows = PAGE.partition(BEGIN)[2].partition(heading)[2].partition("\n### ")[0]
        [found] = re.findall(rf"^\| `{key}` \|.*\| ?(.*?) ?\|$", rows, re.MULTILINE)
        assert found == default.strip(), path


@pytest.mark.parametrize("number", range(len(YAML)))
def test_examples_load(number: int, tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "orders-r2").write_text("host=r2\n")
    (tmp_path / "secrets" / "token").write_text("0123456789abcdef\n")
    path = tmp_path / "datasource.yaml"
    path.write_text(YAML[number])
    config = load(path, environ=ENVIRON)
    assert {"acme", "globex"} <= set(config.tenants)
    document, _ = read_yaml(YAML[number], "docs/config.md")
    assert Draft202012Validator(json_schema()).is_valid(document)


def test_the_complete_example_names_every_key() -> None:
    document: Any = yaml.safe_load(YAML[1])
    # Of these a document has one; the others stand beside it as comments.
    for line in re.findall(r"^    # (\w+: \S.*)$", YAML[1], re.MULTILINE):
        document["outbox"]["publisher"].update(yaml.safe_load(line))
    for path, place in sections().items():
        written = {key for here in at(document, path) for key in here}
        assert set(place.fields) <= written, path


def at(document: Any, path: tuple[str, ...]) -> list[Any]:
    """All sections at a path."""
    found = [document]
    for step in path:
        if step == "*":
            found = [child for here in found for child in (here.values() if isinstance(here, dict) else here)]
        else:
            found = [here[step] for here in found if step in here]
    return found


WRONG = """\
version: 1

tenancy: {resolve: [{header: X-Tenant}]}

datasources:
  orders:
    primary: {url: "postgresql://app@db/orders"}
    pool: {max_sise: 20, acquire_timeout: 3}

tenants:
  acme: {datasource: order, schema: acme}

transactions: {on_disconnect: commit}
"""


def test_the_messages_on_the_page_are_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("datasource.yaml").write_text(WRONG)
    with pytest.raises(InvalidConfig) as caught:
        load("datasource.yaml")
    assert f"```\n{caught.value}\n```" in PAGE


def test_the_bounds_on_the_page_are_the_real_ones() -> None:
    bounds = f"{limits.MAX_BYTES // 1024**2} MB, {limits.MAX_DEPTH} levels, {limits.MAX_ALIASED_NODES:,} values"
    assert bounds in PAGE
