"""The worst of each kind of list: what people have is read, or one problem names the cause and the mend."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa  # type: ignore[import-untyped]  # it has no types
import pytest
from pyarrow import feather, parquet

from kling_async import ManifestError
from kling_async.manifest import read_manifest
from support.pictures import encoded, jpeg, png
from support.sheets import write_xlsx

Row: TypeAlias = tuple[str | None, str, dict[str, Any]]
"""Key, prompt and labels."""
URL = "https://example.com/face.png"
WAVES: Row = (None, "Waves", {})
CSV = f"image,prompt\n{URL},Waves\n".encode()
PACKED = gzip.compress(CSV)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(source: Any, wanted: Row | str, **options: Any) -> None:
    """Read a list: it has one row, or one problem whose text begins so."""
    if isinstance(wanted, str):
        with pytest.raises(ManifestError) as caught:
            read_manifest(source, **options)
        said = [str(problem).replace(f"{Path.cwd()}{os.sep}", "") for problem in caught.value.problems]
        assert said[0].startswith(wanted), said
    else:
        assert [(key, job.prompt, dict(job.labels)) for key, job in read_manifest(source, **options)] == [wanted]


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


TSV = "image\tprompt\tSKU\n"
TSVS: dict[str, tuple[str | bytes, Row | str]] = {
    "quotes in a cell": (f'{TSV}{URL}\tHe says "hi"\t1\n', (None, 'He says "hi"', {"SKU": "1"})),
    "tab in quotes": (f'{TSV}{URL}\t"a\tb"\t1\n', (None, "a\tb", {"SKU": "1"})),
    "other separators in a cell": (f"{TSV}{URL}\tx, y; z\t1\n", (None, "x, y; z", {"SKU": "1"})),
    "tab at every end": (f"{TSV[:-1]}\t\n{URL}\tWaves\t1\t\n", (None, "Waves", {"SKU": "1"})),
    "short row": (f"{TSV}{URL}\tWaves\n", WAVES),
    "UTF-16 of Excel": (f"{TSV}{URL}\tWaves\t1\r\n".encode("utf-16"), (None, "Waves", {"SKU": "1"})),
    "commas": (CSV, WAVES),
    "blank lines": (f"{TSV}\n\n{URL}\tWaves\t\n\n", WAVES),
    "spaces for tabs": (f"image  prompt\n{URL}  x\n", "jobs.tsv:1 image  prompt: unknown field"),
    "open quote": (f'{TSV}{URL}\t"Waves\t1\n{URL}\tx\t2\n', "jobs.tsv:2: is not CSV: unexpected end of data"),
    "workbook": (b"PK\x03\x04" + bytes(40), "jobs.tsv: is an Excel workbook (.xlsx) or another zip file, and no text"),
}


@pytest.mark.parametrize("name", TSVS)
def test_tsv(name: str) -> None:
    content, wanted = TSVS[name]
    check(write("jobs.tsv", content), wanted)


def table(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"image": [URL], "prompt": ["Waves"], **columns}), file)
    return file.getvalue()


def feathered() -> bytes:
    file = io.BytesIO()
    feather.write_feather(pa.table({"image": [URL]}), file)
    return file.getvalue()


PARQUETS: dict[str, tuple[Callable[[], bytes], Row | str]] = {
    "column of nothing": (lambda: table(duration=pa.nulls(1)), WAVES),
    "dictionary": (lambda: table(image=pa.array([URL]).dictionary_encode()), WAVES),
    "decimals": (
        lambda: table(duration=[Decimal("10.00")], Price=[Decimal("9.99")]),
        (None, "Waves", {"Price": 9.99}),
    ),
    "key of 64 bits": (lambda: table(key=pa.array([2**63], pa.uint64())), (str(2**63), "Waves", {})),
    "moment": (lambda: table(at=[dt.datetime(2026, 1, 2)]), (None, "Waves", {"at": "2026-01-02T00:00:00"})),  # noqa: DTZ001 -- as tables have it
    "lists and structs": (
        lambda: table(tags=[["a"]], meta=[{"a": 1}]),
        (None, "Waves", {"tags": ["a"], "meta": {"a": 1}}),
    ),
    "large texts": (
        lambda: table(image=pa.array([URL], pa.large_string()), prompt=pa.array(["Waves"], pa.large_string())),
        WAVES,
    ),
    "bytes of a picture": (lambda: table(image=[jpeg()]), WAVES),
    "bytes for text": (lambda: table(prompt=[b"Waves"]), "jobs.parquet:1 prompt: expected text, got bytes"),
    "no rows": (
        lambda: table(image=pa.array([], pa.string()), prompt=pa.array([], pa.string())),
        "jobs.parquet: has no",
    ),
    "cut": (lambda: table()[:-20], "jobs.parquet: cannot be read as Parquet: Parquet magic bytes not found"),
    "empty": (lambda: b"", "jobs.parquet: cannot be read as Parquet: Parquet file size is 0 bytes"),
    "another format": (feathered, "jobs.parquet: cannot be read as Parquet: Parquet magic bytes not found"),
}


@pytest.mark.parametrize("name", PARQUETS)
def test_parquet(name: str) -> None:
    content, wanted = PARQUETS[name]
    check(write("jobs.parquet", content()), wanted)


HEADER: list[object] = ["image", "prompt", "SKU"]
WORKBOOKS: dict[str, tuple[list[list[object]], Row | str]] = {
    "floats": ([HEADER, [URL, "Waves", 1000.0]], (None, "Waves", {"SKU": 1000})),
    "numbers as text": ([HEADER, [URL, "Waves", "007"]], (None, "Waves", {"SKU": "007"})),
    "several lines": ([HEADER, [URL, "Waves\nand wind"]], (None, "Waves\nand wind", {})),
    "spaces in the header": ([[" Image ", "PROMPT\n", "SKU "], [URL, "Waves", 1]], (None, "Waves", {"SKU": 1})),
    "number in the header": ([["image", "prompt", 2026], [URL, "Waves", "x"]], (None, "Waves", {"2026": "x"})),
    "blank rows": ([[None], HEADER, [None], [URL, "Waves"], [None]], WAVES),
    "title above the header": (
        [["My products"], HEADER, [URL, "Waves"]],
        "jobs.xlsx:1 image: no column is image; the only column is My products; the first row has to be the header",
    ),
    "column without a name": ([HEADER[:2], [URL, "Waves", "x"]], "jobs.xlsx:2: column 3 has no name in the header"),
    "two columns of a name": ([["image", "prompt", "prompt"], [URL, "a", "b"]], "jobs.xlsx:1 prompt: is the name of"),
    "header alone": ([HEADER], "jobs.xlsx: has no rows"),
}


@pytest.mark.parametrize("name", WORKBOOKS)
def test_workbook(name: str) -> None:
    rows, wanted = WORKBOOKS[name]
    width = max(map(len, rows))
    check(write_xlsx(Path("jobs.xlsx"), [[*row, *[None] * (width - len(row))] for row in rows]), wanted)


@pytest.mark.parametrize("content", [b"", b"<html><table></table></html>", CSV, bytes.fromhex("d0cf11e0a1b11ae1")])
def test_file_that_is_no_workbook(content: bytes) -> None:
    with pytest.raises(ManifestError, match=r"cannot be read as an Excel workbook.*save it again as \.xlsx, or as CSV"):
        read_manifest(write("jobs.xlsx", content))


PACKS: dict[str, tuple[str, bytes, Row | str]] = {
    "not packed": ("jobs.csv.gz", CSV, WAVES),
    "packed under another name": ("jobs.csv", PACKED, WAVES),
    "capitals": ("JOBS.CSV.GZ", PACKED, WAVES),
    "two parts": ("jobs.csv.gz", gzip.compress(CSV[:20]) + gzip.compress(CSV[20:]), WAVES),
    "filled with zeros": ("jobs.csv.gz", PACKED + bytes(512), WAVES),
    "UTF-16": ("jobs.csv.gz", gzip.compress(f"image\tprompt\n{URL}\tWaves\n".encode("utf-16")), WAVES),
    "nothing": ("jobs.csv.gz", gzip.compress(b""), "jobs.csv.gz: has no rows"),
    "packed twice": ("jobs.csv.gz", gzip.compress(PACKED), "jobs.csv.gz: is packed twice, and no text with rows"),
    "zip": ("jobs.csv.gz", b"PK\x03\x04" + bytes(50), "jobs.csv.gz: is an Excel workbook (.xlsx) or another zip file"),
    "more behind": ("jobs.csv.gz", PACKED + b"more", "jobs.csv.gz: cannot be read: the gzip file is damaged or cut"),
    "wrong sum": ("jobs.csv.gz", PACKED[:-6] + b"\0\0" + PACKED[-4:], "jobs.csv.gz: cannot be read: the gzip file is"),
    "no format": ("jobs.gz", PACKED, "jobs.gz: expected a packed file of .csv, .tsv, .jsonl, .ndjson, .json, got no"),
    "packed workbook": ("jobs.xlsx.gz", PACKED, "jobs.xlsx.gz: expected a packed file of .csv, .tsv, .jsonl, .ndjson,"),
}


@pytest.mark.parametrize("name", PACKS)
def test_packed_list(name: str) -> None:
    path, content, wanted = PACKS[name]
    check(write(path, content), wanted)


PIPED: dict[str, tuple[Callable[[], bytes] | bytes, Row | str]] = {
    "mark in front": (b"\xef\xbb\xbf" + CSV, WAVES),
    "UTF-16": (CSV.decode().encode("utf-16"), WAVES),
    "blank lines in front": (b"\n\n" + CSV, WAVES),
    "one object": (json.dumps({"image": URL, "prompt": "Waves"}).encode(), WAVES),
    "array after spaces": (b" \n " + json.dumps([{"image": URL, "prompt": "Waves"}]).encode(), WAVES),
    "Parquet": (table, WAVES),
    "workbook": (lambda: write_xlsx(Path("a.xlsx"), [HEADER[:2], [URL, "Waves"]]).read_bytes(), WAVES),
    "nothing": (b"", "stdin: has no rows"),
    "packed and cut": (PACKED[:20], "-: cannot be read: the gzip file is damaged or cut"),
    "picture": (jpeg, "stdin: is a JPEG picture, and no text with rows"),
    "names alone": (b"a.jpg\nb.jpg\n", "stdin:1 image: no column is image; the only column is a.jpg; the first row"),
}


@pytest.mark.parametrize("name", PIPED)
def test_stdin(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, wanted = PIPED[name]
    piped = content if isinstance(content, bytes) else content()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    check("-", wanted, **({"prompt": "x"} if name == "names alone" else {}))


def test_closed_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    check("-", "stdin: is closed: pipe a list into the process")


FOLDERS: dict[str, tuple[dict[str, bytes | str], Row | str]] = {
    "empty": ({}, "photos: has no pictures"),
    "file of nothing": ({"a.jpg": b""}, "photos/a.jpg image: is empty"),
    "link to nothing": (
        {"a.jpg": "gone.jpg"},
        "photos/a.jpg image: 'photos/a.jpg' is a link to a file that is not there",
    ),
    "link that leads out": ({"a.jpg": "../out.jpg"}, "photos/a.jpg image: 'photos/a.jpg' is outside of "),
    "line break in a name": ({"a\nb.jpg": jpeg()}, ("a\nb", "x", {})),
    "files of systems": ({"a.jpg": jpeg(), "._a.jpg": b"x", ".DS_Store": b"x", "Thumbs.db": b"x"}, ("a", "x", {})),
    "picture of another kind than its name": ({"a.jpg": png()}, ("a", "x", {})),
    "empty prompt": ({"a.jpg": jpeg(), "a.txt": b" "}, "photos/a.jpg prompt: required: 1 to 2500 characters"),
    "prompt in Latin-1": (
        {"a.jpg": jpeg(), "a.txt": b"f\xfcr"},
        "photos/a.txt prompt: cannot be read: it is not UTF-8; save",
    ),
    "two prompts": ({"a.jpg": jpeg(), "a.txt": b"A", "a.md": b"B"}, ("a", "A", {})),
    "prompt without a picture": ({"a.jpg": jpeg(), "b.txt": b"B"}, ("a", "x", {})),
    "picture of a phone": (
        {"b.HEIC": bytes(4) + b"ftypheic" + bytes(90)},
        "photos/b.HEIC image: expected a JPEG or PNG, got HEIC",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder(name: str) -> None:
    files, wanted = FOLDERS[name]
    write("out.jpg", jpeg())
    Path("photos").mkdir()
    for path, content in files.items():
        if isinstance(content, str):
            Path("photos", path).symlink_to(content)
        else:
            Path("photos", path).write_bytes(content)
    check("photos", wanted, prompt="x")


PICTURES: dict[str, tuple[str, bytes | None, Row | str]] = {
    "capitals": ("A.JPG", jpeg(), ("A", "x", {})),
    "of another kind than its name": ("a.jpg", png(), ("a", "x", {})),
    "empty": ("a.jpg", b"", "a.jpg image: is empty"),
    "page of an error": (
        "a.jpg",
        b"<html>404</html>" + bytes(99),
        "a.jpg image: expected a JPEG or PNG, the bytes are ne",
    ),
    "animation": ("a.gif", encoded("GIF"), "a.gif image: expected a JPEG or PNG, got GIF; the option fit converts it"),
    "of the web": (
        "a.jpg",
        encoded("WEBP"),
        "a.jpg image: expected a JPEG or PNG, got WebP; the option fit converts it",
    ),
    "cut": ("a.jpg", jpeg()[:900], "a.jpg image: is truncated: the end of the picture is missing"),
    "too small": ("a.png", png(20, 20), "a.png image: expected at least 300x300 pixels, got 20x20"),
    "drawing": ("a.svg", b"<svg/>", "a.svg: expected a folder of pictures, pictures, a pattern"),
    "raw": ("a.dng", b"II*\0" + bytes(99), "a.dng: expected a folder of pictures, pictures, a pattern"),
    "not there": ("gone.jpg", None, "gone.jpg image: cannot read"),
    "URL": (
        "https://example.com/a.jpg",
        None,
        "https://example.com/a.jpg: is a URL, and no list: write it into the column",
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_picture(name: str) -> None:
    path, content, wanted = PICTURES[name]
    if content is not None:
        write(path, content)
    check(path, wanted, prompt="x")
    if "://" in path:
        # As the command line has it.
        check(Path(path), wanted.replace("://", ":/") if isinstance(wanted, str) else wanted, prompt="x")
