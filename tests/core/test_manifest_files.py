"""Rows that name files of any kind: `keyframes` and `images` as images do, JSON values after `file:`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kling_async import Field, Job, Model
from kling_async.errors import ManifestError
from kling_async.manifest import read_manifest, read_rows
from support.media import video, wav
from support.pictures import encoded, png

URL = "https://example.com/face.png"
OWN = Model(
    id="kwaivgi/kling-v4.0/video-extend",
    image=False,
    more=(Field(name="video", type="string", required=True), Field(name="audios", type="array")),
)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("clips").mkdir()
    contents = {"face.png": png(), "clips/walk.mp4": video(), "clips/tune.wav": wav(), "face.webp": encoded("WEBP")}
    for name, content in contents.items():
        Path(name).write_bytes(content)


def jobs(*rows: dict[str, Any], **options: Any) -> list[Job]:
    Path("jobs.jsonl").write_text("".join(json.dumps({"prompt": "x", **row}) + "\n" for row in rows))
    return [job for _, job in read_manifest("jobs.jsonl", models=[OWN], **options)]


def problems(*rows: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        jobs(*rows, **options)
    return [str(problem) for problem in caught.value.problems]


def test_rows_name_files_below_their_folder(tmp_path: Path) -> None:
    frames, extended, elements = jobs(
        {"model": "kling-v4.0", "image": URL, "keyframes": ["face.png", URL, "face.png"]},
        {
            "model": OWN.id,
            "extra": {"video": "file:clips/walk.mp4", "audios": [f"file://{tmp_path}/clips/tune.wav", URL]},
        },
        {"model": "kling-v3.0-pro", "image": URL, "element_list": [{"image": "file:face.png"}]},
    )
    face = tmp_path / "face.png"
    assert frames.keyframes == (face, URL, face)
    assert extended.own_row == OWN
    assert extended.extra == {"video": tmp_path / "clips/walk.mp4", "audios": [tmp_path / "clips/tune.wav", URL]}
    assert elements.element_list == ({"image": face},)


def test_texts_of_extra_stay_texts() -> None:
    extra = {"style": "a/b.mp4", "note": "face.png is a picture", "url": URL, "data": "data:image/png;base64,AA"}
    [job] = jobs({"image": URL, "extra": extra})
    assert job.extra == extra
    assert not job.files


def test_csv_cell_names_files(tmp_path: Path) -> None:
    cell = json.dumps({"video": "file:clips/walk.mp4"}).replace('"', '""')
    Path("jobs.csv").write_text(f'prompt,model,extra\nx,{OWN.id},"{cell}"\n')
    [(_, job)] = read_manifest("jobs.csv", models=[OWN])
    assert job.extra == {"video": tmp_path / "clips/walk.mp4"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"extra": {"a": ["file:none.mp4"]}}, "extra.a[0]: 'none.mp4' does not exist"),
        ({"extra": {"a": "file:../up.mp4"}}, "extra.a: '../up.mp4' is outside of"),
        ({"extra": {"a": "file:clips"}}, "extra.a: 'clips' is not a file"),
        ({"extra": {"a": "file:"}}, "extra.a: is empty"),
        ({"extra": {"a": "clips/walk.mp4"}}, "extra.a: 'clips/walk.mp4' is a file here: to send it, write 'file:clips"),
        ({"extra": {"video": "file:face.png"}}, "extra.video: expected a video, got a picture"),
        ({"extra": {"a": "file:jobs.jsonl"}}, "extra.a: expected a picture (JPEG, PNG), a video"),
        ({"model": "kling-v4.0", "keyframes": [URL, "clips/walk.mp4"]}, "keyframes[1]: expected a picture, got"),
        ({"model": "kling-v4.0", "keyframes": ["no.png"]}, "keyframes[0]: 'no.png' does not exist"),
        ({"model": "kling-v4.0", "keyframes": ["face.webp"]}, "keyframes[0]: expected a JPEG or PNG, got WebP"),
        ({"model": OWN.id, "extra": {}}, "extra.video: required by"),
    ],
)  # fmt: skip
def test_problems_name_line_and_place(row: dict[str, Any], said: str) -> None:
    image = {} if row.get("model") == OWN.id else {"image": URL}
    [problem] = problems({**image, **row})
    assert problem.startswith(f"jobs.jsonl:1 {said}")


def test_pictures_anywhere_are_converted_with_fit() -> None:
    [job] = jobs({"model": "kling-v4.0", "image": URL, "keyframes": ["face.webp"]}, fit=True)
    assert job.files.keys() == {"keyframes[0]"}


def test_rows_without_a_folder_have_paths(tmp_path: Path) -> None:
    clip = tmp_path / "clips/walk.mp4"
    manifest = read_rows([{"prompt": "x", "model": OWN.id, "extra": {"video": clip, "audios": [wav()]}}], models=[OWN])
    [(_, job)] = manifest
    assert job.files == {"extra.video": clip, "extra.audios[0]": wav()}
    assert list(manifest.kinds) == [job.kind]
    with pytest.raises(ManifestError, match=r"extra\.video: expected a Path for a file"):
        read_rows([{"prompt": "x", "model": OWN.id, "extra": {"video": "file:clips/walk.mp4"}}], models=[OWN])


def test_hostile_extra_is_a_problem_and_no_crash() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ManifestError):
        read_rows([{"prompt": "x", "image": URL, "extra": {"a": deep, "b": b"x"}}])
    with pytest.raises(ManifestError, match="is not JSON"):
        read_rows([{"prompt": "x", "image": URL, "extra": {5: object(), ("a",): 1}}])
