"""What a document takes from outside: `${NAME}`, `${NAME:-default}` from the environment, `{file: path}` from a file.

`$${` stands for `${`. Everything that came from outside is `Given`: it may be read as a number or a boolean, and no
message shows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path as FilePath
from typing import Any, Final, cast

from pydantic import SecretStr

from .diagnostics import Code, Diagnostic, Path, did_you_mean
from .limits import MAX_DEPTH, MAX_SECRET_BYTES
from .shapes import is_list, is_mapping
from .tenants import TenantConfig
from .values import Given

VARIABLE: Final = r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::-[^{}\x00-\x1f\x7f]*)?\}"
"""A reference. The default ends at the first brace; references in defaults are refused, not misread."""
_LITERAL: Final = r"[^$]|\$+[^${]|\$\$+\{"
PLAIN_TEXT: Final = rf"^(?:{_LITERAL})*\$*$"
"""Text without a reference, from end to end."""
REFERENCE_TEXT: Final = rf"^(?:{_LITERAL})*{VARIABLE}(?:{_LITERAL}|{VARIABLE})*\$*$"
"""Text with at least one reference, and every `${` of it well-formed."""

SECRETS: Final = (
    ("datasources", "*", "primary", "url"),
    ("datasources", "*", "replicas", "*", "url"),
    ("tenancy", "resolve", "*", "jwt_claim", "key"),
)
"""Where `{file: path}` may stand; `*` is any name or entry."""

FILES: Final = (("tenancy", "resolve", "*", "jwt_claim", "jwks"),)
"""Where paths of files stand."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

_TOKENS: Final = re.compile(
    r"(?P<escape>\$\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}\x00-\x1f\x7f]*))?\}|(?P<broken>\$\{)"
)


class Outside:
    """Resolves the references of one document and collects what is wrong with them.

    Args:
        environ: The environment.
        folder: The folder that paths of secrets are relative to.
    """

    def __init__(self, environ: Mapping[str, str], folder: FilePath) -> None:
        self._environ = environ
        self._folder = folder
        self.diagnostics: list[Diagnostic] = []

    def resolve(self, document: object) -> object:
        """The document with its references resolved; the given one is left as it is.

        Parts without references are shared with the given document. Where a reference cannot be resolved there is a
        problem in `diagnostics`, and an empty string.
        """
        resolved = self._resolve(document, ())
        return self._with_secrets(resolved) if is_mapping(resolved) else resolved

    def _note(self, code: Code, path: Path, message: str, mend: str) -> None:
        self.diagnostics.append(Diagnostic(code, path, message, mend))

    def _resolve(self, value: object, path: Path) -> object:
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, Mapping | list | tuple):
            if len(path) >= MAX_DEPTH:
                self._note(Code.TOO_LARGE, path[:1], f"nested deeper than {MAX_DEPTH} levels", "Seven are enough.")
                return None
            return self._container(cast("Mapping[object, object] | Sequence[object]", value), path)
        if isinstance(value, float) and not isfinite(value):
            self._note(Code.NOT_PLAIN, path, "not a finite number", "Write a number.")
            return None
        if value is None or isinstance(value, int | float | SecretStr | TenantConfig):
            return value
        kind = type(value).__name__
        is_date = kind in ("date", "datetime", "time")
        mend = "Quote it." if is_date else "Write a mapping, list, string, number or boolean."
        self._note(Code.NOT_PLAIN, path, f"a {kind} has no place in a document", mend)
        return None

    def _child(self, value: object, path: Path) -> object:
        return value if _is_plain(value, MAX_DEPTH - len(path)) else self._resolve(value, path)

    def _container(self, value: Mapping[object, object] | Sequence[object], path: Path) -> object:
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    message = f"a key that is a {type(key).__name__}, not a string"
                    self._note(Code.NOT_PLAIN, path, message, "Quote it.")
            return {key: self._child(child, (*path, key)) for key, child in value.items() if isinstance(key, str)}
        return [self._child(entry, (*path, index)) for index, entry in enumerate(value)]

    def _text(self, text: str, path: Path) -> str:
        if "${" not in text:
            return text
        is_given = False

        def replace(token: re.Match[str]) -> str:
            nonlocal is_given
            if token["escape"] is not None:
                return "${"
            if token["broken"] is not None:
                mend = "Write ${NAME} or ${NAME:-default}; $${ stands for a plain ${."
                self._note(Code.MALFORMED_REFERENCE, path, "'${' without a name and a closing brace", mend)
                return ""
            is_given = True
            name: str = token["name"]
            # As in a shell, the default also stands in for a variable that is set to nothing.
            value = self._environ.get(name) or token["default"]
            if value is None and name not in self._environ:
                self._not_set(name, path)
            return value or ""

        resolved = _TOKENS.sub(replace, text)
        return Given(resolved) if is_given else resolved

    def _not_set(self, name: str, path: Path) -> None:
        similar = did_you_mean(name, self._environ)
        mend = f"Did you mean {similar}? Else set it" if similar else "Set it"
        self._note(
            Code.VARIABLE_NOT_SET,
            path,
            f"the environment variable {name} is not set",
            f"{mend}, or give a default: ${{{name}:-default}}.",
        )

    def _with_secrets(self, document: dict[str, Any]) -> dict[str, Any]:
        """The document with the files behind each `{file: path}` read, and with paths that start at its folder."""
        for pattern in SECRETS:
            for path in _matches(document, pattern):
                value = _at(document, path)
                if is_mapping(value) and list(value) == ["file"] and isinstance(value["file"], str):
                    document = _replaced(document, path, self._secret(value["file"], path))
        for pattern in FILES:
            for path in _matches(document, pattern):
                value = _at(document, path)
                if isinstance(value, str) and value and not _CONTROL.search(value):
                    file = str(self._folder / value)
                    document = _replaced(document, path, Given(file) if isinstance(value, Given) else file)
        return document

    def _secret(self, file: str, path: Path) -> Given:
        try:
            with (self._folder / file).open("rb") as stream:
                content = stream.read(MAX_SECRET_BYTES + 1)
            if len(content) > MAX_SECRET_BYTES:
                reason = f"it is longer than {MAX_SECRET_BYTES // 1024} kB"
            else:
                text = content.decode()
                return Given(text.removesuffix("\n").removesuffix("\r"))
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except ValueError:  # not UTF-8, or a NUL in the path
            reason = "it is not UTF-8 text, or its path is none"
        mend = "Check the path and its rights; a relative path starts at the configuration file."
        self._note(Code.SECRET_NOT_READABLE, path, f"the secret's file cannot be read: {reason}", mend)
        return Given("")


def _at(document: object, path: Path) -> Any:
    value: Any = document
    for part in path:
        value = value[part]
    return value


def _matches(document: object, pattern: tuple[str, ...], path: Path = ()) -> list[Path]:
    """The paths of a document that a pattern leads to; `*` is any name or entry."""
    if not pattern:
        return [path]
    key, *rest = pattern
    parts: Iterable[str | int] = ()
    if is_mapping(document):
        parts = list(document) if key == "*" else (key,) if key in document else ()
    elif is_list(document) and key == "*":
        parts = range(len(document))
    return [found for part in parts for found in _matches(_at(document, (part,)), tuple(rest), (*path, part))]


def _replaced(document: Any, path: Path, value: object) -> Any:
    """The document with the value at a path replaced; everything beside the path is shared."""
    key, *rest = path
    copy = document.copy()
    copy[key] = _replaced(document[key], tuple(rest), value) if rest else value
    return copy


_STRINGS: Final = frozenset({str})


def _is_plain(value: object, depth: int) -> bool:
    """Whether there is nothing to resolve or to refuse in a value. Runs over every value of every document."""
    kind = type(value)
    children: Iterable[object]
    if kind is dict:
        mapping = cast("dict[object, object]", value)
        if not _STRINGS.issuperset(map(type, mapping)):
            return False
        children = mapping.values()
    elif kind is list:
        children = cast("list[object]", value)
    elif kind is str:
        return "${" not in cast("str", value)
    else:
        return value is None or kind in (int, bool, TenantConfig) or (isinstance(value, float) and isfinite(value))
    if depth <= 0:
        return False
    for child in children:
        # What tenants are made of is looked at without a call: there may be 200,000 such values.
        if type(child) is str:
            if "${" in child:
                return False
        elif type(child) is not TenantConfig and not _is_plain(child, depth - 1):
            return False
    return True
