"""Files of any kind as inputs: recognised by content, named by their place, and refused with it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kling_async import Field, InvalidJobError, Job, Model, WaveSpeed
from kling_async._core.content import Content, Identity, content_of, digests, file_digests, files, recalled
from kling_async._core.images import Image
from kling_async._core.input_files import EXPECTED, MAX_UPLOAD_BYTES, media_type
from kling_async._images.inspection import inspect
from kling_async._images.preflight import sha256
from kling_async._worker.enqueue import portions
from support.media import sound, video, wav
from support.pictures import encoded, jpeg, png

URL = "https://pictures.example/face.png"
OWN = Model(
    id="kwaivgi/kling-v4.0/reference-to-video",
    image=False,
    more=(
        Field(name="videos", type="array", max_length=2),
        Field(name="video", type="string"),
        Field(name="seed", type="integer"),
        Field(name="mode", type="string", choices=("fast", "good")),
    ),
)


def sha(image: Image) -> str:
    return sha256(image, "image") if isinstance(image, bytes) else f"{image}".encode().hex().ljust(64, "0")[:64]


def problems(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidJobError) as caught:
        Job(**{"prompt": "x", **({} if "model" in fields else {"image": URL}), **fields})
    return {problem.path: problem.message for problem in caught.value.problems}


def refusal(file: Path | bytes, field: str = "extra.video") -> str:
    with pytest.raises(InvalidJobError) as caught:
        inspect(file, field=field)
    [problem] = caught.value.problems
    assert problem.path == field
    return problem.message


def without_tag(content: bytes) -> bytes:
    """Return an MP3 from its first frame on."""
    return content[content.index(b"\xff\xfb") :]


def without_bytes(value: object) -> str | None:
    """Return an id for a case that holds a file, which differs between processes; None for pytest's own."""
    return "file" if isinstance(value, bytes) else None


# ---- by content ----


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (video("mp4"), "video/mp4"),
        (video("mov"), "video/quicktime"),
        (video("mov")[20:], "video/quicktime"),
        (video("webm"), "video/webm"),
        (video("matroska"), "video/x-matroska"),
        (video("avi"), "video/x-msvideo"),
        (sound("mp3", "libmp3lame"), "audio/mpeg"),
        (without_tag(sound("mp3", "libmp3lame")), "audio/mpeg"),
        (sound("adts", "aac"), "audio/aac"),
        (sound("ipod", "aac"), "audio/mp4"),
        (sound("flac", "flac"), "audio/flac"),
        (b"OggS" + bytes(60), "audio/ogg"),
        (wav(), "audio/wav"),
        *((picture, None) for picture in (jpeg(), png(), *map(encoded, ("WEBP", "GIF", "BMP", "TIFF", "AVIF")))),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", None),
        (b"", None),
        (b"%PDF-1.7", None),
    ],
    ids=without_bytes,
)
def test_type_is_told_by_content(content: bytes, expected: str | None) -> None:
    assert media_type(content[:64]) == expected


@given(st.binary(max_size=64))
def test_any_beginning_has_a_type_or_none(head: bytes) -> None:
    assert media_type(head) is None or "/" in str(media_type(head))


@pytest.mark.parametrize(
    "content",
    [video("mp4"), video("mov"), video("webm"), sound("mp3", "libmp3lame"), wav(), png()],
    ids=without_bytes,
)
def test_file_and_bytes_are_taken_whatever_the_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.txt"
    path.write_bytes(content)
    assert inspect(path, field="extra.x") == inspect(content, field="extra.x")
    assert inspect(content, field="extra.x").bytes == len(content)


@pytest.mark.parametrize(
    ("content", "field", "said"),
    [
        (b"", "extra.x", "is empty"),
        (b"%PDF-1.7", "extra.x", f"{EXPECTED}, the bytes are none of these"),
        (video("matroska"), "extra.x", f"{EXPECTED}, got Matroska (MKV)"),
        (sound("ipod", "aac"), "extra.audios[0]", f"{EXPECTED}, got M4A"),
        (video(), "keyframes[0]", "expected a picture, got a video (MP4)"),
        (wav(), "extra.reference_videos[1]", "expected a video, got a sound (WAV)"),
        (png(), "extra.video", "expected a video, got a picture"),
        (video("webm"), "extra.elements[0].image_url", "expected a picture, got a video (WebM)"),
        (png(100, 100), "extra.images[0]", "expected at least 300x300 pixels, got 100x100"),
        (video()[:-20], "extra.video", "is truncated: the end of the video is missing"),
        (video()[:40], "extra.video", "is damaged, or is truncated: it has no description of its content"),
    ],
    ids=without_bytes,
)
def test_what_cannot_be_sent_is_refused_with_its_place(content: bytes, field: str, said: str) -> None:
    assert refusal(content, field) == said


def test_size_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.webm"
    path.write_bytes(video("webm"))
    with path.open("r+b") as file:
        # Full of zeros, which take no room on the disk.
        file.truncate(MAX_UPLOAD_BYTES)
    assert inspect(path, field="extra.video").bytes == MAX_UPLOAD_BYTES
    with path.open("r+b") as file:
        file.truncate(MAX_UPLOAD_BYTES + 1)
    assert refusal(path) == "expected at most 300 MB, got more"


def test_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    """Of more than an image may have, too."""
    path, zeros = tmp_path / "long.webm", bytes(2**20)
    with path.open("wb") as file:
        file.seek(101 * 2**20)
        file.write(b"1")
    whole = hashlib.sha256()
    for _ in range(101):
        whole.update(zeros)
    whole.update(b"1")
    assert sha256(path, "extra.video") == whole.hexdigest()


# ---- in jobs ----


def test_files_stand_anywhere() -> None:
    clip, tune = video(), wav()
    job = Job(
        model="kling-v4.0",
        prompt="x",
        image=Path("first.png"),
        end_image=URL,
        keyframes=[png(), URL, io.BytesIO(jpeg()), Path("third.png")],
        extra={
            "videos": [URL, Path("a.mp4"), clip],
            "a.b": {"c": ({"audio": bytearray(tune)}, 7)},
            "text": "sha256:5e",
        },
    )
    assert job.files == {
        "image": Path("first.png"),
        "keyframes[0]": png(),
        "keyframes[2]": jpeg(),
        "keyframes[3]": Path("third.png"),
        "extra.videos[1]": Path("a.mp4"),
        "extra.videos[2]": clip,
        'extra["a.b"].c[0].audio': tune,
    }
    sent = job.with_files({place: f"https://cdn.example/{place}" for place in job.files})
    assert not sent.files
    assert sent.inputs("i", "e")["videos"] == [
        URL,
        "https://cdn.example/extra.videos[1]",
        "https://cdn.example/extra.videos[2]",
    ]
    assert sent.keyframes[1:3] == (URL, "https://cdn.example/keyframes[2]")
    json.dumps(sent.inputs("i", "e"))
    assert attrs.evolve(job) == copy.deepcopy(job) == pickle.loads(pickle.dumps(job)) == job
    assert hash(job) == hash(attrs.evolve(job))
    assert len(repr(job)) < 1500
    assert f"<{len(clip)} bytes>" in repr(job)


def test_open_file_is_read_once() -> None:
    file = io.BytesIO(video())
    job = Job(model=OWN, prompt="x", extra={"video": file, "videos": [file]})
    assert job.files == {"extra.video": video(), "extra.videos[0]": video()}


def test_places_are_unambiguous() -> None:
    a, b, c = png(), jpeg(), video()
    job = Job(prompt="x", image=URL, extra={"a": {"b": a, "0": [b]}, "a.b": c, "a[0]": Path("x")})
    assert list(job.files.values()) == [a, b, c, Path("x")]
    assert recalled(content_of(job, sha), {}).extra != {}
    assert len(file_digests(content_of(job, sha))) == 4


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"extra": {"videos": [URL, b"%PDF"]}}, "extra.videos[1]", f"{EXPECTED}, the bytes are none of these"),
        ({"extra": {"x": b""}}, "extra.x", "is empty"),
        ({"extra": {"x": io.StringIO("x")}}, "extra.x", "expected a file opened in binary mode"),
        ({"extra": {"video": png()}}, "extra.video", "expected a video, got a picture"),
        ({"extra": {"x": Path}}, "extra", "is not JSON: Object of type type is not JSON serializable"),
        ({"model": OWN, "extra": {"seed": Path("a")}}, "extra.seed", "expected integer, got a file"),
        ({"model": OWN, "extra": {"mode": Path("a")}}, "extra.mode", "expected 'fast' or 'good', got a file"),
        ({"model": OWN, "extra": {"videos": Path("a")}}, "extra.videos", "expected array, got a file"),
        ({"model": OWN, "extra": {"videos": [Path("a")] * 3}}, "extra.videos", "expected at most 2 items, got 3"),
        ({"model": "kling-v4.0", "keyframes": [URL, video()]}, "keyframes[1]", "expected a JPEG or PNG, the bytes"),
        ({"model": "kling-v4.0", "keyframes": [URL] * 9}, "keyframes", "expected at most 8 items, got 9"),
        ({"model": "kling-v3.0-pro", "element_list": [{"video": wav()}]}, "element_list[0].video", "expected a video"),
    ],
)
def test_problems_have_the_place(fields: dict[str, Any], path: str, said: str) -> None:
    found = problems(**{"image": URL, **fields} if fields.get("model") is not OWN else fields)
    assert found.keys() == {path}
    assert found[path].startswith(said)


def test_asynchronous_file_is_refused() -> None:
    class Reader:
        async def read(self, size: int) -> bytes:
            return bytes(size)

    assert "asynchronous" in problems(extra={"x": Reader()})["extra.x"]


def test_price_does_not_depend_on_content() -> None:
    kinds = {
        Job(model=OWN, prompt="x", extra={"video": file}).kind
        for file in (video(), video("mp4", each=2), Path("a.mp4"))
    }
    assert len(kinds) == 1
    body = WaveSpeed(api_key="k").price(Job(model=OWN, prompt="x", extra={"video": video()})).body
    assert json.loads(body or b"")["inputs"]["video"] == "https://example.com/file.mp4"


# ---- identity ----


def test_identity_of_jobs_without_files_in_json_is_as_before() -> None:
    """Digests as the version before files of any kind made them."""
    sample = "5e" * 32
    own = Model(id="other/model-9", more=(Field(name="video", type="string"),), image=False)
    jobs = {
        "accbe37b4ee293f2bbc7550a669482726a372e65abb6f3da510fbee85071ea0b": Job(
            model="kling-v4.0",
            prompt="x",
            image="https://pictures.example/a.png",
            keyframes=["https://pictures.example/a.png", "https://pictures.example/a.png?X-Amz-Signature=1"],
            end_image=Path("/pictures/b.png"),
            duration=12,
        ),
        "29e477d6afa6c45b8fae646aeb3d934a79bbb768d0aa63c78623f297c429da53": Job(
            model="kling-v1.6-multi-pro", prompt="x", images=["https://pictures.example/a.png"]
        ),
        "bf263534371dc7cb88824b065324a176799002d77d3554b97c1e2d96867c2cbd": Job(
            prompt="x",
            image="https://pictures.example/a.png",
            extra={"video": f"sha256:{sample}", "files": ["extra.video"], "a": {"b": [1, 2.5, None, "x"]}},
        ),
        "1d96f361036710b185bfa05f78acc5ac47a76241aea7711dd72fa4b5515473bf": Job(
            model="kling-v3.0-pro", prompt="x", image="https://pictures.example/a.png", element_list=[{"id": 7}]
        ),
        "50881e3ef713182330beb8c18aee4e9e2da8796676c4b012f222faf4445471cb": Job(
            model=own, prompt="x", extra={"video": "https://pictures.example/a.png"}
        ),
    }
    for digest, job in jobs.items():
        assert content_of(job, lambda _: sample, identity=Identity(2)).digest == digest


def test_text_that_looks_like_a_digest_is_no_file() -> None:
    file = Job(prompt="x", image=URL, extra={"video": video()})
    text = Job(prompt="x", image=URL, extra={"video": f"sha256:{sha(video())}"})
    marked = Job(prompt="x", image=URL, extra={"video": f"sha256:{sha(video())}", "files": ["extra.video"]})
    contents = [content_of(job, sha) for job in (file, text, marked)]
    assert len({content.digest for content in contents}) == 3
    assert recalled(contents[1], {}) == text
    assert recalled(contents[2], {}) == marked


def test_names_of_files_are_no_part_of_the_identity() -> None:
    one = content_of(Job(prompt="x", image=URL, extra={"video": Path("/pictures/one.mp4")}), lambda _: "5e" * 32)
    other = content_of(Job(prompt="x", image=URL, extra={"video": Path("/pictures/two.mp4")}), lambda _: "5e" * 32)
    assert one.digest == other.digest
    assert json.loads(one.files or "") == {"extra.video": "/pictures/one.mp4"}


leaves = st.sampled_from(
    [Path("/pictures/a.mp4"), Path("/pictures/b.wav"), video(), wav(), png(), URL, "sha256:00", 5, None, True]
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b.c", "d[0]", "ü"]), inner),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(["x", "y.z", "w-v"]), trees, max_size=3))
def test_jobs_survive_the_ledger(extra: dict[str, Any]) -> None:
    job = Job(model="kling-v4.0", prompt="x", image=Path("/pictures/f.png"), keyframes=[png(), URL], extra=extra)
    content = content_of(job, sha)
    uploads = {sha(file): f"https://cdn.example/{sha(file)}" for file in job.files.values() if isinstance(file, bytes)}
    expected = job.with_files({p: uploads[sha(f)] for p, f in job.files.items() if isinstance(f, bytes)})
    assert recalled(content, uploads) == expected
    assert file_digests(content) == {place: sha(file) for place, file in job.files.items()}
    assert digests(content) == uploads.keys()
    assert sorted(files(content)) == sorted((file, sha(file)) for file in job.files.values() if isinstance(file, Path))
    again = content_of(recalled(Content(content.text, content.files), {}), lambda _: "")
    assert json.loads(again.files or "") == json.loads(content.files or "")


@pytest.mark.anyio
@pytest.mark.parametrize("extra", [{"a": [video()]}, {"a": [io.BytesIO(video())]}])
async def test_workers_get_no_bytes(extra: dict[str, Any]) -> None:
    jobs = [Job(model="kling-v4.0", prompt="x", image=URL, keyframes=[png()], extra=extra)]
    with pytest.raises(InvalidJobError) as caught:
        [portion async for portion in portions(jobs, identity=Identity())]
    assert [problem.path for problem in caught.value.problems] == ["keyframes[0]", "extra.a[0]"]
