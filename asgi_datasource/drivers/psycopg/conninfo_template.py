"""A connection string with `{tenant}` in it, and what becomes of it for a tenant.

The template is taken apart by libpq's own rules first, and the name put in afterwards: whatever the name holds, it
stays the value that it was put into (PostgreSQL manual, "Connection Strings").
"""

from __future__ import annotations

import re
from typing import Final

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import ConfigError, DataError, DataErrorKind

PLACEHOLDER: Final = "{tenant}"

PLACES: Final = frozenset({"dbname", "user", "host", "application_name"})
"""Where the placeholder may stand."""

MAX_NAME_BYTES: Final = 63
"""PostgreSQL cuts longer names off, and two tenants could meet in one database."""

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")


def is_template(conninfo: str) -> bool:
    """Whether a connection string is one for each tenant."""
    return PLACEHOLDER in conninfo or "%7Btenant%7D" in conninfo


class ConnectionTemplate:
    """The connection string of a datasource with a database for each tenant.

    Args:
        conninfo: With the placeholder in it.
        where: Names the server in the error.

    Raises:
        ConfigError: It cannot be taken apart, or the placeholder stands where it may not.
    """

    def __init__(self, conninfo: str, *, where: str) -> None:
        try:
            self._parts = {name: str(value) for name, value in conninfo_to_dict(conninfo).items()}
        except Error:
            raise ConfigError(f"{where}: the connection URL cannot be read") from None
        wrong = sorted(name for name, value in self._parts.items() if PLACEHOLDER in value and name not in PLACES)
        if wrong:
            raise ConfigError(
                f"{where}: {PLACEHOLDER} cannot stand in {wrong[0]}; put it into the name of the database"
            )

    def __repr__(self) -> str:
        return "ConnectionTemplate()"

    def dbname(self, name: str) -> str | None:
        """The name of a tenant's database; None where the tenant stands elsewhere, and shares its database."""
        template = self._parts.get("dbname", "")
        return template.replace(PLACEHOLDER, name) if PLACEHOLDER in template else None

    def fill(self, name: str) -> str:
        """The connection string for a tenant.

        Raises:
            DataError: TENANT: the name is none for a database, or for a host where it stands in one.
        """
        filled: dict[str, str] = {}
        for part, template in self._parts.items():
            value = template.replace(PLACEHOLDER, name)
            if value != template:
                if "\x00" in value or len(value.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
                    raise _no_name()
                if part == "host" and _HOST.fullmatch(name) is None:
                    raise _no_name()
            filled[part] = value
        return make_conninfo("", **filled)


def _no_name() -> DataError:
    return DataError(DataErrorKind.TENANT, "there is no such tenant", http_status=404)
