"""The JSON Schema of the document, generated from the models.

Draft 2020-12, self-contained. It accepts exactly what `structure.py` accepts, given that every reference has a valid
value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .meanings import describe_choice
from .models import Config
from .references import PLAIN_TEXT, REFERENCE_TEXT
from .shapes import is_list, is_mapping
from .values import DEFINITION, MULTILINE, VALUES, Value

ID: Final = "urn:asgi-datasource:schema:config:v1"
"""The schema's identifier; it is not an address."""

_CONTROL: Final = {"pattern": r"[\x00-\x1f\x7f]"}
"""Control characters. Excluding them also makes `$` mean the end: some engines allow a line break after it."""


def json_schema() -> dict[str, Any]:
    """The schema of the configuration document, as a new dictionary."""
    generated = Config.model_json_schema(by_alias=True, mode="validation")
    sections: dict[str, Any] = generated.pop("$defs")
    document = _finished({**generated, "title": "asgi-datasource configuration"}, sections)
    definitions = {name: _finished(section, sections) for name, section in sections.items()}
    values = {name: _definition(VALUES[name]) for name in _names_of_values([document, definitions])}
    shared = {"Reference": _REFERENCE, "SecretCommand": _SECRET_COMMAND, "SecretFile": _SECRET_FILE}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        **document,
        "$defs": dict(sorted({**definitions, **values, **shared}.items())),
    }


PART_ID: Final = "urn:asgi-datasource:schema:config-part:v1"
"""The identifier of the schema of an included file."""


def part_schema() -> dict[str, Any]:
    """The schema of a part of a document, such as an included file or an overlay: no key is required."""
    schema = json_schema()
    del schema["required"]
    return {**schema, "$id": PART_ID, "title": "asgi-datasource configuration, a part of it"}


def _names_of_values(node: object) -> set[str]:
    """The kinds of values that a schema refers to; kinds of names are inlined."""
    if is_list(node):
        return {name for entry in node for name in _names_of_values(entry)}
    if not is_mapping(node):
        return set()
    here = {node["$ref"].rpartition("/")[2]} if isinstance(node.get("$ref"), str) else set[str]()
    return (here & VALUES.keys()).union(*map(_names_of_values, node.values()))


_REFERENCE: Final[dict[str, Any]] = {
    "title": "Reference",
    "description": "Text from the environment: ${NAME}, or ${NAME:-default}. $${ stands for a plain ${.",
    "examples": ["${ORDERS_PRIMARY_URL}", "${POOL_SIZE:-10}"],
    "type": "string",
    "pattern": REFERENCE_TEXT,
    "not": _CONTROL,
}

_OUTSIDE_TEXT: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string", "minLength": 1, "pattern": PLAIN_TEXT, "not": _CONTROL},
        {"$ref": "#/$defs/Reference"},
    ]
}

_SECRET_COMMAND: Final[dict[str, Any]] = {
    "title": "Secret command",
    "description": (
        "The value is the output of this program, without the line break at its end. It runs without a shell, and only"
        " if the process that loads the file allows commands."
    ),
    "type": "object",
    "properties": {
        "command": {
            "title": "Command",
            "description": "The program and its arguments.",
            "examples": [["vault", "read", "-field=url", "secret/orders"]],
            "type": "array",
            "minItems": 1,
            "items": _OUTSIDE_TEXT,
        }
    },
    "required": ["command"],
    "additionalProperties": False,
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
            **_OUTSIDE_TEXT,
        }
    },
    "required": ["file"],
    "additionalProperties": False,
}


def _definition(value: Value) -> dict[str, Any]:
    """What may be written for a kind: the value itself or a reference."""
    written = _written(value)
    title = {"title": value.name, "description": f"Takes {value.expects}."}
    if not value.takes_reference:
        return {**title, **written}
    # Text around a reference may contain what the value may.
    reference = {"allOf": [{"type": "string", "pattern": REFERENCE_TEXT}, MULTILINE]}
    is_multiline = written.get("not") == MULTILINE["not"]
    either: list[dict[str, Any]] = [written, reference if is_multiline else {"$ref": "#/$defs/Reference"}]
    if value.is_secret:
        either += [{"$ref": "#/$defs/SecretFile"}, {"$ref": "#/$defs/SecretCommand"}]
    return {**title, "anyOf": either}


def _written(value: Value) -> dict[str, Any]:
    schema = dict(value.schema)
    if schema.get("enum") == list(value.choices):
        # Not part of the standard; VS Code and the YAML language server show it next to each word.
        schema["enumDescriptions"] = [describe_choice(value, choice) for choice in value.choices]
    if schema.get("type") == "string":
        reserved = schema.get("not")
        if reserved != MULTILINE["not"]:
            schema["not"] = _CONTROL if reserved is None else {"anyOf": [reserved, _CONTROL]}
        if value.is_free:
            schema["allOf"] = [{"pattern": PLAIN_TEXT}]
    return schema


_FIRST: Final = ("title", "description", "default", "examples", "$ref", "type", "required")
"""The order of keywords for readers."""


def _finished(node: object, sections: Mapping[str, Any]) -> Any:
    """A copy with a `$ref` wherever the models mark a value, and keywords in the order for readers."""
    if is_list(node):
        return [_finished(entry, sections) for entry in node]
    if not is_mapping(node):
        return node
    copy = {key: node[key] for key in _FIRST if key in node} | node
    if "default" in copy and copy["default"] is None:
        # The key may be omitted, but not be `null`, which editors would insert as the default.
        del copy["default"]
    name = copy.pop(DEFINITION, None)
    if name is not None:
        copy.pop("type", None)
        copy["$ref"] = f"#/$defs/{name}"
    elif "$ref" in copy:
        # pydantic omits a description that equals the section's.
        section = sections[copy["$ref"].rpartition("/")[2]]
        copy = {"description": section["description"], **copy}
    names = copy.get("propertyNames")
    if names is not None:
        # References are not resolved in names.
        copy["propertyNames"] = _written(VALUES[names[DEFINITION]])
    for key, child in copy.items():
        if key == "properties":
            copy[key] = {name: _finished(schema, sections) for name, schema in child.items()}
        elif key not in _DATA:
            copy[key] = _finished(child, sections)
    return copy


_DATA: Final = frozenset({"default", "examples", "const", "enum", "enumDescriptions"})
"""Keywords whose values are data, not schemas."""
