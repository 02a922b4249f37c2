"""Table of final answers: how often and over how long each must be said."""

from __future__ import annotations

import pytest

from kling_async import (
    ApiError,
    AuthenticationError,
    ConnectFailedError,
    ConnectionLostError,
    KlingError,
    NotFoundError,
    RequestRejectedError,
    ServerError,
    TransportTimeoutError,
)
from kling_async._core.answers import RULES, Answers, Kind, final_answer


def gone(status: int = 404, *, code: int | None = 404) -> NotFoundError:
    return NotFoundError("no such prediction", status=status, code=code, raw={"code": 404})


@pytest.mark.parametrize("kind", Kind)
def test_every_final_answer_must_be_repeated_over_time(kind: Kind) -> None:
    for final in RULES[kind].final:
        assert final.times >= 3
        assert 0 < final.over < RULES[kind].within
    statuses = [status for final in RULES[kind].final for status in final.statuses]
    assert len(statuses) == len(set(statuses)), "one rule per status"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(gone(), 404, id="status"),
        pytest.param(gone(200), 404, id="envelope"),
        pytest.param(NotFoundError("no", status=404, raw={"error": {"message": "no"}}), 404, id="other dialect"),
        pytest.param(AuthenticationError("no", status=403, raw={"error": "invalid token"}), 401, id="key, by 403"),
        pytest.param(NotFoundError("no", status=404, raw="404 page not found"), None, id="page"),
        pytest.param(NotFoundError("no", status=404, raw={"detail": "Not Found"}), None, id="object of a gateway"),
        pytest.param(RequestRejectedError("no", status=403, raw={"code": 403}), None, id="passing status"),
        pytest.param(ConnectionLostError("cut"), None, id="no reply"),
    ],
)
def test_final_answers_to_status_reads_are_well_formed(error: KlingError, status: int | None) -> None:
    final = final_answer(Kind.STATUS, error)
    assert (final is None) == (status is None)
    if final is not None:
        assert status in final.statuses


def test_answer_is_final_by_count_and_by_time() -> None:
    often = Answers(Kind.STATUS)
    assert not any(often.add(gone(), at) for at in range(60))
    assert often.add(gone(410, code=None), 60)
    rare = Answers(Kind.STATUS)
    assert [rare.add(gone(), at) for at in (0, 100, 200, 300)] == [False, False, False, True]


def test_other_answers_start_the_count_again() -> None:
    answers = Answers(Kind.STATUS)
    for at, error in enumerate([gone(), gone(), gone(), ServerError("no", status=502)]):
        assert not answers.add(error, at * 100)
    assert [answers.add(gone(), 400 + at * 50) for at in range(4)] == [False, False, False, True]


def test_text_counts_each_answer() -> None:
    answers = Answers(Kind.CALL)
    errors: list[KlingError] = [
        ServerError("no", status=503),
        ServerError("no", status=503),
        ServerError("no", status=200, code=500),
        ApiError("no", status=200),
        ConnectFailedError("no"),
        ConnectionLostError("no"),
        TransportTimeoutError("no"),
    ]
    for at, error in enumerate(errors):
        answers.add(error, 10.0 + at)
    assert str(answers) == (
        "answers within 6 s: 2 x HTTP 503, 1 x HTTP 200 with code 500, 1 x HTTP 200 in an unknown form, "
        "1 x no connection, 1 x connection lost, 1 x no reply in time"
    )


def test_refusal_that_may_pass_is_raised_as_transient() -> None:
    answers = Answers(Kind.CALL)
    refused = RequestRejectedError("refused", status=408, request_id="r1", raw={"code": 408})
    answers.add(refused, 0.0)
    assert answers.raised(refused, final=True) is refused
    assert refused.message == "refused"
    answers.add(refused, 3.0)
    passing = answers.raised(refused, final=False)
    assert isinstance(passing, ServerError)
    assert (passing.status, passing.request_id, passing.raw) == (408, "r1", {"code": 408})
    assert passing.transient
    assert not passing.permanent
    assert passing.message == "refused; answers within 3 s: 2 x HTTP 408"
    final = answers.raised(refused, final=True)
    assert final is refused
    assert str(final).startswith("refused; answers within 3 s: 2 x HTTP 408")
