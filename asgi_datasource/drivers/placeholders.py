"""Other styles of placeholders: `:name` and `$1`, converted to psycopg's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

from ..errors import DataError, DataErrorKind
from ..observability.sql_comments import end_of_comment
from .statements import Params, Query

PlaceholderStyle = Literal["named", "numeric"]
"""`named`: `:name`, with a mapping of parameters. `numeric`: `$1`, with a sequence."""

MAX_CACHED_LENGTH: Final = 4096

_TOKEN: Final = re.compile(
    r"""
      [eE]'(?:[^'\\]|''|\\.)*'                # a literal with escapes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$
    | --[^\r\n]*
    | (?P<comment>/\*)
    | [^\W\d][\w$]*                           # a name or a keyword, whole
    | :[:=]                                   # a cast, a named argument
    | :(?P<name>[^\W\d]\w*)
    | \$(?P<number>\d+)
    """,
    re.VERBOSE | re.DOTALL,
)


def restyle(query: Query, params: Params | None, style: PlaceholderStyle) -> tuple[str, Mapping[str, object]]:
    """Convert a statement with another style of placeholders.

    Placeholders in literals, quoted names and comments stay; `%` is not special.

    Args:
        query: The text.
        params: A mapping for `named`, a sequence for `numeric`; None stands for an empty one.
        style: The style of the text.

    Returns:
        The statement with psycopg's named placeholders, and its parameters.

    Raises:
        DataError: QUERY: the style is unknown, the query is no text, or the parameters do not fit the style.
    """
    if style not in ("named", "numeric"):
        raise _mistake(f"style: {style!r} is neither 'named' (:name) nor 'numeric' ($1)")
    if not isinstance(query, str):
        raise _mistake(f"style={style!r} needs the query as str, not as {type(query).__qualname__}")
    text, highest = (_convert if len(query) > MAX_CACHED_LENGTH else _convert_cached)(query, style)
    if style == "named":
        if params is not None and not isinstance(params, Mapping):
            raise _mistake(f"style='named' needs a mapping of parameters, not {type(params).__qualname__}")
        return text, params or {}
    values = () if params is None else params
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise _mistake(f"style='numeric' needs a sequence of parameters, not {type(values).__qualname__}")
    if len(values) != highest:
        raise _mistake(f"the query has placeholders up to ${highest}, but {len(values)} parameters were passed")
    return text, {str(number): value for number, value in enumerate(values, 1)}


def _mistake(message: str) -> DataError:
    return DataError(DataErrorKind.QUERY, message)


def _convert(query: str, style: str) -> tuple[str, int]:
    """The text with psycopg's placeholders, and the highest number among them."""
    chunks: list[str] = []
    highest = kept = position = 0

    while (token := _TOKEN.search(query, position)) is not None:
        position = token.end()
        if token["comment"]:
            position = end_of_comment(query, position) or len(query)
            continue
        name = token["name"] if style == "named" else token["number"]
        if name is None:
            continue
        if style == "numeric":
            highest = max(highest, int(name))
            name = str(int(name))
        chunks.append(query[kept : token.start()].replace("%", "%%"))
        chunks.append(f"%({name})s")
        kept = position
    chunks.append(query[kept:].replace("%", "%%"))
    return "".join(chunks), highest


_convert_cached: Final = lru_cache(maxsize=2048)(_convert)
