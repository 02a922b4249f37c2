"""Contract of ledgers."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from operator import attrgetter
from typing import TYPE_CHECKING

import attrs

from kling_async._core.content import Content, Identity
from kling_async._core.reconciliation import Doubt
from kling_async._core.secret import Secret
from kling_async._core.sender import new_sender
from kling_async._core.states import MOVES, Entry, Known, State
from kling_async.errors import ConfigurationError, KeyReusedError, LedgerError

from ._patience import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from kling_async._core.sender import Sender
    from kling_async._core.states import Row
    from kling_async.ledger import Ledger

_CONCURRENT_JOBS = 100
_BATCH = "check"
_TEXT = '{"prompt":"a"}'
_OTHER = '{"prompt":"b"}'
_BOTH = '{"prompt":"c"}'
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
        await _identities(ledger)
        await _claims(ledger)
        await _moves(ledger)
        submitted = await _finds(ledger)
        await _concurrent_steps(ledger)
        await _retries(ledger)
        await _doubts(ledger)
        senders = await _senders(ledger)
        ledger.note(_step("k", State.COMPLETED, 7.0, output="https://outputs.example/p.mp4"))
    finally:
        await ledger.aclose()
    if not ledger.durable:
        return
    again = make()
    await again.open()
    try:
        await _identities(again)
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
        require(_by_id(await again.senders()) == senders, "`senders` has forgotten some after opening it again")
        await _paid_elsewhere(again)
    finally:
        await again.aclose()


async def _identities(ledger: Ledger) -> None:
    """Check that a batch keeps the identity that it was begun with, also in a ledger that is opened again."""
    ignored = ("token", "v")
    for batch, names in ((_BATCH, None), ("ignores", ignored), ("ignores too", ignored), ("ignores nothing", ())):
        expected = Identity(ignored=names or ())
        for asked in (names, None):
            found = await ledger.identity(batch, ignored=asked)
            require(found == expected, f"`identity` of the batch {batch!r} is {expected}, and was {found}")
        try:
            await ledger.identity(batch, ignored=("other",))
        except ConfigurationError:
            pass
        else:
            raise AssertionError("`identity` with other parameters than the batch's did not raise ConfigurationError")
    sets = await ledger.ignored_parameters()
    require(sets == [ignored], f"`ignored_parameters` is to give {[ignored]}, and gave {sets}")


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
    row = await ledger.record(_step("k", State.INTENT, 5.0, attempt=1, fingerprint="f", sender="s"))
    actual = (row.state, row.attempt, row.fingerprint, row.sender, row.intent_at, row.updated_at)
    require(
        actual == (State.INTENT, 1, "f", "s", 5.0, 5.0), f"`record` of an intent left (state, attempt, ...) {actual}"
    )
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
        known == {"p": Known("f", "model", "s")},
        f"`known` is to give ids with their fingerprint, model and sender, and gave {known}",
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


async def _paid_elsewhere(ledger: Ledger) -> None:
    """Check that jobs of other batches are found, and that one of two claimed jobs at most is to be sent."""

    async def names(batch: str, key: str, text: str = _TEXT, *, any_key: bool = False) -> list[tuple[str, str]]:
        digests = [Content("unknown").digest, Content(text).digest]
        found = await ledger.paid_elsewhere(batch, key, digests=digests, any_key=any_key)
        return sorted((row.batch, row.key) for row in found)

    async def gives(expected: list[tuple[str, str]], what: str, *of: str) -> None:
        found = await names(*of)
        require(found == expected, f"`paid_elsewhere` of {what} is to give {expected}, and gave {found}")

    await gives([(_BATCH, "k")], "a job that another batch has paid for", "third", "k")
    await gives([(_BATCH, "doubt")], "a job that another batch has given up in doubt", "third", "doubt")
    await gives([], "a job that another batch has sent and that was refused", "third", "again")
    await gives([], "a job that was never sent", "third", "given up")
    await gives([], "a job that its own batch has paid for", _BATCH, "k")
    await gives([], "a job with other content", "third", "k", _OTHER)
    await gives([], "a job with another key", "third", "another")
    found = await names("third", "another", any_key=True)
    require((_BATCH, "k") in found, f"`paid_elsewhere` with any key is to give {(_BATCH, 'k')}, too, and gave {found}")
    for batch in ("first", "second"):
        await _claim(ledger, "both", batch=batch, text=_BOTH)
    await gives([], "the first of two claimed jobs", "first", "both", _BOTH)
    await gives([("first", "both")], "the second of two claimed jobs", "second", "both", _BOTH)
    ledger.unclaim("first", "both")
    await gives([], "a job when the other one was released", "second", "both", _BOTH)
    ledger.unclaim("second", "both")
    await _claim(ledger, "both", batch="second", text=_BOTH)
    row = await ledger.record(attrs.evolve(_step("both", State.REUSED, reused="p"), batch="second"))
    actual = (row.state, row.reused, row.spent)
    require(actual == (State.REUSED, "p", None), f"`record` of a reused job left (state, reused, spent) {actual}")
    await gives([], "a job that another batch has reused", "first", "both", _BOTH)
    ledger.unclaim("second", "both")


async def _senders(ledger: Ledger) -> list[Sender]:
    """Check that senders are kept, and that the account of one can change."""
    first = new_sender("wavespeed", "https://a.example", Secret("key-1"))
    second = new_sender("wavespeed", "https://a.example", Secret("key-2"))
    for sender in (first, second, attrs.evolve(second, same_as=first.id)):
        await ledger.put_sender(sender)
    expected = _by_id([first, attrs.evolve(second, same_as=first.id)])
    found = _by_id(await ledger.senders())
    require(found == expected, f"`senders` is to give {expected}, and gave {found}")
    return expected


def _by_id(senders: list[Sender]) -> list[Sender]:
    return sorted(senders, key=attrgetter("id"))


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
