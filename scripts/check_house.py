"""Check the layers of the package: imports go to lower floors only, without cycles, and psycopg stays in its folders.

All imports count, including those for type checkers and those inside functions.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

PACKAGE: Final = "asgi_datasource"
FOLDER: Final = Path(__file__).parent.parent / PACKAGE

FLOORS: Final[tuple[tuple[str, ...], ...]] = (
    ("concurrency", "observability", "errors"),
    ("routing", "config"),
    ("drivers",),
    ("transaction",),
    ("datasource", "tenancy"),
    ("sessions",),
    ("db", "migrate", "outbox"),
    ("registry",),
    ("asgi", "console"),
    ("cli", "testing", "health"),
    ("litestar", "quart", "django"),
    ("__init__", "__main__"),
)
"""The floors, lowest first. A folder imports from lower floors; folders on one floor do not import each other."""

SHARED: Final = frozenset({"errors"})
"""Modules on the lowest floor that the other folders of that floor may import."""

PSYCOPG_ROOMS: Final = ("drivers.psycopg", "testing")
"""Only these folders import psycopg, and no other folder imports from `drivers.psycopg`."""

PSYCOPG_TYPES: Final = "drivers.raw"
"""The module that imports a type of psycopg, for type checkers only."""


def floor_of(room: str) -> int:
    """The floor of a top-level module or folder."""
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise SystemExit(f"{room} is on no floor: add it to FLOORS in {__file__}")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below the package; `""` is the package itself."""
    found: dict[str, Path] = {}
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and target of each import: a module of the package (its dotted name), or `psycopg`."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
            names: list[str | None] = [None] * len(targets)
        elif isinstance(node, ast.ImportFrom):
            base = [PACKAGE, *package[: len(package) - node.level + 1]] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            targets = [stem] * len(node.names)
            names = [alias.name for alias in node.names]
        else:
            continue
        for target, imported in zip(targets, names, strict=True):
            if target[0] in ("psycopg", "psycopg_pool"):
                yield node.lineno, "psycopg"
            elif target[0] == PACKAGE:
                module = ".".join(target[1:])
                inner = f"{module}.{imported}" if module else str(imported)
                yield node.lineno, inner if imported is not None and inner in known else module


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The cycles of a graph: all strongly connected components with more than one node (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for following in sorted(graph[node]):
            if following not in order:
                visit(following)
                low[node] = min(low[node], low[following])
            elif following in stack:
                low[node] = min(low[node], order[following])
        if low[node] == order[node]:
            at = stack.index(node)
            component = stack[at:]
            del stack[at:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def is_in(name: str, room: str) -> bool:
    """Whether a module is this folder, or inside it."""
    return name == room or name.startswith(f"{room}.")


def main() -> int:
    """Print all violations; returns 1 if there are any."""
    known = modules()
    found: list[str] = []
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        where = path.relative_to(FOLDER.parent)
        room = name.split(".")[0] or "__init__"
        for line, target in imports_of(name, path, known):
            if target == "psycopg":
                if name != PSYCOPG_TYPES and not any(is_in(name, allowed) for allowed in PSYCOPG_ROOMS):
                    found.append(f"{where}:{line}: only {' and '.join(PSYCOPG_ROOMS)} import psycopg")
                continue
            graph[name].add(target)
            used = target.split(".")[0] or "__init__"
            if is_in(target, "drivers.psycopg") and not any(is_in(name, allowed) for allowed in PSYCOPG_ROOMS):
                found.append(f"{where}:{line}: imports the concrete driver; use drivers.protocol")
            if used == room or used in SHARED:
                continue
            if floor_of(used) >= floor_of(room):
                how = "a higher floor" if floor_of(used) > floor_of(room) else "the same floor"
                found.append(f"{where}:{line}: {room} uses {used}, which is on {how}")
        graph[name].discard(name)
    found += [f"cycle: {' <-> '.join(circle)}" for circle in circles(graph)]
    print("\n".join(found) if found else f"{len(known)} modules: imports go to lower floors only, without cycles")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
