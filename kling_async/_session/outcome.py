"""Run one job to its outcome: used by batches, workers and the job service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from kling_async import events
from kling_async._core.prediction import Outcome, Prediction, SavedFile
from kling_async._tasks import is_cancelled
from kling_async.errors import KlingError, PredictionError, Spent

if TYPE_CHECKING:
    from kling_async.storage import Outputs

    from .engine import SessionEngine
    from .job_run import JobRun


async def run_to_outcome(
    engine: SessionEngine,
    run: JobRun,
    *,
    save_to: Outputs | None = None,
    refused: KlingError | None = None,
    index: int = 0,
) -> Outcome:
    """Run a job to its end and save its video. Every failure is an outcome; only cancellation of the task is raised.

    The caller counts the outcome, and publishes it by `publish_finished`. An account-wide error is set as
    `run.drain.stopped`, so that no other job of the batch is sent.

    Args:
        engine: The session's engine.
        run: The job. Ids and costs of accepted predictions are written into it.
        save_to: Where to save the video; None saves nothing.
        refused: The error of a job that cannot be run; None runs it.
        index: Position of the job in its input, from 0.
    """
    prediction: Prediction | None = None
    saved: SavedFile | None = None
    error: KlingError | None
    engine.observe(events.Admitted, at=engine.clock.now(), key=run.key, batch=run.batch, job=run.job)
    try:
        if refused is not None:
            raise refused
        prediction = await engine.runner.run(run)
        error = prediction.failure(job=run.job)
        if error is None and run.reused:
            saved = await engine.saver.save_reused(
                prediction,
                save_to,
                deadline=run.deadline,
                batch=run.batch,
                content=run.content,
                named_alone=run.named_alone,
            )
        elif error is None and save_to is not None:
            saved = await engine.saver.save(
                prediction,
                save_to,
                deadline=run.deadline,
                batch=run.batch,
                content=run.content,
                named_alone=run.named_alone,
            )
    except KlingError as caught:
        error = caught
        if caught.spent is Spent.NO and run.prediction_id is not None:
            # It tells of the last request only, and a prediction of the job was accepted before.
            caught.spent = Spent.REFUNDABLE if run.failures else Spent.YES
        if isinstance(caught, PredictionError) and caught.prediction is not None:
            prediction = caught.prediction
        if caught.account_wide and run.drain.stopped is None:
            run.drain.stopped = caught
        # The frames hold images, and an outcome may be kept for long.
        caught.__traceback__ = None
    except (Exception, asyncio.CancelledError) as bug:
        if isinstance(bug, asyncio.CancelledError) and is_cancelled():
            raise
        error = KlingError(
            f"{type(bug).__name__}: {bug}".rstrip(": "),
            prediction_id=run.prediction_id,
            spent=Spent.UNKNOWN if run.prediction_id is None else Spent.YES,
            advice="this is a mistake in the program: see __cause__",
        )
        error.__cause__ = bug
    if prediction is None and run.prediction_id is not None:
        prediction = engine.watcher.last_record(run.prediction_id) or Prediction(
            id=run.prediction_id, model=run.job.model, key=run.key
        )
    if error is not None:
        error.job, error.key = error.job or run.job, error.key or run.key
    return Outcome(
        job=run.job,
        key=run.key,
        index=index,
        prediction=prediction,
        error=error,
        saved=saved,
        cost=run.cost,
        reused=run.reused,
    )


def publish_finished(engine: SessionEngine, run: JobRun, outcome: Outcome) -> None:
    """Publish the end of a job, once it is counted."""
    engine.observe(events.Finished, at=engine.clock.now(), key=run.key, batch=run.batch, outcome=outcome)
