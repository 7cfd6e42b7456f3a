"""Static evaluation of a row security policy while no tenant is set: the expression is parsed and never run.

A policy's expression may call functions of other roles, so that the library must not run it. The form in which the
server prints it is simple enough to parse: comparisons, `and`, `or`, `not`, `coalesce`, `nullif`, `case`, casts, and
sub-selects without a table. Any other part has an unknown value, and proves nothing.

Source: PostgreSQL manual, "Row Security Policies"; `current_setting` under "System Administration Functions".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class _Text:
    """A known text."""

    text: str


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the row: not NULL, otherwise unknown."""

    name: str


class _Failure:
    """The server would raise an error: no row is visible."""


class _Anything:
    """An unknown value."""


FAILS: Final = _Failure()
ANYTHING: Final = _Anything()
_Value = bool | _Text | _Column | _Failure | _Anything | None
"""None is NULL."""

_SETTING: Final = re.compile(r"current_setting\(\s*'((?:[^']|'')+)'", re.IGNORECASE)

_TOKEN: Final = re.compile(
    r"""\s*(?:
        (?P<string>[eE]?'(?:[^'\\]|''|\\.)*')
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<name>"(?:[^"]|"")+"|[A-Za-z_][\w$]*)
      | (?P<mark>::|<>|<=|>=|!=|[-+*/<>=~!@\#%^&|]+|[(),.\[\]])
    )""",
    re.VERBOSE,
)
_UNREADABLE: Final = "unreadable"

STRICT: Final = frozenset({"lower", "upper", "btrim", "ltrim", "rtrim", "md5", "length"})
"""Functions that return NULL for NULL, and otherwise a value."""


def settings_read(expression: str) -> frozenset[str]:
    """The names of the custom settings that an expression reads."""
    return frozenset(name.replace("''", "'").lower() for name in _SETTING.findall(expression) if "." in name)


def is_open(expression: str | None, *, tenant: str | None) -> bool:
    """Whether a policy certainly passes every row.

    Args:
        expression: The expression as the server prints it; None is a policy without one.
        tenant: The value of every custom setting: None if it was never set, `""` if an earlier transaction has set it.
    """
    if expression is None:
        return True
    try:
        return _Reader(expression, None if tenant is None else _Text(tenant)).read() is True
    except (_Unreadable, RecursionError):
        return False


class _Unreadable(Exception):
    pass


class _Reader:
    """Parses an expression and evaluates it in three-valued logic."""

    def __init__(self, text: str, setting: _Text | None) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._setting = setting

    def read(self) -> _Value:
        value = self._or()
        if self._at != len(self._tokens):
            raise _Unreadable
        return value

    # -- the grammar, in ascending order of precedence

    def _or(self) -> _Value:
        found = [self._and()]
        while self._take("or"):
            found.append(self._and())
        return found[0] if len(found) == 1 else _any(found)

    def _and(self) -> _Value:
        found = [self._not()]
        while self._take("and"):
            found.append(self._not())
        return found[0] if len(found) == 1 else _all(found)

    def _not(self) -> _Value:
        if not self._take("not"):
            return self._is()
        value = self._not()
        return (not value) if isinstance(value, bool) else _truth(value)

    def _is(self) -> _Value:
        value = self._comparison()
        while self._take("is"):
            is_negated = self._take("not")
            if self._take("null"):
                found = _is_null(value)
            elif (word := self._word()) in ("true", "false"):
                found = value is (word == "true") if isinstance(value, bool) or value is None else _truth(value)
            elif word == "distinct" and self._take("from"):
                other = self._comparison()
                same = _equal(value, other)
                found = (value is other) if None in (value, other) and not _is_vague(value, other) else same
                found = (not found) if isinstance(found, bool) else found
            else:
                raise _Unreadable
            value = (not found) if is_negated and isinstance(found, bool) else found
        return value

    def _comparison(self) -> _Value:
        left = self._operand()
        while (mark := self._peek()) is not None and _is_operator(mark):
            self._at += 1
            if self._take("any") or self._take("all"):
                self._group(self._arguments)
                return None if left is None else FAILS if left is FAILS else ANYTHING
            right = self._operand()
            if mark == "=":
                left = _equal(left, right)
            elif mark in ("<>", "!="):
                equal = _equal(left, right)
                left = (not equal) if isinstance(equal, bool) else equal
            else:
                left = None if None in (left, right) else FAILS if FAILS in (left, right) else ANYTHING
        return left

    def _operand(self) -> _Value:
        value = self._primary()
        while True:
            if self._take("::"):
                value = _cast(value, self._type())
            elif self._take("["):
                self._or()
                self._expect("]")
                value = ANYTHING
            elif self._take("collate"):
                self._type()
            else:
                return value

    def _primary(self) -> _Value:
        kind, given = self._next()
        word = given.lower()
        if given == "(":
            if self._take("select"):
                return self._sub_select()
            value = self._or()
            if self._take(","):
                self._arguments()
                value = ANYTHING
            self._expect(")")
            return value
        if kind == "string":
            return _Text(_unquoted(given))
        if kind == "number":
            return _Text(given)
        if kind != "name":
            if given in ("-", "+"):
                self._operand()
                return ANYTHING
            raise _Unreadable
        if word in ("true", "false"):
            return word == "true"
        if word == "null":
            return None
        if word == "case":
            return self._case()
        if word == "array" and self._peek() == "[":
            self._at += 1
            self._arguments(end="]")
            return ANYTHING
        return self._named(given, word)

    def _named(self, name: str, word: str) -> _Value:
        """A column, or a function call."""
        while self._take("."):
            _, name = self._next()
            word = name.lower()
        if not self._take("("):
            if word in ("current_user", "session_user", "user", "current_role"):
                return ANYTHING
            return _Column(name)
        arguments = self._arguments()
        if word == "current_setting" and arguments and isinstance(arguments[0], _Text):
            is_custom = "." in arguments[0].text
            if not is_custom:
                return ANYTHING
            if self._setting is None:
                # Without the second argument, a setting that was never set is an error.
                return None if len(arguments) > 1 and _says_true(arguments[1]) else FAILS
            return self._setting
        if FAILS in arguments:
            return FAILS
        if word == "coalesce":
            return next((value for value in arguments if value is not None), None)
        if word == "nullif" and len(arguments) == 2:
            equal = _equal(arguments[0], arguments[1])
            return None if equal is True else ANYTHING if equal is ANYTHING else arguments[0]
        if word in STRICT:
            return None if None in arguments else ANYTHING
        return ANYTHING

    def _case(self) -> _Value:
        subject: _Value = True
        if self._peek() != "when":
            subject = self._or()
        found: list[_Value] = []
        is_settled = False
        while self._take("when"):
            condition = self._or()
            self._expect("then")
            value = self._or()
            met = condition if subject is True else _equal(subject, condition)
            if not is_settled and met is not False and met is not None:
                found.append(value)
                is_settled = met is True
        otherwise = self._or() if self._take("else") else None
        self._expect("end")
        if not is_settled:
            found.append(otherwise)
        return found[0] if all(value is found[0] or value == found[0] for value in found) else ANYTHING

    def _sub_select(self) -> _Value:
        """`(SELECT expression AS name)`; a sub-select of a table has an unknown value."""
        value = self._or()
        if self._take("as"):
            self._next()
        if not self._take(")"):
            depth = 1
            while depth:
                _, token = self._next()
                depth += {"(": 1, ")": -1}.get(token, 0)
            return ANYTHING
        return value

    # -- tokens

    def _arguments(self, end: str = ")") -> list[_Value]:
        found: list[_Value] = []
        if self._take(end):
            return found
        while True:
            found.append(self._or())
            if self._take(end):
                return found
            self._expect(",")

    def _group(self, read: Callable[[], Sequence[_Value]]) -> None:
        self._expect("(")
        read()

    def _type(self) -> str:
        """The name of a type or collation behind a cast: `text`, `character varying(10)`, `pg_catalog."C"`."""
        _, name = self._next()
        while self._take("."):
            _, name = self._next()
        while (following := self._peek()) in ("varying", "precision", "with", "without", "time", "zone"):
            self._at += 1
            name += f" {following}"
        if self._take("("):
            self._arguments()
        while self._take("["):
            self._expect("]")
            name += "[]"
        return name.lower()

    def _peek(self) -> str | None:
        return self._tokens[self._at][1].lower() if self._at < len(self._tokens) else None

    def _next(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise _Unreadable
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _word(self) -> str:
        return self._next()[1].lower()

    def _take(self, wanted: str) -> bool:
        if self._at < len(self._tokens):
            kind, token = self._tokens[self._at]
            if kind != "string" and token.lower() == wanted:
                self._at += 1
                return True
        return False

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise _Unreadable


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise _Unreadable
        kind = str(token.lastgroup)
        found.append((kind, token[kind]))
        position = token.end()
    return found


def _unquoted(token: str) -> str:
    is_escaped = token[0] in "eE"
    text = token[2 if is_escaped else 1 : -1].replace("''", "'")
    return re.sub(r"\\(.)", r"\1", text) if is_escaped else text


def _is_operator(mark: str) -> bool:
    return mark not in ("::", "(", ")", ",", ".", "[", "]") and not (mark[0].isalnum() or mark[0] in "_\"'")


def _is_vague(*values: _Value) -> bool:
    return ANYTHING in values or FAILS in values


def _equal(left: _Value, right: _Value) -> _Value:
    if FAILS in (left, right):
        return FAILS
    if left is None or right is None:
        return None
    if isinstance(left, _Text | bool) and isinstance(right, _Text | bool):
        return left == right
    # A column equals itself; two columns, or a column and a text, may be equal.
    return True if isinstance(left, _Column) and left == right else ANYTHING


def _is_null(value: _Value) -> _Value:
    if value is None:
        return True
    if isinstance(value, _Failure | _Anything):
        return value
    return ANYTHING if isinstance(value, _Column) else False


def _truth(value: _Value) -> _Value:
    """A value in a boolean context."""
    return value if isinstance(value, bool | _Failure) or value is None else ANYTHING


def _any(values: Sequence[_Value]) -> _Value:
    found = [_truth(value) for value in values]
    # An error is not certain: the server chooses the order of evaluation.
    if FAILS in found:
        return FAILS
    return True if True in found else ANYTHING if ANYTHING in found else None if None in found else False


def _all(values: Sequence[_Value]) -> _Value:
    found = [_truth(value) for value in values]
    if FAILS in found:
        return FAILS
    return False if False in found else None if None in found else ANYTHING if ANYTHING in found else True


_NUMERIC: Final = frozenset({"integer", "bigint", "smallint", "numeric", "double precision", "real", "uuid", "int"})


def _cast(value: _Value, kind: str) -> _Value:
    if isinstance(value, _Text):
        if kind == "boolean":
            return value.text.lower() in ("t", "true", "on", "yes", "1") if value.text else FAILS
        if kind in _NUMERIC and not value.text:
            # '' is neither a number nor a UUID.
            return FAILS
    return value


def _says_true(value: _Value) -> bool:
    return value is True or (isinstance(value, _Text) and value.text.lower() in ("t", "true", "on", "yes", "1"))
