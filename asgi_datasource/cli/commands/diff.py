"""`asgi-datasource diff OLD NEW`: what a change means for the tenants, for its reviewer."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from ...config import Change, ChangeWeight, describe_changes, find_changes
from ..command import ExitCode, offer_formats
from ..console import Console, Style
from ..sources import environment_on_request, load_config, named_file, offer_environment, offer_overlays


@dataclass(frozen=True, slots=True)
class Difference:
    """The changes between two files.

    Attributes:
        old: The file before.
        new: The file after.
        changes: The changes, the most dangerous first.
        exits_with_danger: Whether dangerous changes are findings.
    """

    old: str
    new: str
    changes: tuple[Change, ...]
    exits_with_danger: bool

    @property
    def exit_code(self) -> ExitCode:
        """1 for dangerous changes, when that was requested."""
        has_danger = any(change.weight is ChangeWeight.DANGER for change in self.changes)
        return ExitCode.FINDINGS if has_danger and self.exits_with_danger else ExitCode.CLEAN

    def render(self, form: str, style: Style) -> str:
        """The changes as text, as Markdown for a comment, or as JSON."""
        if form == "json":
            return json.dumps(describe_changes(self.old, self.new, self.changes), indent=2, ensure_ascii=False)
        return self._as_markdown() if form == "markdown" else self._as_text(style)

    def _as_text(self, style: Style) -> str:
        if not self.changes:
            return f"{self.old} → {self.new}: {style.green('nothing changes')}"
        paint = {
            ChangeWeight.DANGER: style.red,
            ChangeWeight.NOTICE: style.yellow,
            ChangeWeight.PLAIN: style.green,
        }
        lines: list[str] = []
        for change in self.changes:
            lines.append(f"{paint[change.weight](change.weight.value)} {style.bold(change.key)}: {change.message}")
            if change.tenant_count:
                lines.append(f"  {style.faint(_affected(change))}")
        return "\n".join([*lines, f"{self.old} → {self.new}: {style.bold(_count(self.changes))}"])

    def _as_markdown(self) -> str:
        head = f"### asgi-datasource: `{self.old}` → `{self.new}`\n"
        if not self.changes:
            return f"{head}\nNothing changes for any tenant."
        signs = {
            ChangeWeight.DANGER: ":rotating_light: danger",
            ChangeWeight.NOTICE: ":information_source: notice",
            ChangeWeight.PLAIN: "plain",
        }
        rows = [
            f"| {signs[change.weight]} | `{change.key}` | {_escape(change.message)} | {_escape(_affected(change))} |"
            for change in self.changes
        ]
        return "\n".join(
            [head, f"{_count(self.changes)}.\n", "| | where | what | tenants |", "| --- | --- | --- | --- |", *rows]
        )


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _affected(change: Change) -> str:
    if not change.tenant_count:
        return ""
    more = change.tenant_count - len(change.tenants)
    return f"{', '.join(change.tenants)}{f' and {more} more' if more else ''}"


def _count(changes: tuple[Change, ...]) -> str:
    counts = [
        f"{count} {weight.value}"
        for weight in ChangeWeight
        if (count := sum(change.weight is weight for change in changes))
    ]
    return f"{len(changes)} change{'s' if len(changes) > 1 else ''}: {', '.join(counts)}"


def configure(parser: ArgumentParser) -> None:
    """Add the two files."""
    parser.add_argument("old", metavar="OLD", help="the old file, such as the main branch's")
    parser.add_argument("file", nargs="?", metavar="NEW", help="the new file; default: datasource.yaml")
    parser.add_argument("--config", metavar="FILE", help="the same as NEW")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 when a change is dangerous")
    offer_overlays(parser)
    offer_environment(parser, is_optional=True)
    offer_formats(parser, "text", "markdown", "json")


def run(options: Namespace, console: Console) -> Difference:
    """Load and compare both files."""
    variables = environment_on_request(options)
    file = named_file(options)
    old, new = (load_config(each, options, variables) for each in (options.old, file))
    return Difference(options.old, file, tuple(find_changes(old, new)), options.exit_code)
