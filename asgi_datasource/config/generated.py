"""The JSON Schema of the document, generated from the models.

Draft 2020-12, self-contained. It accepts what `structure.py` accepts, and nothing else, in an environment where every
reference stands for a valid value.
"""

from __future__ import annotations

from typing import Any, Final

from .models import Config
from .references import PLAIN_TEXT, REFERENCE_TEXT
from .shapes import is_list, is_mapping
from .url import TEMPLATE_PATTERN
from .values import DEFINITION, VALUES, Value

ID: Final = "urn:asgi-datasource:schema:config:v1"
"""Names the schema; there is nothing to fetch."""

_CONTROL: Final = {"pattern": r"[\x00-\x1f\x7f]"}
"""Control characters. They also see to it that `$` means the end: some engines let a line break follow."""


def json_schema() -> dict[str, Any]:
    """The schema of the configuration document, as a new dictionary."""
    generated = Config.model_json_schema(by_alias=True, mode="validation")
    definitions: dict[str, Any] = {
        **generated.pop("$defs"),
        **{name: _definition(value) for name, value in VALUES.items()},
        "Reference": _REFERENCE,
        "SecretFile": _SECRET_FILE,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        **_with_references(generated),
        "title": "asgi-datasource configuration",
        "$defs": {name: _with_references(definition) for name, definition in sorted(definitions.items())},
    }


_REFERENCE: Final[dict[str, Any]] = {
    "title": "Reference",
    "description": "Text from the environment: ${NAME}, or ${NAME:-default}. $${ stands for a plain ${.",
    "examples": ["${ORDERS_PRIMARY_URL}", "${POOL_SIZE:-10}"],
    "type": "string",
    "pattern": REFERENCE_TEXT,
    "not": _CONTROL,
}

_SECRET_FILE: Final[dict[str, Any]] = {
    "title": "Secret file",
    "description": "The value is what this file holds, without the line break at its end.",
    "type": "object",
    "properties": {
        "file": {
            "title": "File",
            "description": "Path of the file; a relative one starts at the configuration file.",
            "examples": ["/run/secrets/orders_url"],
            "anyOf": [
                {"type": "string", "minLength": 1, "pattern": PLAIN_TEXT, "not": _CONTROL},
                {"$ref": "#/$defs/Reference"},
            ],
        }
    },
    "required": ["file"],
    "additionalProperties": False,
}


def _definition(value: Value) -> dict[str, Any]:
    """A kind as it may be written: the value itself, or a reference in its place."""
    written = _written(value)
    title = {"title": value.name, "description": f"{value.expects[0].upper()}{value.expects[1:]}."}
    if not value.takes_reference:
        return {**title, **written}
    either: list[dict[str, Any]] = [written, {"$ref": "#/$defs/Reference"}]
    if value.name == "DatabaseUrl":
        template = {"type": "string", "pattern": TEMPLATE_PATTERN}
        return {**title, "anyOf": [*either, {"$ref": "#/$defs/SecretFile"}], "not": template}
    return {**title, "anyOf": either}


def _written(value: Value) -> dict[str, Any]:
    schema = dict(value.schema)
    if schema.get("type") == "string":
        reserved = schema.get("not")
        schema["not"] = _CONTROL if reserved is None else {"anyOf": [reserved, _CONTROL]}
        if value.takes_reference:
            schema["allOf"] = [{"pattern": PLAIN_TEXT}]
    return schema


def _with_references(node: object) -> Any:
    """A copy in which a `$ref` stands wherever the models marked the place of a value."""
    if is_list(node):
        return [_with_references(entry) for entry in node]
    if not is_mapping(node):
        return node
    copy = {key: _with_references(child) for key, child in node.items()}
    name = copy.pop(DEFINITION, None)
    if name is not None:
        copy.pop("type", None)
        copy["$ref"] = f"#/$defs/{name}"
    names = copy.get("propertyNames")
    if names is not None:
        # A name is what it is: a reference in its place would be looked up by nobody.
        copy["propertyNames"] = _written(VALUES[names["$ref"].rpartition("/")[2]])
    return copy
