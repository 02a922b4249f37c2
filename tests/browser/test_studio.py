"""The example application in a real browser, with uvicorn and the emulator."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from kling_async import KlingSession
from kling_async.emulator import Emulator, faults
from kling_async.examples.studio import studio
from support.web import served

if TYPE_CHECKING:
    from browser.conftest import Open
    from playwright.async_api import Page

pytestmark = pytest.mark.anyio

SHOTS = os.environ.get("KLING_SHOTS")
"""Folder for screenshots; None takes none."""
COLOUR = """() => {
  const video = document.getElementById('video');
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  canvas.getContext('2d').drawImage(video, 0, 0, 1, 1);
  return [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data.slice(0, 3)];
}"""


def picture(colour: tuple[int, int, int]) -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (640, 360), colour).save(made, "PNG")
    return made.getvalue()


@asynccontextmanager
async def open_studio(folder: Path, **options: Any) -> AsyncIterator[tuple[str, Emulator]]:
    async with Emulator(speed=60, timing=90.0, level="gold") as emulator:
        session = {"api_key": emulator.api_key, "base_url": emulator.base_url, "clock": emulator.clock, **options}
        async with served(studio(lambda: KlingSession(**session), folder), patience=1) as url:
            yield f"{url}/", emulator


async def shoot(page: Page, name: str) -> None:
    if SHOTS:
        await page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


async def ask(page: Page, prompt: str, colour: tuple[int, int, int]) -> None:
    await page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture(colour)})
    await page.get_by_label("What happens in it?").fill(prompt)
    await page.get_by_role("button", name="Make the video").click()


async def test_studio_plays_video_of_uploaded_picture(tmp_path: Path, visit: Open) -> None:
    async with open_studio(tmp_path) as (url, emulator), visit(url) as tab:
        page = tab.page
        button = page.get_by_role("button", name="Make the video")
        await page.wait_for_function("() => document.getElementById('price').textContent.includes('0.25')")
        await page.get_by_label("Model").select_option("kling-v2.1-pro")
        await page.get_by_label("Length").select_option("10")
        assert "$0.90" in await button.inner_text()
        await shoot(page, "1-empty")
        await ask(page, "The light changes", (200, 40, 60))
        await page.locator("li.now[data-step=running]").wait_for()
        await shoot(page, "2-making")
        # The address leads to the same job after a reload.
        address = page.url
        assert "#" in address
        await page.reload()
        await page.wait_for_function("() => document.getElementById('video').currentTime > 0.2")
        red, green, blue = await page.evaluate(COLOUR)
        assert red > 120, (red, green, blue)
        assert max(green, blue) < red - 60, (red, green, blue)
        assert await page.evaluate("() => document.getElementById('video').duration") == pytest.approx(10, abs=1)
        await page.get_by_text("Here it is.").wait_for()
        await shoot(page, "3-ready")
        (record,) = emulator.predictions()
        assert record.inputs["prompt"] == "The light changes"
        assert len(emulator.charges()) == 1
        assert len(list(tmp_path.glob("*.mp4"))) == 1


async def test_studio_shows_errors(tmp_path: Path, visit: Open) -> None:
    async with open_studio(tmp_path) as (url, emulator), visit(url) as tab:
        page = tab.page
        emulator.faults.add("submit", faults.FailTask(code=1200, message="<b>not</b> that", seconds=1))
        await ask(page, "Something", (20, 90, 60))
        await page.get_by_text("<b>not</b> that").wait_for()
        await shoot(page, "4-refused")
        # The browser also logs the 422 response, which is expected.
        await page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
        await page.get_by_role("button", name="Make the video").click()
        await page.get_by_text("image:").wait_for()
        await shoot(page, "5-no-picture")
        tab.complaints[:] = [complaint for complaint in tab.complaints if "422" not in complaint]
        assert len(emulator.charges()) == 1


async def test_studio_fits_phone(tmp_path: Path, visit: Open) -> None:
    async with (
        open_studio(tmp_path) as (url, _),
        visit(url, viewport={"width": 390, "height": 800}, color_scheme="dark") as tab,
    ):
        await ask(tab.page, "Waves", (30, 60, 200))
        await tab.page.locator("li.now[data-step=running]").wait_for()
        await shoot(tab.page, "6-phone")
        wide = await tab.page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= 390, "nothing overflows"


async def test_studio_keeps_downloads_and_leads_back_to_earlier_videos(tmp_path: Path, visit: Open) -> None:
    async with open_studio(tmp_path) as (url, emulator), visit(url) as tab:
        page = tab.page
        negative = page.get_by_label("What should not be in it?")
        await negative.fill("blur")
        for prompt, colour in (("First <b>one</b>", (200, 40, 60)), ("Second", (20, 90, 200))):
            await ask(page, prompt, colour)
            await page.get_by_role("link", name=prompt).wait_for()
            await page.get_by_text("Here it is.").wait_for()
        assert {record.inputs["negative_prompt"] for record in emulator.predictions()} == {"blur"}
        second = page.url
        await page.reload()
        await page.get_by_role("link", name="First <b>one</b>").click()
        await page.get_by_role("link", name="Download the video").wait_for()
        assert page.url != second
        async with page.expect_download() as started:
            await page.get_by_role("link", name="Download the video").click()
        made = await started.value
        assert made.suggested_filename == f"{page.url.partition('#')[2]}.mp4"
        assert (await made.path()).read_bytes()[4:8] == b"ftyp"
        await shoot(page, "6-earlier")
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await page.get_by_role("button", name="Forget this list").click()
        assert not await page.get_by_role("link", name="Second").is_visible()
        assert len(emulator.charges()) == 2
