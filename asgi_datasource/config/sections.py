"""The base of all sections, and helpers for their fields."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from .durations import parse_duration
from .kinds import Omissible

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
