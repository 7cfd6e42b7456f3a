"""Code samples of the documentation, by file and language."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent.parent

_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sample:
    """One fenced block of a page.

    Attributes:
        title: The file that it shows, where the block names one.
    """

    page: str
    line: int
    language: str
    text: str
    title: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Sample]:
    """All blocks of a page that name their language, in their order."""
    text = (ROOT / page).read_text()
    return [
        Sample(page, text[: match.start()].count("\n") + 1, match[1], match[3], match[2])
        for match in _BLOCK.finditer(text)
    ]


def samples(language: str, page: str | None = None) -> list[Sample]:
    """The samples in a language, of one page or of all."""
    pages = [ROOT / page] if page else [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [sample for path in pages for sample in blocks(str(path.relative_to(ROOT))) if sample.language == language]


def titled(page: str, title: str) -> str:
    """The text of the block of a page that shows this file."""
    [found] = [sample.text for sample in blocks(page) if sample.title == title]
    return found


def load(path: Path) -> ModuleType:
    """The module in a file, imported again."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
