"""The directives in the head of a migration: `-- transaction: off`, before its first statement."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ..config.durations import parse_duration


class Phase(StrEnum):
    """Which part of a change a migration is, for applications that are replaced one by one."""

    EXPAND = "expand"
    """The version before it still works with it."""
    CONTRACT = "contract"
    """It takes away what only versions before use: every tenant has all migrations before it first."""


class DirectiveError(ValueError):
    """Raised when a directive has an unknown name or value.

    Attributes:
        line: Where, counted from 1.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Directives:
    """What the head of a migration says.

    Attributes:
        is_transactional: Its statements and its row in the ledger are one transaction.
        phase: Which part of a change it is.
        lock_timeout_s: Longest wait for a lock; None takes the configuration's.
        statement_timeout_s: Longest time of each statement; None takes the server's.
        allowed: Codes of the lint that it is allowed to break, with the reason.
        allowed_lines: The lines of those directives.
    """

    is_transactional: bool = True
    phase: Phase = Phase.EXPAND
    lock_timeout_s: float | None = None
    statement_timeout_s: float | None = None
    allowed: Mapping[str, str] = field(default_factory=dict[str, str])
    allowed_lines: Mapping[str, int] = field(default_factory=dict[str, int])


_LINE: Final = re.compile(r"(?:--|#)\s*([A-Za-z_]+)\s*:\s*(.*?)\s*")
_ALLOW: Final = re.compile(r"allow\s+([A-Za-z]+[0-9]*)\s*(.*)")
_NAMES: Final = ("transaction", "phase", "lock_timeout", "statement_timeout", "lint")


def read_directives(lines: Sequence[str]) -> Directives:
    """The directives of a file.

    Args:
        lines: Its lines; the head ends at the first one that is neither empty nor a comment.

    Raises:
        DirectiveError: A value is unknown, a name is nearly that of a directive, or a reason is missing.
    """
    is_transactional, phase = True, Phase.EXPAND
    timeouts: dict[str, float] = {}
    allowed: dict[str, str] = {}
    allowed_lines: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith(("--", "#")):
            break
        found = _LINE.fullmatch(text)
        if found is None:
            continue
        name, value = found[1].lower(), found[2]
        match name:
            case "transaction":
                is_transactional = _choice(name, value, ("on", "off"), number) == "on"
            case "phase":
                phase = Phase(_choice(name, value, tuple(Phase), number))
            case "lock_timeout" | "statement_timeout":
                timeouts[name] = _seconds(name, value, number)
            case "lint":
                code, reason = _allowance(value, number)
                allowed[code], allowed_lines[code] = reason, number
            case _:
                _refuse_typo(name, number)
    return Directives(
        is_transactional,
        phase,
        timeouts.get("lock_timeout"),
        timeouts.get("statement_timeout"),
        allowed,
        allowed_lines,
    )


def _choice(name: str, value: str, choices: Sequence[str], line: int) -> str:
    if value.lower() not in choices:
        raise DirectiveError(f"{name}: {value!r} is not {' or '.join(choices)}", line)
    return value.lower()


def _seconds(name: str, value: str, line: int) -> float:
    try:
        return parse_duration(value)
    except ValueError:
        raise DirectiveError(f"{name}: {value!r} is not a duration such as 500ms or 5s", line) from None


def _allowance(value: str, line: int) -> tuple[str, str]:
    found = _ALLOW.fullmatch(value)
    if found is None:
        raise DirectiveError("write it as `-- lint: allow ADS203 why it is safe here`", line)
    code, reason = found[1].upper(), found[2]
    if not reason:
        raise DirectiveError(f"lint: allow {code} needs a reason after the code", line)
    return code, reason


def _refuse_typo(name: str, line: int) -> None:
    """Other comments with a colon may stand in the head; what is nearly a directive would be ignored in silence."""
    near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.75)
    if near:
        raise DirectiveError(f"there is no directive {name!r}: did you mean {near[0]!r}?", line)
