"""Published schemas: drift and incompatible changes are found, compatible changes pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asgi_datasource.config import json_schema, part_schema
from asgi_datasource.config.meanings import describe_choice
from asgi_datasource.config.values import VALUES
from scripts.generate.compatibility import find_refusals
from scripts.generate.write import main

ROOT = Path(__file__).parent.parent.parent


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    schema = copy.deepcopy(json_schema())
    change(schema)
    return schema


def drop(path: str) -> Callable[[dict[str, Any]], object]:
    *steps, last = path.split("/")

    def change(schema: dict[str, Any]) -> None:
        for step in steps:
            schema = schema[step]
        del schema[last]

    return change


def put(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    *steps, last = path.split("/")

    def change(schema: dict[str, Any]) -> None:
        for step in steps:
            schema = schema[step]
        schema[last] = value

    return change


BREAKING = [
    (drop("$defs/PoolConfig/properties/max_size"), "$.datasources.*.pool.max_size: the key is unknown now"),
    (drop("properties/telemetry"), "$.telemetry: the key is unknown now"),
    (put("$defs/PoolConfig/required", ["max_size"]), "$.datasources.*.pool.max_size: the key is needed now"),
    (put("required", ["version", "datasources", "tenants"]), "$.tenants: the key is needed now"),
    (put("$defs/PoolSize/anyOf", [{"type": "integer", "minimum": 1, "maximum": 50}]), "a way to write it"),
    (put("$defs/Balance/anyOf", [{"enum": ["round_robin"]}, {"$ref": "#/$defs/Reference"}]), "a way to write it"),
    (put("$defs/Flag/anyOf", [{"type": "boolean"}]), "a way to write it"),
    (put("$defs/Version/const", 2), "1 is refused now"),
    (put("$defs/Duration/anyOf", [{"type": "string", "pattern": "^[0-9]+s$"}]), "a way to write it"),
    (put("properties/tenants/maxProperties", 10), "maxProperties is 10 now"),
    (put("properties/tenants/additionalProperties", False), "unknown keys are refused now"),
    (put("properties/routes/items/properties", {}), "the key is unknown now"),
]


@pytest.mark.parametrize(("change", "says"), BREAKING, ids=[says for _, says in BREAKING])
def test_incompatible_changes_are_found(change: Callable[[dict[str, Any]], object], says: str) -> None:
    try:
        new = changed(change)
    except KeyError:  # the rule for routes is a definition
        new = changed(lambda schema: schema["$defs"]["RouteRule"].update(properties={}))
    assert any(says in reason for reason in find_refusals(json_schema(), new)), find_refusals(json_schema(), new)


COMPATIBLE = [
    put("$defs/PoolConfig/properties/new_key", {"type": "string"}),
    put("properties/new_section", {"type": "object"}),
    put("required", ["version"]),
    lambda schema: schema["$defs"]["Balance"]["anyOf"][0]["enum"].append("another"),
    put("$defs/PoolConfig/description", "said better"),
    put("$defs/PoolSize/anyOf", [{"type": "integer", "minimum": 1, "maximum": 10**6}, {"$ref": "#/$defs/Reference"}]),
    drop("$defs/PoolSize/description"),
    lambda schema: None,
]


@pytest.mark.parametrize("number", range(len(COMPATIBLE)))
def test_compatible_changes_pass(number: int) -> None:
    assert find_refusals(json_schema(), changed(COMPATIBLE[number])) == []


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    assert main(["--root", str(tmp_path)]) == 0
    return tmp_path


def spoil(repository: Path, document: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the published schema, so that it differs from the current one."""
    path = repository / "schemas" / document / "v1.json"
    schema = json.loads(path.read_text())
    change(schema)
    path.write_text(json.dumps(schema))
    return path


def test_an_incompatible_change_is_neither_written_nor_passed(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil(repository, "config", put("$defs/PoolConfig/properties/gone", {"type": "string"}))
    before = path.read_text()
    for arguments in ([], ["--check"]):
        assert main([*arguments, "--root", str(repository)]) == 1
        assert "datasources.*.pool.gone: the key is unknown now" in capsys.readouterr().err
        assert path.read_text() == before
    assert main(["--replace", "--root", str(repository)]) == 0
    assert main(["--check", "--root", str(repository)]) == 0


def test_written_documents_keep_their_keys(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(repository, "diagnostics", lambda schema: schema["$defs"]["Diagnostic"]["required"].append("rank"))
    assert main(["--check", "--root", str(repository)]) == 1
    assert "rank: the key is needed now" in capsys.readouterr().err


def test_a_compatible_change_is_written(repository: Path) -> None:
    path = spoil(repository, "config", drop("$defs/PoolConfig/properties/max_size"))
    assert main(["--check", "--root", str(repository)]) == 1
    assert main(["--root", str(repository)]) == 0
    assert "max_size" in path.read_text()


def test_the_checks_include_the_comparison() -> None:
    assert "scripts.generate --check" in (ROOT / "scripts" / "check").read_text()


def test_a_part_requires_no_key() -> None:
    part = Draft202012Validator(part_schema())
    assert part.is_valid({"tenants": {"acme": {"datasource": "orders"}}})
    assert part.is_valid({})
    assert not part.is_valid({"tenants": {"acme": {"datasuorce": "orders"}}})


@pytest.mark.parametrize("name", [name for name, value in VALUES.items() if value.choices])
def test_every_word_is_described(name: str) -> None:
    value = VALUES[name]
    if value.types == ("boolean",):
        return
    for choice in value.choices:
        assert describe_choice(value, choice).endswith("."), f"say in the key's description: {choice}: ..."
