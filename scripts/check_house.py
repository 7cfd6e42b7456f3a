"""Check the house's own rules: imports run downwards, and only `drivers/` and `testing/` know psycopg."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "asgi_datasource"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "background", "overtime"),
    ("telemetry", "metrics", "inbox", "turns", "prefixes", "hostnames", "fairness", "shedding"),
    ("config", "routing", "drivers", "tenancy"),
    ("problems", "carrier", "monitor", "datasource", "fleet", "provisioning", "transaction"),
    ("past", "plan", "router", "proof", "execution", "statements"),
    ("paths", "annotated", "block", "dispatch", "loan", "locks", "lookup", "work", "writers"),
    ("session", "compiled", "handlers", "replay"),
    ("compiling", "vetting", "explanation", "reloading"),
    ("registry",),
    ("guard", "lifespan"),
    ("middleware",),
    ("public",),
    ("testing", "cli"),
    ("__main__",),
)
"""The floors of the house, lowest first. A module uses what stands below it, or beside it on the same floor."""

PSYCOPG_ROOMS = frozenset({"drivers", "testing"})


def floor_of(room: str) -> int:
    """The floor that a top-level module or folder stands on."""
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise SystemExit(f"{room} stands on no floor: add it to FLOORS in {__file__}")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import inside the package, and of psycopg; those for type checkers alone are left out."""
    tree = ast.parse(path.read_text())
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = parts[:-1]
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "asgi_datasource" else [stem]
        else:
            continue
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "asgi_datasource" and len(pieces) > 1:
                yield node.lineno, pieces[1]
            elif pieces[0] in ("psycopg", "psycopg_pool"):
                yield node.lineno, "psycopg"


def main() -> int:
    """Print what breaks a rule; 1 when something does."""
    found: list[str] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        where = path.relative_to(PACKAGE.parent)
        for line, used in imports_of(path):
            if used == "psycopg":
                if room not in PSYCOPG_ROOMS:
                    found.append(f"{where}:{line}: only drivers/ talks to psycopg")
            elif used != room and floor_of(used) > floor_of(room):
                found.append(f"{where}:{line}: {room} uses {used}, which stands above it")
    print("\n".join(found) if found else "imports run downwards")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
