"""The results as a Parquet table in shards. Needs the extra `parquet`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

from kling_async._files import make_part
from kling_async.errors import ConfigurationError

from ._files import Exported, Format
from ._rows import as_datetime, result_of

if TYPE_CHECKING:
    from pathlib import Path

    from kling_async.ledger import Row

SHARD_ROWS: Final = 10_000
"""Rows of one Parquet file."""
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
    "image": "text",
    "prompt": "text",
    "duration": "whole",
    "attempts": "whole",
    "submitted_at": "time",
    "updated_at": "time",
    "error_code": "whole",
    "error_message": "text",
    "labels": "text",
}


class Shards:
    """Writes Parquet files of `SHARD_ROWS` rows each to `results/`.

    Args:
        folder: Folder of the export.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            # An optional and large package.
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
        """Add a row, unless its job was run again later."""
        if not last:
            return
        result = result_of(row, self._out)
        error = cast("dict[str, object]", result.pop("error") or {"code": None, "message": None})
        result["labels"] = json.dumps(result["labels"], ensure_ascii=False)
        result |= {"error_code": error["code"], "error_message": error["message"]}
        result |= {"submitted_at": as_datetime(row.submitted_at), "updated_at": as_datetime(row.updated_at)}
        self._pending.append(result)
        self._rows += 1
        if len(self._pending) == SHARD_ROWS:
            self._flush()

    def end(self) -> Exported:
        """Write the last shard and delete shards of an earlier, larger export."""
        if self._pending or not self._shard:
            self._flush()
        for path in self._folder.glob("part-*.parquet"):
            if path.stem >= f"part-{self._shard:05}":
                path.unlink()
        return Exported(Format.PARQUET, self._folder, self._rows)

    def _flush(self) -> None:
        table = self._table.from_pylist(self._pending, schema=self._schema)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"part-{self._shard:05}.parquet"
        part = path.with_suffix(".part")
        make_part(part, like=path)
        self._write(table, part, compression="zstd")
        part.replace(path)
        self._pending = []
        self._shard += 1
