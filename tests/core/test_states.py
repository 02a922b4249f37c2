"""The table of states and its predicates."""

from __future__ import annotations

import attrs
import pytest

from kling_async._core import states
from kling_async._core.states import MOVES, Row, State


def cells() -> list[list[str]]:
    """The cells of the module's table, its head first."""
    lines = [line for line in (states.__doc__ or "").splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]


def table() -> dict[State, set[str]]:
    """The predicates of each state, as the module's table has them."""
    head, *rows = cells()
    names = [name.replace(" ", "_") for name in head[2:]]
    return {State[row[0]]: {name for name, cell in zip(names, row[2:], strict=True) if cell} for row in rows}


@pytest.mark.parametrize("state", State)
def test_predicates_are_those_of_the_table(state: State) -> None:
    predicates = set().union(*table().values())
    assert {name for name in predicates if getattr(state, name)} == table()[state]
    for name in predicates:
        assert (state in getattr(states, name.upper())) == (name in table()[state])


def test_labels_are_those_of_the_table() -> None:
    _, *rows = cells()
    assert {State[row[0]]: row[1] for row in rows} == {state: state.label for state in State}


def test_predicates_agree_with_the_moves() -> None:
    for state in State:
        assert state in MOVES
        assert state.ended or not state.unsuccessful
        assert not (state.in_doubt and state.sendable), "a second request could be a second payment"
    assert State.INTENT not in MOVES[State.ABANDONED]
    assert {before for before in State if State.ABANDONED in MOVES[before]} == states.IN_DOUBT


@pytest.mark.parametrize("state", State)
def test_video_of_reused_job_is_there_once_its_row_names_it(state: State) -> None:
    row = Row(batch="", key="a", digest="", model="", state=state, updated_at=0.0)
    made = state in {State.COMPLETED, State.DOWNLOADED}
    assert row.has_video == made
    for named in (attrs.evolve(row, output="clip.mp4"), attrs.evolve(row, path="clip.mp4")):
        assert named.has_video == (made or state is State.REUSED)
