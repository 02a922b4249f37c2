"""Rows of a ledger as results: one word per state, the job's fields, and a line of `results.jsonl`."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from kling_async._core.input_files import with_values
from kling_async._core.job import TREES
from kling_async._core.states import UNSENT, UNSUCCESSFUL, State
from kling_async._core.video_frames import FrameAt, LastFrame, frame_of_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kling_async.ledger import Row

STATUS: Final[Mapping[State, str]] = {state: state.label for state in State} | {
    # Nobody sends it any more, so the answer is unknown.
    State.INTENT: State.UNCERTAIN.label,
}
"""Status in the results, by state."""
AGAIN: Final = UNSENT | UNSUCCESSFUL
"""States of jobs without a video and without one to come; running them again pays for nothing that was paid before.

The service refunds failed jobs; only an expired one was paid for without a result. A running, unsaved or uncertain
job is not among them: the run itself, called again, continues it.
"""


def job_of(row: Row) -> dict[str, object] | None:
    """Return the fields of a row's job, as a manifest has them; None if the ledger does not have its content.

    A file is its path, in JSON values after `file:`; one given as bytes is only `sha256:` and its digest.
    """
    if row.job is None:
        return None
    fields = with_continued(with_paths(row.job, paths_of(row)), row.frames)
    if row.labels:
        fields["labels"] = json.loads(row.labels)
    return fields


def paths_of(row: Row) -> dict[str, str]:
    """Return the absolute paths of the files of a row's job, by their places in the job."""
    paths: dict[str, str] = json.loads(row.files or "{}")
    return paths


def with_paths(text: str, paths: Mapping[str, str]) -> dict[str, object]:
    """Return the fields of a job as a manifest has them.

    Args:
        text: Text of the job's content.
        paths: Paths of its files, by their places.
    """
    fields: dict[str, object] = json.loads(text)
    # No fields of a manifest: the entry of a model outside of the catalogue, places of files, digests of earlier rules.
    for name in ("own_row", "files", "formerly"):
        fields.pop(name, None)
    return with_values(
        fields, {place: ("file:" if place.startswith(TREES) else "") + path for place, path in paths.items()}
    )


def with_continued(fields: dict[str, object], frames: str | None) -> dict[str, object]:
    """Return the fields of a job as a manifest has them, with the key of the job that it continues, and the moment.

    Args:
        fields: The fields.
        frames: Keys of the jobs that its pictures are frames of as JSON; None without any.
    """
    parents: dict[str, str] = json.loads(frames or "{}")
    if "image" in parents:
        frame = frame_of_text(str(fields["image"]), parent=parents["image"], path=None)
        if isinstance(frame, (LastFrame, FrameAt)):
            fields = {name: value for name, value in fields.items() if name != "image"}
            fields["continues"] = frame.parent
            if isinstance(frame, FrameAt):
                fields["continues_at"] = frame.seconds
    return fields


def result_of(row: Row, folder: Path) -> dict[str, object]:
    """Return a row as a line of `results.jsonl`.

    Args:
        row: The row.
        folder: Folder of the file; paths below it become relative.
    """
    job = job_of(row) or {}
    failed = row.state.unsuccessful
    return {
        "key": row.key,
        "batch": row.batch,
        "model": row.model,
        "status": STATUS[row.state],
        "prediction_id": row.reused or row.prediction_id,
        "file": None if row.path is None else relative(row.path, folder),
        "bytes": row.bytes,
        "sha256": row.sha256,
        "cost_usd": _cost(row),
        "image": _shown(job.get("image"), folder),
        "prompt": job.get("prompt"),
        "duration": job.get("duration"),
        "attempts": row.attempt,
        "submitted_at": _iso_time(row.submitted_at),
        "updated_at": _iso_time(row.updated_at),
        "error": {"code": row.code, "message": row.error} if failed or row.error else None,
        "labels": job.get("labels", {}),
    }


def _shown(image: object, folder: Path) -> str | None:
    """Return the first frame of a job: its URL, or its path, relative to a folder that it lies below."""
    return relative(image, folder) if isinstance(image, str) else None


def _cost(row: Row) -> float | None:
    """Return the USD that a job has cost, less what was given back; None if it was not sent or its price is unknown."""
    if row.spent is None:
        return 0.0 if row.state is State.REUSED else None
    return float(row.spent - (row.refunded or 0))


def relative(path: str, folder: Path) -> str:
    """Return a path relative to a folder, if it is below it."""
    # As strings: with many rows, path objects would take most of the time.
    return path.removeprefix(str(folder) + os.sep).replace(os.sep, "/")


def as_datetime(at: float | None) -> datetime | None:
    """Return a time in UTC; `at` is in seconds since the epoch."""
    return None if at is None else datetime.fromtimestamp(at, UTC)


def _iso_time(at: float | None) -> str | None:
    time = as_datetime(at)
    return None if time is None else time.isoformat(timespec="milliseconds")
