"""Contract of ledgers."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING

import attrs

from kling_async._core.content import IDENTITY_VERSION, Content
from kling_async._core.reconciliation import Doubt
from kling_async._core.states import MOVES, Entry, State
from kling_async.errors import KeyReusedError, LedgerError

from ._patience import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.states import Row
    from kling_async.ledger import Ledger

_CONCURRENT_JOBS = 100
_BATCH = "check"
_TEXT = '{"prompt":"a"}'
_OTHER = '{"prompt":"b"}'
_DIGEST = Content(_TEXT).digest


async def check_ledger(make: Callable[[], Ledger]) -> None:
    """Check that a ledger satisfies the contract of `Ledger`.

    Args:
        make: Returns a ledger that is not open yet; empty the first time. A durable one is closed in the end and made a
            second time, and that one must have the rows of the first one.

    Raises:
        AssertionError: It breaks the contract; the message says how.
    """
    ledger = make()
    await ledger.open()
    try:
        identity = await _identity(ledger)
        await _claims(ledger)
        await _moves(ledger)
        submitted = await _finds(ledger)
        await _concurrent_steps(ledger)
        await _retries(ledger)
        await _doubts(ledger)
        ledger.note(_step("k", State.COMPLETED, 7.0, output="https://outputs.example/p.mp4"))
    finally:
        await ledger.aclose()
    if not ledger.durable:
        return
    again = make()
    await again.open()
    try:
        kept = await again.identity(_BATCH)
        require(kept == identity, f"`identity` of a batch was {identity}, and is {kept} after opening it again")
        row = await _claim(again, "k")
        require(
            row.state is State.COMPLETED and row.output == "https://outputs.example/p.mp4",
            "what was noted before it was closed is not there when it is opened again",
        )
        require(
            row.prediction_id == submitted.prediction_id and row.cost == submitted.cost,
            "what was recorded is not there when it is opened again",
        )
        open_ = await again.rows([State.SUBMITTED])
        require(
            len(open_) == _CONCURRENT_JOBS,
            f"{_CONCURRENT_JOBS} jobs were submitted, and {len(open_)} are found after opening it again",
        )
    finally:
        await again.aclose()


async def _identity(ledger: Ledger) -> int:
    identity = await ledger.identity(_BATCH)
    require(identity == IDENTITY_VERSION, f"`identity` of a new batch is {IDENTITY_VERSION}, and was {identity}")
    again = await ledger.identity(_BATCH)
    require(again == identity, f"`identity` of a batch was {identity}, and then {again}")
    return identity


def _step(key: str, state: State, at: float = 1.0, **known: str | Decimal | int | Doubt | tuple[str, ...]) -> Entry:
    return Entry(batch=_BATCH, key=key, state=state, at=at, **known)  # type: ignore[arg-type]  # each by its name


async def _claim(ledger: Ledger, key: str, *, batch: str = _BATCH, text: str = _TEXT) -> Row:
    return await ledger.claim(batch, key, content=Content(text), model="model", at=0.0)


async def _claims(ledger: Ledger) -> None:
    row = await _claim(ledger, "k")
    actual = (row.batch, row.key, row.digest, row.model, row.state, row.attempt)
    expected = (_BATCH, "k", _DIGEST, "model", State.PENDING, 0)
    require(actual == expected, f"a new row is {expected}, and `claim` gave {actual}")
    require(await _claim(ledger, "k") == row, "a second `claim` of the same job did not give the same row")
    try:
        await _claim(ledger, "k", text=_OTHER)
    except KeyReusedError:
        pass
    else:
        raise AssertionError("`claim` of the same key with other content did not raise KeyReusedError")
    try:
        row = await _claim(ledger, "k")
    except KeyReusedError as error:
        raise AssertionError("a refused `claim` changed the row") from error
    require(row.digest == _DIGEST, "a refused `claim` changed the row")
    try:
        row = await _claim(ledger, "k", batch="other", text=_OTHER)
    except KeyReusedError as error:
        raise AssertionError("the same key in two batches names two jobs, and `claim` took it for one") from error
    require(row.batch == "other", "the same key in two batches names two jobs, and `claim` took it for one")


async def _moves(ledger: Ledger) -> None:
    await _claim(ledger, "given up")
    ledger.unclaim(_BATCH, "given up")
    row = await _claim(ledger, "given up")
    require(row.state is State.PENDING, f"`unclaim` of a pending row left it {row.state.value}")
    ledger.unclaim(_BATCH, "given up")
    await _refused(ledger, "never claimed", State.INTENT, "a job that was never claimed")
    before = await _claim(ledger, "k")
    for state in sorted(set(State) - MOVES[State.PENDING] - {State.PENDING}, key=lambda state: state.value):
        await _refused(ledger, "k", state, f"the move from pending to {state.value}")
        require(await _claim(ledger, "k") == before, f"the refused move from pending to {state.value} changed the row")


async def _refused(ledger: Ledger, key: str, state: State, what: str) -> None:
    try:
        await ledger.record(_step(key, state))
    except LedgerError:
        return
    raise AssertionError(f"`record` of {what} did not raise LedgerError")


async def _finds(ledger: Ledger) -> Row:
    row = await ledger.record(_step("k", State.INTENT, 5.0, attempt=1, fingerprint="f"))
    actual = (row.state, row.attempt, row.fingerprint, row.intent_at, row.updated_at)
    require(actual == (State.INTENT, 1, "f", 5.0, 5.0), f"`record` of an intent left (state, attempt, ...) {actual}")
    require(await _names(ledger, State.INTENT) == ["k"], "`rows` does not find an intent")
    row = await ledger.record(_step("k", State.SUBMITTED, 6.0, prediction_id="p", cost=Decimal("0.45")))
    submitted = (row.prediction_id, row.submitted_at, row.cost, row.fingerprint, row.attempt)
    require(submitted == ("p", 6.0, Decimal("0.45"), "f", 1), f"`record` of a submission left (id, ...) {submitted}")
    try:
        await ledger.record(attrs.evolve(_step("k", State.SUBMITTED), expected_version=(State.UNCERTAIN, 1)))
    except LedgerError:
        pass
    else:
        raise AssertionError("`record` took a step that follows from another version of the row (`expected_version`)")
    require(await _claim(ledger, "k") == row, "`claim` does not give the row that `record` left")
    require(await _names(ledger, State.SUBMITTED) == ["k"], "`rows` does not find a submission")
    require(await _names(ledger, State.INTENT) == [], "`rows` finds a job in a state that it has left")
    found = [name for name in await _names(ledger, *State) if name == "k"]
    require(found == ["k", "k"], "`rows` is to find every batch's")
    known = await ledger.known(["p", "q"])
    require(
        known == {"p": ("f", "model")}, f"`known` is to give ids with their fingerprint and model, and gave {known}"
    )
    owner = await ledger.owner("p")
    require(owner == row if ledger.durable else owner in (None, row), f"`owner` did not give the row: {owner!r}")
    require(await ledger.owner("q") is None, "`owner` of an unknown id is to be None")
    return row


async def _retries(ledger: Ledger) -> None:
    """Check that a failed prediction stays known when its job is paid for again: else it could be adopted for it."""
    await _claim(ledger, "again")
    for step in (
        _step("again", State.INTENT, attempt=1, fingerprint="f"),
        _step("again", State.SUBMITTED, prediction_id="failed"),
        _step("again", State.FAILED, prediction_id="failed"),
    ):
        await ledger.record(step)
    await _claim(ledger, "again")
    await ledger.record(_step("again", State.INTENT, attempt=2, fingerprint="f"))
    known = await ledger.known(["failed"])
    require("failed" in known, "`known` has forgotten the prediction of an earlier attempt, which was paid for")
    await ledger.record(_step("again", State.REJECTED))


async def _doubts(ledger: Ledger) -> None:
    """Check that the kind of a doubt and its candidates are kept, also by a step that has neither."""
    candidates = ("p, q", 'r"; candidates: none', "\N{SNOWMAN}")
    row = await _claim(ledger, "doubt")
    for step in (
        _step("doubt", State.INTENT, attempt=1, fingerprint="f"),
        _step("doubt", State.UNCERTAIN, doubt=Doubt.WHOSE, candidates=candidates),
        _step("doubt", State.UNCERTAIN, error="x"),
    ):
        row = await ledger.record(step)
    for found in (row, *(row for row in await ledger.rows([State.UNCERTAIN]) if row.key == "doubt")):
        actual = (found.doubt, found.candidates)
        require(actual == (Doubt.WHOSE, candidates), f"a doubt was {(Doubt.WHOSE, candidates)}, and is {actual}")
    row = await ledger.record(_step("doubt", State.ABANDONED))
    require(row.state is State.ABANDONED, f"`record` of a job that is given up left it {row.state.value}")


async def _names(ledger: Ledger, *states: State) -> list[str]:
    return sorted(row.key for row in await ledger.rows(states))


async def _concurrent_steps(ledger: Ledger) -> None:
    async def one(number: int) -> None:
        key = f"many {number}"
        await _claim(ledger, key)
        await ledger.record(_step(key, State.INTENT, fingerprint="f"))
        await ledger.record(_step(key, State.SUBMITTED, prediction_id=f"p{number}"))

    await asyncio.gather(*map(one, range(_CONCURRENT_JOBS)))
    found = len(await ledger.rows([State.SUBMITTED]))
    require(
        found == _CONCURRENT_JOBS + 1, f"{_CONCURRENT_JOBS + 1} jobs were submitted at once, and `rows` finds {found}"
    )
