"""HTML as nested calls: every text is escaped, unless it was made here."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

VOID: Final = frozenset({"br", "input", "link", "meta"})
"""Elements of HTML without content; those of SVG need their end."""


class Html(str):
    """Markup that was made by `tag`, `text` or from a file of the library; other strings are escaped."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]
Attribute = str | int | float | bool | None


def text(child: Child) -> Html:
    """A child as markup: strings are escaped, `Html` is not, None is nothing, other iterables are joined."""
    if isinstance(child, Html):
        return child
    if child is None:
        return Html("")
    if isinstance(child, str):
        return Html(escape(child))
    if isinstance(child, int | float):
        return Html(str(child))
    return Html("".join([text(one) for one in child]))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Html:
    """An element.

    Args:
        name: Its name.
        children: Its content.
        attributes: `class_` is `class`, `data_key` is `data-key`; True has no value, False and None leave it out.
    """
    found: list[str] = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        found.append(f" {attribute}" if value is True else f' {attribute}="{escape(str(value))}"')
    opening = f"<{name}{''.join(found)}>"
    return Html(opening if name in VOID else f"{opening}{text(children)}</{name}>")
