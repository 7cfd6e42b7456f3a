"""Connection URLs: what the configuration accepts as one, and what of it may be seen."""

from __future__ import annotations

import re
from typing import Final

from pydantic import SecretStr

URL_PATTERN: Final = r"^(?:postgres(?:ql)?://|[a-z][a-z0-9_]* *= *[^= ])"
"""How libpq tells a URL from a keyword string: by its start (PostgreSQL manual, "Connection Strings")."""

TEMPLATE: Final = "{tenant}"
TEMPLATE_PATTERN: Final = r"(?:^|[^$])\{tenant\}"

_URL: Final = re.compile(URL_PATTERN)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_HOST: Final = r"(?:\[[0-9A-Fa-f:.%]+\]|[^@/?#\s:,\[\]]*)(?::[0-9]*)?"
_PARTS: Final = re.compile(
    rf"(?P<scheme>postgres(?:ql)?)://(?:[^@/?#\s]*@)?(?P<hosts>{_HOST}(?:,{_HOST})*)"
    r"(?:/(?P<dbname>[^@/?#\s]*))?(?:\?[^@#\s]*)?"
)
_HIDDEN: Final = "**********"


class DatabaseUrl(SecretStr):
    """A connection URL. Shows its servers and database; `get_secret_value()` is for the driver call alone."""

    def _display(self) -> str:
        return mask_url(self.get_secret_value())


def mask_url(url: str) -> str:
    """What of a connection URL may be seen: servers and database; never user, password or parameters.

    What cannot be taken apart without doubt (an unescaped `@` or `/` in a password) is hidden as a whole.
    """
    parts = _PARTS.fullmatch(url)
    if parts is None or not parts["hosts"]:
        return _HIDDEN if url else ""
    dbname = f"/{parts['dbname']}" if parts["dbname"] else ""
    return f"{parts['scheme']}://{parts['hosts']}{dbname}"


def read_url(value: object) -> DatabaseUrl:
    """Read a connection URL.

    Raises:
        ValueError: It is none; the message holds nothing of it.
    """
    url = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(url, str) or _URL.match(url) is None or _CONTROL.search(url) or TEMPLATE in url:
        raise ValueError("not a connection URL")
    return DatabaseUrl(str(url))
