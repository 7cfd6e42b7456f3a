"""Resolves references: `${NAME}`, `${NAME:-default}`, and secrets in files and from programs.

`$${` is a literal `${`. Resolved values are `Given`: they may be parsed as numbers and booleans, and messages never
show them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path as FilePath
from typing import Any, Final, cast

from pydantic import SecretStr

from .diagnostics import Code, Diagnostic, Edit, EditKind, Path, Suggestions
from .files import open_file
from .keys import ANY, file_places, secret_places
from .limits import MAX_DEPTH, MAX_DIAGNOSTICS, MAX_SECRET_BYTES
from .origins import Origins
from .programs import ProgramFailed, ask_program
from .shapes import is_list, is_mapping
from .tenants import TenantConfig
from .values import Given

VARIABLE: Final = r"\$\{[A-Za-z_][A-Za-z0-9_]*(?::-[^{}\x00-\x1f\x7f]*)?\}"
"""A reference. A default ends at the first brace, so references in defaults are refused."""
_LITERAL: Final = r"[^$]|\$+[^${]|\$\$+\{"
PLAIN_TEXT: Final = rf"^(?:{_LITERAL})*\$*$"
"""Text without references."""
REFERENCE_TEXT: Final = rf"^(?:{_LITERAL})*{VARIABLE}(?:{_LITERAL}|{VARIABLE})*\$*$"
"""Text with at least one reference, and only well-formed ones."""

_WHOLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _stand_in(text: str) -> Given | None:
    """The stand-in for a URL whose references are not resolved; different references have different ones."""
    whole = _WHOLE.fullmatch(text)
    if whole is not None:
        return Given(f"postgresql://{whole[1]}")
    written = _WHOLE.sub(r"\1", text)
    return Given(written) if "${" not in written and written.startswith(("postgres", "host")) else None


_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")

_TOKENS: Final = re.compile(
    r"(?P<escape>\$\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}\x00-\x1f\x7f]*))?\}|(?P<broken>\$\{)"
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The sources of referenced values.

    Attributes:
        environ: The environment variables.
        folder_of: The directory that a secret's file name is relative to, by the secret's path in the document.
        is_offline: Whether references are not resolved: without a default, their values are unknown and count as valid.
        allow_commands: Whether programs may be run for secrets.
        origins: Records the files of secrets.
    """

    environ: Mapping[str, str]
    folder_of: Callable[[Path], FilePath] = lambda _: FilePath()
    is_offline: bool = False
    allow_commands: bool = False
    origins: Origins = field(default_factory=Origins)


class Outside:
    """Resolves the references of one document and collects their problems.

    Args:
        surroundings: The sources of referenced values.

    Attributes:
        diagnostics: The problems, up to a bound.
        unresolved: The paths whose values are unknown: references that failed or were not resolved.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._environ: Mapping[str, str] = {} if surroundings.is_offline else surroundings.environ
        self._suggestions = Suggestions()
        self._similar: dict[str, str | None] = {}
        self.diagnostics: list[Diagnostic] = []
        self.unresolved: set[Path] = set()

    def resolve(self, document: object) -> object:
        """A copy of the document with its references resolved; parts without references are shared.

        The path of a reference that cannot be resolved is added to `unresolved`, and its value is an empty string.
        """
        resolved = self._resolve(document, ())
        return self._with_secrets(resolved) if is_mapping(resolved) else resolved

    def _note(self, code: Code, path: Path, message: str, fix: str, edit: Edit | None = None) -> None:
        self.unresolved.add(path)
        if len(self.diagnostics) < MAX_DIAGNOSTICS:
            self.diagnostics.append(Diagnostic(code, path, message, fix, edit=edit))

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
        fix = "Quote it." if is_date else "Write a mapping, list, string, number or boolean."
        self._note(Code.NOT_PLAIN, path, f"a {kind} has no place in a document", fix)
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
        if self._surroundings.is_offline and path[-1:] == ("url",) and (stand_in := _stand_in(text)) is not None:
            return stand_in
        is_given = False

        def replace(token: re.Match[str]) -> str:
            nonlocal is_given
            if token["escape"] is not None:
                return "${"
            if token["broken"] is not None:
                fix = "Write ${NAME} or ${NAME:-default}; $${ stands for a plain ${."
                edit = Edit(EditKind.REPLACE, path, "${NAME}")
                self._note(Code.MALFORMED_REFERENCE, path, "'${' without a name and a closing brace", fix, edit)
                return ""
            is_given = True
            name: str = token["name"]
            # As in a shell, the default also replaces an empty variable.
            value = self._environ.get(name) or token["default"]
            if value is None and name not in self._environ:
                self._not_set(name, path)
            return value or ""

        resolved = _TOKENS.sub(replace, text)
        return Given(resolved) if is_given else resolved

    def _not_set(self, name: str, path: Path) -> None:
        if self._surroundings.is_offline or len(self.diagnostics) >= MAX_DIAGNOSTICS:
            self.unresolved.add(path)
            return
        if name not in self._similar:
            self._similar[name] = self._suggestions.find(name, self._environ)
        similar = self._similar[name]
        fix = f"Did you mean {similar}? Else set it" if similar else "Set it"
        self._note(
            Code.VARIABLE_NOT_SET,
            path,
            f"the environment variable {name} is not set",
            f"{fix}, or give a default: ${{{name}:-default}}.",
        )

    def _with_secrets(self, document: dict[str, Any]) -> dict[str, Any]:
        """A copy with `{file: path}` and `{command: [...]}` resolved, and with absolute file names."""
        found: dict[Path, object] = {}
        for pattern in secret_places():
            for path in expand(document, pattern):
                written: object = at(document, path)
                if is_mapping(written) and len(written) == 1:
                    [(kind, value)] = written.items()
                    secret = self._secret(kind, value, path)
                    if secret is not None:
                        found[path] = secret
        for path in expand(document, ("provisioning", "set_up", ANY)):
            step: object = at(document, path)
            if isinstance(step, str) and step.endswith(".sql") and not _CONTROL.search(step):
                found[path] = str(self._surroundings.folder_of(path) / step)
        for pattern in file_places():
            for path in expand(document, pattern):
                name: object = at(document, path)
                if isinstance(name, str) and name and not _CONTROL.search(name):
                    file = str(self._surroundings.folder_of(path) / name)
                    found[path] = Given(file) if isinstance(name, Given) else file
        replaced: dict[str, Any] = replace_all(document, found)
        return replaced

    def _secret(self, kind: str, value: object, path: Path) -> Given | None:
        """The secret behind `{kind: value}`; None when this does not refer to a secret."""
        if kind == "file" and isinstance(value, str):
            if not self._surroundings.is_offline:
                return self._file(value, path)
        elif kind == "command" and is_list(value) and value and all(map(_is_argument, value)):
            if not self._surroundings.is_offline:
                return self._command(value, path)
        else:
            return None
        name = value if isinstance(value, str) else "-".join(value)
        if path[-1] == "url":
            return Given(f"postgresql://{kind}-{re.sub('[^A-Za-z0-9_.]+', '-', name).strip('-')}")
        self.unresolved.add(path)
        return Given("")

    def _file(self, file: str, path: Path) -> Given:
        try:
            if _CONTROL.search(file):
                raise ValueError
            secret = self._surroundings.folder_of(path) / file
            self._surroundings.origins.note_file(secret)
            with open_file(secret) as stream:
                content = stream.read(MAX_SECRET_BYTES + 1)
            if len(content) > MAX_SECRET_BYTES:
                reason = f"it is longer than {MAX_SECRET_BYTES // 1024} kB"
            else:
                text = content.decode()
                return Given(text.removesuffix("\n").removesuffix("\r"))
        except OSError as error:
            reason = error.strerror or type(error).__name__
        except ValueError:  # not UTF-8, or a control character in the path
            reason = "it is not UTF-8 text, or its path is none"
        fix = "Check the path and its rights; a relative path starts at the configuration file."
        self._note(Code.SECRET_NOT_READABLE, path, f"the secret's file cannot be read: {reason}", fix)
        return Given("")

    def _command(self, arguments: list[str], path: Path) -> Given:
        if not self._surroundings.allow_commands:
            message = "programs are not run for secrets unless that is allowed"
            fix = "Load ConfigFile(path, allow_commands=True), or give validate --allow-commands."
            self._note(Code.COMMAND, path, message, fix)
            return Given("")
        try:
            return Given(ask_program(arguments, self._surroundings.folder_of(path), self._surroundings.environ))
        except ProgramFailed as failure:
            fix = "Run it by hand in the folder of the configuration file."
            self._note(Code.COMMAND, path, f"the secret's program failed: {failure}", fix)
            return Given("")


def _is_argument(value: object) -> bool:
    return isinstance(value, str) and (value != "" or isinstance(value, Given)) and not _CONTROL.search(value)


def at(document: object, path: Path) -> Any:
    """The value at a path; None when there is none."""
    value: Any = document
    for step in path:
        if is_mapping(value):
            value = value.get(str(step))
        elif is_list(value) and isinstance(step, int):
            value = value[step]
        else:
            return None
    return value


def expand(document: object, pattern: tuple[str, ...], path: Path = ()) -> Iterator[Path]:
    """The paths of a document that match a pattern."""
    if not pattern:
        yield path
        return
    step, *rest = pattern
    value: object = at(document, path)
    keys: Iterable[str | int] = ()
    if is_mapping(value):
        keys = list(value) if step == ANY else [step] if step in value else []
    elif is_list(value) and step == ANY:
        keys = range(len(value))
    for key in keys:
        yield from expand(document, tuple(rest), (*path, key))


def replace_all(document: Any, values: Mapping[Path, object]) -> Any:
    """A copy of the document with the values at some paths replaced; other parts are shared."""
    by_step: dict[str | int, dict[Path, object]] = {}
    for path, value in values.items():
        if not path:
            return value
        by_step.setdefault(path[0], {})[path[1:]] = value
    if not by_step:
        return document
    copy = document.copy()
    for step, inner in by_step.items():
        copy[step] = replace_all(copy[step], inner)
    return copy


_STRINGS: Final = frozenset({str})


def _is_plain(value: object, depth: int) -> bool:
    """Whether a value contains nothing to resolve or to refuse. This visits every value of every document."""
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
        # The strings of tenants are checked without a call: there may be 200,000 of them.
        if type(child) is str:
            if "${" in child:
                return False
        elif type(child) is not TenantConfig and not _is_plain(child, depth - 1):
            return False
    return True
