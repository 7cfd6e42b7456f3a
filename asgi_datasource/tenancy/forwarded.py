"""Parses the `Forwarded` header by its complete grammar, and rejects everything else.

Proxies append to the header that the client sent. With a lenient parser, malformed text of the client hides what was
appended; for example, an open quote swallows the rest of the line.

Source: RFC 7239, section 4 and 6; RFC 9110, section 5.6 (tokens, quoted strings, lists).
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from ..config.hostnames import normalize_host
from .resolution import header_text

Element = dict[str, str]
"""The element of one proxy: values without quotes, by parameter names in lower case."""

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = r'"(?:[\t \x21\x23-\x5B\x5D-\x7E\x80-\xFF]|\\[\t \x21-\x7E\x80-\xFF])*"'
_PAIR: Final = re.compile(rf"({_WORD})=({_WORD}|{_QUOTED})")
_COMMA: Final = re.compile(r"[ \t]*,[ \t]*")
_ESCAPED: Final = re.compile(r"\\(.)")

_NODE: Final = re.compile(
    r"(?:(?P<v4>[0-9.]+)|\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?i:unknown)|_[0-9A-Za-z._-]+)(?::(?:[0-9]{1,5}|_[0-9A-Za-z._-]+))?"
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def parse_forwarded(value: str) -> list[Element]:
    """The elements of a header line, in order.

    Raises:
        ValueError: The line does not match the grammar.
    """
    elements: list[Element] = [{}]
    end = len(value.rstrip(" \t"))
    position = end - len(value[:end].lstrip(" \t"))
    while position < end:
        pair = _PAIR.match(value, position)
        if pair is not None:
            _add(elements[-1], pair[1].lower(), pair[2])
            position = pair.end()
        if position < end and value[position] == ";":
            position += 1
        elif position < end:
            comma = _COMMA.match(value, position)
            if comma is None:
                raise ValueError("neither a parameter nor the end of one")
            elements.append({})
            position = comma.end()
    return elements


def sender_of(element: Element) -> str | None:
    """The address in `for`; None if it is absent, `unknown` or obfuscated."""
    node = _NODE.fullmatch(element.get("for", ""))
    return None if node is None else node["v4"] or node["v6"]


def _add(element: Element, name: str, written: str) -> None:
    text = _ESCAPED.sub(r"\1", written[1:-1]) if written.startswith('"') else written
    if name in element:
        raise ValueError("a parameter stands twice in one element")
    if (
        (name in ("for", "by") and not _is_node(text))
        or (name == "proto" and _SCHEME.fullmatch(text) is None)
        or (name == "host" and normalize_host(header_text(text)) is None)
    ):
        raise ValueError("a parameter has a value that it cannot have")
    element[name] = text


def _is_node(text: str) -> bool:
    node = _NODE.fullmatch(text)
    if node is None:
        return False
    try:
        if node["v4"] is not None:
            IPv4Address(node["v4"])
        if node["v6"] is not None:
            IPv6Address(node["v6"])
    except AddressValueError:
        return False
    return True
