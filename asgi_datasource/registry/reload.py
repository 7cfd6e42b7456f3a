"""A reload before it happens: what a changed document means, and what it would do to the servers' pools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..config import Change, ChangeWeight, Config, find_changes
from .runtime_config import RuntimeConfig


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The effect of a reload on the servers, each as `datasource.server`.

    Attributes:
        kept: Servers with unchanged settings, which keep their pools.
        opened: Servers that are new, or whose settings have changed.
        retired: Servers whose pools are closed when the last session that uses them has ended.
    """

    kept: tuple[str, ...]
    opened: tuple[str, ...]
    retired: tuple[str, ...]

    def __str__(self) -> str:
        return f"pools: {len(self.opened)} opened, {len(self.retired)} retired, {len(self.kept)} kept"


def compare_servers(previous: RuntimeConfig, compiled: RuntimeConfig) -> Reloaded:
    """What replacing one configuration by another does to the servers."""
    before, after = previous.servers, compiled.servers
    return Reloaded(
        kept=tuple([server.full_name for server in after if server in before]),
        opened=tuple([server.full_name for server in after if server not in before]),
        retired=tuple([server.full_name for server in before if server not in after]),
    )


@dataclass(frozen=True, slots=True)
class ReloadPreview:
    """What a reload would do.

    Attributes:
        config: The document as it is now; `reload(expected=...)` takes no other one.
        changes: The changes, the most dangerous first.
        servers: The effect on the servers' pools.
        notes: What this reload does besides, and what takes effect only when the process starts again.
    """

    config: Config = field(repr=False)
    changes: tuple[Change, ...]
    servers: Reloaded
    notes: tuple[str, ...] = ()

    @property
    def has_danger(self) -> bool:
        """Whether a change endangers the data of tenants."""
        return any(change.weight is ChangeWeight.DANGER for change in self.changes)


def preview_of(previous: RuntimeConfig, compiled: RuntimeConfig) -> ReloadPreview:
    """Compare a compiled configuration with the current one.

    Args:
        previous: The current configuration, which was compiled from a document.
        compiled: The one that would replace it, compiled with `previous`; nothing of it is open.
    """
    old, new = previous.document, compiled.document
    if old is None or new is None:
        raise ValueError("a configuration was not compiled from a document")
    return ReloadPreview(
        config=new,
        changes=tuple(find_changes(old, new)),
        servers=compare_servers(previous, compiled),
        notes=tuple(_notes(old, new)),
    )


def _notes(old: Config, new: Config) -> Iterator[str]:
    relays = [None if config.outbox is None else config.outbox.relay for config in (old, new)]
    if relays[0] != relays[1] and "embedded" in relays:
        yield "outbox.relay: a relay inside the application starts with the process; restart it for this change"
    if new.migrate is not None and new.migrate.at_startup == "apply":
        yield "migrate.at_startup is apply: the reload applies the migrations that are pending"
