"""`scripts/record_demo`: an animated picture of the demo for the README, and a still one of the whole page.

The animation is a sequence of screenshots of a real desk on real servers: a server is stopped, another one promoted. A
screenshot takes longer than a frame is shown, so the page's clock is slowed down, and the animation is played faster.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from PIL import Image

from scripts.browser import Browser, Page

REPOSITORY: Final = Path(__file__).parent.parent
ANIMATION: Final = REPOSITORY / "docs" / "assets" / "demo.webp"
STILL: Final = REPOSITORY / "examples" / "starlette_app" / "desk.webp"

WIDTH: Final = 1240
HEIGHT: Final = 880
"""Size of the page, in pixels."""
SCALE: Final = 0.66
"""Size of the animation, as a share of the page's."""
PERIOD_S: Final = 0.2
"""Least seconds from one frame to the next, as they are shown."""
HOLD_S: Final = 2.5
"""Seconds for which the last frame of the animation stays."""

SLOW_CLOCK: Final = """
    const slow = %s, start = Date.now(), now = Date.now.bind(Date), wait = setTimeout, next = requestAnimationFrame;
    const tick = performance.now.bind(performance), json = Response.prototype.json;
    Date.now = () => Math.round(start + (now() - start) / slow);
    performance.now = () => tick() / slow;
    window.setTimeout = (what, ms, ...rest) => wait(what, (ms ?? 0) * slow, ...rest);
    window.requestAnimationFrame = (draw) => next((at) => draw(at / slow));
    Response.prototype.json = async function () {
      const found = await json.call(this);
      for (const one of found.requests ?? []) one.at = (start + (one.at * 1000 - start) / slow) / 1000;
      return found;
    };
"""
"""Slows the clock of a page: its timers, its animations, and the times of requests that it hears of."""

CAPTION: Final = """
    (document.getElementById('caption') ?? document.body.appendChild(Object.assign(document.createElement('p'), {
      id: 'caption', style: 'position: fixed; z-index: 9; left: 0; right: 0; bottom: 0; margin: 0; padding: 13px 24px;'
        + 'background: #e8eef8; color: #0a101d; font-size: 21px; font-weight: 650; text-align: center'
    }))).textContent = %s
"""


@asynccontextmanager
async def desk(data: str) -> AsyncIterator[str]:
    """A running `scripts/demo`; its address."""
    process = await asyncio.create_subprocess_exec(
        REPOSITORY / "scripts" / "demo", "--data", data, "--port", "0",
        env={**os.environ, "PYTHON": sys.executable}, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    if process.stdout is None:
        raise RuntimeError("the demo has no output")
    try:
        address = ""
        async for line in process.stdout:
            if found := re.search(rb"The desk is open: (http://\S+)/ui/", line):
                address = found[1].decode()
            if b"Ctrl-C ends everything" in line:
                break
        if not address:
            raise RuntimeError(f"scripts/demo ended with {await process.wait()}")
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        await process.communicate()


class Film:
    """Takes screenshots of a page while something happens on it.

    Args:
        page: The page.
        slow: How much slower than shown it is recorded.
    """

    def __init__(self, page: Page, slow: float) -> None:
        self._page = page
        self._slow = slow
        self._frames: list[Image.Image] = []
        self._times: list[float] = []

    async def record(self) -> None:
        """Take one frame after the other until cancelled."""
        while True:
            started = time.monotonic()
            picture = Image.open(io.BytesIO(await self._page.screenshot(whole=False))).convert("RGB")
            size = (round(picture.width * SCALE), round(picture.height * SCALE))
            self._frames.append(picture.resize(size, Image.Resampling.LANCZOS))
            self._times.append(started)
            await asyncio.sleep(max(0.0, PERIOD_S * self._slow - (time.monotonic() - started)))

    def save(self, path: Path, quality: int) -> None:
        """Write an animated WebP; each frame stays as long as it was to be seen."""
        lengths = [
            round((later - one) * 1000 / self._slow) for one, later in zip(self._times, self._times[1:], strict=False)
        ]
        first, *others = self._frames
        first.save(
            path, save_all=True, append_images=others, duration=[*lengths, round(HOLD_S * 1000)], loop=0,
            quality=quality, method=4,
        )  # fmt: skip


class Storyboard:
    """What is tried on the page.

    Args:
        page: The page, which shows the desk.
        slow: How much slower than shown it is played.
    """

    def __init__(self, page: Page, slow: float) -> None:
        self._page = page
        self._slow = slow

    async def wait(self, seconds: float) -> None:
        """Wait for so many seconds of the animation."""
        await asyncio.sleep(seconds * self._slow)

    async def say(self, text: str, seconds: float) -> None:
        """Show a caption, and give it some time."""
        await self._page.run(CAPTION % json.dumps(text))
        await self.wait(seconds)

    async def press(self, words: str) -> None:
        """Press a button under "Try it"."""
        await self._page.run(
            f"[...document.querySelectorAll('.action')].find(a => a.innerText.includes({json.dumps(words)})).click()"
        )

    async def command(self, server: str, action: str, until: str) -> None:
        """Press a button of a server, and wait until its card has a class or a button."""
        card = f".server[data-node={server}]"
        await self._page.run(f"document.querySelector('{card} [data-action={action}]').click()")
        await self._page.until(f"document.querySelector('{card}').matches({json.dumps(until)})")

    async def answered(self, words: str) -> None:
        """Wait for the text about the last button."""
        await self._page.until(f"document.getElementById('answer').innerText.includes({json.dumps(words)})")

    async def play(self) -> None:
        """The film."""
        page = self._page
        await self.say("Every airline is a tenant. Reads take turns on the replicas, writes go to the primary.", 3)
        await self.say("A server goes down: reads go on, a write is refused with 503.", 0.6)
        await self.command("primary", "stop", ".stopped")
        await self.press("Add a note")
        await self.answered("503")
        await self.wait(2)
        await self.say("Promote r1: writes find it by themselves, without a restart.", 0.6)
        await self.command("r1", "promote", ".leader")
        await self.wait(3)
        await page.run("scrollTo({top: document.querySelector('.try').offsetTop - 12, behavior: 'smooth'})")
        await self.say("Read your own write: the token leads past replicas that lag.", 0.4)
        await self.press("Read your own write")
        await self.answered("moment later")
        await self.wait(2.4)
        await self.say("Ask for another airline's flight: every way is refused, or finds nothing.", 0.3)
        await self.press("Another airline")
        await self.answered("ways.")
        await self.wait(2.4)
        await self.say("Each request tells its SQL, its spans, and why it went to no other server.", 0.3)
        await page.run("document.querySelector('[data-filter=write]').click()")
        await page.run("document.querySelector('#log button').click()")
        await page.until("document.getElementById('detail').open")
        await self.wait(1)

    async def restore(self) -> None:
        """The first primary again, and the page from its top."""
        await self._page.run("document.getElementById('detail').close(), document.getElementById('caption').remove()")
        await self._page.run("document.querySelector('[data-filter=all]').click(), scrollTo(0, 0)")
        await self.command("primary", "start", ":has([data-action=promote])")
        await self.command("primary", "promote", ".leader")
        await self.command("r1", "start", ":has([data-action=promote])")

    async def pose(self) -> None:
        """For the still picture: r1 is stopped, and an overbooking has failed at COMMIT."""
        await self.wait(8)
        await self.command("r1", "stop", ".stopped")
        await self.press("Overbook")
        await self.answered("COMMIT failed")


async def run(data: str, quality: int, slow: float) -> None:
    """Record both pictures."""
    async with desk(data) as address:
        with Browser() as browser:
            async with browser.page(width=WIDTH, height=HEIGHT) as page:
                await page.prefer("dark")
                await page.send("Page.addScriptToEvaluateOnNewDocument", source=SLOW_CLOCK % slow)
                await page.send("Animation.enable")
                await page.send("Animation.setPlaybackRate", playbackRate=1 / slow)
                await page.go(f"{address}/ui/")
                await page.run("document.getElementById('rate').value = 5")
                await page.until("document.querySelectorAll('#log tr').length > 12")
                film, story = Film(page, slow), Storyboard(page, slow)
                recorder = asyncio.create_task(film.record())
                await story.play()
                recorder.cancel()
                await asyncio.wait([recorder])
                await story.restore()
                await page.send(
                    "Emulation.setDeviceMetricsOverride", width=1380, height=900, deviceScaleFactor=1, mobile=False
                )
                await story.pose()
                STILL.write_bytes(await page.screenshot(format="webp", quality=55))
    film.save(ANIMATION, quality)
    for path in (ANIMATION, STILL):
        print(f"{path.relative_to(REPOSITORY)}: {path.stat().st_size / 1024:,.0f} kB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the demo."""
    parser = argparse.ArgumentParser(prog="scripts/record_demo", description=__doc__)
    parser.add_argument("--data", choices=("year", "week", "auto"), default="auto", help="as for scripts/demo")
    parser.add_argument("--quality", type=int, default=30, help="of the animation, 0 to 100; default: 30")
    parser.add_argument("--slow", type=float, default=5.0, help="how much slower it is recorded; default: 5")
    options = parser.parse_args(arguments)
    asyncio.run(run(options.data, options.quality, options.slow))
    return 0


if __name__ == "__main__":
    sys.exit(main())
