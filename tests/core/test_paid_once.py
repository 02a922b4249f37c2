"""The decisions on which it depends that nothing is paid for twice, as values."""

from __future__ import annotations

import pytest

from kling_async._core.reconciliation import Doubt, Held, Intent, Orphan, Unaccepted, settle
from kling_async._core.states import MOVES, Entry, Row, State

NAME = ("b", "a")


def row(state: State) -> Row:
    return Row(batch="b", key="a", digest="d", model="m", state=state, updated_at=1.0, attempt=1)


@pytest.mark.promise(1)
def test_intent_does_not_follow_an_intent() -> None:
    """A second request for it would be a second payment."""
    step = Entry(batch="b", key="a", state=State.INTENT, at=2.0, attempt=2)
    with pytest.raises(ValueError, match="cannot go from intent to intent"):
        row(State.INTENT).after(step)


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    "state", [state for state in State if state.in_doubt or state.unsaved or state is State.ABANDONED]
)
def test_intent_does_not_follow_what_may_have_been_paid_for(state: State) -> None:
    assert State.INTENT not in MOVES[state]
    with pytest.raises(ValueError, match="cannot go from"):
        row(state).after(Entry(batch="b", key="a", state=State.INTENT, at=2.0, attempt=2))


@pytest.mark.promise(1)
def test_step_of_an_earlier_version_is_refused() -> None:
    """Evidence about one attempt does not settle the next one."""
    found = row(State.UNCERTAIN)
    step = Entry(batch="b", key="a", state=State.PENDING, at=2.0, expected_version=(State.UNCERTAIN, 0))
    with pytest.raises(ValueError, match="has moved on"):
        found.after(step)


def intent(key: str = "a", **options: object) -> Intent:
    values: dict[str, object] = {"name": ("b", key), "model": "m", "fingerprint": f"{key}:x", "sent_from": 100.0}
    return Intent(**values | options)  # type: ignore[arg-type]  # as given


@pytest.mark.promise(1)
def test_absence_from_a_history_that_was_read_too_early_shows_nothing() -> None:
    ends = settle([intent()], [], ripe=(), alone=True)
    assert ends == {NAME: Held(Doubt.WHETHER, ())}
    assert settle([intent()], [], ripe={NAME}, alone=True) == {NAME: Unaccepted()}


@pytest.mark.promise(1)
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    "orphan",
    [
        Orphan(id="o", model="", created_at=None),
        Orphan(id="o", model="m", created_at=100.0),
        Orphan(id="o", model="", created_at=5.0, fingerprint="a:x"),
        Orphan(id="o", model="", created_at=None, fingerprint="a:other image"),
    ],
    ids=["nothing known", "model and time", "echo", "echo with another image"],
)
def test_job_with_a_possible_orphan_is_not_unaccepted(orphan: Orphan, *, alone: bool) -> None:
    for ripe in ({NAME}, set[tuple[str, str]]()):
        (end,) = settle([intent()], [orphan], ripe=ripe, alone=alone).values()
        assert not isinstance(end, Unaccepted)


@pytest.mark.promise(1)
def test_two_intents_never_adopt_one_orphan() -> None:
    first, second = intent("a", fingerprint="f:x"), intent("b", fingerprint="f:x")
    orphan = Orphan(id="o", model="", created_at=200.0, fingerprint="f:x")
    ends = settle([first, second], [orphan], ripe={first.name, second.name}, alone=True)
    assert sorted(type(end).__name__ for end in ends.values()) == ["Adopted", "Unaccepted"]
