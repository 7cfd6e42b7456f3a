"""What the commands of `migrate` print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ...migrate import Finding, Migration, MigrationReport, Progress, Standing, counts, named
from ..command import Clean, ExitCode
from ..console import Style

MOST_LINES: Final = 20
"""Schemas that a text lists one by one."""

_WORDS: Final = {
    Standing.AT_HEAD: "at head",
    Standing.PENDING: "pending",
    Standing.WAITING: "waiting",
    Standing.REFUSED: "to be put right",
    Standing.FAILED: "failed",
    Standing.MOVING: "moving",
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, or what a run has come to.

    Attributes:
        report: The report.
        is_short: Only the verdict and what is wrong.
        has_sql: With the statements.
    """

    report: MigrationReport
    is_short: bool = False
    has_sql: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """The report's verdict."""
        return ExitCode(int(self.report.verdict))

    def render(self, form: str, style: Style) -> str:
        """The report as text or JSON."""
        if form == "json":
            return json.dumps(self.report.document(), indent=2, ensure_ascii=False)
        lines = [*self._wrong(style)]
        if not self.is_short:
            lines += self._pending(style)
        return "\n".join([*lines, self._summary(style)])

    def _wrong(self, style: Style) -> list[str]:
        lines: list[str] = []
        failed = self.report.standing(Standing.FAILED)
        for one in failed[:MOST_LINES]:
            lines.append(f"{style.red('failed')} {style.bold(one.name)} at {one.failed}: {one.error}")
        if len(failed) > MOST_LINES:
            lines.append(f"... and {len(failed) - MOST_LINES} more have failed: --format json has all of them")
        by_finding: dict[Finding, list[Progress]] = {}
        for one in self.report.standing(Standing.REFUSED):
            for finding in one.findings:
                by_finding.setdefault(finding, []).append(one)
        for finding, schemas in by_finding.items():
            lines.append(f"{style.red(finding.trouble.value)} {finding.message}")
            lines.append(f"  in {len(schemas)}: {named(schemas)}")
            lines.append(f"  {style.faint(finding.fix)}")
        return lines

    def _pending(self, style: Style) -> list[str]:
        lines: list[str] = []
        groups: dict[tuple[str, ...], list[Progress]] = {}
        for one in self.report.standing(Standing.PENDING, Standing.WAITING, Standing.MOVING):
            groups.setdefault(tuple(str(file.path) for file in one.pending), []).append(one)
        for schemas in groups.values():
            one = schemas[0]
            head = f"{_WORDS[one.standing]} in {len(schemas)}: {named(schemas)}"
            why = (one.waits_for and f" (waits for {one.waits_for})") or (f" ({one.error})" if one.error else "")
            lines.append(style.yellow(head) + why)
            for file in one.pending:
                lines.append(f"  {file.label}{style.faint(_marks(file))}")
                if self.has_sql:
                    lines += [f"    {line}".rstrip() for line in file.text.strip().split("\n")]
        return lines

    def _summary(self, style: Style) -> str:
        found = counts(self.report.schemas)
        parts = [f"{found[standing]} {word}" for standing, word in _WORDS.items() if found.get(standing)]
        text = f"{len(self.report.schemas)} schemas: {', '.join(parts) or 'none'}"
        if self.report.run_id is not None:
            text += f"; {self.report.applied} migrations applied in {self.report.seconds:.1f} s"
        paint = {ExitCode.CLEAN: style.green, ExitCode.FINDINGS: style.red}.get(self.exit_code, style.yellow)
        return paint(text)


def _marks(file: Migration) -> str:
    marks = [] if file.directives.is_transactional else ["without a transaction"]
    if file.directives.phase.value == "contract":
        marks.append("contract")
    return f" ({', '.join(marks)})" if marks else ""


@dataclass(frozen=True, slots=True)
class Status:
    """Which versions the schemas are at."""

    report: MigrationReport

    @property
    def exit_code(self) -> ExitCode:
        """The report's verdict."""
        return ExitCode(int(self.report.verdict))

    def render(self, form: str, style: Style) -> str:
        """A table of versions, or the report as JSON."""
        if form == "json":
            return json.dumps(self.report.document(), indent=2, ensure_ascii=False)
        rows = [("DATASOURCE", "SCOPE", "VERSION", "HEAD", "SCHEMAS", "STANDING")]
        groups: dict[tuple[str, str, int, int, Standing], list[Progress]] = {}
        for one in self.report.schemas:
            kind = one.target.kind
            key = (one.database.datasources[0], one.target.part, one.version, one.folder.head(kind), one.standing)
            groups.setdefault(key, []).append(one)
        for (datasource, scope, version, head, standing), schemas in sorted(groups.items()):
            count = str(len(schemas)) if len(schemas) > 1 or not schemas[0].target.tenants else schemas[0].name
            rows.append((datasource, scope, str(version), str(head), count, _WORDS[standing]))
        return _table(rows, style)


def _table(rows: Sequence[Sequence[str]], style: Style) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([style.bold(lines[0]), *lines[1:]])


@dataclass(frozen=True, slots=True)
class Changed(Clean):
    """What a command has written down.

    Attributes:
        action: The command.
        lines: What it has done.
    """

    action: str
    lines: tuple[str, ...]

    def render(self, form: str, style: Style) -> str:
        """The lines, or JSON."""
        if form == "json":
            return json.dumps({"version": 1, "action": self.action, "changes": list(self.lines)}, ensure_ascii=False)
        return "\n".join(self.lines) if self.lines else "nothing to change"
