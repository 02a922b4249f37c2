"""Every Python and console block of README.md and docs/ runs, page by page, against the emulator."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Literal

import pytest

from kling_async.emulator import Emulator
from support.object_stores import moto
from support.pages import LANGUAGES, README, ROOT, RUN, PageRun, blocks, check_install, commands, pages
from support.redis import RedisServer

pytestmark = pytest.mark.anyio

FENCE = re.compile(r"^ *(?:```|~~~)+(?P<language>[\w-]+)", re.MULTILINE)
"""The first line of a block, found without the parser that the pages are run by."""
CHARGES = {
    "README.md": 1 + 3 + 3 + 3,
    "docs/applications/fastapi.md": 0,
    "docs/applications/opentelemetry.md": 3,
    "docs/applications/prefect.md": 0,
    "docs/applications/procrastinate.md": 1,
    "docs/applications/ray.md": 0,
    "docs/applications/temporal.md": 0,
    "docs/applications/workers.md": 2 + 1,
    "docs/getting-started.md": 1,
    "docs/guides/account.md": 1,
    "docs/guides/batches.md": 3,
    "docs/guides/blocking.md": 1 + 3 + 2,
    "docs/guides/budgets.md": 3,
    "docs/guides/callers.md": 1,
    "docs/guides/cli.md": 1 + 2 + 3 + 2,
    "docs/guides/films.md": 3 + 3 + 2,
    "docs/guides/gallery.md": 3,
    "docs/guides/images.md": 1,
    "docs/guides/ledger.md": 3,
    "docs/guides/limits.md": 1,
    "docs/guides/manifests.md": 3,
    "docs/guides/models.md": 1,
    "docs/guides/notebooks.md": 3 + 1,
    "docs/guides/polling.md": 1,
    "docs/guides/step-by-step.md": 1 + 1,
    "docs/guides/storage.md": 3,
    "docs/guides/testing.md": 0,
    "docs/guides/webhooks.md": 0,
    "docs/tutorial/application.md": 0,
    "docs/tutorial/many.md": 3 + 2 + 3,
}
"""The predictions that each page with blocks to run pays for. More than that were paid for twice."""
FILES = {
    "README.md": {"out/*.mp4": 1 + 3, "videos/*.mp4": 3, "film/films/bay.mp4": 1},
    "docs/applications/workers.md": {"videos/jobs/*.mp4": 2},
    "docs/getting-started.md": {"out/*.mp4": 1},
    "docs/guides/cli.md": {"videos/rehearsal/*.mp4": 2, "videos/**/*.parquet": 1, "videos/gallery/index.html": 1},
    "docs/guides/films.md": {"film/*.mp4": 2, "*.mp4": 3, "bay/*.mp4": 3, "videos/films/*.mp4": 2},
    "docs/guides/gallery.md": {"out/gallery/index.html": 1},
    "docs/guides/manifests.md": {"out/results.jsonl": 1, "out/metadata.jsonl": 1},
    "docs/guides/storage.md": {"videos/*/kling-v2.1-standard/*.mp4": 3},
    "docs/tutorial/many.md": {"videos/*.mp4": 3, "shop/A1?.mp4": 2, "shop/gallery/index.html": 1, "out/*.mp4": 3},
}
"""Number of files that a page leaves, by pattern."""
RENDERED = {"README.md", "docs/guides/films.md"}
"""Pages whose videos are decoded."""
PRINTED = {"docs/guides/ledger.md": {"downloaded": 3, "first": 3, "again": 3}}
"""Number of times that a page prints a word."""
APART = "nox -s orchestrators runs it"
NOT_RUN = {
    "README.md": ["typed by .ci/run"],
    "docs/examples/film.md": ["run by tests/examples"],
    "docs/examples/folder.md": ["run by tests/examples"],
    "docs/examples/pool.md": ["run by tests/examples"] * 2,
    "docs/examples/script.md": ["run by tests/examples"],
    "docs/examples/spreadsheet.md": ["run by tests/examples"],
    "docs/examples/studio.md": ["run by tests/examples"],
    "docs/examples/webhooks.md": ["run by tests/examples"],
    "docs/project/contributing.md": ["changes the environment that the tests run in", "runs other tests"],
    "docs/tutorial/application.md": ["curl may be missing; a test sends these requests"],
    "docs/applications/prefect.md": [APART],
    "docs/applications/temporal.md": [APART, APART],
}
"""The reasons of all blocks that are not run: there are few, and a new one has to be written here too."""


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fenced(page: Path) -> list[str]:
    """Return the languages of the blocks of a page that have one."""
    return [found["language"] for found in FENCE.finditer(page.read_text())]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", CHARGES)
@pytest.mark.repeats
async def test_every_block_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    path = ROOT / page
    text = path.read_text()
    async with contextlib.AsyncExitStack() as stack:
        profile: Literal["video", "tiny"] = "video" if page in RENDERED else "tiny"
        emulator = await stack.enter_async_context(Emulator(level="gold", speed=200, profile=profile))
        environment = {
            "WAVESPEED_API_KEY": emulator.api_key,
            "WAVESPEED_BASE_URL": emulator.base_url,
            "GPTPROTO_API_KEY": emulator.gptproto_key,
            "GPTPROTO_BASE_URL": emulator.gptproto_url,
            "NO_PROXY": "127.0.0.1",
            "KLING_WATCH": "eager",
            # Of the emulator's accounts. Bronze ones begin two videos a minute.
            "KLING_LEVEL": "gold",
        }
        if "KLING_LEDGER" in text:
            environment["KLING_LEDGER"] = request.getfixturevalue("database")
        if "REDIS_URL" in text:
            environment["REDIS_URL"] = (await stack.enter_async_context(RedisServer())).url
        if "--out s3://" in text:
            environment |= stack.enter_context(moto()).environment()
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        monkeypatch.setattr("kling_async._session.session.SystemClock", lambda: emulator.clock)
        monkeypatch.chdir(tmp_path)
        run = PageRun(tmp_path, environment, lambda: emulator.charges()[-1].prediction_id)
        await run(blocks(path))
        assert len(emulator.charges()) == CHARGES[page]
    for pattern, count in FILES.get(page, {}).items():
        assert len(list(tmp_path.glob(pattern))) == count, pattern
    for word, count in PRINTED.get(page, {}).items():
        assert "".join(run.printed).count(word) == count, word
    to_run = sum(language in RUN for language in fenced(path))
    assert len(run.ran) == to_run - len(NOT_RUN.get(page, []))


def test_no_page_with_blocks_to_run_is_left_out() -> None:
    assert {
        name(page)
        for page in pages()
        if any(one.language in RUN and one.reason in {None, APART} for one in blocks(page))
    } == set(CHARGES)


def test_every_block_has_a_language_that_says_whether_it_is_run() -> None:
    found = [block for page in pages() for block in blocks(page)]
    assert [str(block) for block in found if block.language not in LANGUAGES] == []
    assert len(found) == sum(len(fenced(page)) for page in pages())


def test_blocks_that_are_not_run_say_why() -> None:
    reasons: dict[str, list[str]] = {}
    for page in pages():
        for block in blocks(page):
            if block.reason is not None:
                reasons.setdefault(name(page), []).append(block.reason)
    assert reasons == NOT_RUN


def test_fenced_json_of_the_pages_is_a_file_that_is_used() -> None:
    for page in pages():
        for block in blocks(page):
            if block.language == "json":
                assert block.title, block
                assert any(block.title in other.text for other in blocks(page) if other.language == "console"), block


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("support.pages.ROOT", tmp_path)
    return tmp_path / "page.md"


async def test_a_page_that_says_something_else_fails(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    written.write_text("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n")
    with pytest.raises(AssertionError) as caught:
        await PageRun(folder, {}, str)(blocks(written))
    assert caught.value.__notes__ == ["in page.md:5"]


async def test_a_program_that_no_line_runs_fails(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    written.write_text('```python title="video.py"\nprint(1)\n```\n')
    with pytest.raises(AssertionError, match="no line runs"):
        await PageRun(folder, {}, str)(blocks(written))


def test_a_reason_is_read_from_the_comment_above(written: Path) -> None:
    written.write_text("<!-- not run: needs a cluster -->\n```python\nx\n```\n\n```python\ny\n```\n")
    assert [block.reason for block in blocks(written)] == ["needs a cluster", None]


def test_the_words_of_a_console_block() -> None:
    assert commands("$ a 'b c' && d   # why\n$ e\n") == [["a", "b c"], ["d"], ["e"]]
    with pytest.raises(AssertionError, match="prompt"):
        commands("$ a\noutput\n")


@pytest.mark.parametrize("what", ["kling-async[cli]", ".[clii]", "-e", "./kling"])
def test_an_installation_from_elsewhere_is_refused(what: str) -> None:
    check_install(["python", "-m", "pip", "install", ".[cli,images]"])
    with pytest.raises(AssertionError):
        check_install(["python", "-m", "pip", "install", what])


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 250
