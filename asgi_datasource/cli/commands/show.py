"""`asgi-datasource show FILE`: prints the effective document with masked secrets, and the origin of each value."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ...config import Provenance, Resolved, resolve_document
from ..command import Clean, offer_formats
from ..console import Console, Style
from ..sources import (
    environment_on_request,
    examine_file,
    load_or_refuse,
    named_file,
    offer_environment,
    offer_file,
    offer_overlays,
)


@dataclass(frozen=True, slots=True)
class Shown(Clean):
    """An effective document.

    Attributes:
        file: The main file.
        resolved: Its values with their origins.
    """

    file: str
    resolved: Resolved

    def render(self, form: str, style: Style) -> str:
        """The values as lines with comments, or JSON."""
        if form == "json":
            values = [
                {"key": value.key, "value": value.value, "from": value.provenance.value, "where": value.where}
                for value in self.resolved.values
            ]
            document = {"version": 1, "file": self.file, "document": self.resolved.document, "values": values}
            return json.dumps(document, indent=2, ensure_ascii=False)
        lines: list[tuple[str, str]] = []
        for value in self.resolved.values:
            written = json.dumps(value.value, ensure_ascii=False) if not isinstance(value.value, str) else value.value
            origin = value.where if value.provenance is not Provenance.DEFAULT else "default"
            lines.append((f"{value.key}: {written}", origin))
        width = min(72, max((len(text) for text, _ in lines), default=0))
        return "\n".join(f"{text:{width}}  {style.faint(f'# {origin}')}" for text, origin in lines)


def configure(parser: ArgumentParser) -> None:
    """Add the file and the choice of values."""
    offer_file(parser)
    parser.add_argument("--defaults", action="store_true", help="include defaults")
    offer_overlays(parser)
    offer_environment(parser, is_optional=True)
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Shown:
    """Find the origin of every value."""
    file = named_file(options)
    variables = environment_on_request(options)
    findings = examine_file(file, options, variables)
    config = load_or_refuse(findings)
    return Shown(file, resolve_document(config, findings, with_defaults=options.defaults))
