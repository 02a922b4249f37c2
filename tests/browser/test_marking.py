"""Marking videos on the served page of an earlier run: kept in the ledger, shown by the frozen page, exported."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from kling_async._core.content import Content
from kling_async.emulator.tiny import TINY_MP4
from kling_async.gallery import serve_gallery
from kling_async.ledger import Entry, SQLiteLedger, State, read_marks
from kling_async.results import Format, export
from support.pictures import png

if TYPE_CHECKING:
    from browser.conftest import Open
    from playwright.async_api import Page

pytestmark = pytest.mark.anyio

SHOTS = os.environ.get("KLING_SHOTS")
"""Folder for screenshots; None takes none."""
MARKED = """([key, mark]) => [...document.querySelectorAll('.tile')].some((tile) =>
  tile.card.key === key && (tile.querySelector('.badge')?.className ?? null) === (mark && `badge is-${mark}`))"""
NAMES = """() => [...document.querySelectorAll('button, a')].filter((node) => {
  const shown = node.innerText?.trim().replace(/\\s+/g, ' ');
  const name = node.getAttribute('aria-label');
  return shown && name && !name.includes(shown);
}).map((node) => node.outerHTML)"""


async def run_of_the_past(folder: Path) -> Path:
    """Make the ledger and the files of a run: three videos, one failure, and two jobs that were never sent."""
    picture = folder / "face.png"
    picture.write_bytes(png(320, 180))
    path = folder / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    ends = {"dawn": State.DOWNLOADED, "noon": State.DOWNLOADED, "night": State.DOWNLOADED, "storm": State.FAILED}
    for number, key in enumerate([*ends, "late", "later"]):
        at = 1_800_000_000.0 + 3 * number
        text = json.dumps(
            {
                "model": "kwaivgi/kling-v2.1-i2v-pro",
                "prompt": f"The {key}",
                "duration": 5,
                "image": f"sha256:{'0' * 64}",
            }
        )
        labels = '{"sku": "N-1000", "7": "<b>blue</b>"}' if key == "noon" else None
        content = Content(text, json.dumps({"image": str(picture)}), labels=labels)
        await ledger.claim("spring", key, content=content, model="kwaivgi/kling-v2.1-i2v-pro", at=at)
        about: dict[str, Any] = {"batch": "spring", "key": key}
        if key not in ends:
            await ledger.record(Entry(**about, at=at, state=State.SKIPPED, error="the budget is used up"))
            continue
        await ledger.record(Entry(**about, at=at, state=State.INTENT, attempt=1, cost=Decimal("0.45")))
        await ledger.record(Entry(**about, at=at + 1, state=State.SUBMITTED, prediction_id=f"id-of-{key}"))
        if ends[key] is State.FAILED:
            await ledger.record(Entry(**about, at=at + 60, state=State.FAILED, code=1405, error="it broke"))
            continue
        (folder / f"{key}.mp4").write_bytes(TINY_MP4)
        await ledger.record(Entry(**about, at=at + 60, state=State.COMPLETED, output="https://outputs.example/a.mp4"))
        file: dict[str, Any] = {"path": str(folder / f"{key}.mp4"), "bytes": len(TINY_MP4), "sha256": "0" * 64}
        await ledger.record(Entry(**about, at=at + 62, state=State.DOWNLOADED, **file))
    await ledger.aclose()
    return path


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Path, str]]:
    ledger = await run_of_the_past(folder)
    async with serve_gallery(ledger, folder / "gallery") as url:
        yield ledger, url


async def test_keyboard_marks_videos(tmp_path: Path, visit: Open) -> None:
    async with served(tmp_path) as (ledger, url), visit(url) as tab:
        page = tab.page

        async def marked(key: str, mark: str | None) -> None:
            await page.wait_for_function(MARKED, arg=[key, mark])

        await page.locator(".tile").first.wait_for()
        await page.keyboard.press("/")
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("g")
        await marked("dawn", "good")
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("a")
        await marked("noon", "again")
        await page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="noon")
        assert (await dialog.locator(".labels").inner_text()).split() == ["sku", "N-1000", "7", "<b>blue</b>"]
        assert "2 of 6" in await dialog.inner_text()
        assert await dialog.get_by_role("button", name="Again").get_attribute("aria-pressed") == "true"
        assert await dialog.get_by_role("link", name="Download").get_attribute("download") == "noon.mp4"
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("b")
        await marked("night", "bad")
        # The same key takes the mark away again.
        await page.keyboard.press("b")
        await marked("night", None)
        await page.get_by_role("button", name="Bad").click()
        await marked("night", "bad")
        await page.keyboard.press("Escape")
        await page.locator("#marks [data-name=again]").click()
        await tab.set("1 job of 6")
        assert await tab.keys() == ["noon"]
        assert await page.evaluate(NAMES) == []
        kept = {id_: str(marked.mark) for id_, marked in read_marks(ledger).items()}
        assert kept == {"id-of-dawn": "good", "id-of-noon": "again", "id-of-night": "bad"}
    async with visit(tmp_path / "gallery" / "index.html") as tab:
        await tab.page.wait_for_function(MARKED, arg=["noon", "again"])
        search = tab.page.get_by_role("searchbox")
        await search.fill("sku n-10 blue")
        await tab.set("1 job of 6")
        assert await tab.keys() == ["noon"]
        await search.fill("")
        await tab.set("")
        await search.blur()
        await tab.page.keyboard.press("/")
        await tab.page.keyboard.press("ArrowDown")
        await tab.page.keyboard.press("b")
        await tab.page.wait_for_function(MARKED, arg=["dawn", "good"])
        await tab.page.keyboard.press("Enter")
        assert await tab.page.locator(".marked").inner_text() == "Good"
    (again,) = export(ledger, tmp_path, [Format.AGAIN])
    (row,) = map(json.loads, again.path.read_text().splitlines())
    assert (again.path.name, row["key"], row["prompt"], row["image"]) == ("again.jsonl", "noon", "The noon", "face.png")


async def test_mark_that_cannot_be_kept_is_taken_back(tmp_path: Path, visit: Open) -> None:
    async with served(tmp_path) as (ledger, url):
        running = SQLiteLedger(ledger)
        await running.open()
        try:
            async with visit(url) as tab:
                await tab.page.locator(".tile").first.wait_for()
                await tab.page.keyboard.press("/")
                await tab.page.keyboard.press("ArrowDown")
                await tab.page.keyboard.press("g")
                await tab.page.get_by_text("The mark was not kept:").first.wait_for()
                await tab.page.wait_for_function(MARKED, arg=["dawn", None])
                assert all("409" in complaint for complaint in tab.complaints)
                tab.complaints.clear()
        finally:
            await running.aclose()
        assert read_marks(ledger) == {}


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (1280, "dark"), (1280, "light")])
async def test_marked_page_fits(tmp_path: Path, visit: Open, width: int, scheme: str) -> None:
    async with (
        served(tmp_path) as (_, url),
        visit(url, viewport={"width": width, "height": 740}, color_scheme=scheme) as tab,
    ):
        page = tab.page
        await page.locator(".tile").nth(3).wait_for()
        for key, mark in (("dawn", "g"), ("noon", "a"), ("night", "b")):
            await page.locator(".tile", has_text=key).first.locator("button").focus()
            await page.keyboard.press(mark)
        await page.locator("#marks [data-name=bad]").wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        await _shot(page, f"grid-{width}-{scheme}")
        await page.locator(".tile", has_text="noon").first.click()
        assert await page.evaluate(
            "() => { const d = document.getElementById('detail'); return d.scrollWidth <= d.clientWidth }"
        )
        await _shot(page, f"detail-{width}-{scheme}")
        await page.keyboard.press("Escape")
        await page.get_by_role("tab", name="Run").click()
        # What was never sent has no row in it.
        await page.get_by_text("4 jobs in").wait_for()
        assert await page.evaluate("document.documentElement.scrollWidth") == width
        await _shot(page, f"run-{width}-{scheme}")


async def _shot(page: Page, name: str) -> None:
    if SHOTS:
        await page.screenshot(path=f"{SHOTS}/{name}.png")


async def test_marks_of_other_sites_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as (ledger, url), aiohttp.ClientSession() as http:

        async def put(data: object, address: str = url, **headers: str) -> int:
            async with http.post(f"{address}marks", json=data, headers=headers) as answer:
                return answer.status

        good = {"n": 0, "mark": "good"}
        assert await put(good, Origin="https://evil.example") == 403
        assert await put(good, Host="evil.example") == 403
        async with http.post(f"{url}marks", data=json.dumps(good), headers={"Content-Type": "text/plain"}) as answer:
            assert answer.status == 403
        origin, _, secret = url.rstrip("/").rpartition("/")
        assert await put(good, f"{origin}/{secret[::-1]}/") == 404
        refused: tuple[object, ...] = ({}, [], {"n": 0, "mark": "best"}, "x")
        for wrong in refused:
            assert await put(wrong) == 400
        for kind in ("application/json; charset=klingon", "application/json; charset=utf-16"):
            async with http.post(f"{url}marks", data=json.dumps(good), headers={"Content-Type": kind}) as answer:
                assert answer.status == 400
        assert await put({"n": True, "mark": "good"}) == 404
        assert await put({"n": 99, "mark": "good"}) == 404
        assert await put({"n": 4, "mark": "good"}) == 404, "what was never sent has no video"
        assert read_marks(ledger) == {}
        assert await put(good, Origin=origin) == 200
        assert read_marks(ledger).keys() == {"id-of-dawn"}
