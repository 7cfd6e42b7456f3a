"""`asgi-datasource schema`: prints the JSON Schema, for editors and other programs."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace

from ...config import json_schema, part_schema
from ..command import Printed, offer_formats
from ..console import Console


def configure(parser: ArgumentParser) -> None:
    """Add the choice of the schema."""
    parser.add_argument("--part", action="store_true", help="the schema of an included file or an overlay")
    offer_formats(parser, "json")


def run(options: Namespace, console: Console) -> Printed:
    """Generate the schema from the models."""
    schema = part_schema() if options.part else json_schema()
    return Printed(json.dumps(schema, indent=2, ensure_ascii=False))
