"""The command that keeps the schema's files: `python -m asgi_datasource.config.schema [--check]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .generated import json_schema

FILES: Final = ("datasource.schema.json", "schemas/config/v1.json")
"""Where the schema is kept in the repository: for editors, and among the published ones."""


def render() -> str:
    """The schema as it is kept in the repository."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the schema's files, or tell whether they are up to date.

    Returns:
        0; with `--check`, 1 when a file differs.
    """
    parser = argparse.ArgumentParser(prog="python -m asgi_datasource.config.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file differs")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository; here unless told otherwise")
    options = parser.parse_args(arguments)
    content, stale = render(), 0
    for name in FILES:
        path: Path = options.root / name
        if path.is_file() and path.read_text(encoding="utf-8") == content:
            continue
        stale += 1
        if options.check:
            print(f"{path}: differs from the models; run python -m asgi_datasource.config.schema", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(f"{path}: written")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
