"""Who talks to the database: the seam (`protocol`), what crosses it, and the default driver (`psycopg`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from ..errors import ConfigError

if TYPE_CHECKING:
    from .protocol import Driver

DEFAULT_DRIVER = "asgi_datasource.drivers.psycopg:DRIVER"


def load_driver(where: str = DEFAULT_DRIVER) -> Driver:
    """Import a driver.

    Args:
        where: `package.module:attribute`.

    Raises:
        ConfigError: There is no such attribute; the message says why.
    """
    module, _, attribute = where.partition(":")
    try:
        return cast("Driver", getattr(import_module(module), attribute))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the driver {where!r} cannot be imported: {error}") from error
