"""Automatic reloads: at SIGHUP, and when the files of the configuration change."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from random import uniform
from types import FrameType
from typing import Any, Final

from ..config import Origins, ReloadConfig
from ..errors import ConfigError

logger = logging.getLogger("asgi_datasource.registry")

JITTER: Final = 0.1
"""Share by which the interval varies, so that the processes of a service do not all read at once."""
SETTLE_S: Final = 0.2
"""Seconds without a change before the files are read, so that a write in progress is complete."""

Handler = Callable[[int, FrameType | None], Any] | int | None


class ConfigWatcher:
    """Reloads a registry automatically, as its configuration says.

    A refused configuration is logged with all its problems, and nothing changes.

    Args:
        reload: Reloads the registry from its files.
        origins: Returns the files that were read last, even if their content was refused.
    """

    def __init__(self, reload: Callable[[], Awaitable[object]], origins: Callable[[], Origins]) -> None:
        self._reload = reload
        self._origins = origins
        self._interval_s: float | None = None
        self._watching: asyncio.Task[None] | None = None
        self._asked: asyncio.Task[None] | None = None
        self._is_asked_again = False
        self._is_listening = False

    def adopt(self, config: ReloadConfig) -> None:
        """Apply the `reload` settings of a configuration."""
        origins = self._origins()
        if (config.watch_s is not None or config.on_sighup) and not origins:
            logger.warning("reload: the configuration did not come from a file, so there is none to read again")
            self.stop()
            return
        if config.on_sighup and not self._is_listening:
            self._is_listening = hangup.listen(self._hung_up)
        elif not config.on_sighup:
            self._stop_listening()
        self._interval_s = config.watch_s
        if self._interval_s is not None and (self._watching is None or self._watching.done()):
            self._watching = asyncio.get_running_loop().create_task(self._watch(origins))

    def stop(self) -> None:
        """Stop watching; a reload in progress continues."""
        self._interval_s = None
        self._stop_listening()
        for task in (self._watching, self._asked):
            if task is not None:
                task.cancel()
        self._watching = self._asked = None

    def _stop_listening(self) -> None:
        if self._is_listening:
            self._is_listening = False
            hangup.ignore(self._hung_up)

    # -- SIGHUP

    def _hung_up(self) -> None:
        """Schedule a reload; after one in progress, which may have read the files already, another one follows."""
        self._is_asked_again = True
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().create_task(self._reload_when_asked())

    async def _reload_when_asked(self) -> None:
        while self._is_asked_again:
            self._is_asked_again = False
            await self._try("SIGHUP")

    # -- files

    async def _watch(self, known: Origins) -> None:
        digest = await self._digest_of(known)
        while (interval_s := self._interval_s) is not None:
            await asyncio.sleep(interval_s * uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - not for security
            if self._origins() is not known:
                # A reload happened meanwhile.
                known = self._origins()
                digest = await self._digest_of(known)
            found = await asyncio.to_thread(known.look)
            if found == known:
                continue
            found = await self._settled(found)
            if digest is not None and await asyncio.to_thread(found.digest) == digest:
                known.files, known.patterns = found.files, found.patterns
                continue
            await self._try("the files have changed")

    @staticmethod
    async def _digest_of(known: Origins) -> bytes | None:
        """The digest of the files; None if they have changed since they were read."""
        digest = await asyncio.to_thread(known.digest)
        return digest if await asyncio.to_thread(known.look) == known else None

    @staticmethod
    async def _settled(found: Origins) -> Origins:
        """Wait until the files no longer change."""
        while True:
            await asyncio.sleep(SETTLE_S)
            again = await asyncio.to_thread(found.look)
            if again == found:
                return found
            found = again

    async def _try(self, why: str) -> None:
        logger.info("the configuration is read again: %s", why)
        try:
            await self._reload()
        except ConfigError as error:
            logger.error("the configuration was refused (%s), and nothing has changed: %s", why, error)
        except Exception:
            # Keep watching: the next version of the files may be valid.
            logger.exception("the configuration could not be reloaded (%s), and nothing has changed", why)


class Hangup:
    """Calls listeners at SIGHUP, after the handler that was installed before."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: Handler = None

    def listen(self, listener: Callable[[], None]) -> bool:
        """Add a listener, called in the running event loop; False if the loop cannot handle signals."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            before = signal.getsignal(signal.SIGHUP) if hasattr(signal, "SIGHUP") else None
            try:
                loop.add_signal_handler(signal.SIGHUP, self._notify)
            except (AttributeError, NotImplementedError, RuntimeError, ValueError):
                logger.warning("reload.on_sighup: signals reach only the main thread, on Unix; this is another one")
                return False
            self._before, self._loop = before, loop
            self._listeners.clear()
        self._listeners.append(listener)
        return True

    def ignore(self, listener: Callable[[], None]) -> None:
        """Remove a listener; removing the last one restores the previous handler."""
        if listener in self._listeners:
            self._listeners.remove(listener)
        if self._listeners or self._loop is None:
            return
        loop, self._loop = self._loop, None
        if not loop.is_closed():
            loop.remove_signal_handler(signal.SIGHUP)
        if self._before is not None:
            signal.signal(signal.SIGHUP, self._before)

    def _notify(self) -> None:
        if callable(self._before):
            self._before(signal.SIGHUP, None)
        for listener in tuple(self._listeners):
            listener()


hangup: Final = Hangup()
