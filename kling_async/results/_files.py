"""Files of JSON lines: results, the manifest of jobs to run again, and a data set."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import IO, Final, Protocol, cast

import attrs

from kling_async._core.catalogue import find_model
from kling_async._core.content import content_in, file_digests, has_frames, recalled
from kling_async._core.input_files import with_values
from kling_async._core.job import Job, JobFields
from kling_async._core.marks import Mark, Marked
from kling_async._files import make_part
from kling_async.errors import InvalidJobError
from kling_async.ledger import Row, State
from kling_async.manifest import NOTE

from ._rows import AGAIN, STATUS, job_of, paths_of, relative, result_of, with_paths


class Format(Enum):
    """Format of an exported file."""

    RESULTS = "results"
    """`results.jsonl`: a line per job."""
    ERRORS = "errors"
    """`errors.jsonl`: a manifest of the jobs that have no video and are neither running nor in doubt.

    Once a batch was run from it, the next is `errors-2.jsonl`, and so on: a batch has the name of its manifest, and a
    job that failed under one name is not sent again under the same.
    """
    AGAIN = "again"
    """`again.jsonl`: a manifest of the jobs whose videos are marked to be made again, with prompts to edit.

    Once a batch was run from it, the next is `again-2.jsonl`, and so on.
    """
    STATS = "stats"
    """`stats.json`: counts, money, times, errors."""
    METADATA = "metadata"
    """`metadata.jsonl`: the videos of the folder as a data set, in the format of Hugging Face's VideoFolder."""
    PARQUET = "parquet"
    """`results/part-00000.parquet` and so on: the results as a table (extra `parquet`)."""


@attrs.frozen
class Exported:
    """An exported file.

    Attributes:
        format: Its format.
        path: The file; for Parquet the folder.
        rows: Number of jobs in it.
        left_out: Number of jobs that are missing in it, by reason.
        root: Of a manifest: the folder to read it with, if its images are not below its own folder; else None.
        invalid: Number of `rows` that are no jobs yet, since they were left out of the run's manifest.
        own_models: Whether it names models that the catalogue lacks (`read_manifest(models=...)`, --from-service).
    """

    format: Format
    path: Path
    rows: int
    left_out: Mapping[str, int] = attrs.field(factory=dict)
    root: Path | None = None
    invalid: int = 0
    own_models: bool = False


class Writer(Protocol):
    """Writes one file from the rows of a ledger."""

    def add(self, row: Row, *, last: bool) -> None:
        """Add a row.

        Args:
            row: The row.
            last: False if the job was run again later, under the name of another batch.
        """
        ...

    def end(self) -> Exported:
        """Finish the file."""
        ...


@contextmanager
def replaced(path: Path) -> Iterator[IO[str]]:
    """Open a file that replaces `path` when the block ends; an error leaves `path` as it was.

    It has the mode of `path`, or, if there is none, it is for its owner only.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        make_part(part, like=path)
        with part.open("w", encoding="utf-8") as file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@attrs.define
class Lines:
    """Writes `results.jsonl`; subclasses write other lines.

    Attributes:
        format: Format of the file.
        path: The file.
        file: The open file.
        shared: True if the ledger is a database, whose workers may still take waiting jobs.
        rows: Number of lines.
        left_out: Number of missing jobs, by reason.
    """

    format: Format
    path: Path
    file: IO[str]
    shared: bool
    rows: int = 0
    left_out: Counter[str] = attrs.field(factory=Counter)

    def add(self, row: Row, *, last: bool) -> None:
        """Write the line of a row, if it has one."""
        line = self.line(row) if last else None
        if isinstance(line, str):
            self.left_out[line] += 1
        elif line is not None:
            self.file.write(json.dumps(line) + "\n")
            self.rows += 1

    def line(self, row: Row) -> dict[str, object] | str | None:
        """Return the line of a row; None if the file is not about it; the reason if its line is missing."""
        return result_of(row, self.path.parent)

    def end(self) -> Exported:
        """Finish the file."""
        return Exported(self.format, self.path, self.rows, dict(self.left_out))


@attrs.define
class Errors(Lines):
    """Writes `errors.jsonl`, the manifest of jobs to run again."""

    keys: set[str] = attrs.field(factory=set)
    folders: set[Path] = attrs.field(factory=set)
    invalid: int = 0
    own_models: bool = False

    def add_invalid(self, fields: Mapping[str, object]) -> None:
        """Write a row that was left out of the run's manifest, with its problems as the note."""
        images = {
            name: Path(image)
            for name in ("image", "end_image")
            if isinstance(image := fields.get(name), str) and os.path.isabs(image)  # noqa: PTH117 -- it may be no path
        }
        self.folders.update(image.parent for image in images.values())
        paths = {name: relative(str(image), self.path.parent) for name, image in images.items()}
        self.file.write(json.dumps({**fields, **paths}) + "\n")
        self.rows += 1
        self.invalid += 1
        model = fields.get("model")
        # A name without a slash is a mistake, and of no model of the service.
        self.own_models |= isinstance(model, str) and "/" in model and find_model(model) is None

    def line(self, row: Row) -> dict[str, object] | str | None:
        if row.state not in AGAIN:
            return None
        return self.job_line(row, {"status": STATUS[row.state], "code": row.code, "message": row.error})

    def job_line(self, row: Row, note: dict[str, object]) -> dict[str, object] | str:
        """Return the line that runs the job of a row again, with a note for readers; the reason if it cannot be run."""
        if self.shared and row.state.waiting:
            return "a worker may still take it"
        fields = job_of(row)
        if fields is None:
            return "the ledger does not have its content"
        if row.key in self.keys:
            return "its key is in two batches: export one of them"
        content, paths = content_in(row), paths_of(row)
        if has_frames(content):
            return "it begins or ends with a frame of a video: run its whole list again, which pays for nothing twice"
        files = {place: Path(path) for place, path in paths.items()}
        for place in file_digests(content):
            if place not in files:
                return f"its {place} was given as bytes, which the ledger does not keep"
            if not files[place].is_file():
                return f"its {place} file is gone"
        own = recalled(content, {}).own_row if '"own_row":' in content.text else None
        try:
            Job(**cast("JobFields", {**with_values(fields, files), **({"model": own} if own else {})}))
        except InvalidJobError as error:
            return f"it is not valid by itself: {error.problems[0]}"
        self.own_models |= own is not None and find_model(own.id) is None
        self.keys.add(row.key)
        self.folders.update(file.parent for file in files.values())
        labels = {"labels": fields["labels"]} if "labels" in fields else {}
        fields = with_paths(row.job or "{}", {place: relative(path, self.path.parent) for place, path in paths.items()})
        return {"key": row.key, **fields, **labels, NOTE: note}

    def end(self) -> Exported:
        root = Path(os.path.commonpath(self.folders)) if self.folders else None
        below = root is None or root.is_relative_to(self.path.parent)
        return attrs.evolve(
            super().end(), root=None if below else root, invalid=self.invalid, own_models=self.own_models
        )


INVALID: Final = "invalid"
"""Status of rows that were left out of a manifest."""


def invalid_rows_in(path: Path) -> list[dict[str, object]]:
    """Return the rows of an earlier errors manifest that were left out of a run."""
    found: list[dict[str, object]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    for line in lines:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue
        note = fields.get(NOTE) if isinstance(fields, dict) else None
        if isinstance(note, dict) and note.get("status") == INVALID:
            found.append(fields)
    return found


@attrs.define
class Again(Errors):
    """Writes `again.jsonl`, the manifest of videos to make again.

    Attributes:
        marks: Marks of videos, by prediction.
        remade: Returns whether the job of a row was run again after a time, in seconds since the epoch.
    """

    marks: Mapping[str, Marked] = attrs.field(kw_only=True)
    remade: Callable[[Row, float], bool] = attrs.field(kw_only=True)

    def line(self, row: Row) -> dict[str, object] | str | None:
        id_ = row.reused or row.prediction_id
        marked = self.marks.get(id_ or "")
        if marked is None or marked.mark is not Mark.AGAIN or self.remade(row, marked.at):
            return None
        message = f"marked to be made again: prediction {id_}"
        return self.job_line(row, {"status": STATUS[row.state], "code": None, "message": message})


@attrs.define
class Metadata(Lines):
    """Writes `metadata.jsonl`, the videos below the folder as a data set.

    Every field has a value in every line, since readers infer types from the first thousands of lines.
    """

    def line(self, row: Row) -> dict[str, object] | str | None:
        if row.state is not State.DOWNLOADED or row.path is None:
            return None
        video = Path(row.path)
        if not video.is_relative_to(self.path.parent):
            return "its video is in another folder"
        if not video.is_file():
            return "its video is gone"
        job = job_of(row) or {}
        return {
            "file_name": relative(row.path, self.path.parent),
            "key": row.key,
            "prompt": job.get("prompt") or "",
            "negative_prompt": job.get("negative_prompt") or "",
            "model": row.model,
            "duration": job.get("duration") or 0,
            "prediction_id": row.prediction_id or "",
            "sha256": row.sha256 or "",
        }


LINES: Final[Mapping[Format, type[Lines]]] = {
    Format.RESULTS: Lines,
    Format.METADATA: Metadata,
}
