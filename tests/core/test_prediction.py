"""Predictions: status words, transitions, failures, and value semantics."""

from __future__ import annotations

import itertools
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import (
    Job,
    NoOutputError,
    Outcome,
    Prediction,
    PredictionFailedError,
    SavedFile,
    Spent,
    Status,
)
from kling_async._core.prediction import TRANSITIONS, newer

URL = "https://outputs.example/video.mp4"
JOB = Job(prompt="She smiles", image="https://pictures.example/face.png")
ENDS: set[Status] = {Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMEOUT, Status.DELETED}


# ---- status words ----


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("created", Status.CREATED),
        ("pending", Status.CREATED),
        ("queued", Status.CREATED),
        ("processing", Status.PROCESSING),
        ("completed", Status.COMPLETED),
        ("failed", Status.FAILED),
        ("cancelled", Status.CANCELLED),
        ("canceled", Status.CANCELLED),
        ("timeout", Status.TIMEOUT),
        ("deleted", Status.DELETED),
        ("COMPLETED", Status.COMPLETED),
        (" Failed\n", Status.FAILED),
    ],
)
def test_status_of_known_words(word: str, status: Status) -> None:
    assert Status.of(word) is status


@given(
    st.text().filter(
        lambda word: word.strip().lower() not in {*(s.value for s in Status), "canceled", "pending", "queued"}
    )
)
@pytest.mark.promise(10)
def test_unknown_status_word_means_running(word: str) -> None:
    assert Status.of(word) is Status.PROCESSING
    assert not Status.of(word).ended


@pytest.mark.parametrize("word", ["succeeded", "success", "error", "expired", "in_progress", "", "complete"])
@pytest.mark.promise(10)
def test_status_words_of_other_services_mean_running(word: str) -> None:
    assert not Status.of(word).ended


# ---- transitions ----


def test_status_transitions() -> None:
    moves = {(seen, read) for seen, read in itertools.product(Status, Status) if newer(seen, read)}
    assert moves == {
        (Status.CREATED, Status.PROCESSING),
        (Status.CREATED, Status.COMPLETED),
        (Status.CREATED, Status.FAILED),
        (Status.CREATED, Status.CANCELLED),
        (Status.CREATED, Status.TIMEOUT),
        (Status.CREATED, Status.DELETED),
        (Status.PROCESSING, Status.COMPLETED),
        (Status.PROCESSING, Status.FAILED),
        (Status.PROCESSING, Status.CANCELLED),
        (Status.PROCESSING, Status.TIMEOUT),
        (Status.PROCESSING, Status.DELETED),
    }


def test_transition_table_is_complete() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {status for status in Status if status.ended} == ENDS


@given(st.lists(st.sampled_from(list(Status)), max_size=20))
def test_stale_status_never_reopens_an_ended_prediction(reads: list[Status]) -> None:
    seen = Status.CREATED
    history = [seen]
    for read in reads:
        if newer(seen, read):
            seen = read
            history.append(seen)
    assert len(history) <= 3
    assert not any(status.ended for status in history[:-1])


# ---- failure() ----


def prediction(status: Status, **fields: Any) -> Prediction:
    return Prediction(id="p1", status=status, raw_status=status.value, key="k1", request_id="r1", **fields)


@pytest.mark.parametrize("status", [Status.CREATED, Status.PROCESSING])
def test_running_prediction_has_no_failure(status: Status) -> None:
    assert prediction(status, error="Sync mode timed out", code=5004).failure() is None


def test_completed_prediction_with_output_has_no_failure() -> None:
    assert prediction(Status.COMPLETED, outputs=(URL,), nsfw=(True,), error="odd", code=1200).failure() is None


def test_completed_prediction_without_output_is_a_paid_failure() -> None:
    error = prediction(Status.COMPLETED).failure(job=JOB)
    assert isinstance(error, NoOutputError)
    assert (error.prediction_id, error.key, error.request_id, error.job) == ("p1", "k1", "r1", JOB)
    assert error.spent is Spent.YES


@pytest.mark.parametrize("status", [status for status in Status if status in ENDS - {Status.COMPLETED}])
def test_failed_end_becomes_prediction_failed_error(status: Status) -> None:
    ended = attrs.evolve(prediction(status, error="it broke", code=1403), raw_status="Odd-Word")
    error = ended.failure(job=JOB)
    assert isinstance(error, PredictionFailedError)
    assert (error.prediction, error.prediction_id, error.key, error.job) == (ended, "p1", "k1", JOB)
    assert error.code == 1403
    assert str(error).startswith("the prediction ended as Odd-Word with code 1403: it broke (job k1, prediction p1,")


@pytest.mark.parametrize(
    ("code", "spent", "advice"),
    [
        (1200, Spent.YES, "change the prompt or the image"),
        (1400, Spent.REFUNDABLE, "correct the parameters"),
        (1401, Spent.REFUNDABLE, "correct the parameters"),
        (1402, Spent.REFUNDABLE, "upload it again"),
        (1403, Spent.REFUNDABLE, "submit the job again"),
        (1405, Spent.REFUNDABLE, "submit the job again"),
        (1407, Spent.REFUNDABLE, "top up"),
        (5000, Spent.REFUNDABLE, "submit the job again later"),
        (5003, Spent.REFUNDABLE, "submit the job again later"),
        (5004, Spent.REFUNDABLE, "submit the job again later"),
        (9999, Spent.REFUNDABLE, "read the service's error text"),
        (None, Spent.REFUNDABLE, "read the service's error text"),
    ],
)
def test_task_codes_set_spent_and_advice(code: int | None, spent: Spent, advice: str) -> None:
    error = prediction(Status.FAILED, code=code).failure()
    assert isinstance(error, PredictionFailedError)
    assert (error.code, error.spent) == (code, spent)
    assert advice in error.advice


# ---- values ----


def test_prediction_is_plain_data() -> None:
    one = prediction(Status.COMPLETED, outputs=(URL,), raw={"id": "p1"})
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(attrs.evolve(one, raw={}))
    assert one.output == URL
    assert prediction(Status.CREATED).output is None
    assert "raw=" not in repr(one), "the record may be long"


def test_outcome_unwrap_returns_prediction_or_raises() -> None:
    done = prediction(Status.COMPLETED, outputs=(URL,))
    outcome = Outcome(job=JOB, key="k1", index=0, prediction=done, cost=Decimal("0.28"))
    assert outcome.ok
    assert outcome.unwrap() is done
    failed = prediction(Status.FAILED)
    error = failed.failure()
    assert error is not None
    outcome = Outcome(job=JOB, key="k1", index=0, prediction=failed, error=error)
    assert not outcome.ok
    with pytest.raises(PredictionFailedError) as caught:
        outcome.unwrap()
    assert caught.value is error


def test_saved_file_is_path_like(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    saved = SavedFile(path, 5, "0" * 64)
    assert Path(saved).read_bytes() == b"video"
    assert str(saved) == str(path)
