"""Manifests from Parquet, folders of images and iterables, and properties of all manifests."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pyarrow as pa  # type: ignore[import-untyped]  # it has no types
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from kling_async import ConfigurationError, Job, Model, Shot
from kling_async._images.preflight import preflight
from kling_async.errors import ManifestError
from kling_async.manifest import Kind, Manifest, read_manifest, read_rows
from support.cli import ROOT
from support.pictures import encoded, jpeg, png

URL = "https://example.com/face.png"
STANDARD = "kwaivgi/kling-v2.1-i2v-standard"
PRO = "kwaivgi/kling-v2.1-i2v-pro"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(columns: dict[str, Any], name: str = "jobs.parquet", **options: Any) -> str:
    parquet.write_table(pa.table(columns), name, **options)
    return name


def problems(source: Any, **options: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(source, **options) if isinstance(source, (str, Path)) else read_rows(source, **options)
    return [str(problem) for problem in caught.value.problems]


# Parquet.


def test_parquet_column_types_are_converted() -> None:
    Path("face.png").write_bytes(png())
    path = table(
        {
            "key": ["a", None, "c"],
            "prompt": pa.array(["Waves", "Wind", None], pa.large_string()),
            "image": [URL, "face.png", URL],
            "model": pa.array(["kling-v2.1-pro", "kling-v2.1-pro", "kling-v3.0-pro"]).dictionary_encode(),
            # Written by pandas for an integer column with gaps.
            "duration": [10.0, float("nan"), None],
            "guidance_scale": pa.array([None, "0.25", None]).cast(pa.decimal128(5, 2)),
            "sound": [None, None, True],
            "multi_prompt": [None, None, [{"prompt": "Waves", "duration": None}, {"prompt": "Wind", "duration": None}]],
            "extra": pa.array([None, None, [("seed", 7)]], pa.map_(pa.string(), pa.int64())),
        },
        row_group_size=2,
    )
    first, second, third = read_manifest(path)
    assert first == ("a", Job(model="kling-v2.1-pro", prompt="Waves", image=URL, duration=10))
    image = Path("face.png").absolute()
    assert second == (None, Job(model="kling-v2.1-pro", prompt="Wind", image=image, guidance_scale=0.25))
    key, job = third
    assert (key, job.multi_prompt, job.sound, job.extra) == ("c", (Shot("Waves"), Shot("Wind")), True, {"seed": 7})


def test_parquet_reads_hugging_face_images() -> None:
    Path("face.png").write_bytes(png())
    path = table(
        {
            "prompt": ["Waves"] * 3,
            "image": [{"bytes": jpeg(), "path": "1.jpg"}, {"bytes": None, "path": "face.png"}, None],
            "extra": [None, '{"seed": 1}', None],
        }
    )
    assert problems(path) == ["jobs.parquet:3 image: required: a URL, a Path, or the bytes of a JPEG or PNG"]
    path = table({"prompt": ["Waves"], "image": pa.array([png()], pa.binary())})
    ((_, job),) = read_manifest(path)
    assert job.image == png()


def test_parquet_problems_have_row_and_column() -> None:
    path = table(
        {
            "key": ["a", "b", "a"],
            "prompt": ["Waves"] * 3,
            "image": [URL, "missing.png", URL],
            "duration": [5, 15, 5],
            "extra": ["{", None, None],
        },
        row_group_size=1,
    )
    messages = problems(path)
    assert messages[0] == "jobs.parquet:1 extra: expected a JSON object, got '{'"
    assert messages[1].startswith("jobs.parquet:2 image: 'missing.png' does not exist")
    assert messages[2] == "jobs.parquet:2 duration: expected 5 or 10, got 15"
    assert messages[3] == "jobs.parquet:3 key: 'a' is already the key of row 1"
    assert len(messages) == 4


def test_invalid_parquet_is_a_problem() -> None:
    Path("jobs.parquet").write_bytes(b"PAR1 and nothing more")
    assert problems("jobs.parquet")[0].startswith("jobs.parquet: cannot be read as Parquet")
    path = Path(table({"prompt": ["Waves"] * 5000, "image": [f"{URL}?{n}" for n in range(5000)]}, compression="none"))
    content = bytearray(path.read_bytes())
    content[40:4000] = bytes(3960)
    path.write_bytes(content)
    assert problems("jobs.parquet")


def test_missing_pyarrow_raises_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    path = table({"prompt": ["Waves"], "image": [URL]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"kling-async\[parquet\]"):
        read_manifest(path)


# Folders.


def folder(*names: str) -> Path:
    made = Path("photos")
    made.mkdir(exist_ok=True)
    for name in names:
        (made / name).write_bytes(jpeg() if name.endswith(("jpg", "JPG")) else png())
    return made


def test_folder_images_become_jobs_with_own_or_common_prompt() -> None:
    photos = folder("b.png", "a.JPG", "c.d.png", ".hidden.png")
    (photos / "b.txt").write_text("\ufeffShe smiles\n")
    (photos / "notes.txt").write_text("no image has this name")
    (photos / "videos.png").mkdir()
    manifest = read_manifest(photos, prompt="Waves", model="kling-v2.1-pro", duration=10)
    jobs = dict(manifest)
    assert {key: job.prompt for key, job in manifest} == {"a": "Waves", "b": "She smiles", "c.d": "Waves"}
    assert jobs["a"] == Job(prompt="Waves", model="kling-v2.1-pro", duration=10, image=(photos / "a.JPG").resolve())
    assert list(jobs) == ["a", "b", "c.d"]
    assert manifest.kinds == {Kind(PRO, 10, sound=None): 3}


def test_folder_problems_have_file_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    photos = folder("a.png", "bad.png", "e.png")
    (photos / "bad.png").write_bytes(b"GIF89a" + bytes(100))
    (photos / "bad.txt").write_bytes(b"caf\xe9")
    (photos / "small.png").write_bytes(png(100, 100))
    (photos / "e.txt").write_text(" ")
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(png())
    (photos / "link.png").symlink_to(outside)
    messages = problems(photos, prompt="Waves")
    assert messages[0] == "photos/bad.txt prompt: cannot be read: it is not UTF-8; save it as UTF-8"
    assert messages[1] == "photos/e.png prompt: required: 1 to 2500 characters"
    assert messages[2].startswith("photos/link.png image: ")
    assert "is outside of" in messages[2]
    assert messages[3] == "photos/small.png image: expected at least 300x300 pixels, got 100x100"
    assert len(messages) == 4
    assert problems(folder("a.png"))[0] == "photos/a.png prompt: required: 1 to 2500 characters"


def test_empty_folder_or_folder_outside_root_is_refused() -> None:
    Path("empty").mkdir()
    assert problems("empty", prompt="Waves") == ["empty: has no pictures"]
    assert "is outside of" in problems(folder("a.png"), prompt="Waves", root="empty")[0]


# Iterables.


def test_read_rows_accepts_any_iterable() -> None:
    rows = [{"key": "a", "image": URL}, {"image": Path("face.png"), "prompt": "Wind", "model": None}]
    Path("face.png").write_bytes(png())
    wanted = [("a", Job(prompt="Waves", image=URL)), (None, Job(prompt="Wind", image=Path("face.png")))]
    sources: list[Any] = [rows, tuple(rows), iter(rows), (row for row in rows), dict(enumerate(rows)).values()]
    for given_ in sources:
        manifest = read_rows(given_, prompt="Waves")
        assert list(manifest) == list(manifest) == wanted
        assert len(manifest) == 2


@pytest.mark.promise(9)
def test_string_in_row_is_file_only_with_root(tmp_path: Path) -> None:
    Path("face.png").write_bytes(png())
    row = {"image": "face.png", "prompt": "Waves"}
    (messages,) = problems([row])
    assert messages.startswith("rows:1 image: expected an http(s) URL, got 'face.png'")
    ((_, job),) = read_rows([row], root=".")
    assert job.image == tmp_path / "face.png"
    (messages,) = problems([row | {"image": "../face.png"}], root=".", name="table")
    assert messages.startswith("table:1 image: '../face.png' is outside of")


def test_invalid_rows_are_problems() -> None:
    rows: list[Any] = [{"image": URL}, ["image", URL], {"image": URL, 5: 6}, None]
    assert problems(rows, prompt="Waves") == [
        "rows:2: expected a mapping of fields, got list",
        "rows:3: expected names of fields as text, got int",
        "rows:4: expected a mapping of fields, got NoneType",
    ]
    assert problems([]) == ["rows: has no rows"]
    with pytest.raises(TypeError, match="rows: row 1 cannot be pickled"):
        read_rows(iter([{"image": (row for row in rows)}]))


def test_spooled_rows_are_deleted_with_manifest() -> None:
    manifest: Manifest | None = read_rows(iter([{"image": URL, "prompt": "Waves"}]))
    kept: Path = manifest._source._path  # type: ignore[union-attr]  # the source of an iterator
    assert kept.exists()
    del manifest
    gc.collect()
    assert not kept.exists()


# All sources.


def test_image_files_are_checked_when_manifest_is_read() -> None:
    Path("a.png").write_bytes(png())
    Path("cut.png").write_bytes(png()[:-50])
    Path("animated.png").write_bytes(b"GIF89a" + (400).to_bytes(2, "little") * 2 + bytes(10))
    Path("long.png").write_bytes(png(1000, 300))
    names = ["a.png", "cut.png", "animated.png", "cut.png"]
    Path("jobs.jsonl").write_text("\n".join(json.dumps({"image": name, "prompt": "Waves"}) for name in names))
    assert problems("jobs.jsonl") == [
        "jobs.jsonl:2 image: is truncated: the end of the picture is missing",
        "jobs.jsonl:3 image: expected a JPEG or PNG, got GIF; the option fit converts it",
        "jobs.jsonl:4 image: is truncated: the end of the picture is missing",
    ]
    assert len(problems("jobs.jsonl", fit=True)) == 2
    Path("jobs.jsonl").write_text(json.dumps({"image": "long.png", "prompt": "Waves"}))
    (warning,) = read_manifest("jobs.jsonl").warnings
    assert str(warning).startswith("jobs.jsonl:1 image: 1000x300 is longer than 2.5:1")


def test_image_bytes_are_converted_at_their_row() -> None:
    rows: list[dict[str, Any]] = [{"image": encoded("WEBP")}, {"image": png()}]
    assert problems(rows, prompt="Waves") == [
        "rows:1 image: expected a JPEG or PNG, got WebP; the option fit converts it"
    ]
    (_, first), (_, second) = read_rows(rows, prompt="Waves", fit=True)
    assert preflight(cast("bytes", first.image)).type == "image/jpeg"
    assert second.image == png()
    broken = encoded("WEBP")[:40] + bytes(500)
    manifest = read_rows([{"image": broken}], prompt="Waves", fit=True)
    with pytest.raises(ManifestError, match="rows:1 image: cannot be converted"):
        list(manifest)


def test_price_sums_rows() -> None:
    own = Model(id="somebody/new", durations=(5, 10), price_per_5s=Decimal(2))
    rows: list[dict[str, Any]] = [{}, {"duration": 10}, {"model": own}, {"model": "kling-v2.1-master"}]
    manifest = read_rows(rows, image=URL, prompt="Waves", model="kling-v2.1-pro")
    assert str(manifest.price()) == "$4.65"
    assert manifest.price("gptproto").usd is None
    assert str(read_rows([{}], image=URL, prompt="Waves").price()) == "≈ $0.25"


def test_error_note_is_ignored() -> None:
    row = {"image": URL, "prompt": "Waves", "_error": {"message": "refused"}}
    assert list(read_rows([row])) == [(None, Job(image=URL, prompt="Waves"))]
    Path("jobs.csv").write_text(f"image,prompt,_error\n{URL},Waves,refused\n")
    assert len(read_manifest("jobs.csv")) == 1


LONG = "x" * 2501
BROKEN: dict[str, dict[str, Any]] = {
    "no prompt": {"prompt": None},
    "empty prompt": {"prompt": ""},
    "blank prompt": {"prompt": " \n"},
    "long prompt": {"prompt": LONG},
    "number as prompt": {"prompt": 5},
    "list as prompt": {"prompt": ["Waves"]},
    "surrogate": {"prompt": "\ud800"},
    "no image": {"image": None},
    "empty image": {"image": ""},
    "missing image": {"image": "missing.png"},
    "image outside": {"image": "../face.png"},
    "absolute image": {"image": "/etc/passwd"},
    "folder as image": {"image": "photos"},
    "image of another format": {"image": "face.webp"},
    "small image": {"image": "small.png"},
    "cut image": {"image": "cut.png"},
    "damaged image": {"image": "damaged.png"},
    "empty file": {"image": "empty.png"},
    "text as image": {"image": "text.png"},
    "number as image": {"image": 7},
    "file url": {"image": "file:///etc/passwd"},
    "ftp": {"image": "ftp://example.com/face.png"},
    "host missing": {"image": "https:///face.png"},
    "space in url": {"image": "https://example.com/a face.png"},
    "data of text": {"image": "data:text/plain;base64,aGk="},
    "data that is none": {"image": "data:image/png;base64,???"},
    "duration 15": {"duration": 15},
    "duration text": {"duration": "five"},
    "duration true": {"duration": True},
    "duration float": {"duration": 5.5},
    "duration negative": {"duration": -5},
    "unknown model": {"model": "kling-v2.1-por"},
    "number as model": {"model": 21},
    "scale too large": {"guidance_scale": 1.5},
    "scale negative": {"guidance_scale": -0.1},
    "scale text": {"guidance_scale": "high"},
    "long negative": {"negative_prompt": LONG},
    "negative number": {"negative_prompt": 3},
    "sound where none is": {"sound": True},
    "sound text": {"sound": "yes", "model": "kling-v3.0-pro"},
    "end image where none is": {"end_image": URL},
    "end image missing": {"model": "kling-v2.1-pro-start-end-frame"},
    "shots where none are": {"prompt": None, "multi_prompt": ["a", "b"]},
    "shot type": {"shot_type": "customize"},
    "elements": {"element_list": [1]},
    "unknown field": {"prompt": None, "promt": "Waves"},
    "unknown seed": {"seed": 7},
    "extra text": {"extra": "seed"},
    "extra with a field": {"extra": {"duration": 10}},
    "key with a fraction": {"key": 5.5},
    "key true": {"key": True},
    "key empty": {"key": ""},
    "key surrogate": {"key": "\udfff"},
}


def test_fifty_kinds_of_mistakes_in_ten_thousand_rows() -> None:
    Path("photos").mkdir()
    Path("face.png").write_bytes(png())
    Path("face.webp").write_bytes(b"RIFF\0\0\0\0WEBPVP8 " + bytes(50))
    Path("small.png").write_bytes(png(299, 400))
    Path("cut.png").write_bytes(png()[:-40])
    Path("damaged.png").write_bytes(png()[:20])
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("a picture, honestly")
    assert len(BROKEN) >= 50
    broken = {1 + 190 * place: (kind, row) for place, (kind, row) in enumerate(BROKEN.items())}
    with Path("jobs.jsonl").open("w") as file:
        for line in range(1, 10_001):
            row: dict[str, Any] = {"key": f"row-{line}", "prompt": "Waves", "image": "face.png"}
            file.write(json.dumps(row | broken.get(line, ("", {}))[1]) + "\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest("jobs.jsonl")
    messages = Counter(problem.line for problem in caught.value.problems)
    assert {broken[line][0] for line in broken if line not in messages} == set()
    assert set(messages) == set(broken), "only the broken rows"
    assert {kind for line, (kind, row) in broken.items() if messages[line] > 1} == set(), "one mistake, one problem"
    fields = {problem.line: problem.path for problem in caught.value.problems}
    assert all(fields[line].split(".")[0] in row or fields[line] == "end_image" for line, (_, row) in broken.items())


RSS = """
import re, sys
from kling_async.manifest import read_manifest
def peak():
    # Not `ru_maxrss`, which starts at the parent's value.
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
read_manifest(sys.argv[1])
before = peak()
manifest = read_manifest(sys.argv[2])
assert sum(1 for _ in manifest) == len(manifest)
print(peak() - before)
"""


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.repeats
def test_process_memory_does_not_grow_with_rows(suffix: str) -> None:
    def write(rows: int) -> str:
        name = f"{rows}.{suffix}"
        if suffix == "parquet":
            columns = {
                "key": [f"row {n}" for n in range(rows)],
                "prompt": [f"Waves {n} " * 10 for n in range(rows)],
                "image": [f"{URL}?{n}" for n in range(rows)],
            }
            return table(columns, name, row_group_size=2_000)
        with Path(name).open("w") as file:
            file.writelines(
                json.dumps({"key": f"row {n}", "prompt": f"Waves {n} " * 10, "image": f"{URL}?{n}"}) + "\n"
                for n in range(rows)
            )
        return name

    command = [sys.executable, "-c", RSS, write(2_000), write(16_000)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=50)
    # As dictionaries the rows are 20 MB; 16 bytes of each are kept to find repeated keys.
    assert float(ran.stdout) < 10


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.dictionaries(
                st.sampled_from(["key", "prompt", "image", "model", "duration", "extra", "_error", "sound"])
                | st.text(),
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=50),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
                    max_leaves=5,
                ),
                max_size=6,
            ),
            st.none(),
            st.text(),
        ),
        max_size=8,
    )
)
def test_hostile_rows_are_problems(tmp_path: Path, rows: list[Any]) -> None:
    for source in (rows, iter(rows)):
        with pytest.raises(ManifestError):
            read_rows(source)
    lines = tmp_path / "jobs.jsonl"
    lines.write_bytes("\n".join(json.dumps(row, default=str) for row in rows).encode())
    with pytest.raises(ManifestError):
        read_manifest(lines)


def _whole_parquet() -> bytes:
    buffer = io.BytesIO()
    columns = {"prompt": ["Waves"] * 50, "image": [URL] * 50, "duration": [5] * 50}
    parquet.write_table(pa.table(columns), buffer, row_group_size=20)
    return buffer.getvalue()


WHOLE = {
    "jsonl": (json.dumps({"prompt": "Waves", "image": URL}) + "\n").encode() * 20,
    "csv": f'prompt,image,duration\n"Waves",{URL},5\n'.encode() + f"Wind,{URL},10\n".encode() * 20,
    "parquet": _whole_parquet(),
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_hostile_files_are_problems(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = WHOLE[suffix]
    start = data.draw(st.integers(0, len(content)))
    end = start + data.draw(st.integers(0, 200))
    path = tmp_path / f"jobs.{suffix}"
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=60)) + content[end:])
    with suppress(ManifestError):
        manifest = read_manifest(path)
        assert sum(1 for _ in manifest) == len(manifest) > 0
