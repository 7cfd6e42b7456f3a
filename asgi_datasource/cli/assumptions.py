"""What `explain` assumes: the state of the servers, and tenants of a table that it does not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..config import CatalogConfig, Config, StateDocument, parse_duration, read_state
from ..registry.runtime_config import RuntimeConfig
from ..tenancy import RowReader, TenantCompiler, TenantDirectory
from .command import CannotRun


def assume_state(
    compiled: RuntimeConfig, given: StateDocument | None, *, down: Iterable[str] = (), lags: Iterable[str] = ()
) -> StateDocument:
    """The state of the servers.

    Args:
        compiled: The configuration.
        given: A saved state; None takes every server to be up and current.
        down: Servers that are down: `r1`, or `orders.r1` where several datasources have an `r1`.
        lags: Replicas with lag: `r1=3s`.

    Raises:
        CannotRun: There is no such server, or what stands behind `=` is no duration.
        ConfigError: The state has the wrong form.
    """
    document = _all_is_well(compiled) if given is None else given.model_dump(mode="json", exclude_none=True)
    for name in down:
        for server in _servers(document, compiled, name):
            server["breaker"] = "open"
    for text in lags:
        name, _, written = text.partition("=")
        try:
            lag_s = parse_duration(written)
        except ValueError:
            raise CannotRun(f"--lag {text}: a server and a duration are expected", "Write it as r1=3s.") from None
        for server in _servers(document, compiled, name):
            server |= {"lag_s": lag_s, "age_s": lag_s}
    return read_state(document)


def _servers(document: dict[str, Any], compiled: RuntimeConfig, written: str) -> Iterator[dict[str, Any]]:
    """The states of the servers of a name."""
    of_datasource, _, name = written.rpartition(".")
    found = 0
    for datasource, known in compiled.datasources.items():
        if name in known.servers and of_datasource in ("", datasource):
            state = document["datasources"].setdefault(datasource, {})
            yield state.setdefault("servers", {}).setdefault(name, {})
            found += 1
    if not found:
        names = [f"{datasource}.{name}" for datasource, known in compiled.datasources.items() for name in known.servers]
        raise CannotRun(f"there is no server {written!r}", f"There are: {', '.join(names)}.")


def _all_is_well(compiled: RuntimeConfig) -> dict[str, Any]:
    """The state in which every server is up and current."""
    datasources: dict[str, Any] = {}
    for name, datasource in compiled.datasources.items():
        replicas = [node.name for node in datasource.topology.replicas]
        datasources[name] = {"servers": {replica: {"age_s": 0.0, "lag_s": 0.0} for replica in replicas}}
    return {"version": 1, "datasources": datasources}


class AssumedTenants:
    """Takes every name to be one of the table, with the values of `tenants_from.defaults`.

    Args:
        config: A checked configuration.
        catalog: Its section `tenants_from`.
        directory: Where the tenants are added.

    Attributes:
        names: The names that were taken to be there.
    """

    def __init__(self, config: Config, catalog: CatalogConfig, directory: TenantDirectory) -> None:
        self.names: list[str] = []
        self._compiler = TenantCompiler(config.datasources)
        self._defaults = catalog.defaults
        self._directory = directory

    async def learn(self, name: str) -> None:
        """Add a tenant of this name, where the defaults name its datasource."""
        if self._defaults.datasource is None:
            return
        reader = RowReader(("name",), self._compiler, self._defaults)
        reader.add([(name,)])
        known = self._directory.map
        self._directory.map = replace(known, names={**known.names, **reader.map().names})
        self.names.append(name)

    async def learn_domain(self, host: str) -> None:
        """Add nothing: which tenant a host belongs to is a column of the table."""
