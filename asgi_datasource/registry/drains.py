"""Draining servers while the application runs."""

from __future__ import annotations

from collections.abc import Iterable

from ..datasource.database_fleet import Fleet
from ..datasource.datasource import ReplicatedDataSource
from ..errors import ConfigError
from ..routing import NoReplica
from .runtime_config import RuntimeConfig

PRIMARY = "primary"


def drain(compiled: RuntimeConfig, datasource: str, server: str) -> None:
    """Give a replica no new reads.

    Raises:
        ConfigError: There is no such server; it is the primary; or no server would be left for reads.
    """
    refusal = why_not(compiled, datasource, server)
    if refusal is not None:
        raise ConfigError(refusal)
    _find(compiled, datasource).drain(server)


def undrain(compiled: RuntimeConfig, datasource: str, server: str) -> None:
    """Give a replica reads again.

    Raises:
        ConfigError: There is no such replica.
    """
    found = _find(compiled, datasource)
    _check_known(found, datasource, server)
    if server == PRIMARY:
        raise ConfigError(f"{datasource}.{PRIMARY} is never drained: it takes the writes")
    found.undrain(server)


def why_not(compiled: RuntimeConfig, datasource: str, server: str) -> str | None:
    """Why a server cannot be drained; None if it can.

    Raises:
        ConfigError: There is no such server.
    """
    found = _find(compiled, datasource)
    _check_known(found, datasource, server)
    if server == PRIMARY:
        return (
            f"{datasource}.{PRIMARY} takes the writes, and {datasource} has no other server for them. Promote a"
            f" replica, or let datasources.{datasource}.primary lead to another server and reload: then it gets no more"
            " work"
        )
    for member in found.members if isinstance(found, Fleet) else (found,):
        left = [node.name for node in member.topology.usable if node.name != server]
        if left or member.topology.policy.no_replica is not NoReplica.FAIL:
            continue
        return (
            f"{datasource}.{server} is the last replica in use, and with routing.no_replica: fail every read would be"
            " refused. Undrain another replica first, or allow the primary with routing.no_replica: primary"
        )
    return None


def _find(compiled: RuntimeConfig, datasource: str) -> ReplicatedDataSource | Fleet:
    found = compiled.datasources.get(datasource) or compiled.fleets.get(datasource)
    if not isinstance(found, ReplicatedDataSource | Fleet):
        names = ", ".join([*compiled.datasources, *compiled.fleets])
        raise ConfigError(f"there is no datasource {datasource!r}, only: {names}")
    return found


def _check_known(found: ReplicatedDataSource | Fleet, datasource: str, server: str) -> None:
    known = _names(found)
    if server not in known:
        raise ConfigError(f"the datasource {datasource!r} has no server {server!r}, only: {', '.join(known)}")


def _names(found: ReplicatedDataSource | Fleet) -> list[str]:
    names: Iterable[str] = found.replicas if isinstance(found, Fleet) else [one.name for one in found.replicas]
    return [PRIMARY, *names]
