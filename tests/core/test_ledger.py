"""The file of paid ids: on the disk before the next step, readable by another process, tolerant of a crash."""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async.ledger import MOVES, Entry, FileLedger, Ledger, MemoryLedger, State, open_ledger, read_paid_ids

pytestmark = pytest.mark.anyio

MODEL = "kwaivgi/kling-v2.1-i2v-pro"


def entry(key: str = "a", state: State = State.SUBMITTED, at: float = 1_800_000_000.125, **fields: Any) -> Entry:
    fields.setdefault("prediction_id", f"p-{key}" if state is State.SUBMITTED else None)
    return Entry(batch="spring", key=key, state=state, at=at, model=MODEL, **fields)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "paid.jsonl"


# ---- what is on the disk ----


async def test_a_recorded_step_is_one_line_that_another_process_can_read(path: Path) -> None:
    ledger = FileLedger(path)
    await ledger.record(entry(cost=Decimal("0.45"), error="Grüße\nin zwei Zeilen"))
    # The ledger is neither closed nor flushed here: recorded means that it is on the disk.
    script = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
    line = (await anyio.run_process([sys.executable, "-c", script, str(path)])).stdout
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "at": 1_800_000_000.125,
        "batch": "spring",
        "key": "a",
        "state": "submitted",
        "model": MODEL,
        "prediction_id": "p-a",
        "cost_usd": "0.45",
        "error": "Grüße\nin zwei Zeilen",
    }
    assert list(read_paid_ids(path)) == [entry(cost=Decimal("0.45"), error="Grüße\nin zwei Zeilen")]


async def test_a_line_is_synced_before_record_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(path.read_bytes())

    monkeypatch.setattr(os, "fsync", watched)
    ledger = FileLedger(path)
    for number in range(3):
        await ledger.record(entry(str(number)))
        assert len(synced) == number + 1
        assert synced[-1].count(b"\n") == number + 1
        assert f'"p-{number}"'.encode() in synced[-1]


async def test_steps_that_arrive_together_are_synced_together_and_all_before_they_return(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = 0
    first_may_end = threading.Event()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        first_may_end.wait(10)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    ledger = FileLedger(path)

    async def one(number: int) -> None:
        await ledger.record(entry(str(number)))
        assert f'"p-{number}"' in path.read_text()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, 0)
        while not syncs:
            await anyio.lowlevel.checkpoint()
        for number in range(1, 200):
            tasks.start_soon(one, number)
        await anyio.wait_all_tasks_blocked()
        first_may_end.set()
    assert syncs == 2, "the first one alone, and all that came while it was synced"
    assert {line.key for line in read_paid_ids(path)} == {str(number) for number in range(200)}


async def test_a_noted_step_comes_with_the_next_recorded_one_or_at_the_end(path: Path) -> None:
    ledger = FileLedger(path)
    ledger.note(entry("a", State.COMPLETED, prediction_id="p-a"))
    assert not path.exists()
    await ledger.record(entry("b"))
    ledger.note(entry("c", State.COMPLETED, prediction_id="p-c"))
    assert [line.key for line in read_paid_ids(path)] == ["a", "b"]
    await ledger.aclose()
    assert [line.key for line in read_paid_ids(path)] == ["a", "b", "c"]


async def test_closing_without_anything_to_write_makes_no_file(path: Path) -> None:
    await FileLedger(path).aclose()
    assert not path.exists()


async def test_a_later_session_appends(path: Path) -> None:
    for key in "ab":
        ledger = FileLedger(path)
        await ledger.record(entry(key))
        await ledger.aclose()
    assert [line.key for line in read_paid_ids(path)] == ["a", "b"]


async def test_half_a_line_left_by_a_crash_is_not_glued_to_the_next(path: Path) -> None:
    ledger = FileLedger(path)
    await ledger.record(entry("a"))
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    assert [line.key for line in read_paid_ids(path)] == ["a"]
    await FileLedger(path).record(entry("b"))
    assert [line.key for line in read_paid_ids(path)] == ["a", "b"]


async def test_a_path_that_cannot_be_written_is_said_and_nothing_is_forgotten(path: Path) -> None:
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.write_bytes(b"a file where the folder should be")
    ledger = FileLedger(path)
    with pytest.raises(OSError, match="new"):
        await ledger.record(entry("a"))
    with pytest.raises(OSError, match="new"):
        await ledger.aclose()
    path.parent.unlink()
    await ledger.record(entry("b"))
    assert [line.key for line in read_paid_ids(path)] == ["a", "b"]


async def test_a_text_that_the_service_cut_in_the_middle_of_a_sign_is_written(path: Path) -> None:
    """A service that cuts its texts by UTF-16 leaves half a pair of surrogates; the id must be written all the same."""
    cut = json.loads('"Ein Bild \\ud83d"')
    await FileLedger(path).record(entry("a", error=cut))
    assert path.read_bytes().decode("utf-8")
    assert [(line.prediction_id, line.error) for line in read_paid_ids(path)] == [("p-a", cut)]


# ---- what is read ----


async def test_the_last_entry_of_every_job_that_was_or_may_have_been_paid_for(path: Path) -> None:
    ledger = FileLedger(path)
    for at, (key, state) in enumerate(
        [
            ("done", State.INTENT),
            ("refused", State.INTENT),
            ("crashed", State.INTENT),
            ("refused", State.REJECTED),
            ("done", State.SUBMITTED),
            ("lost", State.INTENT),
            ("skipped", State.SKIPPED),
            ("lost", State.UNCERTAIN),
            ("limited", State.INTENT),
            ("limited", State.PENDING),
        ]
    ):
        await ledger.record(entry(key, state, at=float(at)))
    await ledger.record(entry("done", State.DOWNLOADED, at=20.0, prediction_id="p-done"))
    assert [(line.key, line.state, line.prediction_id) for line in read_paid_ids(path)] == [
        ("crashed", State.INTENT, None),
        ("lost", State.UNCERTAIN, None),
        ("done", State.DOWNLOADED, "p-done"),
    ]


async def test_jobs_of_two_batches_are_two_jobs(path: Path) -> None:
    ledger = FileLedger(path)
    await ledger.record(entry("a"))
    await ledger.record(attrs.evolve(entry("a"), batch="autumn", prediction_id="p-other"))
    assert [(line.batch, line.prediction_id) for line in read_paid_ids(path)] == [
        ("spring", "p-a"),
        ("autumn", "p-other"),
    ]


def good(key: str) -> bytes:
    step = {"batch": "", "key": key, "state": "submitted", "at": 1, "model": "m", "prediction_id": f"p-{key}"}
    return json.dumps(step).encode()


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
)
steps = st.fixed_dictionaries(
    {},
    optional={
        "batch": json_values,
        "key": json_values,
        "state": st.one_of(json_values, st.sampled_from([state.value for state in State])),
        "at": json_values,
        "model": json_values,
        "prediction_id": json_values,
        "cost_usd": json_values,
        "error": json_values,
    },
).map(lambda step: json.dumps(step).encode())


@given(st.lists(st.one_of(st.binary(max_size=40), steps), max_size=5))
def test_whatever_else_is_in_the_file_good_lines_are_read(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.jsonl"
    lines = [line.replace(b"\n", b"") for line in lines]
    path.write_bytes(b"\n".join([good("first"), *lines, b"[" * 5000, good("last"), good("torn")[:-9]]))
    found = {line.key for line in read_paid_ids(path)}
    assert {"first", "last"} <= found
    assert "torn" not in found


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_paid_ids(tmp_path / "none.jsonl"))


# ---- memory ----


async def test_memory_holds_what_is_under_way_and_forgets_the_rest() -> None:
    ledger = MemoryLedger()
    for number in range(100):
        await ledger.record(entry(str(number), State.INTENT))
        await ledger.record(entry(str(number)))
        ledger.note(entry(str(number), State.COMPLETED))
    await ledger.record(entry("running"))
    await ledger.record(entry("lost", State.UNCERTAIN))
    await ledger.aclose()
    assert list(ledger.open) == [("spring", "running"), ("spring", "lost")]


def test_what_a_session_takes_as_a_ledger(path: Path) -> None:
    memory = MemoryLedger()
    assert open_ledger(memory) is memory
    assert isinstance(open_ledger(None), MemoryLedger)
    for given_path in (path, str(path)):
        ledger: Ledger = open_ledger(given_path)
        assert isinstance(ledger, FileLedger)
        assert ledger.path == path


# ---- moves ----


def test_every_state_has_its_moves_and_every_move_leads_to_a_state() -> None:
    assert set(MOVES) == set(State)
    assert all(targets <= set(State) and state not in targets for state, targets in MOVES.items())


def reachable(start: State) -> set[State]:
    found: set[State] = set()
    ahead = {start}
    while ahead:
        state = ahead.pop()
        found.add(state)
        ahead |= MOVES[state] - found
    return found


def test_every_state_can_be_reached_from_the_first() -> None:
    assert reachable(State.PENDING) == set(State)


def test_what_was_paid_for_is_never_free_to_be_sent_again_without_an_end() -> None:
    assert MOVES[State.SUBMITTED] == {State.COMPLETED, State.FAILED, State.EXPIRED}
    for state in (State.SUBMITTED, State.COMPLETED, State.DOWNLOADED, State.EXPIRED):
        assert not MOVES[state] & {State.PENDING, State.CLAIMED, State.INTENT}
    for state in (State.COMPLETED, State.DOWNLOADED, State.EXPIRED):
        assert reachable(state) <= {State.COMPLETED, State.DOWNLOADED, State.EXPIRED}


def test_nothing_is_submitted_without_an_intent() -> None:
    assert {state for state, targets in MOVES.items() if State.SUBMITTED in targets} == {State.INTENT, State.UNCERTAIN}
    assert {state for state, targets in MOVES.items() if State.INTENT in targets} == {State.PENDING, State.CLAIMED}


def test_only_what_was_sent_may_be_uncertain() -> None:
    assert {state for state, targets in MOVES.items() if State.UNCERTAIN in targets} == {State.INTENT}


def test_an_entry_is_plain_data() -> None:
    assert pickle.loads(pickle.dumps(entry(cost=Decimal("0.45")))) == entry(cost=Decimal("0.45"))
