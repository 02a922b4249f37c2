"""Rows of a Parquet file, a few at a time. Needs the extra `parquet`."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, Final, cast

from kling_async.errors import ConfigurationError, Problem

from ._row import Row, header_problems, is_unknown
from ._text import JSON_FIELDS, parse_json_cell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_BATCH_BYTES: Final = 8 * 2**20
_MAX_BATCH_ROWS: Final = 1024


def parquet_rows(file: IO[bytes]) -> Iterator[Row]:
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
        problems = header_problems(names)
        if problems:
            yield Row(0, problems=problems)
        if len(set(names)) < len(names):
            return
        known = [name for name in names if not is_unknown(name)]
        for batch in table.iter_batches(batch_size=_batch_rows(table.metadata), columns=known, use_threads=False):
            for fields in batch.to_pylist():
                number += 1
                yield _row(number, fields)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Row(number + 1 if number else 0, problems=(Problem("", f"cannot be read as Parquet: {error}"),))


def _batch_rows(metadata: Any) -> int:
    """Return how many rows to decode at once: few if they contain images."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(_MAX_BATCH_ROWS, int(_MAX_BATCH_BYTES / (size + 1))))


def _row(number: int, values: Mapping[str, object]) -> Row:
    fields: dict[str, object] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        try:
            field = _field(name, value)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
        else:
            if field is not None:
                fields[name] = field
    return Row(number, fields, tuple(problems))


def _field(name: str, value: object) -> object:
    """Return a value as the job's field; None if the cell is empty.

    Raises:
        ValueError: The cell is not JSON, in a field that is written as JSON.
    """
    match value:
        case str() if name in JSON_FIELDS:
            return parse_json_cell(name, value) if value.strip() else None
        case float() if math.isnan(value):
            return None
        case float() if name == "duration" and value.is_integer():
            # pandas writes an integer column with gaps as floats.
            return int(value)
        case Decimal():
            return float(value)
        case {"bytes": content, "path": path} if name in {"image", "end_image"}:
            # The `Image` feature of Hugging Face's datasets.
            return content if content is not None else path
        case [*pairs] if name == "extra":
            # A column of maps.
            return dict(cast("list[tuple[str, object]]", pairs))
        case dict():
            # A struct has every field in every row.
            return {field: item for field, item in value.items() if item is not None}
        case [*items]:
            return [_field("", item) for item in items]
    return value
