"""Recorded histories of clients, and a checker that finds violations of the consistency guarantees.

In the manner of Jepsen and Elle: the history is recorded first and checked afterwards. Every write has a unique id and
makes the next version of its register, so the versions in a read tell exactly how old it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

Versions = Mapping[int, tuple[int, str]]
"""The version of each register, and the id of the write that made it."""


class Outcome(StrEnum):
    """The outcome that a client observed."""

    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Write:
    """A write of one register.

    Attributes:
        client: The client; it does one operation at a time.
        key: The register.
        id: The written value.
        outcome: The outcome that the client observed.
        version: The version in the response; None unless the outcome is DONE.
    """

    client: int
    key: int
    id: str
    outcome: Outcome
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """A read of all registers.

    Attributes:
        client: The client.
        versions: The versions in the response.
        node: The server that answered, by its name in the configuration.
        phase: The fault that was being injected.
        began: Number of operations that had ended when it began; None: all before it.
        is_of_primary: Whether that server took writes.
    """

    client: int
    versions: Versions
    node: str
    phase: str = ""
    began: int | None = None
    is_of_primary: bool = False


@dataclass(frozen=True, slots=True)
class Final:
    """The final state on the primary.

    Attributes:
        writes: For each write that took effect, its register and version, by its id.
    """

    writes: Mapping[str, tuple[int, int]]


@dataclass(slots=True)
class Violations:
    """The violations that were found, by kind.

    Attributes:
        stale: A client read a version older than its own write.
        backward: A client read a version older than one it had read before.
        lost: A write that was acknowledged is missing in the final state.
        undead: A write that failed is present in the final state.
        imaginary: A version was read that is missing in the final state.
        forked: Two writes made the same version of a register.
    """

    stale: list[str] = field(default_factory=list)
    backward: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    undead: list[str] = field(default_factory=list)
    imaginary: list[str] = field(default_factory=list)
    forked: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """The number of violations of each kind."""
        return {name: len(getattr(self, name)) for name in self.__slots__}

    def __bool__(self) -> bool:
        return any(self.counts().values())

    def __str__(self) -> str:
        found = [f"{name}: {text}" for name in self.__slots__ for text in getattr(self, name)[:5]]
        return "\n".join([str(self.counts()), *found])


def check(history: Sequence[Write | Read], final: Final) -> Violations:
    """Check a history against the guarantees.

    Args:
        history: The operations, in order for each client.
        final: The final state.
    """
    found = Violations()
    _check_writes(history, final, found)
    _check_versions(history, final, found)
    own: dict[tuple[int, int], int] = {}
    seen: dict[tuple[int, int], tuple[int, str]] = {}
    told = {event.id: index for index, event in enumerate(history) if isinstance(event, Write) and event.version}
    for index, event in enumerate(history):
        if isinstance(event, Write):
            if event.version is not None:
                own[event.client, event.key] = max(event.version, own.get((event.client, event.key), 0))
            continue
        for key in {key for client, key in (*own, *seen) if client == event.client}:
            version = event.versions.get(key, (0, ""))[0]
            where = f"client {event.client} at {event.node} ({event.phase}), event {index}, register {key}"
            if version < own.get((event.client, key), 0):
                found.stale.append(f"{where}: version {version} after its own {own[event.client, key]}")
                continue
            before, name = seen.get((event.client, key), (0, ""))
            # Under synchronous replication a standby shows a commit before the primary, which waits for the standby
            # and only then answers the writer (docs/consistency.md).
            began = index if event.began is None else event.began
            is_early = event.is_of_primary and told.get(name, len(history)) >= began
            if version < before and not is_early:
                found.backward.append(f"{where}: version {version} after {before}")
        for key, (version, name) in event.versions.items():
            seen[event.client, key] = max((version, name), seen.get((event.client, key), (0, "")))
    return found


def _check_writes(history: Iterable[Write | Read], final: Final, found: Violations) -> None:
    for event in history:
        if not isinstance(event, Write):
            continue
        there = final.writes.get(event.id)
        if event.outcome is Outcome.DONE and there != (event.key, event.version):
            found.lost.append(f"{event} became {there}")
        if event.outcome is Outcome.FAILED and there is not None:
            found.undead.append(f"{event} became {there}")


def _check_versions(history: Iterable[Write | Read], final: Final, found: Violations) -> None:
    made: dict[tuple[int, int], str] = {}

    def note(key: int, version: int, name: str) -> None:
        if made.setdefault((key, version), name) != name:
            found.forked.append(f"register {key}, version {version}: {made[key, version]} and {name}")

    for name, (key, version) in final.writes.items():
        note(key, version, name)
    for event in history:
        if isinstance(event, Write):
            if event.version is not None:
                note(event.key, event.version, event.id)
            continue
        for key, (version, name) in event.versions.items():
            if name not in final.writes:
                found.imaginary.append(f"client {event.client} read {name} at {event.node} ({event.phase})")
            note(key, version, name)


def shares(history: Iterable[Write | Read], *, phase: str | None = None) -> Counter[str]:
    """The number of reads that each server answered."""
    return Counter(
        event.node for event in history if isinstance(event, Read) and (phase is None or event.phase == phase)
    )
