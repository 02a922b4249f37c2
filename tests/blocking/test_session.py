"""The blocking session as its users call it: threads, iteration, interrupts, and places where it is refused."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kling_async import Job, Level, NoLimit, SessionClosedError, State, WatchPolicy, WrongLoopError, events, read_ledger
from kling_async.blocking import KlingSession
from kling_async.emulator import faults
from kling_async.errors import InvalidJobError, PredictionError
from kling_async.testing import EmulatorThread
from support import blocking
from support.patience import PATIENCE_S
from support.pictures import png

URL = "https://pictures.example/lake.png"


@pytest.fixture
def server() -> Iterator[EmulatorThread]:
    with EmulatorThread(profile="tiny", level="gold", speed=100, downloads=False) as emulator:
        yield emulator


def session(server: EmulatorThread, **options: object) -> KlingSession:
    given = {"base_url": server.base_url, "clock": server.clock, "level": "gold", **options}
    return KlingSession(server.api_key, **given)  # type: ignore[arg-type]  # of many types


def jobs(count: int) -> list[Job]:
    return [Job(prompt=f"Waves {number}", image=URL) for number in range(count)]


def test_generated_module_is_up_to_date() -> None:
    assert blocking.meaning(blocking.TARGET.read_text()) == blocking.meaning(blocking.generated()), (
        "run `python tests/support/blocking.py`"
    )


def test_calls_return_what_the_asynchronous_ones_do(server: EmulatorThread, tmp_path: Path) -> None:
    kling = session(server)
    assert repr(kling).startswith("<blocking KlingSession wavespeed at")
    with kling:
        prediction = kling.generate(prompt="Waves", image=png(), key="one")
        saved = kling.save(prediction, tmp_path)
        assert (tmp_path / "one.mp4").stat().st_size == saved.bytes
        submitted = kling.submit(jobs(1)[0])
        changes = list(kling.follow(submitted))
        assert kling.wait(submitted).id == changes[-1].id == submitted.id
        assert kling.balance() < 1000
        assert [each.id for each in kling.predictions()] == [submitted.id, prediction.id]
        assert [each.prediction_id for each in kling.billings(limit=1)] == [submitted.id]
        assert kling.with_options(model="kling-v2.1-pro").generate(prompt="W", image=URL).model.endswith("v2.1-i2v-pro")
        assert kling.running == ()
        assert kling.statistics().running == 0
    assert "closed" in repr(kling)
    assert kling.left_running == ()
    assert len(server.charges()) == 3


def test_errors_are_raised_as_they_are(server: EmulatorThread) -> None:
    with session(server) as kling, pytest.raises(InvalidJobError) as caught:
        kling.generate(prompt="", image=URL)
    assert caught.value.problems[0].path == "prompt"


@pytest.mark.parametrize("ordered", [False, True])
def test_batch_is_iterated(server: EmulatorThread, tmp_path: Path, ordered: bool) -> None:  # noqa: FBT001 -- a case
    with session(server) as kling, kling.batch(jobs(20), save_to=tmp_path, ordered=ordered) as batch:
        outcomes = list(batch)
        assert batch.statistics().completed == 20
        assert batch.failures == ()
        assert (batch.stopped, batch.drained) == (None, False)
        with pytest.raises(RuntimeError, match="already been entered"):
            batch.__enter__()
    assert len(list(tmp_path.glob("*.mp4"))) == 20
    prompts = [outcome.job.prompt for outcome in outcomes]
    assert (prompts == [job.prompt for job in jobs(20)]) or not ordered
    assert len(server.charges()) == 20


def test_batch_reads_its_input_in_a_thread_and_lazily(server: EmulatorThread) -> None:
    read: list[str] = []

    def generated(kling: KlingSession) -> Iterator[Job]:
        for job in jobs(6):
            read.append(job.prompt)
            kling.balance()  # a call of the session itself, for which its event loop must be free
            yield job

    with session(server) as kling, kling.batch(generated(kling), window=2) as batch:
        for taken, _ in enumerate(batch, 1):
            assert len(read) <= taken + 3
    assert len(read) == 6


def test_error_of_the_input_is_raised_after_its_jobs(server: EmulatorThread) -> None:
    def generated() -> Iterator[Job]:
        yield from jobs(2)
        raise LookupError("row 3")

    seen = []
    with session(server) as kling, pytest.raises(LookupError, match="row 3"), kling.batch(generated()) as batch:
        seen += [outcome.ok for outcome in batch]
    assert seen == []  # the list was not finished; its jobs were
    assert len(server.charges()) == 2


def test_threads_share_a_session_and_a_batch(server: EmulatorThread) -> None:
    with session(server) as kling, ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(kling.generate, job) for job in jobs(16)]
        assert len({call.result().id for call in calls}) == 16
        with kling.batch(jobs(24), name="shared") as batch:
            parts = list(pool.map(lambda _: list(batch), range(4)))
    assert sorted(outcome.job.prompt for part in parts for outcome in part) == sorted(job.prompt for job in jobs(24))
    assert len(server.charges()) == 40


def test_closing_in_another_thread_ends_a_wait(server: EmulatorThread) -> None:
    slow = Level("slow", 1000, 1)
    with ThreadPoolExecutor(1) as pool:
        kling = session(server, level=slow, watch=WatchPolicy.fixed(1e6), clock=None)
        with kling:
            accepted = threading.Event()
            kling.add_observer(lambda event: accepted.set() if isinstance(event, events.Accepted) else None)
            waiting = pool.submit(kling.generate, jobs(1)[0])
            assert accepted.wait(PATIENCE_S)
        with pytest.raises(PredictionError, match="the session closed"):
            waiting.result(PATIENCE_S)
    assert len(kling.left_running) == 1


def test_session_that_is_not_open_says_so(server: EmulatorThread) -> None:
    kling = session(server)
    for call in (kling.balance, kling.statistics, partial(kling.batch, [])):
        with pytest.raises(SessionClosedError, match="not open yet"):
            call()
    with kling, pytest.raises(SessionClosedError, match="only once"):
        kling.__enter__()
    for call in (kling.balance, kling.statistics):
        with pytest.raises(SessionClosedError, match="closed"):
            call()
    with pytest.raises(SessionClosedError, match="only once"):
        kling.__enter__()


def test_session_that_cannot_be_opened_leaves_no_thread(server: EmulatorThread, tmp_path: Path) -> None:
    before = {*threading.enumerate()}
    (tmp_path / "run.db").write_bytes(b"no database" * 100)
    with pytest.raises(Exception, match="database"), session(server, ledger=tmp_path / "run.db"):
        pass
    for thread in {*threading.enumerate()} - before:
        # anyio tells its worker threads to end, and does not wait for them.
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_running_event_loop_is_not_blocked(server: EmulatorThread) -> None:
    async def handler(kling: KlingSession) -> None:
        for call in (lambda: kling.generate(jobs(1)[0]), kling.statistics, lambda: next(kling.predictions())):
            with pytest.raises(WrongLoopError, match="expected a thread without a running event loop"):
                call()
        # What the error advises.
        assert await asyncio.to_thread(kling.balance) == 1000

    async def opened() -> None:
        with pytest.raises(WrongLoopError), session(server):
            pass

    with session(server) as kling:
        asyncio.run(handler(kling))
    asyncio.run(opened())


@pytest.mark.parametrize("what", ["call", "batch"])
def test_observer_cannot_wait_for_the_loop_it_runs_in(server: EmulatorThread, what: str) -> None:
    raised: list[Exception] = []

    def observe(event: events.Event) -> None:
        try:
            if what == "call":
                kling.balance()
            else:
                batch.__enter__()
        except WrongLoopError as error:
            raised.append(error)

    with session(server, observers=[observe]) as kling:
        batch = kling.batch(jobs(1))
        kling.generate(jobs(1)[0])
    assert raised


def test_interrupted_wait_for_the_end_of_a_batch_is_not_its_end(
    server: EmulatorThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`threading.Condition` makes a RuntimeError of a Ctrl-C at some of its lines."""
    with session(server) as kling:
        batch = kling.batch(jobs(1)).__enter__()

        def wait(*_: object) -> None:
            monkeypatch.undo()
            raise RuntimeError("cannot release un-acquired lock")

        monkeypatch.setattr(concurrent.futures, "wait", wait)
        with pytest.raises(RuntimeError, match="un-acquired"):
            batch.__exit__(None, None, None)


def test_iterators_that_are_left_early_are_closed(server: EmulatorThread) -> None:
    with session(server) as kling:
        kling.generate(jobs(1)[0])
        for _ in kling.predictions():
            break
        items = kling.predictions()
        next(items)
    del items
    assert len(server.charges()) == 1


INTERRUPTED = """
import os, signal, sys, threading
from kling_async import Job, NoLimit, Level, events, WatchPolicy
from kling_async.blocking import KlingSession

ledger, kind, patience = sys.argv[1:]
job = Job(prompt="Waves", image="https://pictures.example/lake.png")

def interrupt(event):
    if isinstance(event, events.Accepted):
        os.kill(os.getpid(), signal.SIGINT)

before = {*threading.enumerate()}
with KlingSession(ledger=ledger, observers=[interrupt], watch=WatchPolicy.fixed(1e6)) as kling:
    try:
        if kind == "batch":
            with kling.batch([job], name="b") as batch:
                for outcome in batch:
                    print("outcome", outcome)
        else:
            kling.generate(job, key="k")
    except KeyboardInterrupt:
        print("interrupted, and the session still works:", kling.balance())
        if kind == "twice":
            raise
# Nobody waits for a worker of anyio, which ends by itself as the loop does.
left = {*threading.enumerate()} - before
for thread in left:
    thread.join(float(patience))
print("closed", len(kling.left_running), sum(thread.is_alive() for thread in left))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill sends no SIGINT there")
@pytest.mark.parametrize("kind", ["batch", "single", "twice"])
def test_ctrl_c_ends_the_wait_and_keeps_what_was_paid_for(tmp_path: Path, kind: str) -> None:
    ledger = tmp_path / "run.db"
    # A prediction that outlasts the test.
    with EmulatorThread(profile="tiny", level="gold", timing=1e6, downloads=False) as server:
        ran = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, str(ledger), kind, str(PATIENCE_S / 2)],
            env=os.environ | dict(server.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        charges = server.charges()
    assert "interrupted, and the session still works" in ran.stdout, ran.stderr
    if kind == "twice":
        assert ran.returncode in {1, -signal.SIGINT, 130}
        assert "KeyboardInterrupt" in ran.stderr
    else:
        assert "closed 1 0" in ran.stdout, ran.stderr
        assert ran.returncode == 0
    rows = list(read_ledger(ledger))
    assert [(row.state, row.prediction_id) for row in rows] == [(State.SUBMITTED, charges[0].prediction_id)]
    assert len(charges) == 1


ENTERED = """
import faulthandler, signal, sys, threading
from kling_async import Job
from kling_async.blocking import KlingSession

faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
job = Job(prompt="Waves", image="https://pictures.example/lake.png")

def jobs(opened):
    opened.wait()
    yield job

def enter_interrupted(batch, line):
    # Enter a batch, with a Ctrl-C before the given line that runs of the package or of anyio; True if there was one.
    # Not of threading: there an interrupt can leave a lock locked (bpo-29988), and nothing helps.
    left = line

    def trace(frame, event, _):
        nonlocal left
        if event == "line" and frame.f_globals["__name__"].partition(".")[0] in ("kling_async", "anyio"):
            left -= 1
            if left == 0:
                signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        batch.__enter__()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    batch.__exit__(None, None, None)
    return False

line, opened = 1, threading.Event()
with KlingSession() as kling:
    while enter_interrupted(kling.batch(jobs(opened), name=str(line)), line):
        line += 1
    # A batch that was left running would send its job now.
    opened.set()
    kling.balance()
print("lines", line)
with KlingSession() as kling, kling.batch([job]) as batch:
    print("outcomes", [outcome.ok for outcome in batch])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is another signal there")
@pytest.mark.repeats
def test_ctrl_c_while_a_batch_is_entered_leaves_none_running(server: EmulatorThread) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ENTERED, str(PATIENCE_S)],
        env=os.environ | dict(server.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines, outcomes = ran.stdout.splitlines()
    assert int(lines.split()[1]) > 20  # from the first line of ours to the last
    assert outcomes == "outcomes [True]"
    # That of the batch that nobody interrupted.
    assert len(server.charges()) == 1


ABANDONED = """
import os, signal, sys
import anyio
from kling_async.blocking._thread import LoopThread

ended = []

class Nothing:
    async def __aenter__(self): pass
    async def __aexit__(self, *_): print("left after", ended)

async def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
    finally:
        ended.append("the cancelled call")

thread = LoopThread()
thread.open(Nothing())
try:
    thread.run(work)
except KeyboardInterrupt:
    print("interrupted")
thread.ask(lambda: None)
thread.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill sends no SIGINT there")
def test_ctrl_c_cancels_the_call_in_the_event_loop() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ABANDONED], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert ran.stdout.splitlines() == ["interrupted", "left after ['the cancelled call']"]


def test_lost_reply_is_settled_and_paid_once(server: EmulatorThread) -> None:
    server.faults.add("submit", faults.AcceptThenDrop())
    with session(server, rate_limiter=NoLimit(), sole_user=True, grace=1) as kling:
        assert kling.generate(jobs(1)[0]).output
    assert len(server.charges()) == 1
