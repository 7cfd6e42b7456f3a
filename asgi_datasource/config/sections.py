"""The base of all sections, and helpers for their fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import CoreSchema, core_schema

from .durations import parse_duration
from .kinds import Omissible
from .values import DEFINITION, Value

OMISSIBLE: Final = Omissible()


class Section(BaseModel):
    """A mapping with fixed keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    planned: ClassVar[dict[str, str]] = {}
    """Keys of a later version, and what to do until then."""


def duration_field(written: str, **metadata: Any) -> Any:
    """A field whose default is a duration; the schema shows the default as it is written."""
    return Field(default=parse_duration(written), json_schema_extra={"default": written}, **metadata)


def section_field(model: type[Section], **metadata: Any) -> Any:
    """A field whose default is an empty section."""
    return Field(default_factory=model, json_schema_extra={"default": {}}, **metadata)


def mapping_field(**metadata: Any) -> Any:
    """A field whose default is an empty mapping."""
    return Field(default_factory=dict, json_schema_extra={"default": {}}, **metadata)


class ListForm:
    """Marks a section that may also be written as a list: the value of one of its keys.

    Args:
        section: What a list becomes: a subclass of the field's section.
        key: The key whose value the list is.
        value: The kind of its entries.
    """

    __slots__ = ("_entries", "_key", "_section", "value")

    def __init__(self, section: type[Section], key: str, value: Value) -> None:
        self._section = section
        self._key = key
        self.value = value
        self._entries: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[Annotated[str, value], ...])

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, written: object, handler: ValidatorFunctionWrapHandler) -> object:
        if isinstance(written, Mapping | BaseModel):
            return handler(written)
        # The paths of its errors are those of the list, as it is written.
        return self._section.model_construct({self._key}, **{self._key: self._entries.validate_python(written)})

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        entry = {"type": "string", DEFINITION: self.value.name}
        return {"anyOf": [{"type": "array", "items": entry}, handler(core)]}
