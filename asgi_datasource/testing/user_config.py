"""The user's configuration in a test: its file as it is, with other servers and other secrets."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from ..config import Config, ConfigFile, Findings, examine, load
from ..config.keys import ANY, secret_places
from ..config.shapes import is_mapping
from .binaries import ClusterError

NAMES: Final = ("datasource.yaml", "datasource.yml", "datasource.toml", "datasource.json")
"""The default files, in order."""

_REFERENCE: Final = re.compile(r"(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""A reference without a default."""
_URL_SECTIONS: Final = ("primary", "replicas", "admin")


class UserConfig:
    """A configuration file whose servers and secrets tests replace.

    Args:
        file: The file.
        environ: Values of `${NAME}`, before those of the process. A name that neither has gets a random value.
        overlay: What tests change besides, as an overlay does: mappings are merged.
        folder: Where the overlay with the tests' values is written.

    Raises:
        ClusterError: The file has errors that other values of references would not repair.
    """

    def __init__(self, file: Path, environ: Mapping[str, str], overlay: Mapping[str, Any], folder: Path) -> None:
        self.file = file
        self._overlay = dict(overlay)
        self._folder = folder
        findings = examine(ConfigFile(file), is_offline=True, needs_resolver=False)
        if findings.config is None or findings.errors or findings.layers is None:
            raise ClusterError(f"{file} cannot be used by tests:\n" + "\n".join(map(str, findings.errors)))
        self.config: Config = findings.config
        """The configuration with references that are not resolved: its servers and tenants."""
        self._document: dict[str, Any] = findings.layers.document
        self._environ = _environ(findings, environ)

    @property
    def replica_count(self) -> int:
        """The most replicas of a datasource."""
        return max(len(datasource.replicas) for datasource in self.config.datasources.values())

    def places(self) -> dict[str, str]:
        """The first datasource by name of those that lead to one database, for each datasource."""
        firsts: dict[str, str] = {}
        places: dict[str, str] = {}
        for name, section in self._document["datasources"].items():
            written = json.dumps(section["primary"], sort_keys=True)
            places[name] = firsts.setdefault(written, name)
        return places

    def load(self, urls: Mapping[str, Mapping[str, str]]) -> Config:
        """The configuration with other servers.

        Args:
            urls: By datasource, the URLs of its servers: `primary`, `admin`, and each replica by its name.

        Raises:
            InvalidConfig: It has errors; the message lists all of them.
        """
        environ = dict(self._environ)

        def refer(value: str) -> str:
            # No password is written to a file.
            name = f"ADS_TEST_{len(environ)}"
            environ[name] = value
            return f"${{{name}}}"

        servers = {
            name: _section({server: refer(url) for server, url in found.items()}) for name, found in urls.items()
        }
        document = _merged(_merged(self._secrets(refer), {"datasources": servers}), self._overlay)
        path = self._folder / f"overlay_{secrets.token_hex(4)}.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        try:
            return load(ConfigFile(self.file, (path,)), environ=environ, needs_resolver=False)
        finally:
            path.unlink()

    def _secrets(self, refer: Callable[[str], str]) -> dict[str, Any]:
        """Values for secrets that a file or a program holds, which the machine of a test may not have."""
        found: dict[str, Any] = {}
        for place in secret_places():
            for path, value in _at(self._document, place):
                if isinstance(value, Mapping) and not (path[0] == "datasources" and path[2] in _URL_SECTIONS):
                    here = found
                    for step in path[:-1]:
                        here = here.setdefault(step, {})
                    here[path[-1]] = refer(secrets.token_hex(24))
        return found


def _environ(findings: Findings, given: Mapping[str, str]) -> dict[str, str]:
    environ = {**os.environ, **given}
    for text in findings.texts:
        for name in _REFERENCE.findall(text.content):
            environ.setdefault(name, secrets.token_hex(24))
    return environ


def _at(document: Any, place: tuple[str, ...], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What stands at a place, in mappings: an overlay cannot change an entry of a list."""
    if not place:
        yield path, document
    elif isinstance(document, dict):
        section = cast("dict[str, Any]", document)
        for key in section if place[0] == ANY else {place[0]} & section.keys():
            yield from _at(section[key], place[1:], (*path, key))


def _section(urls: Mapping[str, str]) -> dict[str, Any]:
    section: dict[str, Any] = {name: {"url": urls[name]} for name in ("primary", "admin") if name in urls}
    replicas = {name: {"url": url} for name, url in urls.items() if name not in section}
    return {**section, "replicas": replicas} if replicas else section


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if is_mapping(before) and is_mapping(value) else value
    return merged


def find_config(folder: Path) -> Path:
    """The default file in a folder.

    Raises:
        ClusterError: There is none.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise ClusterError(
        f"there is no {NAMES[0]} in {folder}: set ads_config in pytest's configuration, or override the fixture"
    )
