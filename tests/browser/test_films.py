"""The films of a frozen page: strips of clips, which play through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kling_async import Job, KlingSession, LastFrame
from kling_async.emulator import Emulator, faults
from kling_async.gallery import Gallery
from support.pictures import png

if TYPE_CHECKING:
    from browser.conftest import Open

pytestmark = pytest.mark.anyio

LONG = "Supercalifragilistic" * 20
AT_THE_END = "() => { const v = document.querySelector('.frame video'); v.currentTime = v.duration - 0.2; }"
SHOWN = """key => document.getElementById('detail-title').textContent === key
  && !document.querySelector('.frame video').paused && document.querySelector('.frame video').currentTime > 0"""
FOCUSED = "key => document.activeElement.closest('.strip .tile')?.card.key === key"


@pytest.fixture(scope="module")
async def kept(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> Path:
    """Make the page of a film of three clips, one that lacks its end, and a clip alone."""
    folder = tmp_path_factory.mktemp("run")
    picture = folder / "face.png"
    picture.write_bytes(png(640, 360))
    bay = {"film": "bay"}
    jobs = {
        "night": Job(prompt="Lights come on, pan left", image=LastFrame("sail"), labels=bay),
        "dawn": Job(prompt="Mist lifts, pan left", image=picture, labels=bay),
        "sail": Job(prompt="A boat crosses, pan left", image=LastFrame("dawn"), labels=bay),
        "alone": Job(prompt="A gull, pan left", image=picture),
        "road": Job(prompt="A road, pan left", image=picture, labels={"film": LONG}),
        "hill": Job(prompt="Fire", image=LastFrame("road")),
    }
    async with Emulator(level="gold", speed=200, timing=20.0) as emulator:
        failure = faults.FailTask(code=1200, message="refused")
        emulator.faults.add("submit", failure, when=lambda exchange: exchange.body.get("prompt") == "Fire")
        gallery = Gallery(folder / "out" / "gallery", title="films", total=len(jobs), clock=emulator.clock, live=False)
        session = KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            level="gold",
            clock=emulator.clock,
            watch="eager",
            observers=[gallery.observer()],
        )
        async with gallery, session as kling, kling.batch(jobs, name="films", save_to=folder / "out") as batch:
            outcomes = [outcome async for outcome in batch]
    assert sum(outcome.ok for outcome in outcomes) == 5
    return gallery.index


async def test_a_film_is_a_strip_of_its_clips_in_order(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        await tab.page.get_by_role("tab", name="Films").click()
        bay, road = await tab.page.locator(".film").all()
        assert await bay.get_by_role("heading").text_content() == "bay"
        await bay.locator(".tile").first.wait_for()
        assert await bay.locator(".tile .key").all_text_contents() == ["dawn", "sail", "night"]
        assert "3 clips, 15 s" in await bay.inner_text()
        assert await road.locator(".tile .key").all_text_contents() == ["road", "hill"]
        assert await road.locator(".lack").inner_text() == "1 without a video"
        assert await bay.locator(".lack").is_hidden()


async def test_a_film_plays_through_by_keyboard(kept: Path, visit: Open) -> None:
    async with visit(kept, about="#view=films") as tab:
        page = tab.page
        await page.locator(".tile").first.wait_for()
        await page.locator(".play").first.focus()
        await page.keyboard.press("Enter")
        for key, position in (("dawn", "Clip 1 of 3"), ("sail", "Clip 2 of 3"), ("night", "Clip 3 of 3")):
            await page.wait_for_function(SHOWN, arg=key)
            assert await page.locator(".position").text_content() == position
            await page.evaluate(AT_THE_END)
        await page.wait_for_function("() => document.querySelector('.frame video').ended")
        assert await page.locator("#detail-title").text_content() == "night"
        await page.keyboard.press("ArrowLeft")
        assert await page.locator("#detail-title").text_content() == "sail"
        assert "The last frame of dawn." in await page.locator("#detail").inner_text()
        assert await page.evaluate("document.querySelector('.frame video').paused")
        await page.keyboard.press("Space")
        await page.wait_for_function(SHOWN, arg="sail")
        await page.keyboard.press("ArrowLeft")
        await page.wait_for_function(SHOWN, arg="dawn")
        await page.keyboard.press("Escape")
        await page.wait_for_function(FOCUSED, arg="dawn")
        # A clip alone repeats.
        await page.get_by_role("tab", name="Videos").click()
        await page.locator("#grid .tile", has_text="night").click()
        assert await page.evaluate("document.querySelector('.frame video').loop")
        assert await page.locator(".position").text_content() == "6 of 6"


async def test_arrows_lead_through_the_tabs(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        await tab.page.locator("#tab-videos").focus()
        for view in ("films", "run", "videos"):
            await tab.page.keyboard.press("ArrowRight")
            await tab.page.wait_for_function("id => document.activeElement.id === id", arg=f"tab-{view}")
            assert await tab.page.locator(f"#{view}").is_visible()
        await tab.page.keyboard.press("ArrowLeft")
        assert await tab.page.locator("#run").is_visible()


@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_films_fit_the_screen(kept: Path, visit: Open, width: int) -> None:
    async with visit(kept, about="#view=films", viewport={"width": width, "height": 740}) as tab:
        await tab.page.locator(".tile").first.wait_for()
        assert await tab.page.evaluate("document.documentElement.scrollWidth") == width
        await tab.page.locator(".play").first.click()
        assert await tab.page.evaluate(
            "detail => detail.scrollWidth <= detail.clientWidth", await tab.page.query_selector("#detail")
        )


async def test_a_page_without_films_has_no_tab(visit: Open, tmp_path: Path) -> None:
    async with Gallery(tmp_path, live=False) as gallery:
        pass
    async with visit(gallery.index, about="#view=films") as tab:
        assert await tab.page.locator("#tab-films").is_hidden()
        assert await tab.page.locator("#videos").is_visible()
