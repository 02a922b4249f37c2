"""The frozen page of a finished run, opened from the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kling_async import Job, KlingSession
from kling_async.emulator import Emulator, faults
from kling_async.gallery import Gallery
from support.pictures import png

if TYPE_CHECKING:
    from browser.conftest import Open

pytestmark = pytest.mark.anyio

HOSTILE = (
    "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> & \u202eevil, pan left"
)
LONG = "Supercalifragilistic" * 60 + " pan left"
PRO, STANDARD = "kling-v2.1-pro", "kling-v2.1-standard"


@pytest.fixture(scope="module")
async def kept(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> Path:
    """Make the page of a run with real MP4s, a failing job, and hostile text."""
    folder = tmp_path_factory.mktemp("run")
    picture = folder / "face.png"
    picture.write_bytes(png(640, 360))
    # The same camera movement in all prompts, so that few videos are rendered.
    jobs = {
        "dawn": Job(model=PRO, prompt="The sun rises, pan left", image=picture, duration=5),
        "noon": Job(model=STANDARD, prompt="The sun stands high, pan left", image=picture.read_bytes(), duration=5),
        "night": Job(model=STANDARD, prompt="The moon, pan left, \u05d9\u05e8\u05d7", image=picture, duration=5),
        "storm": Job(model=PRO, prompt="Fire", image=picture, duration=5),
        HOSTILE: Job(model=STANDARD, prompt=HOSTILE, image=picture, duration=5),
        LONG: Job(model=STANDARD, prompt=LONG, image=picture, duration=5),
    }
    async with Emulator(level="gold", speed=60, timing=60.0) as emulator:
        failure = faults.FailTask(code=1200, message=f"refused: {HOSTILE}")
        emulator.faults.add("submit", failure, when=lambda exchange: exchange.body.get("prompt") == "Fire")
        gallery = Gallery(folder / "out" / "gallery", title="spring", total=len(jobs), clock=emulator.clock, live=False)
        session = KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            level="gold",
            clock=emulator.clock,
            observers=[gallery.observer()],
        )
        async with gallery, session as kling, kling.batch(jobs, name="spring", save_to=folder / "out") as batch:
            outcomes = [outcome async for outcome in batch]
    assert sum(outcome.ok for outcome in outcomes) == 5
    # Links are relative, so they work after a move of the whole folder.
    moved = tmp_path_factory.mktemp("moved") / "run"
    folder.rename(moved)
    return moved / "out" / "gallery" / "index.html"


PLAYS = (
    "() => { const v = document.querySelector(%r); return v && v.videoWidth > 0 && v.currentTime > 0.25 && !v.paused }"
)


async def test_hover_plays_preview(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        await tab.page.locator(".tile", has_text="dawn").hover()
        await tab.page.wait_for_function(PLAYS % "video.preview.playing")
        await tab.page.locator("h1").hover()
        await tab.page.wait_for_selector("video.preview", state="detached")
        assert any(url.endswith("dawn.mp4") for url in tab.asked)


async def test_reduced_motion_disables_preview(kept: Path, visit: Open) -> None:
    async with visit(kept, reduced_motion="reduce") as tab:
        await tab.page.locator(".tile", has_text="dawn").hover()
        await tab.page.wait_for_timeout(400)
        assert await tab.page.locator("video").count() == 0
        assert not any(url.endswith(".mp4") for url in tab.asked)


async def test_detail_shows_input_beside_video(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        await tab.page.locator(".tile", has_text="dawn").click()
        dialog = tab.page.get_by_role("dialog", name="dawn")
        text = await dialog.inner_text()
        for word in (
            "face.png",
            "The sun rises, pan left",
            PRO,
            "$0.45",
            "Generating",
            "Downloading",
            "Saved",
            "dawn.mp4",
        ):
            assert word in text
        left = await dialog.locator(".frame img").bounding_box()
        right = await dialog.locator(".frame video").bounding_box()
        assert left is not None
        assert right is not None
        assert left["x"] + left["width"] <= right["x"]
        assert abs(left["y"] - right["y"]) < 2
        await tab.page.wait_for_function("() => document.querySelector('.frame img').naturalWidth === 640")
        await tab.page.keyboard.press("Space")
        await tab.page.wait_for_function(PLAYS % ".frame video")


async def test_detail_of_failure_shows_advice_and_money(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        await tab.page.locator(".tile", has_text="storm").click()
        text = await tab.page.locator(".trouble").inner_text()
        assert "code 1200" in text
        assert "Change the prompt or the image." in text
        assert "The job was paid for." in text


async def test_hostile_text_is_shown_as_text(kept: Path, visit: Open) -> None:
    async with visit(kept, about="#q=document.title+img&state=saved") as tab:
        tile = tab.page.locator(".tile", has_text="onerror").first
        assert await tile.locator(".key").text_content() == HOSTILE
        await tile.click()
        assert await tab.page.locator(".prompt").text_content() == HOSTILE
        assert await tab.page.locator(".prompt *").count() == 0
        assert await tab.page.title() == "spring"
        assert await tab.page.locator("img[src=x]").count() == 0


async def test_long_text_does_not_overflow(kept: Path, visit: Open) -> None:
    for width in (1280, 360):
        async with visit(kept, about="#q=supercalifragilistic", viewport={"width": width, "height": 740}) as tab:
            await tab.page.locator(".tile").click()
            for box in ("document.documentElement", "document.getElementById('detail')"):
                assert await tab.page.evaluate(f"{box}.scrollWidth <= {box}.clientWidth"), (width, box)


@pytest.mark.parametrize("width", [320, 390])
async def test_page_fits_phone(kept: Path, visit: Open, width: int) -> None:
    async with visit(kept, viewport={"width": width, "height": 640}) as tab:
        await tab.page.locator(".tile").first.wait_for()
        assert await tab.page.evaluate("document.documentElement.scrollWidth") == width


async def test_empty_search_says_no_matches(kept: Path, visit: Open) -> None:
    async with visit(kept, about="#q=nothing+like+it") as tab:
        await tab.page.get_by_text("No matches.").wait_for()


async def test_filters_are_kept_in_address(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        page = tab.page
        assert len(await tab.keys()) == 6
        await page.locator("[data-name=failed]").click()
        await tab.set("1 job of 6")
        assert await tab.keys() == ["storm"]
        await page.locator("[data-name=saved]").click()
        await tab.set("")
        await page.locator("[data-name=failed]").click()
        await page.locator("#model").select_option(PRO)
        await tab.set("1 job of 6")
        assert await tab.keys() == ["dawn"]
        await page.locator("#model").select_option("")
        await page.get_by_role("searchbox").fill("SUN the")
        await tab.set("2 jobs of 6")
        assert await tab.keys() == ["dawn", "noon"]
        await page.locator("#sort").select_option("key")
        await page.reload()
        await tab.set("2 jobs of 6")
        assert await page.get_by_role("searchbox").input_value() == "SUN the"
        await page.get_by_role("searchbox").fill("\u05d9\u05e8\u05d7")
        await tab.set("1 job of 6")
        assert await tab.keys() == ["night"]
        await page.get_by_role("searchbox").fill("nothing like it")
        await tab.set("0 jobs of 6")
        await page.get_by_role("button", name="Show all").click()
        await tab.set("")
        assert len(await tab.keys()) == 6


async def test_keyboard_reaches_everything(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        page = tab.page

        async def at(expected: str) -> None:
            await page.wait_for_function(HERE, arg=expected)

        await page.keyboard.press("/")
        await at("q")
        await page.keyboard.press("ArrowDown")
        await at("dawn")
        await page.wait_for_function(PLAYS % "video.preview.playing")
        await page.keyboard.press("ArrowRight")
        await page.keyboard.press("ArrowRight")
        await at("night")
        await page.keyboard.press("Enter")
        title = page.locator("#detail-title")
        assert await title.text_content() == "night"
        await page.keyboard.press("ArrowRight")
        assert await title.text_content() == "storm"
        await page.keyboard.press("Escape")
        await at("storm")  # the focus returns to the last shown job
        await page.keyboard.press("End")
        await at(LONG)
        await page.keyboard.press("Home")
        await at("dawn")
        await page.keyboard.press("Enter")
        await page.go_back()
        await page.wait_for_function("() => !document.getElementById('detail').open")
        # Tab from the top reaches every control in visual order.
        await page.reload()
        reached = []
        for _ in range(9):
            await page.keyboard.press("Tab")
            reached.append(await page.evaluate(REACHED))
        assert reached[:8] == ["skip", "tab-videos", "theme", "q", "model", "sort", "saved", "failed"]
        await at("dawn")


async def test_text_contrast_in_both_themes(kept: Path, visit: Open) -> None:
    for scheme in ("light", "dark"):
        async with visit(kept, color_scheme=scheme) as tab:
            await tab.page.locator(".tile", has_text="storm").click()
            low = await tab.page.evaluate(CONTRAST)
            assert low == [], scheme


async def test_theme_follows_system_until_chosen(kept: Path, visit: Open) -> None:
    shade = "() => Math.max(...getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3))"
    async with visit(kept, color_scheme="dark") as tab:
        page = tab.page
        assert await page.evaluate(shade) < 60
        await page.locator("#theme").click()
        assert await page.evaluate(shade) > 200
        await page.reload()
        assert await page.evaluate(shade) > 200, "the choice is stored"
        assert await page.locator("#theme").get_attribute("aria-label") == "Colours: light"
        await page.emulate_media(color_scheme="light")
        await page.locator("#theme").click()
        assert await page.evaluate(shade) < 60


async def test_run_view_shows_charts(kept: Path, visit: Open) -> None:
    async with visit(kept) as tab:
        page = tab.page
        await page.get_by_role("tab", name="Run").click()
        for name in ("Every job as a line", "Videos generating at once", "Spend over time"):
            assert await page.get_by_role("img", name=re.compile(name)).count() == 1
        for kind in ("waiting", "generating", "downloading", "failed"):
            assert await page.locator(f".picks path.{kind}").get_attribute("d"), kind
        rows = await page.locator("tbody tr").all_inner_texts()
        cells = {row.split("\t")[0].strip(): re.split(r"\s+", row) for row in rows}
        assert set(cells) == {PRO, STANDARD}
        assert "$0.90" in cells[PRO]
        assert "$1.00" in cells[STANDARD]
        assert await page.locator("td.histogram path").count() == 2
        await page.locator(".picks").click(position={"x": 200, "y": 3})
        assert await page.get_by_role("dialog").is_visible()
        await page.keyboard.press("Escape")
        await page.keyboard.press("Shift+Tab")
        await page.locator("#tab-run").focus()
        await page.keyboard.press("ArrowLeft")
        assert await page.locator("#videos").is_visible()


async def test_policy_blocks_requests_to_other_hosts(kept: Path, visit: Open) -> None:
    """Check the policy itself: the page makes no such request unless it has a bug."""
    async with visit(kept) as tab:
        blocked = await tab.page.evaluate(BLOCKED)
        assert sorted(blocked) == ["connect-src", "img-src", "media-src", "script-src-elem", "style-src-attr"]
        assert tab.complaints
        tab.complaints.clear()
        tab.asked = [url for url in tab.asked if "127.0.0.1:9" not in url]


async def test_moved_input_falls_back_to_poster(kept: Path, visit: Open) -> None:
    picture = kept.parents[2] / "face.png"
    away = picture.rename(picture.with_suffix(".away"))
    try:
        async with visit(kept) as tab:
            await tab.page.locator(".tile", has_text="dawn").click()
            await tab.page.wait_for_function("() => document.querySelector('.frame img').naturalWidth === 480")
            assert all("ERR_FILE_NOT_FOUND" in complaint for complaint in tab.complaints)
            tab.complaints.clear()
            tab.asked.clear()
    finally:
        away.rename(picture)


def test_gallery_folder_has_no_videos(kept: Path) -> None:
    assert {path.suffix for path in kept.parent.rglob("*") if path.is_file()} == {".html", ".webp", ".png"}
    assert json.dumps(kept.stat().st_size)
    assert kept.stat().st_size < 120_000


BLOCKED = """() => new Promise((resolve) => {
  const seen = new Set();
  document.addEventListener("securitypolicyviolation", (event) => {
    seen.add(event.effectiveDirective);
    if (seen.size === 5) resolve([...seen]);
  });
  setTimeout(() => resolve([...seen]), 5000);
  const add = (name, attributes) => document.body.append(Object.assign(document.createElement(name), attributes));
  fetch("http://127.0.0.1:9/").catch(() => {});
  add("img", {src: "http://127.0.0.1:9/x.png"});
  add("video", {src: "http://127.0.0.1:9/x.mp4"});
  add("script", {textContent: "document.title = 'taken'"});
  document.body.setAttribute("style", "color: red");
})"""

HERE = """(expected) => {
  const at = document.activeElement;
  return (at.closest('.tile')?.card.key ?? at.id) === expected;
}"""

REACHED = """() => {
  const at = document.activeElement;
  return at.id || at.dataset.name || at.className;
}"""

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const linear = (part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = rgba(getComputedStyle(node).backgroundColor);
      if (colour[3] === 255) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.body.querySelectorAll("*")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest("script, style, noscript, option") || !node.checkVisibility()) continue;
    const front = light(rgba(getComputedStyle(node).color).slice(0, 3)), back = light(behind(node));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) low.push([node.tagName, node.className, ratio, node.textContent.slice(0, 40)].join(" "));
  }
  return low;
}"""
