"""Rows of a Parquet file, a few at a time. Needs the extra `parquet`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Final, cast

from kling_async.errors import ConfigurationError, Problem

from ._row import Row
from ._values import JSON_FIELDS, json_cell, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._columns import Columns, Resolved

_MAX_BATCH_BYTES: Final = 8 * 2**20
_MAX_BATCH_ROWS: Final = 1024


def parquet_rows(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Yield the rows; `line` is the number of the row.

    Raises:
        ConfigurationError: pyarrow is not installed.
        OSError: The file cannot be read.
    """
    try:
        # An optional and large package.
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 -- see above; it has no types
        from pyarrow import parquet  # noqa: PLC0415 -- see above
    except ImportError as error:
        raise ConfigurationError("Parquet needs pyarrow", advice="install kling-async[parquet]") from error
    number = 0
    try:
        # `pre_buffer=True` would read whole row groups ahead.
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
        names: list[str] = table.schema_arrow.names
        resolved, problems = columns.header(names)
        problems += _lost_index(table.schema_arrow.pandas_metadata, columns)
        if problems:
            yield Row(0, problems=problems, header=True)
            return
        wanted = [name for name in names if name in resolved.fields or name in resolved.labels]
        for batch in table.iter_batches(batch_size=_batch_rows(table.metadata), columns=wanted, use_threads=False):
            for values in batch.to_pylist():
                number += 1
                yield _row(number, values, resolved)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Row(number + 1 if number else 0, problems=(Problem("", f"cannot be read as Parquet: {error}"),))


def _lost_index(notes: Mapping[str, Any] | None, columns: Columns) -> tuple[Problem, ...]:
    """Return the problem of an index of pandas that is a field, and of which the file has only the ends of a range."""
    indexes = (notes or {}).get("index_columns", [])
    names = [str(index["name"]) for index in indexes if isinstance(index, dict) and index.get("name") is not None]
    said = "is the index of the data frame, and not in the rows: write it with reset_index()"
    return tuple(Problem(name, said) for name in names if columns.resolve((name,)).fields)


def _batch_rows(metadata: Any) -> int:
    """Return how many rows to decode at once: few if they contain images."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(_MAX_BATCH_ROWS, int(_MAX_BATCH_BYTES / (size + 1))))


def _row(number: int, values: Mapping[str, object], resolved: Resolved) -> Row:
    fields: dict[str, object] = {}
    problems: list[Problem] = []
    for name, field in resolved.fields.items():
        try:
            value = _field(field, values[name])
        except ValueError as error:
            problems.append(Problem(field, str(error)))
        else:
            if value is not None:
                fields[field] = value
    labels = {label: plain("", values[name]) for name, label in resolved.labels.items()}
    return Row(
        number, fields, tuple(problems), labels={name: value for name, value in labels.items() if value is not None}
    )


def _field(name: str, value: object) -> object:
    """Return a value as the job's field; None if the cell is empty.

    Raises:
        ValueError: The cell is not JSON, in a field that is written as JSON.
    """
    match value:
        case str() if name in JSON_FIELDS:
            return json_cell(name, value) if value.strip() else None
        case {"bytes": _, "path": _} if name in {"image", "end_image"}:
            return plain(name, value)
        case [*pairs] if name in {"extra", "labels"}:
            # A column of maps.
            return dict(cast("list[tuple[str, object]]", pairs))
        case dict():
            # A struct has every field in every row.
            return {field: plain(field, item) for field, item in value.items() if item is not None}
        case [*items]:
            return [_field("multi_prompt", item) if not isinstance(item, str) else item for item in items]
    return plain(name, value)
