from __future__ import annotations

import io
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import attrs
import pytest
from rich.console import Console

from kling_async import AuthenticationError, Job, KlingError, Outcome, Prediction, RateLimitedError, SavedFile, Status
from kling_async import events as ev
from kling_async._core.states import State
from kling_async._core.text import one_line
from kling_async.cli.ledgers import LedgerName
from kling_async.cli.output import format_duration, format_size
from kling_async.cli.reading import Summary, Writers
from kling_async.cli.status import _render, _Status
from kling_async.errors import (
    ConnectFailedError,
    PredictionFailedError,
    RequestRejectedError,
    SkippedError,
    SubmissionUncertainError,
)
from kling_async.progress._board import Board
from kling_async.progress._display import LiveProgress, PlainProgress, new_display
from kling_async.testing import LoopClock

JOB = Job(model="kling-v2.1-pro", prompt="Waves", image="https://e.com/a.png")


class StillClock:
    def now(self) -> float:
        return 100.0

    def monotonic(self) -> float:
        return 100.0

    async def sleep(self, seconds: float, /) -> None:
        raise AssertionError("the display does not sleep on this clock")


def admitted(key: str) -> ev.Event:
    return ev.Admitted(at=100.0, key=key, job=JOB)


def accepted(key: str, *, at: float = 101.0) -> ev.Event:
    return ev.Accepted(at=at, key=key, job=JOB, prediction=Prediction(id=f"id-{key}", key=key))


def changed(key: str, status: Status) -> ev.Event:
    prediction = Prediction(id=f"id-{key}", key=key, status=status, raw_status=status.value)
    return ev.Changed(at=130.0, key=key, prediction=prediction)


def finished(key: str, error: KlingError | None = None, *, paid: bool = True) -> ev.Event:
    prediction = Prediction(id=f"id-{key}", key=key) if paid else None
    return ev.Finished(
        at=140.0, key=key, outcome=Outcome(job=JOB, key=key, index=0, prediction=prediction, error=error)
    )


def refusal() -> AuthenticationError:
    return AuthenticationError("the key is wrong", status=401)


def test_board_counts_job_from_waiting_to_done() -> None:
    board = Board(2)
    seen = []
    for event in (
        admitted("a"),
        accepted("a"),
        changed("a", Status.PROCESSING),
        changed("a", Status.COMPLETED),
        finished("a"),
    ):
        board.update(event, "wavespeed")
        seen.append((board.waiting, len(board.running) - board.saving, board.saving, board.done))
    assert seen == [(2, 0, 0, 0), (1, 1, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    assert board.spent == Decimal("0.45")
    assert board.unsaved == {}


def test_refused_job_costs_nothing() -> None:
    board = Board()
    for event in (admitted("a"), finished("a", refusal(), paid=False)):
        board.update(event, "wavespeed")
    assert (board.waiting, board.endings, board.spent) == (0, {State.SKIPPED: 1}, Decimal(0))
    assert not board.unsaved


def test_paid_jobs_without_video_stay_unsaved() -> None:
    board = Board()
    for key in "abc":
        board.update(admitted(key), "wavespeed")
        board.update(accepted(key), "wavespeed")
    board.update(changed("a", Status.FAILED), "wavespeed")
    board.update(changed("b", Status.COMPLETED), "wavespeed")
    board.update(finished("b", KlingError("the disk is full")), "wavespeed")
    assert board.unsaved == {"id-b": "b", "id-c": "c"}


def test_unpriced_and_uncertain_jobs_are_counted_separately() -> None:
    board = Board()
    board.update(accepted("a"), "gptproto")
    board.update(ev.Uncertain(at=1.0, key="b", job=JOB, error=SubmissionUncertainError("?")), "gptproto")
    assert (board.spent, board.unpriced, board.uncertain) == (Decimal(0), 1, {("", "b")})


def test_time_left_follows_latest_rate() -> None:
    board = Board(100)
    for number in range(9):
        board.update(attrs.evolve(finished(str(number)), at=100.0 + number), "wavespeed")
    assert (board.rate(109.0), board.seconds_left(109.0)) == (None, None), "too few to tell"
    board.update(attrs.evolve(finished("9"), at=109.0), "wavespeed")
    assert (board.rate(110.0), board.seconds_left(110.0)) == (1.0, 90.0)
    # Without further ends the estimate grows.
    assert board.seconds_left(120.0) == pytest.approx(180.0)
    for number in range(10, 100):
        board.update(attrs.evolve(finished(str(number)), at=120.0), "wavespeed")
    assert board.seconds_left(121.0) == 0
    unknown = Board()
    for number in range(10):
        unknown.update(attrs.evolve(finished(str(number)), at=100.0), "wavespeed")
    assert (unknown.rate(110.0), unknown.seconds_left(110.0)) == (1.0, None)


def test_doubt_that_was_settled_is_not_counted() -> None:
    board = Board()
    for event in (
        ev.Uncertain(at=1.0, key="a", job=JOB, error=SubmissionUncertainError("?")),
        accepted("a"),
        ev.Uncertain(at=1.0, key="b", job=JOB, error=SubmissionUncertainError("?")),
        finished("b", RequestRejectedError("too long", status=400), paid=False),
    ):
        board.update(event, "wavespeed")
    assert (board.uncertain, board.endings) == (set(), {State.REJECTED: 1})


def test_jobs_that_could_not_be_sent_are_still_waiting() -> None:
    board = Board(4)
    for event in (admitted("a"), accepted("a"), admitted("b"), admitted("c")):
        board.update(event, "wavespeed")
    board.draining = True
    for event in (finished("b", SkippedError("drained"), paid=False), finished("a")):
        board.update(event, "wavespeed")
    board.update(finished("c", ConnectFailedError("no connection"), paid=False), "wavespeed")
    assert (board.waiting, board.done, board.ended, board.endings) == (3, 1, 1, {State.PENDING: 2})


def test_same_key_in_two_batches_is_two_jobs() -> None:
    board = Board()
    for batch in ("x", "y"):
        event = ev.Accepted(at=1.0, key="a", batch=batch, job=JOB, prediction=Prediction(id=batch))
        board.update(event, "wavespeed")
    assert len(board.running) == 2


def test_plain_progress_prints_one_line_per_event() -> None:
    text = io.StringIO()
    display = new_display(Console(file=text, width=200), StillClock())
    assert isinstance(display, PlainProgress)
    observe = display.observer("wavespeed")
    error = RateLimitedError("too many", status=429)
    saved = ev.Saved(at=139.0, key="a", file=SavedFile(Path("videos/a.mp4"), 1_234_567, "0"))
    for event in (
        admitted("a"),
        ev.Refused(at=100.5, key="a", job=JOB, error=error, again=4.0),
        accepted("a"),
        changed("a", Status.PROCESSING),
        saved,
        finished("a"),
        finished("[red]b\x1b[2J\n", PredictionFailedError("no\nvideo")),
        finished("c", ConnectFailedError("no connection"), paid=False),
    ):
        observe(event)
    assert text.getvalue().replace("\N{REPLACEMENT CHARACTER}", "?").splitlines() == [
        "     0.5 s  again       a  in 4 s: too many",
        "     1.0 s  accepted    a  kling-v2.1-pro 5 s, price $0.45, prediction id-a",
        "    30.0 s  processing  a",
        "    39.0 s  saved       a  videos/a.mp4 (1.2 MB)",
        "    40.0 s  FAILED      [red]b?[2J?  no?video",
        "    40.0 s  waiting     c  no connection",
    ]


HASH = "02981234ae7c0eef"
"""Key of a job without a key of its caller's."""


def test_job_without_a_key_is_shown_by_the_name_of_its_picture() -> None:
    text = io.StringIO()
    observe = new_display(Console(file=text, width=200), StillClock()).observer("wavespeed")
    again = ev.Retrying(at=131.0, key=HASH, job=JOB, prediction=Prediction(id="p", error="broken"), again=2.0)
    for event in (accepted(HASH), changed(HASH, Status.PROCESSING), again, finished(HASH, refusal())):
        observe(event)
    lines = text.getvalue().splitlines()
    assert all(f"  a ({HASH})" in line for line in lines), lines
    assert len(lines) == 4


@pytest.mark.anyio
async def test_terminal_shows_names_of_pictures_for_hashes() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, height=20, color_system=None, _environ={})
    display = new_display(console, StillClock(), total=2)
    observe = display.observer("wavespeed")
    async with display:
        for key in (HASH, "b"):
            observe(accepted(key))
        assert isinstance(display, LiveProgress)
        display._live.refresh()
        observe(finished(HASH, PredictionFailedError("no video")))
    shown = re.sub(" +", " ", text.getvalue())
    assert "a kling-v2.1-pro 5 s created" in shown
    assert "b kling-v2.1-pro 5 s created" in shown
    assert "✗ a no video" in shown
    assert HASH not in shown


def test_account_wide_error_is_printed_once() -> None:
    text = io.StringIO()
    observe = new_display(Console(file=text, width=200), StillClock()).observer("wavespeed")
    for number in range(5):
        observe(finished(f"job {number}", refusal() if number < 3 else SkippedError("stopped"), paid=False))
    assert text.getvalue().count("skipped") == 1


@pytest.mark.anyio
async def test_live_progress_draws_and_failures_stay() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, height=20, color_system=None, _environ={})
    display = new_display(console, StillClock(), total=40)
    assert isinstance(display, LiveProgress)
    observe = display.observer("wavespeed")
    async with display:
        for number in range(30):
            observe(admitted(f"job-{number}"))
            observe(accepted(f"job-{number}", at=60.0 + number))
        observe(changed("job-29", Status.COMPLETED))
        observe(finished("job-3", PredictionFailedError("no video")))
        stopped = SkippedError("never submitted")
        stopped.__cause__ = refusal()
        observe(finished("job-30", stopped, paid=False))
        display.board.waiting_reason = lambda: "waiting for the rate"
        display._live.refresh()
    shown = re.sub(" +", " ", text.getvalue())
    assert "waiting for the rate" in shown
    assert "9 waiting ● 28 running ↓ 1 saving ✓ 0 done ✗ 1 failed - 1 skipped" in shown
    assert "$13.50 spent" in shown
    assert "job-29 kling-v2.1-pro 5 s saving 0:11" in shown
    assert "job-0 kling-v2.1-pro 5 s created 0:40" in shown
    assert "and 18 more" in shown
    assert "✗ job-3 no video" in shown


@pytest.mark.anyio
async def test_quiet_progress_counts_without_output() -> None:
    text = io.StringIO()
    display = new_display(Console(file=text, force_terminal=True), LoopClock(), quiet=True)
    async with display:
        display.observer("wavespeed")(accepted("a"))
    assert (text.getvalue(), display.board.accepted) == ("", 1)


def test_formatters() -> None:
    assert [format_duration(seconds) for seconds in (0.2, 59.6, 3723)] == ["0:00", "1:00", "1:02:03"]
    assert [format_size(count) for count in (10, 81_200, 3_400_000)] == ["1 KB", "81 KB", "3.4 MB"]
    assert one_line("ü\u202e\x07") == "ü\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


def test_status_of_many_states_holds_at_80_columns() -> None:
    counts = Counter({state: 100 + place for place, state in enumerate(State)})
    batch = Summary("spring", states=counts, spent=Decimal("123.45"), refunded=Decimal("1.50"))
    few = Summary("again", states=Counter({State.DOWNLOADED: 7}), spent=Decimal("1.75"))

    def shown(*batches: Summary) -> str:
        text = io.StringIO()
        console = Console(file=text, width=80, force_terminal=True, color_system=None)
        console.print(_render(console, _Status(LedgerName(Path("run.db")), Writers(), batches)))
        return text.getvalue()

    assert re.search(r"batch +jobs +saved +spent", shown(few))
    words = " ".join(shown(batch, few).split())
    assert "spring: 1378 jobs: 201 waiting, " in words
    assert "$123.45 spent, $1.50 refunded again: 7 jobs: 7 saved; $1.75 spent" in words
