"""Database drivers: the driver protocol, the types it uses, and the default driver (`psycopg`)."""

from __future__ import annotations

import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigError

if TYPE_CHECKING:
    from .protocol import Driver

DEFAULT_DRIVER = "asgi_datasource.drivers.psycopg:DRIVER"


def import_object(path: str) -> Any:
    """The object at `package.module:name`, where the name may have dots.

    Raises:
        ImportError: It cannot be imported; the message has the reason, and the name of the module that is missing.
    """
    module, _, names = path.partition(":")
    found: Any = import_application_module(module)
    for name in filter(None, names.split(".")):
        if not hasattr(found, name):
            raise ImportError(f"{module} has no {names!r}")
        found = getattr(found, name)
    return found


def import_application_module(module: str) -> ModuleType:
    """Import a module of the application.

    Raises:
        ImportError: It cannot be imported; the message has the reason, and the name of the module that is missing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing == module or module.startswith(f"{missing}."):
            raise ImportError(f"there is no module {missing!r} in {Path.cwd()} or on the path of Python") from error
        raise ImportError(f"it imports {missing!r}, which is not installed") from error
    except ImportError:
        raise
    except Exception as error:
        # The application's module may raise anything, with a message that quotes a secret.
        raise ImportError(f"it fails when it is imported: {type(error).__name__}{_line_of(error)}") from error


def _line_of(error: Exception) -> str:
    """The line that raised an error: ` in app/db.py, line 3`."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f" in {error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {frames[-1].filename}, line {frames[-1].lineno}"


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
    except ImportError as error:
        raise ConfigError(f"{key}: {where!r} cannot be imported: {error}") from error
    if not callable(getattr(found, "make_server", None)):
        raise ConfigError(f"{key}: {where!r} is no driver: it has no make_server (drivers.protocol.Driver)")
    return cast("Driver", found)
