"""`asgi-datasource init`: writes a commented first configuration, from scratch or from the project's settings."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...config import json_schema
from ..command import CannotRun, Clean, offer_formats
from ..console import Console, Style
from ..scaffold import SCHEMA_FILE, Origin, Server, from_django, from_object, from_url, render_config
from ..sources import find_application, named_file, offer_file

_FILE: Final = "datasource.yaml"


@dataclass(frozen=True, slots=True)
class Started(Clean):
    """A first configuration.

    Attributes:
        file: The written file; None when the configuration is only printed.
        schema: The JSON Schema beside it; None when the configuration is only printed.
        content: The configuration.
        origin: What it was made from.
    """

    file: str | None
    schema: str | None
    content: str
    origin: Origin

    def render(self, form: str, style: Style) -> str:
        """The configuration, or the next steps."""
        if form == "json":
            document = {
                "version": 1,
                "file": self.file,
                "schema": self.schema,
                "content": self.content,
                "variables": [server.variable for server in self.origin.servers],
            }
            return json.dumps(document, indent=2, ensure_ascii=False)
        if self.file is None:
            return self.content.rstrip("\n")
        lines = [f"{style.bold(self.file)} is written, with {self.schema} for editors. Set, before it is used:"]
        lines += [f"  {server.variable}  {style.faint(server.shown)}" for server in self.origin.servers]
        lines += ["", f"Then: asgi-datasource validate {self.file}, and asgi-datasource check {self.file}."]
        return "\n".join(lines)


def configure(parser: ArgumentParser) -> None:
    """Add the file and the sources."""
    offer_file(parser)
    parser.add_argument("--stdout", action="store_true", help="print it instead of writing a file")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--url", metavar="URL", help="a PostgreSQL or SQLAlchemy URL; default: DATABASE_URL, if set")
    group.add_argument(
        "--django", metavar="MODULE", help="Django's settings, such as mysite.settings, for their DATABASES"
    )
    group.add_argument(
        "--object",
        metavar="MODULE:NAME",
        help="an object with a connection string: an advanced-alchemy config, a SQLAlchemy engine or URL",
    )
    parser.add_argument("--name", default="", metavar="NAME", help="the datasource's name; default: the database's")
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Started:
    """Make the configuration and write it, unless the file exists."""
    find_application()
    if options.django:
        origin = from_django(options.django)
    elif options.object:
        origin = from_object(options.object, options.name)
    else:
        url: str | None = options.url or os.environ.get("DATABASE_URL")
        origin = from_url(url, options.name, "DATABASE_URL") if url else _nothing(options.name)
    content = render_config(origin)
    if options.stdout:
        return Started(None, None, content, origin)
    file = named_file(options, _FILE)
    path = Path(file)
    if path.suffix not in (".yaml", ".yml"):
        raise CannotRun(f"{file} is no YAML file", "A first configuration is written in YAML: it has comments.")
    try:
        _write(path, content, overwrites=options.force)
    except FileExistsError:
        raise CannotRun(f"{file} is there already", "Give --force to write over it, or --stdout.") from None
    schema = path.parent / SCHEMA_FILE
    # A schema that is there is the project's own, or an older one: --force writes it again.
    with suppress(FileExistsError):
        _write(schema, f"{json.dumps(json_schema(), indent=2, ensure_ascii=False)}\n", overwrites=options.force)
    return Started(file, str(schema), content, origin)


def _write(path: Path, content: str, *, overwrites: bool) -> None:
    try:
        with path.open("w" if overwrites else "x", encoding="utf-8") as stream:
            stream.write(content)
    except FileExistsError:
        raise
    except OSError as error:
        raise CannotRun(f"{path} cannot be written: {error.strerror}", "Check the path and its rights.") from None


def _nothing(name: str) -> Origin:
    name = name or "orders"
    variable = f"{name.upper().replace('-', '_')}_PRIMARY_URL"
    return Origin("", (Server(name, "primary", variable, "postgresql://app@db.internal:5432/orders"),))
