"""Database drivers: the driver protocol, the types it uses, and the default driver (`psycopg`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigError

if TYPE_CHECKING:
    from .protocol import Driver

DEFAULT_DRIVER = "asgi_datasource.drivers.psycopg:DRIVER"


def import_object(path: str) -> Any:
    """The object at `package.module:name`, where the name may have dots.

    Raises:
        ImportError: The module cannot be imported.
        AttributeError: The module has no such name.
        ValueError: The path names no module.
    """
    module, _, names = path.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def load_driver(where: str = DEFAULT_DRIVER, *, key: str = "driver") -> Driver:
    """Import a driver.

    Args:
        where: `package.module:attribute`.
        key: The configuration key that names it, for messages.

    Raises:
        ConfigError: The attribute does not exist, or is not a driver; the message gives the reason.
    """
    try:
        found = import_object(where)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: {where!r} cannot be imported: {error}") from error
    if not callable(getattr(found, "make_server", None)):
        raise ConfigError(f"{key}: {where!r} is no driver: it has no make_server; see docs/drivers.md")
    return cast("Driver", found)
