"""Comments that ignore warnings and hints: `# ads: ignore[ADS041] one schema on purpose`.

The comment is at the end of the line that the message names, or alone on the line above it; `ignore-file` applies to
the whole file. A reason is required, errors cannot be ignored, and a comment that ignores nothing is a finding, so that
no comment outlives its purpose. JSON has no comments.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from .diagnostics import Code, Diagnostic, Position, Severity
from .reading import Format, Text

_COMMENT: Final = re.compile(
    r"(?:^|(?<=\s))#[ \t]*ads:[ \t]*(?P<word>[\w-]*)[ \t]*(?:\[(?P<codes>[^\]\n]*)\])?[ \t]*(?P<reason>[^\n]*)",
    re.MULTILINE,
)
_CODES: Final = frozenset(code.value for code in Code)
_EXAMPLE: Final = "Write # ads: ignore[ADS041] and the reason."


@dataclass(slots=True)
class _Comment:
    """One well-formed suppression."""

    position: Position
    line: int | None
    """The line that it applies to; None for the whole file."""
    codes: frozenset[str]
    reason: str
    used: set[str] = field(default_factory=set[str])


@dataclass(frozen=True, slots=True)
class Suppressed:
    """An ignored problem.

    Attributes:
        diagnostic: The problem.
        reason: The reason in the comment.
    """

    diagnostic: Diagnostic
    reason: str


def apply_suppressions(
    diagnostics: Iterable[Diagnostic], texts: Iterable[Text], *, needs_server: bool = False
) -> tuple[list[Diagnostic], list[Suppressed]]:
    """Remove the problems that the files ignore.

    Args:
        diagnostics: All problems, with positions.
        texts: The files.
        needs_server: Whether the problems are those that only `check` finds; comments about others are then not
            reported as unused.

    Returns:
        The remaining problems, with those of the comments themselves; and the ignored ones.
    """
    comments: list[_Comment] = []
    kept: list[Diagnostic] = []
    for text in texts:
        if "ads:" in text.content and text.format is not Format.JSON:
            for found in _comments(text):
                if isinstance(found, Diagnostic):
                    kept += [] if needs_server else [found]
                else:
                    comments.append(found)
    index: dict[_Place, list[_Comment]] = {}
    for comment in comments:
        for code in comment.codes:
            index.setdefault((comment.position.file, code, comment.line), []).append(comment)
    suppressed: list[Suppressed] = []
    has_errors = False
    for problem in diagnostics:
        has_errors = has_errors or problem.severity is Severity.ERROR
        covering = _covering(problem, index) if problem.position is not None else []
        for comment in covering:
            comment.used.add(problem.code.value)
        if covering and problem.severity is Severity.ERROR:
            message = f"{problem.code.value} is an error here, and the document is refused for it"
            kept += [problem, _bad(covering[0].position, message, "Fix the error, and remove the comment.")]
        elif covering:
            suppressed.append(Suppressed(problem, covering[0].reason))
        else:
            kept.append(problem)
    # After an error the validation is incomplete, so a comment may only seem unused.
    if not has_errors:
        kept += [problem for comment in comments for problem in _unused(comment, needs_server=needs_server)]
    return kept, suppressed


_Place = tuple[str, str, int | None]
"""File, code and line that a comment applies to; no line for the whole file."""


def _covering(problem: Diagnostic, index: dict[_Place, list[_Comment]]) -> list[_Comment]:
    """The comments that apply to a problem."""
    file, line = (problem.position.file, problem.position.line) if problem.position is not None else ("", None)
    lines = {line, None}
    return [comment for each in lines for comment in index.get((file, problem.code.value, each), ())]


def _bad(position: Position, message: str, fix: str) -> Diagnostic:
    return Diagnostic(Code.BAD_SUPPRESSION, (), message, fix, position=position, severity=Severity.WARNING)


def _unused(comment: _Comment, *, needs_server: bool) -> Iterator[Diagnostic]:
    for code in sorted(comment.codes - comment.used):
        if Code(code).needs_server is not needs_server:
            continue
        message, fix = f"there is no {code} to ignore here", "Remove the comment."
        yield Diagnostic(
            Code.UNUSED_SUPPRESSION, (), message, fix, position=comment.position, severity=Severity.WARNING
        )


def _comments(text: Text) -> Iterator[_Comment | Diagnostic]:
    lines = text.content.split("\n")
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    following = _following(lines)
    for match in _COMMENT.finditer(text.content):
        line = bisect_right(starts, match.start())
        start = starts[line - 1]
        position = Position(text.file, line, match.start() - start + 1)
        codes = frozenset(re.findall(r"[^\s,]+", match["codes"] or ""))
        reason = match["reason"].strip(" \t\r:-")
        if match["word"] not in ("ignore", "ignore-file"):
            yield _bad(position, "a comment to this tool that says neither ignore nor ignore-file", _EXAMPLE)
        elif not codes:
            yield _bad(position, "what is to be ignored is not said", _EXAMPLE)
        elif codes - _CODES:
            yield _bad(position, "a code that there is not", "asgi-datasource rule lists them.")
        elif not reason:
            yield _bad(position, "no reason is given", "Say behind the bracket why this is as it should be.")
        else:
            is_alone = not text.content[start : match.start()].strip()
            about = following[line] if is_alone else line
            yield _Comment(position, None if match["word"] == "ignore-file" else about, codes, reason)


def _following(lines: list[str]) -> list[int]:
    """For each line, by its number, the next line that is more than a comment; the line itself where there is none."""
    found = [0] * (len(lines) + 1)
    following = 0
    for number in range(len(lines), 0, -1):
        found[number] = following or number
        content = lines[number - 1].strip()
        if content and not content.startswith("#"):
            following = number
    return found
