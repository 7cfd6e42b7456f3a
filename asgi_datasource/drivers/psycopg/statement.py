"""Converts psycopg's placeholders to the server's.

`%s`, `%b`, `%t` and `%(name)s` become `$1`, `$2`, ...; `%%` becomes `%`. Rules, errors and their texts are the same as
in psycopg: `tests/drivers/test_contract.py` compares them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from psycopg import ProgrammingError, sql
from psycopg.abc import Transformer
from psycopg.adapt import PyFormat
from psycopg.errors import UndefinedParameter

from ..statement_analysis import is_client_copy, may_end_transaction, outlives_transaction
from ..statements import Params, Query

MAX_CACHED_LENGTH: Final = 4096
"""Longer texts are mostly generated and differ from call to call: they would fill the caches with single uses."""

MAX_PARAMS: Final = 65535
"""Maximum of the protocol's 16-bit parameter count."""


class ConvertedQuery:
    """A text with the server's placeholders."""

    __slots__ = (
        "count",
        "formats",
        "is_client_copy",
        "may_end_transaction",
        "names",
        "outlives_transaction",
        "text",
    )

    def __init__(self, text: bytes, formats: Sequence[PyFormat], names: Sequence[str] | None, count: int) -> None:
        self.text = text
        self.count = count
        """Number of placeholders in the text; a repeated name counts each time."""
        self.formats = formats
        """Requested format of each placeholder."""
        self.names = names
        """The mapping's key for each placeholder; None for positional ones."""
        self.is_client_copy = is_client_copy(text)
        """COPY from or to the client, which has its own protocol."""
        self.outlives_transaction = outlives_transaction(text)
        """It may change session state that lasts beyond the transaction."""
        self.may_end_transaction = may_end_transaction(text)
        """It may commit by itself outside an explicit transaction."""

    def order(self, params: Params) -> Sequence[object]:
        """The values in the order of the placeholders.

        Raises:
            ProgrammingError: Too many or too few values, or a missing name.
            TypeError: A mapping for positional placeholders, a sequence for named ones, or neither.
        """
        kind = type(params)
        if kind is list or kind is tuple:
            is_sequence = True
        elif kind is dict:
            is_sequence = False
        elif isinstance(params, Sequence) and not isinstance(params, bytes | str):
            is_sequence = True
        elif isinstance(params, Mapping):
            is_sequence = False
        else:
            raise TypeError(f"query parameters should be a sequence or a mapping, got {kind.__qualname__}")
        names = self.names
        if is_sequence:
            if len(params) != self.count:
                raise ProgrammingError(
                    f"the query has {self.count} placeholders but {len(params)} parameters were passed"
                )
            if names is not None:
                raise TypeError("named placeholders require a mapping of parameters")
            return params  # type: ignore[return-value]
        if names is None:
            if params and self.count:
                raise TypeError("positional placeholders (%s) require a sequence of parameters")
            if self.count:
                raise UndefinedParameter("there is no parameter $1")
            return ()
        try:
            return [params[name] for name in names]  # type: ignore[call-overload]
        except KeyError:
            missing = ", ".join(sorted(name for name in names if name not in params))
            raise ProgrammingError(f"query parameter missing: {missing}") from None


def convert(query: Query, transformer: Transformer, *, has_params: bool) -> ConvertedQuery:
    """Convert a text, or find it in the cache.

    Args:
        query: The text.
        transformer: Has the connection's encoding.
        has_params: Parse placeholders: there are parameters, even if the collection is empty.

    Raises:
        ProgrammingError: A placeholder is malformed, or positional and named ones are mixed.
        TypeError: It is not a text.
    """
    if type(query) is not str:
        query = _as_text(query, transformer)
    if len(query) > MAX_CACHED_LENGTH:
        return _convert(query, transformer.encoding, has_params)
    return _convert_cached(query, transformer.encoding, has_params)


def _as_text(query: Query, transformer: Transformer) -> str | bytes:
    if isinstance(query, sql.Composable):
        return query.as_bytes(transformer)
    if isinstance(query, str | bytes):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers make mistakes
        return query
    raise TypeError(f"a query is str, bytes or composed by psycopg.sql, got {type(query).__qualname__}")


_PLACEHOLDER: Final = re.compile(
    rb"""
    %                       # a percent sign
    (?:
        \( ([^)]+) \) .     # a name in parentheses and a format
      | .                   # or any one character
    )
    """,
    re.VERBOSE,
)
_FORMATS: Final = {b"s": PyFormat.AUTO, b"t": PyFormat.TEXT, b"b": PyFormat.BINARY}


def _convert(query: str | bytes, encoding: str, has_params: bool) -> ConvertedQuery:
    text = query.encode(encoding) if isinstance(query, str) else query
    if not has_params:
        return ConvertedQuery(text, (), None, 0)
    chunks: list[bytes] = []
    formats: list[PyFormat] = []
    numbers: dict[str, int] = {}
    is_named: bool | None = None
    conflict: str | None = None
    count = position = 0
    for match in _PLACEHOLDER.finditer(text):
        chunks.append(text[position : match.start()])
        position = match.end()
        placeholder = match[0]
        if placeholder == b"%%":
            chunks.append(b"%")
            continue
        if placeholder == b"%(":
            word = text[match.start() :].split()[0].decode(encoding)
            raise ProgrammingError(f"incomplete placeholder: '{word}'")
        if placeholder == b"% ":
            raise ProgrammingError(
                "incomplete placeholder: '%'; if you want to use '%' as an operator you can double it up, i.e. use '%%'"
            )
        asked = _FORMATS.get(placeholder[-1:])
        if asked is None:
            raise ProgrammingError(
                f"only '%s', '%b', '%t' are allowed as placeholders, got '{placeholder.decode(encoding)}'"
            )
        count += 1
        key: bytes | None = match[1]
        if is_named is None:
            is_named = key is not None
        elif is_named is not (key is not None):
            raise ProgrammingError("positional and named placeholders cannot be mixed")
        if key is None:
            formats.append(asked)
            chunks.append(b"$%d" % len(formats))
            continue
        name = key.decode(encoding)
        number = numbers.get(name)
        if number is None:
            formats.append(asked)
            number = numbers[name] = len(formats)
        elif formats[number - 1] is not asked and conflict is None:
            conflict = name
        chunks.append(b"$%d" % number)
    if conflict is not None:
        # Only now, as in psycopg: it splits the whole text before it compares formats.
        raise ProgrammingError(f"placeholder '{conflict}' cannot have different formats")
    chunks.append(text[position:])
    return ConvertedQuery(b"".join(chunks), formats, list(numbers) if is_named else None, count)


_convert_cached: Final = lru_cache(maxsize=2048)(_convert)
