"""The page of incidents: its signs, and the parts that runs write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests.observability.incidents.stage import Seen

PAGE: Final = Path(__file__).parents[3] / "docs" / "incidents.md"
_ROW: Final = re.compile(r"^\| (trace|metric|log|console) \| (.+) \|$", re.MULTILINE)


def section_of(text: str, name: str) -> str:
    """The section of an incident.

    Raises:
        ValueError: There is none.
    """
    _, heading, rest = text.partition(f"\n## {name}\n")
    if not heading:
        raise ValueError(f"{PAGE} has no section {name!r}")
    return rest.partition("\n## ")[0]


def signs_of(text: str, name: str) -> list[tuple[str, str]]:
    """The signs that a section names: the signal, and the text to look for in it."""
    found: list[tuple[str, str]] = []
    for signal, cell in _ROW.findall(section_of(text, name).partition("<!-- begin")[0]):
        found += [(signal, sign) for sign in re.findall(r"`([^`]+)`", cell)]
    if not found:
        raise ValueError(f"{PAGE}: the section {name!r} names no sign")
    return found


def missing(signs: list[tuple[str, str]], seen: Seen) -> list[str]:
    """The signs that were not seen; `…` in a sign stands for anything within a line."""
    lost: list[str] = []
    for signal, sign in signs:
        pattern = ".*".join(map(re.escape, sign.split("…")))
        if re.search(pattern, seen.of(signal)) is None:
            lost.append(f"{signal}: {sign}")
    return lost


def written(text: str, name: str, seen: Seen) -> str:
    """The page with what was seen of an incident between the marks of its section."""
    section = section_of(text, name)
    before, begin, rest = section.partition("<!-- begin: seen by scripts/incidents -->\n")
    _, end, after = rest.partition("<!-- end: seen -->")
    if not begin or not end:
        raise ValueError(f"{PAGE}: the section {name!r} has no marks")
    return text.replace(section, f"{before}{begin}\n{_rendered(seen)}\n{end}{after}")


def _rendered(seen: Seen) -> str:
    parts = (
        ("Trace", "asgi-datasource trace", seen.trace),
        ("Metrics that moved", "", seen.metrics),
        ("Log", "", seen.log),
        ("Console", "asgi-datasource top --once", seen.console),
    )
    lines: list[str] = []
    for title, command, text in parts:
        lines += [f"{title}{f', as `{command}` prints it' if command else ''}:", ""]
        lines += ["```", text, "```", ""] if text else ["(nothing)", ""]
    return "\n".join(lines)
