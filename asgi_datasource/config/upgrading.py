"""From older documents to the present version, in their own text: comments and layout stay.

Version 0 is what was written before documents carried their version. It said some things shorter, as many hand-written
files still do:

- no `version` at all;
- a server as its URL alone: `primary: ${ORDERS_URL}` for `primary: {url: "${ORDERS_URL}"}`;
- lengths of time as numbers of seconds: `deadline: 10` for `deadline: 10s`;
- the booleans of YAML 1.1: `spans: no` for `spans: false`; numbers in quotes.

Each step is a list of fixes; those of the present version that are safe (`structure.py`) come last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from .diagnostics import Edit, Fix
from .editing import edit_text
from .reading import Text, read_text
from .references import at, expand
from .shapes import is_mapping
from .structure import check_structure

PRESENT: Final = 1
_MOST_ROUNDS: Final = 20


def version_of(document: Any) -> int | None:
    """The version of a document; 0 for one without, None for one that cannot be read."""
    if not is_mapping(document):
        return None
    version: object = document.get("version", 0)
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def upgrade_text(text: Text) -> tuple[Text, list[Fix]]:
    """Bring a text to the present version.

    Args:
        text: A text without syntax errors.

    Returns:
        The new text, and what was changed in it, in order.
    """
    made: list[Fix] = []
    document, _ = read_text(text)
    version = version_of(document)
    while version is not None and version < PRESENT and version in _STEPS:
        text, done = edit_text(text, list(_STEPS[version](document)))
        made += done
        document, _ = read_text(text)
        version = version_of(document) if version_of(document) != version else None
    text, done = mend_text(text)
    return text, made + done


def mend_text(text: Text) -> tuple[Text, list[Fix]]:
    """Make every safe fix of a document's form; a fix may uncover the next one."""
    made: list[Fix] = []
    for _ in range(_MOST_ROUNDS):
        document, problems = read_text(text)
        if problems or document is None:
            break
        _, found = check_structure(document)
        fixes = [problem.fix for problem in found if problem.fix is not None and problem.fix.is_safe]
        text, done = edit_text(text, fixes)
        made += done
        if not done:
            break
    return text, made


def _from_0(document: Any) -> Iterator[Fix]:
    if "version" in document:
        yield Fix(Edit.REPLACE, ("version",), 1, is_safe=True)
    else:
        yield Fix(Edit.ADD, ("version",), 1, is_safe=True)
    for pattern in (("datasources", "*", "primary"), ("datasources", "*", "replicas", "*")):
        for path in expand(document, pattern):
            url: object = at(document, path)
            if isinstance(url, str):
                yield Fix(Edit.REPLACE, path, {"url": url}, is_safe=True)


_STEPS: Final[dict[int, Callable[[Any], Iterator[Fix]]]] = {0: _from_0}
"""From each older version to the next one."""
