"""Results as files, from a ledger: results, a manifest of jobs to run again, statistics, a data set, a table.

```python
for made in export("run.db", "videos/", [Format.RESULTS, Format.ERRORS, Format.STATS]):
    print(made.path, made.rows)
```

The ledger is the only source. The files are written from it on request, row by row, each complete or not at all. Only
`errors.jsonl` is read again: it is a manifest for the next run.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kling_async.ledger import is_url, read_ledger, read_marks, read_steps

from ._files import LINES, Again, Errors, Exported, Format, Writer, invalid_rows_in, replaced
from ._parquet import SHARD_ROWS, Shards
from ._rows import job_of, result_of
from ._stats import Stats

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Mapping

    from kling_async.ledger import Row

__all__ = ["SHARD_ROWS", "Exported", "Format", "export", "job_of", "result_of"]


def export(
    ledger: str | os.PathLike[str],
    out: str | os.PathLike[str],
    formats: Iterable[Format] = (Format.RESULTS, Format.ERRORS, Format.STATS),
    *,
    account: str = "default",
    batch: str | None = None,
    invalid: Iterable[Mapping[str, object]] | None = None,
) -> list[Exported]:
    """Write files from a ledger, even while another process writes the ledger.

    A job that was run again from `errors.jsonl` counts as one job, with its latest state and its total cost.

    Args:
        ledger: File of the ledger, or URL of its database.
        out: Folder for the files: the folder of the videos, so that paths in the files are relative to it.
        formats: Formats to write.
        account: Name of the account in a database.
        batch: Name of the only batch to export; "" is jobs submitted outside of batches, None is all.
        invalid: Rows that the run left out of its manifest (`Manifest.invalid_rows`), for `errors.jsonl`; by default
            those that the file has from an earlier export.

    Raises:
        LedgerError: There is no such ledger.
        ConfigurationError: pyarrow, for Parquet, is not installed, or the URL cannot be parsed.
        OSError: A file cannot be written.
    """
    folder = Path(out).absolute()
    with ExitStack() as stack:
        read = cast("Generator[Row, None, None]", read_ledger(ledger, account=account, batch=batch))
        rows = stack.enter_context(closing(read))
        # Read before a file is created, since the ledger may not exist.
        first = next(rows, None)
        reruns = _Reruns(ledger, account, "errors")
        folder.mkdir(parents=True, exist_ok=True)
        writers: list[Writer] = []
        for wanted in dict.fromkeys(formats):
            match wanted:
                case Format.STATS:
                    writers.append(Stats(folder, lambda: read_steps(ledger, account=account, batch=batch)))
                case Format.AGAIN:
                    rounds = _Reruns(ledger, account, "again")
                    path = folder / f"{rounds.next_name}.jsonl"
                    file = stack.enter_context(replaced(path))
                    marks = read_marks(ledger, account=account)
                    again = Again(wanted, path, file, shared=False, marks=marks, remade=rounds.was_remade)
                    writers.append(again)
                case Format.PARQUET:
                    writers.append(Shards(folder))
                case Format.ERRORS:
                    path = folder / f"{reruns.next_name}.jsonl"
                    left_out = invalid_rows_in(path) if invalid is None else invalid
                    errors = Errors(wanted, path, stack.enter_context(replaced(path)), shared=is_url(ledger))
                    for fields in left_out:
                        errors.add_invalid(fields)
                    writers.append(errors)
                case _:
                    path = folder / f"{wanted.value}.jsonl"
                    file = stack.enter_context(replaced(path))
                    writers.append(LINES[wanted](wanted, path, file, shared=is_url(ledger)))
        for row in () if first is None else chain((first,), rows):
            # A single batch is exported as it is, whatever was run again later.
            last = batch is not None or reruns.is_last(row)
            for writer in writers:
                writer.add(row, last=last)
        return [writer.end() for writer in writers]


class _Reruns:
    """Jobs that were run again from `errors.jsonl`, `errors-2.jsonl` and so on, in batches of these names.

    Args:
        ledger: The ledger.
        account: Name of the account in a database.
        name: First of the names.

    Attributes:
        next_name: The first of the names that no batch has.
    """

    def __init__(self, ledger: str | os.PathLike[str], account: str, name: str) -> None:
        self._updated: dict[str, float] = {}
        self._last: dict[str, tuple[int, str]] = {}
        self._rounds: dict[str, int] = {}
        for number in count(1):
            self.next_name = name if number == 1 else f"{name}-{number}"
            for row in read_ledger(ledger, account=account, batch=self.next_name):
                self._last[row.key] = (number, row.digest)
                self._updated[row.key] = row.updated_at
                self._rounds[self.next_name] = number
            if self.next_name not in self._rounds:
                break

    def was_remade(self, row: Row, at: float) -> bool:
        """Return whether a job of that key was run again after a time, in seconds since the epoch."""
        number, _ = self._last.get(row.key, (0, ""))
        return number > self._rounds.get(row.batch, 0) and self._updated[row.key] > at

    def is_last(self, row: Row) -> bool:
        """Return whether the job was not run again after this row."""
        number, digest = self._last.get(row.key, (0, ""))
        return digest != row.digest or number <= self._rounds.get(row.batch, 0)
