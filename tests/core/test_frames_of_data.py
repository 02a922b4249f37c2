"""Rows of data frames and data sets: as the documentation says, and what is said of anything else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets  # type: ignore[import-untyped]  # it has no types
import pandas as pd  # type: ignore[import-untyped]  # it has no types
import polars as pl
import pytest
from PIL import Image

from kling_async import ManifestError
from kling_async.manifest import Manifest, read_manifest, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "https://example.com/lake.png"
COLUMNS: dict[str, list[Any]] = {
    "Photo": [URL, URL],
    "prompt": ["Waves", "Wind"],
    "duration": [10, None],
    "negative_prompt": [None, "blur"],
    "SKU": [1000, 1003],
}
WANTED = [("Waves", 10, None, 1000), ("Wind", 5, "blur", 1003)]


def frame() -> pd.DataFrame:
    return pd.DataFrame(COLUMNS)


def data_set() -> Any:
    return datasets.Dataset.from_dict(COLUMNS)


def written(method: str, name: str, **options: Any) -> Callable[[], Manifest]:
    """Return a reader of what pandas writes."""

    def read() -> Manifest:
        getattr(frame(), method)(name, **options)
        return read_manifest(name)

    return read


def polars_file(method: str, name: str) -> Callable[[], Manifest]:
    def read() -> Manifest:
        getattr(pl.DataFrame(COLUMNS), method)(name)
        return read_manifest(name)

    return read


WAYS: dict[str, Callable[[], Manifest]] = {
    "pandas": lambda: read_rows(frame().to_dict("records")),
    "pandas, its own types": lambda: read_rows(frame().convert_dtypes().to_dict("records")),
    "polars": lambda: read_rows(pl.DataFrame(COLUMNS).iter_rows(named=True)),
    "datasets": lambda: read_rows(data_set()),
    "datasets, a stream": lambda: read_rows(data_set().to_iterable_dataset()),
    "pandas, CSV with index": written("to_csv", "rows.csv"),
    "pandas, packed CSV": written("to_csv", "rows.csv.gz"),
    "pandas, Parquet": written("to_parquet", "rows.parquet"),
    "pandas, JSON": written("to_json", "rows.json", orient="records"),
    "pandas, JSON lines": written("to_json", "rows.jsonl", orient="records", lines=True),
    "polars, CSV": polars_file("write_csv", "rows.csv"),
    "polars, JSON": polars_file("write_json", "rows.json"),
    "polars, JSON lines": polars_file("write_ndjson", "rows.ndjson"),
    "polars, Parquet": polars_file("write_parquet", "rows.parquet"),
}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    datasets.disable_progress_bars()


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_libraries_are_taken_as_they_are(way: str) -> None:
    found = [(key, job.image, job.prompt, job.duration, job.negative_prompt, job.labels) for key, job in WAYS[way]()]
    # A text has no types.
    number: Callable[[int], object] = str if "CSV" in way else int
    assert found == [(None, URL, *rest, {"SKU": number(sku)}) for *rest, sku in WANTED]


def test_pictures_of_a_data_set() -> None:
    pictures = [Image.new("RGB", (320, 320), colour) for colour in ("red", "blue")]
    rows = [{"image": picture, "text": "Waves"} for picture in pictures]
    data: Any = datasets.Dataset.from_list(rows)
    decoded = [job for _, job in read_rows(data)]
    data.to_parquet("pictures.parquet")
    stored = [job for _, job in read_manifest("pictures.parquet")]
    assert [job.prompt for job in decoded] == ["Waves", "Waves"]
    for jobs in (decoded, stored):
        contents = [job.image for job in jobs if isinstance(job.image, bytes)]
        assert [Image.open(io.BytesIO(content)).getpixel((9, 9)) for content in contents] == [(255, 0, 0), (0, 0, 255)]


def test_index_with_a_name_is_a_column() -> None:
    for keys in (["b", "a"], [7, 3], [5, 9]):
        indexed = frame().assign(id=keys).set_index("id")
        indexed.to_csv("rows.csv")
        assert [key for key, _ in read_manifest("rows.csv")] == list(map(str, keys))
        indexed.reset_index().to_parquet("rows.parquet")
        assert [key for key, _ in read_manifest("rows.parquet")] == list(map(str, keys))


def test_index_that_is_not_in_the_rows_of_a_file_is_a_problem_where_it_is_a_field() -> None:
    """Of a range, pandas writes only the ends; as a key it would be lost, and nothing be named after it."""
    with_range = frame().set_index(pd.RangeIndex(5, 13, 4, name="key"))
    with_range.to_parquet("rows.parquet")
    with pytest.raises(ManifestError, match=r"key: is the index .* and not in the rows: write it with reset_index\(\)"):
        read_manifest("rows.parquet")
    with_range.rename_axis("Article").to_parquet("rows.parquet")
    assert [job.labels for _, job in read_manifest("rows.parquet")] == [{"SKU": 1000}, {"SKU": 1003}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (frame, 'rows: expected rows, each a mapping of fields, got DataFrame; pass frame.to_dict("records")'),
        (lambda: pl.DataFrame(COLUMNS), "got DataFrame; pass frame.iter_rows(named=True)"),
        (lambda: pl.LazyFrame(COLUMNS), "got LazyFrame; pass frame.iter_rows(named=True)"),
        (lambda: datasets.DatasetDict({"train": data_set()}), "got DatasetDict; pass one split"),
        (lambda: COLUMNS, "rows: expected rows, each a mapping of fields, got dict"),
        (
            lambda: [row for _, row in frame().iterrows()],
            'mapping of fields, got Series; pass frame.to_dict("records")',
        ),
        (lambda: [*frame().itertuples()], 'mapping of fields, got Pandas; pass frame.to_dict("records")'),
        (lambda: pl.DataFrame(COLUMNS).iter_rows(), "rows: expected a mapping of fields, got tuple: rows 1, 2"),
    ],
)
def test_what_is_no_rows_names_what_is(rows: Callable[[], Any], said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_rows(rows())
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_columns_as_pandas_writes_them_by_default(name: str) -> None:
    frame().to_json(name)
    with pytest.raises(
        ManifestError, match=r'expected an array .* pandas writes them with to_json\(path, orient="records"'
    ):
        read_manifest(name)
