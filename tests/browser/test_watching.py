"""The live page in a real browser, and a page with five thousand jobs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kling_async.emulator.tiny import TINY_MP4
from kling_async.gallery import Gallery
from kling_async.gallery.cards import Deck
from kling_async.gallery.page import freeze
from support.gallery import Script
from support.pictures import png

if TYPE_CHECKING:
    from browser.conftest import Open

pytestmark = pytest.mark.anyio

STATE = """([key, state]) => [...document.querySelectorAll('.tile')].some((tile) =>
  tile.querySelector('.key').textContent === key && tile.querySelector('button').className === `of-${state}`)"""
FILLED = """() => [0.3, 0.6, 0.9].every((share) => {
  const box = document.getElementById('grid').getBoundingClientRect();
  const y = Math.min(innerHeight * share, box.bottom - 60);
  return [y, y - 40].some((at) => document.elementFromPoint(box.left + 40, at)?.closest('.tile'));
})"""


def cut(gallery: Gallery) -> None:
    """Break all connections, as when a laptop sleeps."""
    assert gallery._live is not None
    server = gallery._live._runner.server
    assert server is not None
    for connection in server.connections:
        assert connection.transport is not None
        connection.transport.abort()


async def test_live_page_follows_run_to_its_end(tmp_path: Path, visit: Open) -> None:
    video, picture = tmp_path / "a.mp4", tmp_path / "face.png"
    video.write_bytes(TINY_MP4)
    picture.write_bytes(png())
    gallery = Gallery(tmp_path / "gallery", title="spring", total=3)
    script = Script(gallery.observer())
    async with AsyncExitStack() as run:
        await run.enter_async_context(gallery)
        assert gallery.url is not None
        async with visit(gallery.url) as tab:
            page = tab.page

            async def reach(key: str, state: str) -> None:
                await page.wait_for_function(STATE, arg=[key, state])

            await page.get_by_text("No jobs yet.").wait_for()
            script.admitted("a", image=picture)
            script.admitted("b", image=picture)
            await reach("a", "waiting")
            script.accepted("a")
            await reach("a", "running")
            script.ended("a")
            await reach("a", "unsaved")
            script.saved("a", video)
            await reach("a", "saved")
            assert await tab.keys() == ["a", "b"]
            assert "1 / 3\nsaved" in await page.locator("#figures").inner_text()
            await page.locator(".tile img").first.wait_for()
            await page.locator(".tile").first.hover()
            await page.wait_for_function("() => document.querySelector('video.preview.playing')?.currentTime > 0.2")

            # A broken connection is shown; missed events arrive after the reconnect.
            await page.context.set_offline(True)
            cut(gallery)
            await page.get_by_text("Connection lost").wait_for()
            script.failed("b", "the lights went out")
            script.admitted("c", labels={"sku": 1000})
            await page.context.set_offline(False)
            await reach("b", "failed")
            await reach("c", "waiting")
            assert await page.locator("#life").text_content() == "Live"
            assert [complaint for complaint in tab.complaints if "net::ERR_" not in complaint] == []
            tab.complaints.clear()

            # The dialog stays open during changes and at the end of the run.
            await page.locator(".tile").last.click()
            script.accepted("c")
            await page.locator(".state", has_text="Running").wait_for()
            assert await page.locator(".labels").inner_text() == "sku\n1000"
            await page.keyboard.press("Escape")
            await run.aclose()
            await page.get_by_text(f"Ended. Kept as {gallery.index}").wait_for()
    async with visit(gallery.index) as tab:
        assert await tab.keys() == ["a", "b", "c"]
        assert "Running" in await tab.page.locator("#states").inner_text()


async def test_page_handles_five_thousand_jobs(tmp_path: Path, visit: Open) -> None:
    video, picture = tmp_path / "a.mp4", tmp_path / "face.png"
    video.write_bytes(TINY_MP4)
    picture.write_bytes(png())
    deck = Deck("autumn", total=5_000)
    script = Script(deck.observer("wavespeed"))
    for number in range(5_000):
        script.at += 1
        if number % 50:
            script.done(f"product-{number:04}", video, seconds=60 + number % 37, image=picture, prompt="It turns")
        else:
            script.failed(f"product-{number:04}", image=picture)
    for card in deck.cards:
        for shown in card.pictures:
            shown.source, shown.path = None, picture
    index = freeze(deck, deck.cards, tmp_path / "gallery")
    async with visit(index) as tab:
        page = tab.page
        await page.locator(".tile").first.wait_for()
        assert await tab.keys() == [f"product-{number:04}" for number in range(len(await tab.keys()))]
        assert await page.locator(".tile").count() < 80
        assert await page.locator(".tile").first.get_attribute("aria-setsize") == "5000"
        await page.locator(".tile button").first.focus()
        await page.keyboard.press("End")
        await page.locator(".tile", has_text="product-4999").wait_for()
        assert await page.locator(".tile").count() < 80
        top = await page.evaluate("() => document.activeElement.getBoundingClientRect().top")
        assert 0 < top < 800
        await page.get_by_role("searchbox").fill("product-2345")
        await tab.set("1 job of 5,000")
        assert await tab.keys() == ["product-2345"]
        await page.get_by_role("searchbox").fill("")
        await page.locator("[data-name=failed]").click()
        await tab.set("100 jobs of 5,000")
        await page.get_by_role("tab", name="Run").click()
        await page.get_by_role("img", name="Every job as a line").wait_for()
        assert await page.locator("*").count() < 1_500
        # The visible tiles exist at every scroll position.
        await page.get_by_role("tab", name="Videos").click()
        await page.locator("[data-name=failed]").click()
        for share in (0.2, 0.77, 0.4, 1.0):
            await page.evaluate("share => scrollTo(0, share * document.documentElement.scrollHeight)", share)
            await page.wait_for_function(FILLED)
