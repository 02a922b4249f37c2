"""Results as files, from a ledger: what a run made, what it did not and may be run again, and how it went.

```python
for made in export("run.db", "videos/", [Format.RESULTS, Format.ERRORS, Format.STATS]):
    print(made.path, made.rows)
```

The ledger is the truth. The files are written from it whenever they are asked for, row by row, each complete or not at
all; nothing reads them back but the next run, for which `errors.jsonl` is a manifest.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from itertools import chain, count, groupby
from math import ceil
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol, cast

import attrs

from ._core.job import Job, JobFields
from .errors import ConfigurationError, InvalidJobError
from .ledger import State, is_url, read_ledger, read_steps
from .manifest import NOTE

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from .ledger import Row, Step

__all__ = ["SHARD_ROWS", "Exported", "Format", "export", "job_of", "result_of"]

SHARD_ROWS: Final = 10_000
"""Rows of one Parquet file."""


class Format(Enum):
    """What is written."""

    RESULTS = "results"
    """`results.jsonl`: a line per job."""
    ERRORS = "errors"
    """`errors.jsonl`: a manifest of the jobs that have no video, of which none runs or is in doubt.

    Once a batch was run from it, `errors-2.jsonl`, and so on: a batch is called as its manifest, and one that failed
    is not paid for again under the same name.
    """
    STATS = "stats"
    """`stats.json`: counts, money, times, errors."""
    METADATA = "metadata"
    """`metadata.jsonl`: the videos of the folder as a data set, as Hugging Face's VideoFolder reads it."""
    PARQUET = "parquet"
    """`results/part-00000.parquet` and so on: the results as a table (extra `parquet`)."""


@attrs.frozen
class Exported:
    """What was written.

    Attributes:
        format: Which of them.
        path: The file; of Parquet the folder.
        rows: How many jobs are in it.
        left_out: How many jobs should be in it and are not, by the reason.
        root: Of a manifest: the folder to read it with, if its images do not lie beside it.
    """

    format: Format
    path: Path
    rows: int
    left_out: Mapping[str, int] = attrs.field(factory=dict)
    root: Path | None = None


def export(
    ledger: str | os.PathLike[str],
    out: str | os.PathLike[str],
    formats: Iterable[Format] = (Format.RESULTS, Format.ERRORS, Format.STATS),
    *,
    account: str = "default",
    batch: str | None = None,
) -> list[Exported]:
    """Write what a ledger has into files, also while another process writes the ledger.

    A job that was run again from `errors.jsonl` is one job: what it has come to since counts, and what it cost in all.

    Args:
        ledger: The ledger's file, or the URL of its database.
        out: The folder for the files; the one that the videos are in, for paths in the files are relative to it.
        formats: What to write.
        account: Of a database: the account whose jobs are wanted.
        batch: Only this batch's jobs; "" is what was submitted outside of batches.

    Raises:
        LedgerError: There is no such ledger.
        ConfigurationError: Parquet needs pyarrow, or the URL cannot be read.
        OSError: A file cannot be written.
    """
    folder = Path(out).absolute()
    with ExitStack() as stack:
        read = cast("Generator[Row, None, None]", read_ledger(ledger, account=account, batch=batch))
        rows = stack.enter_context(closing(read))
        # Before anything is made: there may be no such ledger.
        first = next(rows, None)
        again = _Again(ledger, account)
        folder.mkdir(parents=True, exist_ok=True)
        writers: list[_Writer] = []
        for wanted in dict.fromkeys(formats):
            match wanted:
                case Format.STATS:
                    writers.append(_Stats(folder, lambda: read_steps(ledger, account=account, batch=batch)))
                case Format.PARQUET:
                    writers.append(_Shards(folder))
                case _:
                    path = folder / f"{again.next if wanted is Format.ERRORS else wanted.value}.jsonl"
                    file = stack.enter_context(_whole(path))
                    writers.append(_LINES[wanted](wanted, path, file, shared=is_url(ledger)))
        for row in () if first is None else chain((first,), rows):
            # Who asks for one batch wants it as it is.
            last = batch is not None or again.is_last(row)
            for writer in writers:
                writer.add(row, last=last)
        return [writer.end() for writer in writers]


def job_of(row: Row) -> dict[str, object] | None:
    """The fields of a row's job, as a manifest has them; None when the ledger does not know them.

    An image that was a file is its path; one that was given as bytes is only `sha256:` and its digest.
    """
    if row.job is None:
        return None
    fields: dict[str, object] = json.loads(row.job)
    # The row of a model that is in no catalogue is none of a manifest's fields.
    fields.pop("own_row", None)
    return fields | json.loads(row.files) if row.files else fields


def result_of(row: Row, folder: Path) -> dict[str, object]:
    """A row as a line of `results.jsonl`.

    Args:
        row: The row.
        folder: Where the line will stand; paths below it are relative to it.
    """
    job = job_of(row) or {}
    failed = row.state in _FAILED
    return {
        "key": row.key,
        "batch": row.batch,
        "model": row.model,
        "status": STATUS[row.state],
        "prediction_id": row.prediction_id,
        "file": None if row.path is None else _near(row.path, folder),
        "bytes": row.bytes,
        "sha256": row.sha256,
        "cost_usd": None if row.spent is None else float(row.spent - (row.refunded or 0)),
        "prompt": job.get("prompt"),
        "duration": job.get("duration"),
        "attempts": row.attempt,
        "submitted_at": _time(row.submitted_at),
        "updated_at": _time(row.updated_at),
        "error": {"code": row.code, "message": row.error} if failed or row.error else None,
    }


STATUS: Final[Mapping[State, str]] = {
    State.PENDING: "skipped",
    State.CLAIMED: "skipped",
    State.SKIPPED: "skipped",
    State.INTENT: "uncertain",
    State.UNCERTAIN: "uncertain",
    State.SUBMITTED: "running",
    State.COMPLETED: "unsaved",
    State.DOWNLOADED: "completed",
    State.FAILED: "failed",
    State.REJECTED: "rejected",
    State.EXPIRED: "expired",
    State.ABANDONED: "abandoned",
}
"""One word for how a job came out, the same as in the results of a run."""
_FAILED: Final = frozenset({State.FAILED, State.REJECTED, State.EXPIRED})
_WAITING: Final = frozenset({State.PENDING, State.CLAIMED})
AGAIN: Final = _FAILED | _WAITING | {State.SKIPPED}
"""States of jobs that have no video and will not have one: to run them again pays for nothing that was paid before.

The service gives back what a failed one cost; an expired one alone was paid for in vain. What runs, is in doubt, or
only was not downloaded is not among them: the run itself, called again, goes on with those.
"""


class _Again:
    """What was run again from `errors.jsonl`, `errors-2.jsonl` and so on, by the names of those batches.

    Attributes:
        next: The first of the names that no batch has.
    """

    def __init__(self, ledger: str | os.PathLike[str], account: str) -> None:
        self._last: dict[str, tuple[int, str]] = {}
        self._rounds: dict[str, int] = {}
        for number in count(1):
            self.next = "errors" if number == 1 else f"errors-{number}"
            for row in read_ledger(ledger, account=account, batch=self.next):
                self._last[row.key] = (number, row.digest)
                self._rounds[self.next] = number
            if self.next not in self._rounds:
                break

    def is_last(self, row: Row) -> bool:
        """Whether the job was not run again after this row."""
        number, digest = self._last.get(row.key, (0, ""))
        return digest != row.digest or number <= self._rounds.get(row.batch, 0)


class _Writer(Protocol):
    """Takes the rows of a ledger, one after another; not all of them are the last of their job."""

    def add(self, row: Row, *, last: bool) -> None: ...

    def end(self) -> Exported: ...


@attrs.define
class _Lines:
    """A file with a line for some of the rows."""

    format: Format
    path: Path
    file: IO[str]
    shared: bool
    rows: int = 0
    left_out: Counter[str] = attrs.field(factory=Counter)

    def add(self, row: Row, *, last: bool) -> None:
        """Write the row's line, if it has one."""
        line = self.line(row) if last else None
        if isinstance(line, str):
            self.left_out[line] += 1
        elif line is not None:
            self.file.write(json.dumps(line) + "\n")
            self.rows += 1

    def line(self, row: Row) -> dict[str, object] | str | None:
        """The row's line; None when it has none; why it has none when it should have one."""
        return result_of(row, self.path.parent)

    def end(self) -> Exported:
        return Exported(self.format, self.path, self.rows, dict(self.left_out))


@attrs.define
class _Errors(_Lines):
    """The manifest of what may be run again."""

    keys: set[str] = attrs.field(factory=set)
    folders: set[Path] = attrs.field(factory=set)

    def line(self, row: Row) -> dict[str, object] | str | None:
        if row.state not in AGAIN:
            return None
        if self.shared and row.state in _WAITING:
            return "a worker may come for it"
        fields = job_of(row)
        if fields is None:
            return "the ledger does not have its content"
        if row.key in self.keys:
            return "its key is in two batches: export one of them"
        pictures: dict[str, Path] = {}
        for name in ("image", "end_image"):
            image = fields.get(name)
            if not isinstance(image, str):
                continue
            if image.startswith("sha256:"):
                return "its image was given as bytes, which the ledger does not keep"
            if Path(image).is_absolute():
                pictures[name] = Path(image)
        if not all(picture.is_file() for picture in pictures.values()):
            return "its image file is gone"
        try:
            Job(**cast("JobFields", {**fields, **pictures}))
        except InvalidJobError as error:
            return f"it is not valid by itself: {error.problems[0]}"
        self.keys.add(row.key)
        self.folders.update(picture.parent for picture in pictures.values())
        near = {name: _near(str(picture), self.path.parent) for name, picture in pictures.items()}
        why = {"status": STATUS[row.state], "code": row.code, "message": row.error}
        return {"key": row.key, **fields, **near, NOTE: why}

    def end(self) -> Exported:
        root = Path(os.path.commonpath(self.folders)) if self.folders else None
        beside = root is None or root.is_relative_to(self.path.parent)
        return attrs.evolve(super().end(), root=None if beside else root)


class _Metadata(_Lines):
    """The videos below the folder, as a data set.

    Every field has a value in every line: types are inferred from the first thousands.
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
            "file_name": _near(row.path, self.path.parent),
            "key": row.key,
            "prompt": job.get("prompt") or "",
            "negative_prompt": job.get("negative_prompt") or "",
            "model": row.model,
            "duration": job.get("duration") or 0,
            "prediction_id": row.prediction_id or "",
            "sha256": row.sha256 or "",
        }


_LINES: Final[Mapping[Format, type[_Lines]]] = {
    Format.RESULTS: _Lines,
    Format.ERRORS: _Errors,
    Format.METADATA: _Metadata,
}


class _Stats:
    """Counts, money, times, errors."""

    def __init__(self, folder: Path, steps: Callable[[], Iterator[Step]]) -> None:
        self._path = folder / "stats.json"
        self._steps = steps
        self._rows = 0
        self._states: Counter[str] = Counter()
        self._models: dict[str, Counter[str]] = defaultdict(Counter)
        self._money: defaultdict[str, Decimal] = defaultdict(Decimal)
        self._errors: dict[tuple[str, int | None], list[Any]] = {}

    def add(self, row: Row, *, last: bool) -> None:
        status = STATUS[row.state]
        if last:
            self._rows += 1
            self._states[status] += 1
            self._models[row.model][status] += 1
        self._money["spent_usd"] += row.spent or 0
        self._money["refunded_usd"] += row.refunded or 0
        if row.state is State.FAILED and row.cost is not None:
            self._money["refundable_usd"] += max(Decimal(0), row.cost - (row.refunded or 0))
        if row.state in {State.INTENT, State.UNCERTAIN}:
            self._money["doubtful_usd"] += row.cost or 0
        if row.error or row.state in _FAILED:
            # One of them says what the others are like.
            self._errors.setdefault((status, row.code), [0, row.error])[0] += 1

    def end(self) -> Exported:
        errors = sorted(self._errors.items(), key=lambda item: -item[1][0])
        stats = {
            "jobs": self._rows,
            "states": dict(self._states.most_common()),
            "models": {model: dict(states) for model, states in sorted(self._models.items())},
            **{name: float(self._money[name]) for name in _MONEY},
            "phases": _phases(self._steps()),
            "errors": [
                {"status": status, "code": code, "count": count, "example": example}
                for (status, code), (count, example) in errors
            ],
        }
        with _whole(self._path) as file:
            file.write(json.dumps(stats, indent=2) + "\n")
        return Exported(Format.STATS, self._path, self._rows)


_MONEY: Final = ("spent_usd", "refunded_usd", "refundable_usd", "doubtful_usd")
"""What was accepted; what of it was given back; what may be, because it failed; and what may have been accepted."""


def _phases(steps: Iterator[Step]) -> dict[str, dict[str, float]]:
    """How long the phases took that have an end, in seconds."""
    seconds: dict[str, array[float]] = {name: array("d") for name in (*_PHASES, "whole")}
    for _, job in groupby(steps, key=lambda step: (step.batch, step.key)):
        begun: dict[State, float] = {}
        first = last = None
        for step in job:
            if step.state is State.INTENT:
                first = step.at if first is None else first
                # What an earlier attempt reached is not part of this one.
                begun = {state: at for state, at in begun.items() if state is State.PENDING}
            # Pending again is what a refusal made it; it waits since it was there at all.
            if step.state is not State.PENDING or first is None:
                begun.setdefault(step.state, step.at)
            last = step.at if step.state is State.DOWNLOADED else last
        for name, (start, end) in _PHASES.items():
            if start in begun and end in begun:
                seconds[name].append(begun[end] - begun[start])
        if first is not None and last is not None:
            seconds["whole"].append(last - first)
    return {
        name: {"count": len(taken), "p50": _quantile(taken, 0.5), "p95": _quantile(taken, 0.95)}
        for name, taken in seconds.items()
        if taken
    }


_PHASES: Final[Mapping[str, tuple[State, State]]] = {
    "waiting": (State.PENDING, State.INTENT),
    "submitting": (State.INTENT, State.SUBMITTED),
    "generating": (State.SUBMITTED, State.COMPLETED),
    "downloading": (State.COMPLETED, State.DOWNLOADED),
}


def _quantile(values: array[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    return round(sorted(values)[max(0, ceil(share * len(values)) - 1)], 3)


class _Shards:
    """Parquet files of so many rows each."""

    def __init__(self, folder: Path) -> None:
        try:
            # It is an extra, and large.
            import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 -- see above; it has no types
            from pyarrow import parquet  # noqa: PLC0415 -- see above
        except ImportError as error:
            raise ConfigurationError("Parquet needs pyarrow", advice="install kling-async[parquet]") from error
        types = {
            "text": pa.string(),
            "whole": pa.int64(),
            "number": pa.float64(),
            "time": pa.timestamp("ms", tz="UTC"),
        }
        self._schema = pa.schema([(name, types[kind]) for name, kind in _COLUMNS.items()])
        self._table = pa.Table
        self._write = parquet.write_table
        self._folder = folder / "results"
        self._out = folder
        self._pending: list[dict[str, object]] = []
        self._rows = 0
        self._shard = 0

    def add(self, row: Row, *, last: bool) -> None:
        if not last:
            return
        result = result_of(row, self._out)
        error = cast("dict[str, object]", result.pop("error") or {"code": None, "message": None})
        result |= {"error_code": error["code"], "error_message": error["message"]}
        result |= {"submitted_at": _moment(row.submitted_at), "updated_at": _moment(row.updated_at)}
        self._pending.append(result)
        self._rows += 1
        if len(self._pending) == SHARD_ROWS:
            self._flush()

    def end(self) -> Exported:
        if self._pending or not self._shard:
            self._flush()
        # Shards of an earlier export that had more rows.
        for path in self._folder.glob("part-*.parquet"):
            if path.stem >= f"part-{self._shard:05}":
                path.unlink()
        return Exported(Format.PARQUET, self._folder, self._rows)

    def _flush(self) -> None:
        table = self._table.from_pylist(self._pending, schema=self._schema)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"part-{self._shard:05}.parquet"
        part = path.with_suffix(".part")
        self._write(table, part, compression="zstd")
        part.replace(path)
        self._pending = []
        self._shard += 1


_COLUMNS: Final = {
    "key": "text",
    "batch": "text",
    "model": "text",
    "status": "text",
    "prediction_id": "text",
    "file": "text",
    "bytes": "whole",
    "sha256": "text",
    "cost_usd": "number",
    "prompt": "text",
    "duration": "whole",
    "attempts": "whole",
    "submitted_at": "time",
    "updated_at": "time",
    "error_code": "whole",
    "error_message": "text",
}


@contextmanager
def _whole(path: Path) -> Iterator[IO[str]]:
    """A file that is there when it is complete, and stays as it was when it could not be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            yield file
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _near(path: str, folder: Path) -> str:
    """The path, relative to the folder if it is below it."""
    # As text: for as many as these, path objects take most of the time.
    return path.removeprefix(str(folder) + os.sep).replace(os.sep, "/")


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)


def _time(at: float | None) -> str | None:
    moment = _moment(at)
    return None if moment is None else moment.isoformat(timespec="milliseconds")
