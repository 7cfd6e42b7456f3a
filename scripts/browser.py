"""A headless Chromium, driven over the DevTools protocol: for tests of pages, and for screenshots.

Source: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from types import TracebackType
from typing import Any, Final, Literal, Self

from websockets.asyncio.client import ClientConnection, connect

PROGRAMS: Final = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
LIMIT_S: Final = 30.0
"""Seconds for one command of the protocol, and for a condition of a page."""

KEYS: Final = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
"""Keys without a letter, with their codes."""


class Browser:
    """A running browser. Its pages share no cookies: each has a profile of its own."""

    def __init__(self) -> None:
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise RuntimeError("there is no Chromium: install the Debian package chromium")
        self._folder = tempfile.TemporaryDirectory(prefix="ads-browser-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(  # noqa: S603 - a program of `PROGRAMS`
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-extensions",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder.name}",
                "about:blank",
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._read_address()

    def _read_address(self) -> str:
        for line in self._process.stderr or ():
            if "DevTools listening on " in line:
                return line.rpartition(" ")[2].strip()
        raise RuntimeError("the browser has ended before it listened")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._folder.cleanup()

    @asynccontextmanager
    async def page(self, *, width: int = 1280, height: int = 900) -> AsyncIterator[Page]:
        """A blank page with a profile of its own, closed at the end of the block."""
        async with connect(self.address, max_size=None) as socket:
            page = Page(socket)
            reader = asyncio.create_task(page.read())
            try:
                context = (await page.send("Target.createBrowserContext", session=None))["browserContextId"]
                target = await page.send(
                    "Target.createTarget", session=None, url="about:blank", browserContextId=context
                )
                attached = await page.send(
                    "Target.attachToTarget", session=None, targetId=target["targetId"], flatten=True
                )
                page.session = attached["sessionId"]
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.send(f"{domain}.enable")
                await page.send(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
                )
                yield page
                await page.send("Target.disposeBrowserContext", session=None, browserContextId=context)
            finally:
                reader.cancel()
                await asyncio.wait([reader])


class Page:
    """One page.

    Attributes:
        complaints: What the browser has complained of: violations of the policy, exceptions, failed requests.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self.session: str | None = None
        self.complaints: list[str] = []

    async def read(self) -> None:
        """Read what the browser sends."""
        async for message in self._socket:
            found = json.loads(message)
            number = found.get("id")
            if number is not None:
                waiting = self._waiting.pop(number)
                if not waiting.done():
                    waiting.set_result(found)
            elif found["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif found["method"] == "Log.entryAdded":
                self.complaints.append(found["params"]["entry"]["text"])
            elif found["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(found["params"]["exceptionDetails"]))

    async def send(self, method: str, *, session: str | None = "page", **parameters: Any) -> dict[str, Any]:
        """Send one command, and return its result."""
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self.session
        await self._socket.send(json.dumps(message))
        async with asyncio.timeout(LIMIT_S):
            answer = await waiting
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        found: dict[str, Any] = answer["result"]
        return found

    async def go(self, url: str) -> None:
        """Load a page."""
        self._loaded.clear()
        found = await self.send("Page.navigate", url=url)
        if "errorText" in found:
            raise RuntimeError(f"{url}: {found['errorText']}")
        await self.loaded()

    async def loaded(self) -> None:
        """Wait until the page that is under way has loaded."""
        async with asyncio.timeout(LIMIT_S):
            await self._loaded.wait()

    async def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        found = await self.send("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{code}: {found['exceptionDetails']}")
        return found["result"].get("value")

    async def until(self, code: str) -> None:
        """Wait until an expression is true in the page."""
        async with asyncio.timeout(LIMIT_S):
            while not await self.run(code):  # noqa: ASYNC110 - the page does not tell
                await asyncio.sleep(0.03)

    async def text(self, selector: str = "body") -> str:
        """The visible text of an element."""
        found: str = await self.run(f"document.querySelector({json.dumps(selector)}).innerText")
        return found

    async def press(self, key: str, *, loads: bool = False) -> None:
        """Press a key on the keyboard.

        Args:
            key: `Tab`, `Enter`, `Escape`, or a character.
            loads: Wait for the page that it leads to.
        """
        if loads:
            self._loaded.clear()
        written = {"Enter": "\r", "Tab": "", "Escape": ""}.get(key, key)
        options: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=written, **options)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **options)
        if loads:
            await self.loaded()

    async def click(self, selector: str) -> None:
        """Click an element, and wait for the page that it leads to."""
        self._loaded.clear()
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")
        await self.loaded()

    async def prefer(self, scheme: Literal["dark", "light"]) -> None:
        """Prefer a colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def screenshot(
        self, *, format: Literal["png", "webp"] = "png", quality: int = 80, whole: bool = True
    ) -> bytes:
        """A picture of the page; `whole` is down to its end."""
        options: dict[str, Any] = {"format": format, "captureBeyondViewport": whole}
        if format == "webp":
            options["quality"] = quality
        if whole:
            page = "document.documentElement.getBoundingClientRect()"
            width, height = await self.run(f"[innerWidth, Math.ceil({page}.height)]")
            options["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        return base64.b64decode((await self.send("Page.captureScreenshot", **options))["data"])
