"""Commands that spend money ask first, and refuse where nobody can answer."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from kling_async import Job
from kling_async._core.content import Content, content_of
from kling_async.emulator import Emulator
from kling_async.ledger import Entry, SQLiteLedger, State, read_ledger
from support.cli import Cli, jobs
from support.pictures import jpeg

pytestmark = pytest.mark.anyio
TERMINALS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")

IMAGE = "https://pictures.example/face.png"
MODEL = "kwaivgi/kling-v2.1-i2v-standard"
RUN = ("run", "jobs.jsonl", "--out", "videos", "--level", "gold")
RESUME = ("resume", "videos/run.db", "--out", "videos", "--level", "gold")


def at(emulator: Emulator) -> dict[str, str]:
    return {
        "WAVESPEED_BASE_URL": emulator.base_url,
        "WAVESPEED_API_KEY": emulator.api_key,
        "NO_PROXY": "127.0.0.1",
    }


def job(prompt: str) -> Job:
    return Job(prompt=prompt, image=IMAGE)


async def made(folder: Path, states: Mapping[str, tuple[State, ...]], *, code: int | None = None) -> Path:
    """Make the ledger of an earlier run, with the jobs in these states; keys that begin with `-` are left to the rule.

    Args:
        folder: Folder of the test.
        states: States that each job went through.
        code: Error code of the jobs that failed.
    """
    path = folder / "videos" / "run.db"
    path.parent.mkdir()
    ledger = SQLiteLedger(path)
    await ledger.open()
    now = time.time()
    for name, through in states.items():
        content: Content = content_of(job(name), str)
        key = content.digest[:16] if name.startswith("-") else name
        await ledger.claim("jobs", key, content=content, model=MODEL, at=now)
        for state in through:
            accepted = f"{abs(hash(name)):032x}" if state is State.SUBMITTED else None
            cost = Decimal("0.25") if state is State.INTENT else None
            step = Entry(batch="jobs", key=key, state=state, at=now, attempt=1, cost=cost, prediction_id=accepted)
            step.code = code if state is State.FAILED else None
            await ledger.record(step)
    await ledger.aclose()
    return path


def plain(shown: str) -> str:
    """Return the words that a terminal showed, without colours, frames and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*\w|[╭╮╰╯─│]", " ", shown).split())


PENDING: tuple[State, ...] = ()
UNKNOWN = (State.INTENT, State.UNCERTAIN)
SUBMITTED = (State.INTENT, State.SUBMITTED)
FAILED = (*SUBMITTED, State.FAILED)
EXPIRED = (*SUBMITTED, State.EXPIRED)
ABANDONED = (*UNKNOWN, State.ABANDONED)


@TERMINALS
@pytest.mark.parametrize(
    ("piped", "more", "env"),
    [
        (("stdin",), (), {}),
        (("stdout",), (), {}),
        (("stdout",), (), {"FORCE_COLOR": "1"}),
        (("stdin", "stdout", "stderr"), (), {}),
        (("stderr",), ("--json",), {}),
        (("stdout",), ("--quiet",), {}),
    ],
)
async def test_run_without_terminal_spends_nothing(
    cli: Cli, piped: tuple[str, ...], more: tuple[str, ...], env: dict[str, str]
) -> None:
    jobs(cli.folder, {"key": "a"}, {"key": "b"})
    async with Emulator(speed=100, profile="tiny") as emulator:
        words = partial(cli.in_terminal, *RUN, *more, answer="y\n", piped=piped, **env, **at(emulator))
        shown, got, status = await run_sync(words)
        assert emulator.requests == ()
    said = plain(shown + got)
    assert status == 2
    assert "2 jobs, ≈ $0.50 at list price" in said
    assert "Nothing was uploaded, sent or spent" in said
    assert "--yes" in said


async def test_run_with_closed_stdin_spends_nothing(cli: Cli) -> None:
    jobs(cli.folder, {"key": "a"})
    async with Emulator(speed=100, profile="tiny") as emulator:
        shell = ["sh", "-c", '"$@" <&-', "sh", *cli.command(*RUN)]
        done = await run_sync(
            lambda: subprocess.run(
                shell, cwd=cli.folder, env=cli.env | at(emulator), capture_output=True, text=True, check=False
            )
        )
        assert emulator.requests == ()
    assert (done.returncode, "stdin and stdout are no terminal" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("states", "options", "cost"),
    [
        (PENDING, (), "1 job, ≈ $0.25 at list price"),
        (FAILED, ("--retry-failed", "1"), "1 job, ≈ $0.25 at list price"),
        (UNKNOWN, (), "of which 1 in doubt, to be paid only if not accepted before"),
        (PENDING, ("--budget", "0.5"), "at most $0.25 by --budget"),
    ],
)
async def test_resume_without_terminal_spends_nothing(
    cli: Cli, states: tuple[State, ...], options: tuple[str, ...], cost: str
) -> None:
    path = await made(cli.folder, {"a": states, "paid": SUBMITTED}, code=5000)
    before = [(row.key, row.version) for row in read_ledger(path)]
    async with Emulator(speed=100, profile="tiny") as emulator:
        done = await run_sync(partial(cli, *RESUME, *options, **at(emulator)))
        assert emulator.requests == ()
    assert (done.returncode, cost in done.stderr) == (2, True), done.stderr
    assert [(row.key, row.version) for row in read_ledger(path)] == before


@pytest.mark.parametrize("words", [RUN, RESUME])
@pytest.mark.parametrize("options", [(), ("--retry-failed", "1")])
async def test_nothing_to_pay_needs_no_question(cli: Cli, words: tuple[str, ...], options: tuple[str, ...]) -> None:
    states = {"gone": EXPIRED, "given-up": ABANDONED, "failed": FAILED, "-no-key": EXPIRED}
    await made(cli.folder, states, code=1200)
    jobs(cli.folder, *({"prompt": name} | ({} if name[0] == "-" else {"key": name}) for name in states))
    async with Emulator(speed=100, profile="tiny") as emulator:
        done = await run_sync(partial(cli, *words, *options, **at(emulator)))
        assert emulator.charges() == ()
    assert "--yes" not in done.stdout + done.stderr
    assert "0 of 4 videos in videos, 1 failed, 2 expired, 1 abandoned, $0.00 spent" in done.stdout


@TERMINALS
async def test_question_counts_what_is_paid_now(cli: Cli) -> None:
    states = {"gone": EXPIRED, "-gone": EXPIRED, "doubt": UNKNOWN, "pending": PENDING, "failed": FAILED}
    await made(cli.folder, states, code=5000)
    names = [*states, "new", "-new"]
    jobs(cli.folder, *({"prompt": name} | ({} if name[0] == "-" else {"key": name}) for name in names))
    async with Emulator(speed=100, profile="tiny") as emulator:
        ask = partial(cli.in_terminal, *RUN, answer="n\n", **at(emulator))
        shown, _, status = await run_sync(ask)
        retrying, _, _ = await run_sync(partial(ask, "--retry-failed", "1"))
        quiet, _, _ = await run_sync(partial(ask, "--quiet"))
        assert emulator.requests == ()
    cost = "at list price, of which 1 in doubt, to be paid only if not accepted before."
    asked = f"To be paid now: 4 jobs, ≈ $1.00 {cost} This costs real money. Go on? [y/N]:"
    assert (status, asked in plain(shown)) == (3, True), shown
    assert "3 jobs of an earlier run of this file in videos/run.db: not paid for again." in shown
    assert "5 jobs, ≈ $1.25" in retrying
    assert plain(quiet).endswith(f"n {asked} Nothing was sent."), quiet


@TERMINALS
async def test_terminal_asks_before_spending(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    jobs(cli.folder, {"key": "a", "image": "face.jpg"})
    async with Emulator(speed=100, timing=60, profile="tiny") as emulator:
        run = partial(cli.in_terminal, *RUN, **at(emulator))
        shown, _, status = await run_sync(partial(run, answer="n\n"))
        assert "This costs real money. Go on?" in shown
        assert (status, emulator.requests) == (3, ())
        shown, _, status = await run_sync(partial(run, answer="y\n"))
        assert (status, len(emulator.charges())) == (0, 1)
        assert "● 1 running" in shown
        assert "\x1b[?25h" in shown  # the cursor is back
        again, _, status = await run_sync(run)
        assert (status, "real money" in again, len(emulator.charges())) == (0, False, 1)


@TERMINALS
async def test_doubt_is_not_settled_by_invisible_question(cli: Cli) -> None:
    path = await made(cli.folder, {"a": UNKNOWN})
    words = ("ledger", "videos/run.db", "unaccepted", "a")
    _, got, status = await run_sync(partial(cli.in_terminal, *words, answer="y\n", piped=("stdout", "stderr")))
    assert (status, "add --yes to settle it without asking" in got) == (2, True), got
    assert [row.state for row in read_ledger(path)] == [State.UNCERTAIN]
    shown, _, status = await run_sync(partial(cli.in_terminal, *words, answer="y\n"))
    assert (status, "a: The job is sent again by the next run or resume, for $0.25." in plain(shown)) == (
        0,
        True,
    )
    assert [row.state for row in read_ledger(path)] == [State.PENDING]
