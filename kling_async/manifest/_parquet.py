"""Rows of a Parquet file (extra `parquet`), a few at a time."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any, Final, cast

from kling_async.errors import ConfigurationError, Problem

from ._row import Row, header_problems, unknown
from ._text import JSON_FIELDS, json_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_BATCH_BYTES: Final = 8 * 2**20
_BATCH_ROWS: Final = 1024


def parquet_rows(file: IO[bytes]) -> Iterator[Row]:
    """The rows; their numbers stand for lines.

    Raises:
        ConfigurationError: pyarrow is not installed.
        OSError: The file cannot be read.
    """
    try:
        # It is an extra, and large.
        import pyarrow as pa  # type: ignore[import-untyped]  # noqa: PLC0415 -- see above; it has no types
        from pyarrow import parquet  # noqa: PLC0415 -- see above
    except ImportError as error:
        raise ConfigurationError("Parquet needs pyarrow", advice="install kling-async[parquet]") from error
    number = 0
    try:
        # Without `pre_buffer=False` whole row groups are read ahead.
        table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
        names: list[str] = table.schema_arrow.names
        problems = header_problems(names)
        if problems:
            yield Row(0, problems=problems)
        if len(set(names)) < len(names):
            return
        known = [name for name in names if not unknown(name)]
        for batch in table.iter_batches(batch_size=_batch_rows(table.metadata), columns=known, use_threads=False):
            for fields in batch.to_pylist():
                number += 1
                yield _row(number, fields)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield Row(number + 1 if number else 0, problems=(Problem("", f"is not Parquet that can be read: {error}"),))


def _batch_rows(metadata: Any) -> int:
    """How many rows are decoded at once: few when they carry their images within them."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    size = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / (size + 1))))


def _row(number: int, values: Mapping[str, object]) -> Row:
    fields: dict[str, object] = {}
    problems: list[Problem] = []
    for name, value in values.items():
        try:
            plain = _plain(name, value)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
        else:
            if plain is not None:
                fields[name] = plain
    return Row(number, fields, tuple(problems))


def _plain(name: str, value: object) -> object:
    """The value as a job takes it; None where the column has none.

    Raises:
        ValueError: It is none of this field.
    """
    match value:
        case str() if name in JSON_FIELDS:
            return json_value(name, value) if value.strip() else None
        case float() if math.isnan(value):
            return None
        case float() if name == "duration" and value.is_integer():
            # What pandas makes of whole numbers in a column that has gaps.
            return int(value)
        case Decimal():
            return float(value)
        case {"bytes": content, "path": path} if name in {"image", "end_image"}:
            # As the `Image` feature of Hugging Face's datasets is stored.
            return content if content is not None else path
        case [*pairs] if name == "extra":
            # A column of maps.
            return dict(cast("list[tuple[str, object]]", pairs))
        case dict():
            # A struct has all fields in all rows.
            return {field: item for field, item in value.items() if item is not None}
        case [*items]:
            return [_plain("", item) for item in items]
    return value
