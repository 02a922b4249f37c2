"""`--ignore-parameter`: query parameters that make no other job."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from anyio.to_thread import run_sync

from kling_async.emulator import Emulator, ScaledClock
from support.cli import Cli, jobs

pytestmark = pytest.mark.anyio

COMMON = ("--out", "OUT", "--level", "gold")
IGNORED = ("--ignore-parameter", "token", "--ignore-parameter", "v")


def service() -> Emulator:
    return Emulator(clock=ScaledClock(100.0), timing=60.0, profile="tiny", downloads=False)


async def call(cli: Cli, emulator: Emulator, *words: str) -> tuple[int, str]:
    """Run a command, and return its exit status and what it printed on one line."""
    env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}
    done = await run_sync(partial(cli, *words, **env))
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def manifest(cli: Cli, token: int, name: str = "k.jsonl") -> str:
    """Write a manifest of two jobs, one of them without a key, with new URLs of their pictures."""
    rows: list[dict[str, Any]] = [
        {"key": "a", "image": f"https://pictures.example/a.png?token={token}&width=3"},
        {"image": f"https://pictures.example/b.png?v={token}"},
    ]
    return jobs(cli.folder, *rows, name=name)


@pytest.mark.promise(1)
async def test_run_again_with_new_urls_pays_nothing_and_does_not_ask(cli: Cli) -> None:
    async with service() as emulator:
        assert (await call(cli, emulator, "run", manifest(cli, 1), *COMMON, *IGNORED, "--yes"))[0] == 0
        for token, ignored in ((2, IGNORED), (3, ())):
            status, printed = await call(cli, emulator, "run", manifest(cli, token), *COMMON, *ignored)
            assert status == 0, printed
            assert "2 of 2 videos in OUT, $0.00 spent" in printed
        status, printed = await call(cli, emulator, "run", manifest(cli, 4, "other.jsonl"), *COMMON)
        assert status == 3
        assert "2 jobs of batch 'other' were sent in batch 'k' already" in printed
        status, printed = await call(cli, emulator, "run", manifest(cli, 5, "own.jsonl"), *COMMON, *IGNORED[:2])
        assert status == 3
        assert "2 jobs of batch 'own' were sent in batch 'k' already" in printed
        assert len(emulator.charges()) == 2


@pytest.mark.promise(1)
async def test_other_set_than_that_of_the_batch_is_refused_before_the_question(cli: Cli) -> None:
    async with service() as emulator:
        once = ("--budget", "0.30", "--yes")
        assert (await call(cli, emulator, "run", manifest(cli, 1), *COMMON, *IGNORED, *once))[0] == 1
        for words in (("run", manifest(cli, 2), *COMMON), ("resume", "OUT/run.db", *COMMON)):
            status, printed = await call(cli, emulator, *words, *IGNORED[:2])
            assert status == 2
            assert "expected those that batch 'k' was begun with (token, v), got token" in printed
        assert len(emulator.charges()) == 1
        assert (await call(cli, emulator, "resume", "OUT/run.db", *COMMON, "--yes"))[0] == 0
        assert len(emulator.charges()) == 2


async def test_text_that_can_be_no_name_is_refused(cli: Cli) -> None:
    async with service() as emulator:
        for name in ("token=1", "token,v", ""):
            words = ("run", manifest(cli, 1), *COMMON, "--yes", "--ignore-parameter", name)
            status, printed = await call(cli, emulator, *words)
            assert status == 2
            assert f"expected the name of one URL parameter, such as token, got {name!r}" in printed
        assert emulator.charges() == ()


async def test_enqueue(cli: Cli, database: str) -> None:
    async with service() as emulator:
        for words, said in (
            ((*IGNORED,), "2 new jobs in the batch 'k'"),
            ((), "0 new jobs in the batch 'k'; 2 jobs already there"),
            (IGNORED[2:], "expected those that batch 'k' was begun with (token, v), got v"),
        ):
            new = manifest(cli, len(words))
            _, printed = await call(cli, emulator, "enqueue", new, "--ledger", database, *words)
            assert said in printed
