"""Finds secrets that are written in the document itself, where every reader of the repository sees them."""

from __future__ import annotations

import re
from typing import Any, Final

from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Severity
from .keys import secret_places, value_at
from .references import at, expand

_REFERENCE: Final = re.compile(r"\$\{[^}]*\}")
_IN_URL: Final = re.compile(r"postgres(?:ql)?://[^/?#]*?:(?P<password>[^@/?#]+)@")
_IN_SERVICE_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#]*?:(?P<password>[^@/?#]+)@")
_AS_KEYWORD: Final = re.compile(r"(?:^|[?&\s])(?:password|sslpassword)\s*=\s*(?P<password>'(?:[^'\\]|\\.)+'|[^\s&']+)")


def find_plain_secrets(document: Any) -> list[Diagnostic]:
    """A warning for each secret in plain text; the document's references are not resolved yet."""
    found: list[Diagnostic] = []
    for pattern in secret_places():
        for path in expand(document, pattern):
            value: object = at(document, path)
            kind = value_at(path)
            if isinstance(value, str) and kind is not None and _is_plain(value, kind.name):
                found.append(_problem(path))
    return found


_IN_URLS: Final = {"DatabaseUrl": (_IN_URL, _AS_KEYWORD), "ServiceUrl": (_IN_SERVICE_URL,)}
"""How a password is found in a URL, by the kind of the value; other secrets are secret as a whole."""


def _is_plain(value: str, kind: str) -> bool:
    patterns = _IN_URLS.get(kind)
    if patterns is None:
        return not _REFERENCE.search(value)
    # Only the text around references is examined.
    written = _REFERENCE.sub("", value)
    return any(pattern.search(written) for pattern in patterns)


def _problem(path: Path) -> Diagnostic:
    name = "_".join(str(part) for part in path[1:] if part != "replicas").upper().replace("-", "_")
    message = "a secret stands in the file itself"
    fix = f"Take it from the environment, ${{{name}}}, or from a file, {{file: path}}."
    return Diagnostic(
        Code.PLAIN_SECRET,
        path,
        message,
        fix,
        severity=Severity.WARNING,
        edit=Edit(EditKind.REPLACE, path, f"${{{name}}}"),
    )
