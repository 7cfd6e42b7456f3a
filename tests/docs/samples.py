"""Code samples of the documentation, by file and language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def samples(language: str, page: str | None = None) -> list[Sample]:
    """The samples in a language, of one page or of all."""
    pages = [ROOT / page] if page else [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        Sample(str(path.relative_to(ROOT)), path.read_text()[: match.start()].count("\n") + 1, match[1], match[2])
        for path in pages
        for match in _BLOCK.finditer(path.read_text())
        if match[1] == language
    ]
