"""Connection strings with a `{tenant}` placeholder.

The template is parsed by libpq's own rules before the name is inserted, so that a name cannot change more than the
value that it is inserted into (PostgreSQL manual, "Connection Strings").
"""

from __future__ import annotations

import re
from typing import Final

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ...errors import ConfigError, DataError, DataErrorKind

PLACEHOLDER: Final = "{tenant}"

PLACES: Final = frozenset({"dbname", "user", "host", "application_name"})
"""Parameters that may contain the placeholder."""

MAX_NAME_BYTES: Final = 63
"""PostgreSQL truncates longer names, so that two tenants could share a database."""

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")


def is_template(conninfo: str) -> bool:
    """Whether a connection string contains the placeholder."""
    return PLACEHOLDER in conninfo or "%7Btenant%7D" in conninfo


class ConnectionTemplate:
    """The connection string of a datasource with a database for each tenant.

    Args:
        conninfo: The connection string with the placeholder.
        where: Names the server in the error.

        Raises:
        ConfigError: It cannot be parsed, or the placeholder is in the wrong place.
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
        """Name of a tenant's database; None if the placeholder is elsewhere, and tenants share the database."""
        template = self._parts.get("dbname", "")
        return template.replace(PLACEHOLDER, name) if PLACEHOLDER in template else None

    def fill(self, name: str) -> str:
        """The connection string for a tenant.

        Raises:
            DataError: TENANT: the name is not valid for a database, or in the host.
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
