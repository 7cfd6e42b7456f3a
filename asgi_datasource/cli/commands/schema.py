"""`asgi-datasource schema`: the JSON Schema, for editors and other programs."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from typing import Any

from ...config import json_schema, part_schema
from ..command import ExitCode, offer_formats
from ..console import Console, Style


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema."""

    content: dict[str, Any]

    @property
    def exit_code(self) -> ExitCode:
        """There is nothing to find."""
        return ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The schema as JSON."""
        return json.dumps(self.content, indent=2, ensure_ascii=False)


def configure(parser: ArgumentParser) -> None:
    """Which of the two."""
    parser.add_argument("--part", action="store_true", help="the schema of an included file or an overlay")
    offer_formats(parser, "json")


def run(options: Namespace, console: Console) -> Schema:
    """Make the schema from the models."""
    return Schema(part_schema() if options.part else json_schema())
