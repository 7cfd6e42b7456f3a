"""The actions of the console: drain, undrain, compare the files, reload what was shown, look at the schemas."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from ..errors import ConfigError
from ..registry.registry import DataSourceRegistry
from ..registry.reload import ReloadPreview
from .state import StateCollector

KEPT_ACTIONS: Final = 10
"""Actions that the page lists."""

Fields = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an action has come to.

    Attributes:
        done: What was done.
        preview: What a reload would do, to be shown before it is done; None for other actions.
        reference: Names the preview in the form that applies it.
    """

    done: str
    preview: ReloadPreview | None = None
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """An action in the list of the page."""

    at: datetime
    text: str


class Actions:
    """Runs actions.

    Args:
        registry: The registry.
        collector: Collects the state anew after an action.
    """

    def __init__(self, registry: DataSourceRegistry, collector: StateCollector) -> None:
        self._registry = registry
        self._collector = collector
        self._done: deque[Done] = deque(maxlen=KEPT_ACTIONS)
        self._preview: tuple[str, ReloadPreview] | None = None
        self._runs: dict[str, Callable[[Fields], Awaitable[Outcome]]] = {
            "drain": self._drain,
            "undrain": self._undrain,
            "compare": self._compare,
            "reload": self._reload,
            "look": self._look,
        }

    @property
    def names(self) -> frozenset[str]:
        """The names of the actions, which are their addresses."""
        return frozenset(self._runs)

    def log(self) -> tuple[Done, ...]:
        """The last actions, the newest first."""
        return tuple(reversed(self._done))

    async def run(self, name: str, fields: Fields) -> Outcome:
        """Run an action.

        Args:
            name: One of `names`.
            fields: The fields of its form.

        Raises:
            DataError: It was refused; nothing has changed, and the message has the reason.
        """
        outcome = await self._runs[name](fields)
        if outcome.preview is None:
            self._done.append(Done(datetime.now(UTC), outcome.done))
        self._collector.forget()
        return outcome

    async def _drain(self, fields: Fields) -> Outcome:
        datasource, server = fields.get("datasource", ""), fields.get("server", "")
        self._registry.drain(datasource, server)
        return Outcome(f"{datasource}.{server} is drained: it gets no new reads")

    async def _undrain(self, fields: Fields) -> Outcome:
        datasource, server = fields.get("datasource", ""), fields.get("server", "")
        self._registry.undrain(datasource, server)
        return Outcome(f"{datasource}.{server} gets reads again")

    async def _compare(self, fields: Fields) -> Outcome:
        preview = await self._registry.preview_reload()
        reference = secrets.token_urlsafe(12)
        self._preview = reference, preview
        return Outcome("compared", preview, reference)

    async def _reload(self, fields: Fields) -> Outcome:
        shown = self._preview
        if shown is None or shown[0] != fields.get("reference"):
            raise ConfigError("another comparison was made since this one was shown: compare again")
        preview = shown[1]
        if preview.has_danger and fields.get("accept") != "danger":
            raise ConfigError("a change endangers the data of tenants: confirm that below the changes")
        self._preview = None
        reloaded = await self._registry.reload(expected=preview.config)
        return Outcome(f"the configuration was reloaded, {len(preview.changes)} changes; {reloaded}")

    async def _look(self, fields: Fields) -> Outcome:
        if self._registry.skew is None:
            raise ConfigError("there is no section migrate in the configuration")
        await self._collector.look_at_schemas()
        return Outcome("the schemas were looked at")
