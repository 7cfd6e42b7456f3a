"""Writes the generated files: the JSON schemas, the dashboard, the plots, and generated parts of the documentation."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from asgi_datasource.config import json_schema, part_schema

from .compatibility import find_refusals
from .dashboard import dashboard
from .pages import render_codes, render_errors, render_keys, render_matrix, replace_generated
from .performance import render_claims, render_figures, render_plots
from .schemas import (
    changes_schema,
    console_schema,
    diagnostics_schema,
    explanation_schema,
    health_schema,
    migration_report_schema,
    state_schema,
    trace_schema,
)

FILES: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "datasource.schema.json": json_schema,
    "schemas/config/v1.json": json_schema,
    "schemas/config-part/v1.json": part_schema,
    "schemas/console/v1.json": console_schema,
    "schemas/diagnostics/v1.json": diagnostics_schema,
    "schemas/diff/v1.json": changes_schema,
    "schemas/explain/v1.json": explanation_schema,
    "schemas/health/v1.json": health_schema,
    "schemas/migration-report/v1.json": migration_report_schema,
    "schemas/state/v1.json": state_schema,
    "schemas/trace/v1.json": trace_schema,
    "deploy/grafana/dashboards/asgi-datasource.json": dashboard,
}
"""The schemas in the repository: the configuration's for editors, and every published one; and the dashboard."""

WRITTEN: Final = frozenset({"console", "diagnostics", "diff", "explain", "health", "migration-report", "trace"})
"""Published documents that the library writes: what it writes now must follow the published schema."""

PAGES: Final = {
    "docs/config.md": render_keys,
    "docs/diagnostics.md": render_codes,
    "docs/errors.md": render_errors,
    "docs/frameworks.md": render_matrix,
    "docs/performance.md": render_figures,
    "README.md": render_claims,
}
"""The pages with a generated part."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the generated files, or compare them with the code.

    Returns:
        0; with `--check`, 1 when a file differs.
    """
    parser = argparse.ArgumentParser(prog="python -m scripts.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a file differs")
    parser.add_argument(
        "--replace",
        action="store_true",
        help="write published schemas that refuse documents of before: only for schemas that no release has",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the repository; default: the current folder")
    options = parser.parse_args(arguments)
    root: Path = options.root
    contents = {root / name: _render(make()) for name, make in FILES.items()}
    contents.update({root / name: text for name, text in render_plots().items()})
    for name, render in PAGES.items():
        page = root / name
        if page.is_file():
            contents[page] = replace_generated(page.read_text(encoding="utf-8"), render)
    refused = {path: why for path in contents if (why := _refusals(root, path, contents[path])) and not options.replace}
    for path, reasons in refused.items():
        print(f"{path}: the published version has promised more:", *reasons, sep="\n  ", file=sys.stderr)
    if refused:
        print(
            "Keep what it promises, or publish the next version beside it (--replace: no release has it)",
            file=sys.stderr,
        )
        return 1
    stale = [path for path, content in contents.items() if not _holds(path, content)]
    for path in stale:
        if options.check:
            print(f"{path}: differs from the code; run python -m scripts.generate", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(contents[path], encoding="utf-8")
            print(f"{path}: written")
    return 1 if options.check and stale else 0


def _render(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _refusals(root: Path, path: Path, content: str) -> list[str]:
    """What a published schema promises and its successor in `content` does not."""
    name = path.relative_to(root)
    if name.parts[0] != "schemas" or not path.is_file():
        return []
    try:
        published = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    new = json.loads(content)
    return find_refusals(new, published) if name.parts[1] in WRITTEN else find_refusals(published, new)


def _holds(path: Path, content: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == content
