"""Makes the screenshots of the documentation, light and dark: `python docs/scripts/shots.py`.

It needs what the tests need. A batch runs against the emulator, and its gallery is opened in the Chromium of the tests.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.async_api import Browser, async_playwright

from kling_async import Job, KlingSession, cli
from kling_async.emulator import Emulator, faults
from kling_async.gallery import Gallery

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "docs" / "assets" / "shots"
IMAGES = Path(cli.__file__).parent / "demo_images"
MODELS = ("kling-v2.1-standard", "kling-v2.1-pro", "kling-v2.1-master")
PROMPTS = (
    "Slow push-in, soft light",
    "The camera rises, and clouds drift past",
    "Wind moves over the ground",
    "Time-lapse into the evening",
)
WIDTH, HEIGHT = 1280, 800


async def run(folder: Path) -> Path:
    """Make twelve videos, of which one fails, and return the page of their gallery."""
    pictures = sorted(IMAGES.glob("*.jpg"))
    jobs = {
        f"{picture.stem}-{number + 1}": Job(prompt=prompt, image=picture, model=MODELS[(number + place) % 3])
        for number, prompt in enumerate(PROMPTS)
        for place, picture in enumerate(pictures)
    }
    async with Emulator(level="gold", speed=30, seed=7) as emulator:
        emulator.faults.add("submit", faults.FailTask(message="the content was refused"), after=7)
        async with Gallery(folder / "gallery", title="spring", total=len(jobs)) as gallery:
            session = KlingSession(
                emulator.api_key,
                base_url=emulator.base_url,
                clock=emulator.clock,
                level="gold",
                observers=[gallery.observer()],
            )
            async with session as kling, kling.batch(jobs, name="spring", save_to=folder) as batch:
                async for _ in batch:
                    pass
    return gallery.index


async def shoot(browser: Browser, page: Path, name: str, *, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Save a page in both themes."""
    for scheme in ("light", "dark"):
        context = await browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        tab = await context.new_page()
        await tab.goto(page.as_uri())
        await tab.wait_for_load_state("networkidle")
        picture = Image.open(io.BytesIO(await tab.screenshot()))
        picture.save(SHOTS / f"{name}-{scheme}.webp", quality=82, method=6)
        await context.close()


async def main() -> None:
    """Make all of them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.chromium import OPTIONS, chromium  # noqa: PLC0415 -- found by the line above

    SHOTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = await run(Path(folder))
        cache = ROOT / ".pytest_cache" / "d" / "chromium"
        cache.mkdir(parents=True, exist_ok=True)
        found = chromium(cache)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=found.program, env={**found.environment}, args=OPTIONS
            )
            await shoot(browser, page, "gallery")
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
