"""The page for a browser that names no tenant: the ways to name one.

It shows nothing of the request, and of the configuration only what a client has to send.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from starlette.types import Scope

from ..tenancy.ways import Way

HEADERS: Final = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
)

_JSON: Final = ("application/json", "application/problem+json")

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Which tenant?</title>
<style>
:root {{ color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }}
body {{ max-width: 40rem; margin: 10vh auto; padding: 0 1rem }}
</style>
</head>
<body>
<h1>Which tenant?</h1>
<p>This address serves several tenants, and the request names none of them.</p>
{ways}
<p><small>Reference {reference}</small></p>
</body>
</html>
"""


def accepts_html(scope: Scope) -> bool:
    """Whether a client asks for HTML by name, and prefers no JSON to it, as browsers do (RFC 9110, section 12.5.1)."""
    weights: dict[str, float] = {}
    for name, value in scope["headers"]:
        if name == b"accept":
            for part in value.decode("latin-1").split(","):
                media, _, parameters = part.partition(";")
                weights[media.strip().lower()] = _weight(parameters)
    html = weights.get("text/html", 0.0)
    return html > 0 and html >= max(weights.get(media, 0.0) for media in _JSON)


def render_page(ways: Sequence[Way], reference: str) -> bytes:
    """The page.

    Args:
        ways: The ways to name a tenant; none if only code of the application knows them.
        reference: Identifies the log line about the request.
    """
    listed = "\n".join(f"<li>{_way(way)}</li>" for way in ways)
    text = f"<p>A request can name its tenant by:</p>\n<ul>\n{listed}\n</ul>" if ways else ""
    return _PAGE.format(ways=text, reference=escape(reference)).encode()


def _weight(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _way(way: Way) -> str:
    example = f": <code>{escape(way.example)}</code>" if way.example else ""
    paths = ", ".join(f"<code>{escape(path)}</code>" for path in way.paths)
    return f"{escape(way.text)}{example}{f' (below {paths})' if paths else ''}"
