"""The JSON Schema: valid, self-contained, and up to date in the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from asgi_datasource.config import json_schema
from asgi_datasource.config.keys import sections
from asgi_datasource.config.values import DEFINITION, VALUES
from scripts.generate.performance import render_plots
from scripts.generate.write import FILES, main

ROOT = Path(__file__).parent.parent.parent


def nodes(value: Any) -> list[dict[str, Any]]:
    found = [value] if isinstance(value, dict) else []
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return found + [node for child in children for node in nodes(child)]


def test_it_is_a_schema_of_draft_2020_12() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"]
    Draft202012Validator.check_schema(schema)


def test_the_schema_is_self_contained() -> None:
    schema = json_schema()
    references = {node["$ref"] for node in nodes(schema) if "$ref" in node}
    assert references == {f"#/$defs/{name}" for name in schema["$defs"]}
    assert DEFINITION not in json.dumps(schema)


def test_every_key_has_documentation_and_examples() -> None:
    schema = json_schema()
    for path, place in sections().items():
        section = schema if not path else schema["$defs"][place.title]
        assert section["description"]
        assert section["additionalProperties"] is False
        assert list(section["properties"]) == list(place.fields)
        for key, found in section["properties"].items():
            assert found["title"], key
            assert found["description"], key
            assert found["examples"], key
            default = (
                None if key in section.get("required", []) else place.fields[key].get_default(call_default_factory=True)
            )
            assert ("default" in found) == (default is not None)


def test_defaults_and_examples_are_valid() -> None:
    schema = json_schema()
    count = 0
    for section in [schema, *schema["$defs"].values()]:
        for rule in section.get("properties", {}).values():
            validator = Draft202012Validator({"$schema": schema["$schema"], "$defs": schema["$defs"], **rule})
            for value in [*rule["examples"], *([rule["default"]] if "default" in rule else [])]:
                count += 1
                assert [error.message for error in validator.iter_errors(value)] == []
    assert count > 80


def test_every_kind_of_value_is_described() -> None:
    definitions = json_schema()["$defs"]
    for name, value in VALUES.items():
        if name in definitions:
            assert definitions[name]["description"] == f"Takes {value.expects}."


@pytest.mark.parametrize("name", FILES)
def test_the_files_in_the_repository_are_up_to_date(name: str) -> None:
    assert json.loads((ROOT / name).read_text(encoding="utf-8")) == FILES[name](), "run python -m scripts.generate"
    assert main(["--check", "--root", str(ROOT)]) == 0


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert main(["--check", *root]) == 1
    assert "differs from the code" in capsys.readouterr().err
    assert main(root) == 0
    assert capsys.readouterr().out.count("written") == len(FILES) + len(render_plots())
    assert main(["--check", *root]) == 0
    assert main(root) == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "schemas" / "config" / "v1.json").write_text("{}")
    assert main(["--check", *root]) == 1


def test_the_command_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "scripts.generate", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
