"""Estimates, costs and refunds: `estimate`, budgets, `resume` and `status` against an emulator."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
from anyio.to_thread import run_sync

from kling_async import Clock, Job, KlingSession
from kling_async.emulator import Emulator, faults
from support.cli import Cli, jobs
from support.pictures import jpeg

PRO = "kling-v2.1-pro"


def at(emulator: Emulator) -> dict[str, str]:
    return {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key, "NO_PROXY": "127.0.0.1"}


async def call(cli: Cli, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return await run_sync(partial(cli, *words, **env))


@attrs.define
class AnHourAgo:
    """A clock one hour behind, so that predictions look old and are polled at once."""

    clock: Clock

    def now(self) -> float:
        return self.clock.now() - 3600

    def monotonic(self) -> float:
        return self.clock.monotonic()

    async def sleep(self, seconds: float, /) -> None:
        await self.clock.sleep(seconds)


def session(emulator: Emulator, ledger: Path, **more: Any) -> KlingSession:
    clock = AnHourAgo(emulator.clock)
    return KlingSession(emulator.api_key, base_url=emulator.base_url, level="gold", ledger=ledger, clock=clock, **more)


@pytest.mark.anyio
async def test_estimate_spends_nothing_and_ask_option_quotes_discounts(cli: Cli) -> None:
    rows: list[dict[str, object]] = [
        {"key": "a"},
        {"key": "b", "model": PRO, "duration": 10},
        {"key": "c", "model": PRO},
    ]
    path = jobs(cli.folder, *rows)
    plain = cli("estimate", path)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "List price: ≈ $1.60" in plain.stdout
    async with Emulator(profile="tiny", discount=0.1) as emulator:
        asked = await call(cli, "estimate", path, "--ask", **at(emulator))
        assert "Price for this account: $1.44   ($0.16 below list price)" in asked.stdout
        result = json.loads((await call(cli, "estimate", path, "--ask", "--json", **at(emulator))).stdout)
        assert emulator.charges() == ()
    assert (result["jobs"], result["list_usd"], result["account_usd"], result["unpriced_jobs"]) == (
        3,
        1.6,
        1.44,
        0,
    )
    assert [(kind["duration"], kind["jobs"], kind["account_usd"]) for kind in result["kinds"]] == [
        (5, 1, 0.405),
        (10, 1, 0.81),
        (5, 1, 0.225),
    ]


@pytest.mark.anyio
async def test_estimate_reads_the_public_list_of_gptproto(cli: Cli) -> None:
    rows: list[dict[str, object]] = [
        {"key": "a", "model": PRO},
        {"key": "b", "model": "kling-v3.0-std"},
        {"key": "c", "model": "kling-v3.0-std", "sound": False, "duration": 3},
    ]
    path = jobs(cli.folder, *rows)
    async with Emulator(profile="tiny") as emulator:
        env = {"GPTPROTO_BASE_URL": emulator.gptproto_url, "GPTPROTO_API_KEY": "sk-unknown", "NO_PROXY": "127.0.0.1"}
        asked = await call(cli, "estimate", path, "--ask", "--provider", "gptproto", **env)
        assert emulator.leaks == ()
    assert (asked.returncode, asked.stderr) == (0, "")
    assert [asked.stdout.count(price) for price in ("$0.45", "$0.25", "no quote")] == [2, 2, 1]
    assert "warning: 1 job: sound: kling-v3.0-std makes sound by default at gptproto" in asked.stdout


def test_estimate_reads_folder(cli: Cli) -> None:
    (cli.folder / "photos").mkdir()
    (cli.folder / "photos" / "face.jpg").write_bytes(jpeg())
    result = json.loads(cli("estimate", "photos", "--prompt", "Waves", "--model", PRO, "--json").stdout)
    assert (result["jobs"], result["list_usd"], result["account_usd"]) == (1, 0.45, None)


def test_used_up_budget_stops_run_and_summary_shows_money(cli: Cli) -> None:
    (cli.folder / "face.jpg").write_bytes(jpeg())
    path = jobs(cli.folder, *({"key": str(number), "model": PRO, "image": "face.jpg"} for number in range(4)))
    run = ("run", path, "--out", "videos", "--emulator", "--speed", "500", "--profile", "tiny", "--level", "gold")
    done = cli(*run, "--budget", "1.00")
    assert done.returncode == 1
    assert "The budget of $1.00 is less than that" in done.stdout
    assert "$0.90 of $1.00 spent" in done.stdout
    assert "2 jobs skipped, unpaid." in done.stdout
    assert "2 of 4 videos in videos/rehearsal, 2 skipped, $0.90 spent" in done.stdout
    folder = cli.folder / "videos" / "rehearsal"
    for name, states in (("results", ["saved", "saved", "skipped", "skipped"]), ("errors", ["skipped", "skipped"])):
        rows = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        assert sorted((row.get("_error") or row)["status"] for row in rows) == states
    assert "Money: $1.80 estimated, $0.90 spent, $0.00 refunded; $0.10 of $1.00 left" in done.stdout
    assert "The service's bill: $0.90 for 2 of 2 predictions, as listed" in done.stdout
    assert done.stderr.startswith("\nerror: budget exceeded\n")
    assert "bill" not in cli(*run, "--no-audit").stdout
    there = cli(*run, "--provider", "gptproto", "--budget", "1")
    assert (there.returncode, "2 of 4 videos in videos/rehearsal, 2 skipped" in there.stdout) == (1, True), there.stderr
    assert cli(*run, "--budget", "much").returncode == 2


@pytest.mark.anyio
async def test_resume_from_ledger_spends_refunds_again(cli: Cli) -> None:
    ledger = cli.folder / "videos" / "run.db"
    ledger.parent.mkdir()
    (cli.folder / "face.jpg").write_bytes(jpeg())
    batch = {
        key: Job(model=PRO, prompt=key, image=cli.folder / "face.jpg") for key in ("fails", "saved", "runs", "waits")
    }
    async with Emulator(speed=100, timing=60, profile="tiny", refund_after=1e6) as emulator:
        emulator.faults.add(
            "submit", faults.FailTask(code=5004, message="no"), when=lambda call: call.body.get("prompt") == "fails"
        )
        call = partial(run_sync, lambda *words: cli(*words, **at(emulator)))
        async with session(emulator, ledger) as kling:
            first = dict(list(batch.items())[:2])
            async with kling.batch(first, name="faces", save_to=ledger.parent) as running:
                assert {outcome.key: outcome.ok async for outcome in running} == {"fails": False, "saved": True}
            written = json.loads((await call("status", "videos/run.db", "--json")).stdout)
            # One more is accepted and the session ends before its video; the budget has nothing left for the last one.
            async with kling.batch(batch, name="faces", budget="1.40", deadline=0.01, save_to=ledger.parent) as running:
                assert [outcome.ok async for outcome in running].count(True) == 1
        status = json.loads((await call("status", "videos/run.db", "--json")).stdout)
        shown = (await call("status", "videos/run.db")).stdout
        charged = len(emulator.charges())

        words = (
            "resume",
            "videos/run.db",
            "--out",
            "videos",
            "--level",
            "gold",
            "--deadline",
            "1",
            "--yes",
            "--budget",
        )
        poor = await call(*words, "1.70")
        assert len(emulator.charges()) == charged == 3
        account = emulator._service.accounts[emulator.api_key]
        (refundable,) = [entry for entry in account.entries if entry.refund_due is not None]
        account.refund(refundable, emulator.clock.now())
        rich = await call(*words, "1.70")
        assert len(emulator.charges()) == 4
        after = json.loads((await call("status", "videos/run.db", "--json")).stdout)

    assert (written["writer"] is not None, written["next"], written["batches"][0]["jobs"]) == (True, [], 2)
    (result,) = status["batches"]
    assert result["states"] == {"downloaded": 1, "failed": 1, "submitted": 1, "skipped": 1}
    assert (status["writer"], result["spent_usd"], result["refunded_usd"], result["refundable_usd"]) == (
        None,
        1.35,
        0,
        0.45,
    )
    assert result["oldest_unsaved"]["key"] in {"runs", "waits"}
    assert [command.split()[1] for command in status["next"]] == ["resume", "export"]
    assert "expires in 6 d" in shown
    assert "  kling-async resume videos/run.db --out videos --name faces" in shown

    assert "4 jobs of faces in videos/run.db: 1 saved, 1 running, 1 failed, 1 to be sent to wavespeed" in poor.stdout
    assert (poor.returncode, "the budget of $1.70 is used up: $1.35 spent" in poor.stderr) == (1, True)
    assert "2 of 4 videos in videos, 1 failed, 1 skipped, $0.00 spent" in poor.stdout
    assert "$0.00 refunded and $0.45 still due for failed jobs" in poor.stdout
    assert (ledger.parent / "runs.mp4").exists() or (ledger.parent / "waits.mp4").exists()

    assert (rich.returncode, rich.stderr) == (1, "")
    assert "Money: $0.45 estimated, $0.45 spent, $0.45 refunded; $0.35 of $1.70 left" in rich.stdout
    assert "The service's bill: $0.45 for 1 of 1 prediction, as listed" in rich.stdout
    assert (after["batches"][0]["spent_usd"], after["batches"][0]["refunded_usd"]) == (1.8, 0.45)
