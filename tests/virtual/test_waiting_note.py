"""Notes of the command line about jobs that wait for a slot."""

from __future__ import annotations

import pytest

from kling_async import Job, State
from kling_async.cli.runner import waiting_note
from kling_async.progress._board import Board
from support.service import IMAGE, Service, open_session

pytestmark = pytest.mark.anyio


async def test_slots_of_predictions_that_never_end_are_named() -> None:
    board = Board(3)
    jobs = {key: Job(prompt=key, image=IMAGE) for key in "abc"}
    options = {"max_in_flight": 2, "deadline": 60.0, "forget_after": 600.0}
    session = open_session(Service(seconds=1e9), **options, observers=[board.observer("wavespeed")])
    async with session as kling, kling.batch(jobs) as batch:
        outcomes = aiter(batch)
        assert waiting_note(kling, board, forget_after=600.0) == ""
        for _ in range(2):
            await anext(outcomes)
        assert waiting_note(kling, board, forget_after=600.0) == (
            "1 job waits for a slot: 2 of 2 are held by predictions past their deadline, each until 10:00 after its "
            "start (--forget-after)"
        )
        await anext(outcomes)
        assert waiting_note(kling, board, forget_after=600.0) == ""
    assert board.endings == {State.SUBMITTED: 3}
