"""Lists that would take far more memory or time than their size tells are refused, with the line and the limit."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from kling_async import ManifestError
from kling_async.manifest import _json, read_manifest
from kling_async.manifest._columns import Columns

URL = "https://example.com/face.png"
MANY = "expected at most 100,000 values in a row, got more"
ROW = {"image": URL, "prompt": "x"}


def problems(path: Path) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("separator", [",", ";"])
def test_line_of_separators_is_refused(tmp_path: Path, separator: str) -> None:
    lines = [separator.join(("image", "prompt")), separator * 100_001, separator.join((URL, "x")), ""]
    path = tmp_path / "jobs.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert problems(path) == [f"{path}:2: {MANY}"]
    path.write_bytes(gzip.compress("\n".join(lines[1:]).encode()))
    assert problems(path) == [f"{path}:1: {MANY}"], "nothing is said of the header that it would be"


def test_object_of_too_many_values_is_refused(tmp_path: Path) -> None:
    many = json.dumps({**ROW, "labels": {"x": list(range(100_001))}})
    lines = tmp_path / "jobs.jsonl"
    lines.write_text(f"{json.dumps(ROW)}\n{many}\n")
    assert problems(lines) == [f"{lines}:2: {MANY}"]
    array = tmp_path / "jobs.json"
    array.write_text(f"[{json.dumps(ROW)}, {many}]")
    assert problems(array) == [f"{array}:2: is not JSON: {MANY}; the rest was not read"]
    few = [{**ROW, "labels": {"x": list(range(90_000))}}] * 2
    array.write_text(json.dumps(few))
    assert len(read_manifest(array)) == 2, "all rows together may have more"


class Counted(io.BytesIO):
    """Counts the calls that read."""

    reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("form", ["{}", "[{}]"])
def test_long_object_is_read_in_few_growing_pieces(form: str) -> None:
    """Each piece is copied behind those before it: pieces of one size would take time that grows with the square."""
    value = json.dumps({**ROW, "labels": {"x": "a" * 2**23}})
    file = Counted(form.replace("{}", value).encode())
    (row,) = _json.json_array_rows(file, Columns())
    assert not row.problems
    assert file.reads < 20, "8 MiB in pieces of 64 KiB are 128"


def test_spaces_are_skipped_in_one_go() -> None:
    file = Counted(b" " * 2**23 + json.dumps([ROW]).encode())
    assert [row.fields for row in _json.json_array_rows(file, Columns())] == [ROW]
