"""`ledger`: jobs in doubt are shown and settled by hand, and nothing else changes."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from pathlib import Path
from subprocess import CompletedProcess

import attrs
import pytest
from anyio.to_thread import run_sync

from kling_async import Job, KlingSession, State, read_ledger
from kling_async._core.content import content_of
from kling_async._core.reconciliation import Doubt, Held
from kling_async._core.secret import Secret
from kling_async._core.sender import new_sender
from kling_async.emulator import Emulator
from kling_async.ledger import Entry, SQLiteLedger
from support.cli import Cli

WHOSE = Held(Doubt.WHOSE, ("id-1", "id-2"))
AGO = 3 * 86_400.0
MODEL = "kling-v2.1-pro"


def job(key: str) -> Job:
    return Job(model=MODEL, prompt=f"About {key}", image="https://pictures.example/face.png")


async def add(ledger: SQLiteLedger, key: str, *states: State, batch: str = "faces", held: Held | None = None) -> None:
    """Add a job that went through these states days ago."""
    at = time.time() - AGO
    content = content_of(job(key), lambda image: "")
    await ledger.claim(batch, key, content=content, model=job(key).model, at=at)
    for state in states:
        accepted = f"id-{key}" if state is State.SUBMITTED else None
        cost = Decimal("0.45") if state is State.INTENT else None
        step = Entry(batch=batch, key=key, state=state, at=at, attempt=1, cost=cost, prediction_id=accepted)
        await ledger.record(step)
        if held is not None and state is State.UNCERTAIN:
            found = Entry(batch=batch, key=key, state=state, at=at, doubt=held.doubt, candidates=held.candidates)
            await ledger.record(attrs.evolve(found, error=held.message))


async def make_held(path: Path) -> None:
    ledger = SQLiteLedger(path)
    await ledger.open()
    doubt = (State.INTENT, State.UNCERTAIN)
    await add(ledger, "whose", *doubt, held=WHOSE)
    await add(ledger, "whether", *doubt, held=Held(Doubt.WHETHER, ()))
    await add(ledger, "killed", State.INTENT)
    await add(ledger, "done", State.INTENT, State.SUBMITTED, State.COMPLETED)
    await ledger.aclose()


def states(path: Path) -> dict[str, State]:
    return {row.key: row.state for row in read_ledger(path)}


@pytest.mark.anyio
async def test_doubts_are_listed_by_kind_and_settled_by_hand(cli: Cli) -> None:
    path = cli.folder / "run.db"
    await make_held(path)
    shown = cli("ledger", "run.db").stdout
    whose, whether = shown.split("2 jobs: unknown whether paid for")
    assert "1 job: paid for, but it is unknown which candidate belongs to which job" in whose
    assert all(word in whose for word in ("About whose", "$0.45", "id-1 id-2"))
    assert all(word in whether for word in ("About whether", "About killed", "none"))
    listed = {row["key"]: row for row in json.loads(cli("ledger", "run.db", "--json").stdout)}
    assert {key: row["doubt"] for key, row in listed.items()} == {
        "whose": "whose",
        "whether": "whether",
        "killed": "whether",
    }
    assert listed["whose"]["candidates"] == ["id-1", "id-2"]

    before = states(path)
    for words, reason in (
        (("adopt", "whose", "id-done"), "that of job done already"),
        (("adopt", "nobody", "id-1"), "has no job 'nobody'"),
        (("give-up", "done"), "is not in doubt: it is unsaved"),
        (("unaccepted", "done"), "is not in doubt"),
        (("unaccepted", "whose", "--name", "other"), "batch 'other'"),
    ):
        refused = cli("ledger", "run.db", *words, *(["--yes"]))
        assert (refused.returncode, reason in refused.stderr) == (2, True), refused.stderr
    unasked = cli("ledger", "run.db", "adopt", "whose", "id-1")
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    assert "$0.45 counts as spent" in unasked.stderr
    assert states(path) == before

    adopted = cli("ledger", "run.db", "adopt", "whose", "id-3", "--yes")
    assert (adopted.returncode, "none of the candidates (id-1, id-2)" in adopted.stdout) == (0, True)
    assert cli("ledger", "run.db", "give-up", "whether", "--yes").returncode == 0
    assert cli("ledger", "run.db", "unaccepted", "killed", "--yes").returncode == 0
    assert states(path) == before | {
        "whose": State.SUBMITTED,
        "whether": State.ABANDONED,
        "killed": State.PENDING,
    }
    (row,) = [row for row in read_ledger(path) if row.key == "whose"]
    assert (row.prediction_id, row.spent) == ("id-3", Decimal("0.45"))
    sent_at = time.time() - AGO
    assert row.submitted_at == pytest.approx(sent_at, abs=600), "its video expires as if it had been known"
    history = json.loads(cli("ledger", "run.db", "history", "whose", "--json").stdout)
    assert [step["state"] for step in history] == ["pending", "intent", "uncertain", "uncertain", "submitted"]
    assert (history[-1]["prediction_id"], history[3]["error"]) == ("id-3", WHOSE.message)
    assert "Nothing is in doubt" in cli("ledger", "run.db").stdout


@pytest.mark.anyio
@pytest.mark.promise(1)
async def test_jobs_count_as_sent_by_this_account_when_the_user_says_so(cli: Cli) -> None:
    path = cli.folder / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await ledger.put_sender(new_sender("wavespeed", "https://old.example", Secret("wsk_rotated")))
    (old,) = await ledger.senders()
    await add(ledger, "lost", State.INTENT, State.UNCERTAIN)
    await ledger.record(Entry(batch="faces", key="lost", state=State.UNCERTAIN, at=time.time(), sender=old.id))
    await add(ledger, "unrecorded", State.INTENT, State.UNCERTAIN)
    await ledger.aclose()
    async with Emulator(profile="tiny", timing=0.01, downloads=False) as emulator:
        env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key}

        async def run(*words: str) -> CompletedProcess[str]:
            return await run_sync(lambda: cli(*words, **env))

        async def resume() -> dict[str, str | None]:
            async with (
                KlingSession(emulator.api_key, base_url=emulator.base_url, ledger=path, grace=0.1) as kling,
                kling.resume(name="faces") as batch,
            ):
                return {outcome.key: outcome.error.message if outcome.error else None async for outcome in batch}

        held = await resume()
        assert emulator.charges() == ()
        assert f"key {old.id[:6]}" in (held["lost"] or "")
        assert "did not record the account" in (held["unrecorded"] or "")
        asked = await run("ledger", "run.db", "same-account")
        assert asked.returncode == 2
        assert f"wavespeed at https://old.example, key {old.id[:6]}" in " ".join(asked.stdout.split())
        assert "--yes" in asked.stderr
        said = await run("ledger", "run.db", "same-account", "--yes")
        assert "2 jobs are of this account now" in said.stdout
        again = await run("ledger", "run.db", "same-account", "--yes")
        assert "Nothing was changed" in again.stdout
        assert await resume() == {"lost": None, "unrecorded": None}
        assert len(emulator.charges()) == 2
    assert set(states(path).values()) == {State.COMPLETED}


@pytest.mark.anyio
async def test_given_up_job_is_not_sent_until_settled_as_unaccepted(cli: Cli) -> None:
    path = cli.folder / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    await add(ledger, "lost", State.INTENT, State.UNCERTAIN)
    await ledger.aclose()
    assert cli("ledger", "run.db", "give-up", "lost", "--yes").returncode == 0
    async with Emulator(profile="tiny") as emulator:
        env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key}
        done = await run_sync(lambda: cli("resume", "run.db", "--out", "videos", "--yes", **env))
        assert emulator.charges() == ()
    assert done.returncode == 3
    assert "given up by hand" in done.stdout
    assert states(path) == {"lost": State.ABANDONED}
    assert "errors.jsonl: 0 jobs" in cli("export", "run.db", "--format", "errors").stdout
    assert cli("ledger", "run.db", "unaccepted", "lost", "--yes").returncode == 0
    assert states(path) == {"lost": State.PENDING}


@pytest.mark.anyio
async def test_abandoned_job_is_adopted_when_its_prediction_turns_up(cli: Cli) -> None:
    path = cli.folder / "run.db"
    await make_held(path)
    assert cli("ledger", "run.db", "give-up", "whose", "--yes").returncode == 0
    (row,) = read_ledger(path, states=[State.ABANDONED])
    assert (row.spent, row.doubt, row.candidates) == (None, *attrs.astuple(WHOSE))
    assert "abandoned" in cli("status", "run.db").stdout
    assert cli("ledger", "run.db", "adopt", "whose", "id-2", "--yes").returncode == 0
    (row,) = [row for row in read_ledger(path) if row.key == "whose"]
    assert (row.state, row.prediction_id, row.spent) == (State.SUBMITTED, "id-2", Decimal("0.45"))
    assert (row.doubt, row.candidates) == (None, ())


@pytest.mark.anyio
async def test_open_ledger_is_shown_and_not_changed(cli: Cli) -> None:
    path = cli.folder / "run.db"
    await make_held(path)
    ledger = SQLiteLedger(path)
    await ledger.open()
    shown = await run_sync(lambda: cli("ledger", "run.db"))
    refused = await run_sync(lambda: cli("ledger", "run.db", "give-up", "whose", "--yes"))
    status = json.loads((await run_sync(lambda: cli("status", "run.db", "--json"))).stdout)
    await add(ledger, "single", State.INTENT, State.UNCERTAIN, batch="")
    await ledger.aclose()
    assert "may still settle them" in shown.stdout
    assert "killed" not in shown.stdout, "it may be answered any moment"
    assert refused.returncode == 2
    assert "has run.db open" in refused.stderr
    assert (status["writer"] is not None, status["batches"][0]["in_doubt"]) == (True, 2)
    assert states(path)["whose"] is State.UNCERTAIN
    several = cli("resume", "run.db", "--out", "videos", WAVESPEED_API_KEY="wsk_x")
    assert several.returncode == 2
    assert "2 batches: '' (outside of batches), faces" in several.stderr
    cli.folder.joinpath("run.db").rename(cli.folder / "rehearsal.db")
    rehearsal = cli("resume", "rehearsal.db", "--out", "videos", "--name", "faces", WAVESPEED_API_KEY="wsk_x")
    assert (rehearsal.returncode, "got that of a rehearsal" in rehearsal.stderr) == (2, True)
