"""`asgi-datasource rule ADS041`: explains a code."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ...config import Code, Explained, explain_code
from ..command import CannotRun, Clean, offer_formats
from ..console import Console, Style


@dataclass(frozen=True, slots=True)
class Rules(Clean):
    """The explanations of codes."""

    explained: tuple[Explained, ...]

    def render(self, form: str, style: Style) -> str:
        """The explanations as Markdown or JSON."""
        if form == "json":
            entries = [
                {
                    "code": each.code.value,
                    "title": each.title,
                    "text": each.text,
                    "wrong": each.wrong,
                    "right": each.right,
                }
                for each in self.explained
            ]
            return json.dumps(entries, indent=2, ensure_ascii=False)
        if len(self.explained) > 1:
            return "\n".join(f"{style.bold(each.code.value)} {each.title}" for each in self.explained)
        return "\n".join(f"{style.bold(each.code.value)} {each.as_markdown()}".rstrip("\n") for each in self.explained)


def configure(parser: ArgumentParser) -> None:
    """Add the code."""
    parser.add_argument("code", nargs="?", metavar="CODE", help="such as ADS041; without it, all codes are listed")
    offer_formats(parser, "text", "json")


def run(options: Namespace, console: Console) -> Rules:
    """Look up the code."""
    if options.code is None:
        return Rules(tuple(map(explain_code, Code)))
    try:
        return Rules((explain_code(Code(options.code.upper())),))
    except ValueError:
        raise CannotRun(f"there is no code {options.code!r}", "See asgi-datasource rule for all of them.") from None
