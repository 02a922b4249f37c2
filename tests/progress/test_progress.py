"""Progress of a batch in a terminal, in a pipe, without asyncio, and by a progress bar of others."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tqdm import tqdm  # type: ignore[import-untyped]  # its types are another package
from tqdm.asyncio import tqdm as async_tqdm  # type: ignore[import-untyped]  # likewise

from kling_async import Job, KlingSession
from kling_async.blocking import KlingSession as BlockingSession
from kling_async.emulator import Emulator, faults
from kling_async.progress import progress
from kling_async.testing import EmulatorThread
from kling_async.testing.plugin import kling, kling_emulator, kling_emulator_options, kling_options, kling_server

__all__ = ["kling", "kling_emulator", "kling_emulator_options", "kling_options", "kling_server"]

IMAGE = "https://pictures.example/lake.png"


def jobs(count: int) -> dict[str, Job]:
    return {f"job-{number}": Job(prompt=f"Waves {number}", image=IMAGE) for number in range(count)}


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100, height=40)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.anyio
async def test_terminal_shows_the_display_of_the_command_line(kling: KlingSession, kling_emulator: Emulator) -> None:
    kling_emulator.faults.add("submit", faults.Status(400, message="no such thing"), times=1)
    console = terminal()
    async with kling.batch(jobs(4)) as batch:
        outcomes = [outcome async for outcome in progress(batch, console=console)]
    text = printed(console)
    assert len(outcomes) == 4
    assert text.count("✗ job-") == 1, "an error stays above the display"
    last = text[text.rindex("4/4") :]
    assert "✓ 3 done" in last
    assert "$0.75 spent" in last


@pytest.mark.anyio
async def test_pipe_has_a_line_for_each_event(kling: KlingSession) -> None:
    console = Console(file=io.StringIO(), width=200)
    async with kling.batch({"other": jobs(1)["job-0"]}, name="other") as other, kling.batch(jobs(2)) as batch:
        async for _ in progress(batch, console=console):
            pass
        assert [outcome.ok async for outcome in other] == [True]
    lines = printed(console).splitlines()
    assert sum("accepted" in line for line in lines) == 2
    assert not [line for line in lines if "other" in line], "events of other batches are not shown"


@pytest.mark.anyio
async def test_display_ends_with_the_iteration(kling: KlingSession) -> None:
    console = Console(file=io.StringIO(), width=200)
    async with kling.batch(jobs(3)) as batch:
        shown = progress(batch, console=console)
        await anext(shown)
        await shown.aclose()  # type: ignore[attr-defined]  # an async generator, as whoever leaves its loop closes
        before = printed(console)
        async for _ in batch:
            pass
    assert printed(console) == before


def test_blocking_batch_is_iterated_with_for(kling_server: EmulatorThread) -> None:
    console = terminal()
    with BlockingSession() as kling, kling.batch(iter(jobs(3).items())) as batch:
        assert [outcome.ok for outcome in progress(batch, console=console, total=3)] == [True] * 3
    assert "3/3" in printed(console)


@pytest.mark.anyio
async def test_tqdm_works_as_it_is(kling: KlingSession) -> None:
    file = io.StringIO()
    async with kling.batch(jobs(3)) as batch:
        assert [outcome.ok async for outcome in async_tqdm(batch, total=batch.total, file=file)] == [True] * 3
    assert "3/3" in file.getvalue()


def test_tqdm_works_without_asyncio(kling_server: EmulatorThread) -> None:
    file = io.StringIO()
    with BlockingSession() as kling, kling.batch(jobs(3)) as batch:
        assert [outcome.ok for outcome in tqdm(batch, total=batch.total, file=file)] == [True] * 3
    assert "3/3" in file.getvalue()
