"""Recognises COPY from or to the client, which has a protocol of its own that a pipeline has no way out of.

COPY is always a statement's first word: the grammar nests it nowhere, and functions may not run it.
"""

from __future__ import annotations

import re
from typing import Final

_COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")
_NOISE: Final = re.compile(
    rb"""
      [eE]'(?:[^'\\]|''|\\.)*'              # a literal with escapes
    | '(?:[^']|'')*'
    | "(?:[^"]|"")*"
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | --[^\n]*
    | (?P<comment>/\*)
    """,
    re.VERBOSE | re.DOTALL,
)
_CLIENT_COPY: Final = re.compile(rb"[\s;]*copy\b.*\b(?:from\s+stdin|to\s+stdout)\b", re.IGNORECASE | re.DOTALL)


def is_client_copy(text: bytes) -> bool:
    """Whether this is COPY from or to the client; false for a COPY of the server's own files."""
    lowered = text.lower()
    if b"copy" not in lowered or (b"stdin" not in lowered and b"stdout" not in lowered):
        return False
    return _CLIENT_COPY.match(_without_noise(text)) is not None


def _without_noise(text: bytes) -> bytes:
    """Without literals, quoted names and comments, which may be nested."""
    chunks: list[bytes] = []
    position = 0
    while (noise := _NOISE.search(text, position)) is not None:
        chunks.append(text[position : noise.start()])
        chunks.append(b" " if noise[0][:1] in b"-/" else b" x ")
        position = noise.end()
        depth = 1 if noise["comment"] else 0
        while depth:
            edge = _COMMENT_EDGE.search(text, position)
            if edge is None:
                return b"".join(chunks)
            depth += 1 if edge[0] == b"/*" else -1
            position = edge.end()
    chunks.append(text[position:])
    return b"".join(chunks)
