"""Validation of jobs: everything is checked before anything is sent, and every problem names its field."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from kling_async import InvalidJobError, Job
from kling_async._core.catalogue import MAX_TEXT_LENGTH, MODELS
from kling_async._core.content import content_of
from kling_async._core.images import Image, check_image
from kling_async._core.job import JobFields
from kling_async._core.job_validation import UNSENT_FIELDS
from kling_async._core.media import MAX_CONVERTED_BYTES

URL = "https://pictures.example/face.png"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
FRAMES = "kling-v2.1-pro-start-end-frame"


def make(**fields: Any) -> Job:
    """Make a job that is valid except for the given fields."""
    return Job(**cast("JobFields", {"prompt": "She smiles", "image": URL, **fields}))


def refusals(**fields: Any) -> dict[str, str]:
    """Return the problem of each field of a refused job."""
    with pytest.raises(InvalidJobError) as caught:
        make(**fields)
    return {problem.path: problem.message for problem in caught.value.problems}


# ---- all fields ----


def test_minimal_job_uses_cheapest_model() -> None:
    job = Job(prompt="She smiles", image=URL)
    assert (job.model, job.duration) == ("kwaivgi/kling-v2.1-i2v-standard", 5)
    assert (job.end_image, job.negative_prompt, job.guidance_scale, job.sound) == (None, None, None, None)
    assert job.inputs(URL, None) == {"prompt": "She smiles", "image": URL, "duration": 5}


def test_all_problems_are_reported_with_paths() -> None:
    with pytest.raises(InvalidJobError) as caught:
        Job(  # type: ignore[call-arg]  # an unknown field is the point
            prompt="",
            image="face.png",
            negative_prompt=cast("str", 5),
            guidance_scale=2,
            duration=15,
            sound=cast("bool", 1),
            extra={"prompt": "x"},
            seed=1,
        )
    assert [problem.path for problem in caught.value.problems] == [
        "seed",
        "prompt",
        "duration",
        "image",
        "negative_prompt",
        "guidance_scale",
        "sound",
        "extra.prompt",
    ]
    said = str(caught.value)
    assert all(f"{problem.path}: {problem.message}" in said for problem in caught.value.problems)
    assert "nothing was spent" in said


def test_empty_job_reports_required_fields() -> None:
    with pytest.raises(InvalidJobError) as caught:
        Job()
    assert [problem.path for problem in caught.value.problems] == ["prompt", "image"]


def test_none_equals_omitted() -> None:
    assert make(negative_prompt=None, guidance_scale=None, end_image=None, sound=None, extra=None) == make()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("promt", "prompt"),
        ("negativ_prompt", "negative_prompt"),
        ("guidance", "guidance_scale"),
        ("cfg_scale", "guidance_scale"),
        ("last_image", "end_image"),
        ("tail_image", "end_image"),
        ("image_url", "image"),
        ("durations", "duration"),
        ("seconds", "duration"),
    ],
)
@pytest.mark.promise(10)
def test_unknown_field_suggests_similar_name(wrong: str, right: str) -> None:
    assert refusals(**{wrong: "x"})[wrong].endswith(f"did you mean {right}?")


def test_unknown_field_without_similar_name_lists_fields() -> None:
    said = refusals(zzzzzz=1)["zzzzzz"]
    assert "charge" in said
    assert all(name in said for name in JobFields.__annotations__)


@pytest.mark.promise(10)
def test_unknown_field_is_refused_even_if_none() -> None:
    assert "seed" in refusals(seed=None)


# ---- model ----


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_every_model_name_resolves_to_full_id(row: Any) -> None:
    more: dict[str, Any] = {"end_image": URL} if row.end_image and row.end_image.required else {}
    more |= {} if row.image else {"image": None, "images": [URL]}
    for name in (row.id, row.name, *row.aliases, row.name.upper(), f" /{row.id}/ "):
        assert make(model=name, **more).model == row.id
    assert make(model=row.name, **more).row is row


@pytest.mark.parametrize(
    ("name", "suggested"), [("kling-2.1-pro", "kling-v2.1-pro"), ("kwaivgi/kling-v2.1-mastr", "kling-v2.1-master")]
)
def test_unknown_model_suggests_similar_name(name: str, suggested: str) -> None:
    assert suggested in refusals(model=name)["model"]


@pytest.mark.parametrize("name", [5, b"kling-v2.1-pro", ["kling-v2.1-pro"], True])
def test_model_must_be_a_name(name: object) -> None:
    assert refusals(model=name)["model"] == f"expected a model name or a Model, got {type(name).__name__}"


# ---- text ----


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_empty_prompt_is_refused_if_required(prompt: str) -> None:
    assert refusals(prompt=prompt) == {"prompt": "required: 1 to 2500 characters"}


def test_empty_prompt_is_omitted_if_optional() -> None:
    assert "prompt" not in make(model="kling-v2.6-std", prompt="").inputs(URL, None)


def test_text_length_counts_code_points_and_text_is_not_trimmed() -> None:
    prompt = " " + "\N{CINEMA}" * (MAX_TEXT_LENGTH - 2) + " "
    assert make(prompt=prompt, negative_prompt=prompt).prompt == prompt


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x" * (MAX_TEXT_LENGTH + 1), "expected at most 2500 characters, got 2501"),
        (5, "expected text, got int"),
        (b"text", "expected text, got bytes"),
        ("half \ud83c", "expected Unicode text, got a lone surrogate"),
    ],
)
def test_bad_text_is_refused(field: str, text: object, said: str) -> None:
    assert refusals(**{field: text}) == {field: said}


def test_empty_negative_prompt_is_sent() -> None:
    assert make(negative_prompt="").inputs(URL, None)["negative_prompt"] == ""


# ---- duration ----


@pytest.mark.parametrize(("given", "sent"), [(5, 5), (10, 10), ("5", 5), ("10", 10), (" 5 ", 5)])
def test_duration_is_sent_as_integer(given: object, sent: int) -> None:
    body = make(duration=given).inputs(URL, None)
    assert body["duration"] == sent
    assert type(body["duration"]) is int


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "True"),
        (False, "False"),
        (15, "15"),
        (20, "20"),
        (0, "0"),
        (-5, "-5"),
        (5.0, "5.0"),
        (math.nan, "nan"),
        ("15", "'15'"),
        ("5s", "'5s'"),
        ("five", "'five'"),
        ("", "''"),
        ("\N{SUPERSCRIPT TWO}", "'²'"),
        ([5], "[5]"),
        ("9" * 5000, "'99999"),
        (10**5000, "a value of type int"),
    ],
    ids=lambda value: value[:10] if isinstance(value, str) else type(value).__name__,
)
def test_bad_duration_is_refused_and_shown(value: object, shown: str) -> None:
    problems = refusals(duration=value)
    assert list(problems) == ["duration"]
    assert problems["duration"].startswith(f"expected 5 or 10, got {shown}")
    assert len(problems["duration"]) < 100


def test_error_shows_consecutive_durations_as_range() -> None:
    assert make(model="kling-v3.0-std", duration=7).duration == 7
    assert refusals(model="kling-v3.0-std", duration=16)["duration"] == "expected 3 to 15, got 16"


# ---- guidance scale, sound ----


@pytest.mark.parametrize("value", [0, 1, 0.0, 0.35, 1.0])
def test_guidance_scale_accepts_range(value: float) -> None:
    assert make(guidance_scale=value).inputs(URL, None)["guidance_scale"] == value


@pytest.mark.parametrize(
    "value",
    [-0.01, 1.01, 5, math.nan, math.inf, -math.inf, True, False, "0.5", [0.5], 10**5000, 1j],
    ids=lambda value: type(value).__name__,
)
def test_bad_guidance_scale_is_refused(value: object) -> None:
    problems = refusals(guidance_scale=value)
    assert list(problems) == ["guidance_scale"]
    assert problems["guidance_scale"].startswith("expected a number from 0 to 1, got ")


def test_guidance_scale_uses_wire_name_of_model() -> None:
    body = make(model="kling-v2.6-pro", guidance_scale=0.5).inputs(URL, None)
    assert body["cfg_scale"] == 0.5
    assert "guidance_scale" not in body
    assert refusals(model="kling-v2.6-std", guidance_scale=0.5) == {"guidance_scale": "not supported by kling-v2.6-std"}


def test_sound_is_refused_for_silent_models() -> None:
    assert make(model="kling-v2.6-pro", sound=True).inputs(URL, None)["sound"] is True
    assert make(model="kling-v2.6-pro", sound=False).inputs(URL, None)["sound"] is False
    assert refusals(model="kling-v2.1-pro", sound=True) == {"sound": "not supported by kling-v2.1-pro"}
    assert refusals(model="kling-v2.6-pro", sound="yes") == {"sound": "expected True or False, got 'yes'"}
    assert refusals(model="kling-v2.6-pro", sound=10**5000) == {
        "sound": "expected True or False, got a value of type int"
    }


# ---- images ----


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        (URL, URL),
        ("HTTP://pictures.example:8080/face.png?sig=1#x", "HTTP://pictures.example:8080/face.png?sig=1#x"),
        ("http://127.0.0.1:8000/face", "http://127.0.0.1:8000/face"),
        ("https://[::1]/face", "https://[::1]/face"),
        (Path("no/such/file.png"), Path("no/such/file.png")),
        (PNG, PNG),
        (JPEG, JPEG),
        (bytearray(PNG), PNG),
        (memoryview(PNG), PNG),
        (memoryview(b"".join(bytes([byte, 0]) for byte in PNG))[::2], PNG),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.promise(9)
def test_image_sources_are_normalised(source: Any, stored: Image) -> None:
    job = make(image=source)
    assert job.image == stored
    assert type(job.image) is type(stored)
    assert check_image("image", source, []) == stored


def test_job_copies_bytearray() -> None:
    source = bytearray(PNG)
    job = make(image=source)
    source[:] = JPEG
    assert job.image == PNG


def test_binary_file_is_read_at_creation(tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        job = make(image=file)
    assert job.image == PNG
    assert make(image=io.BytesIO(JPEG)).image == JPEG


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_pil_image_becomes_png_of_same_size(mode: str) -> None:
    image = make(image=Pillow.new(mode, (320, 300))).image
    assert isinstance(image, bytes)
    decoded = Pillow.open(io.BytesIO(image))
    assert (decoded.format, decoded.size, decoded.mode) == ("PNG", (320, 300), "L" if mode == "L" else "RGB")


def test_pil_image_becomes_jpeg_if_png_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kling_async._core.pixels.MAX_IMAGE_BYTES", 70_000)
    noise = Pillow.effect_noise((300, 300), 20)
    assert len(cast("bytes", make(image=noise).image)) < 70_000
    assert cast("bytes", make(image=noise).image).startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize("field", ["image", "end_image"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("face.png", "expected an http(s) URL, got 'face.png'; pass a file as Path(...)"),
        ("/etc/passwd", "expected an http(s) URL, got '/etc/passwd'; pass a file as Path(...)"),
        ("file:///etc/passwd", "expected an http(s) URL"),
        ("ftp://pictures.example/face.png", "expected an http(s) URL"),
        ("https://", "expected an http(s) URL"),
        ("https:///face.png", "expected an http(s) URL"),
        ("https://[::1/face.png", "expected an http(s) URL"),
        ("https://pictures.example:port/face.png", "expected an http(s) URL"),
        ("https://pictures.example/a face.png", "expected an http(s) URL"),
        ("https://pictures.example/face.png\r\nX: y", "expected an http(s) URL"),
        ("", "expected an http(s) URL"),
        (b"", "is empty"),
        (b"%PDF-1.7", "expected a JPEG or PNG, the bytes are neither"),
        (PNG[:7], "expected a JPEG or PNG, the bytes are neither"),
        (PNG + bytes(MAX_CONVERTED_BYTES), "expected at most 100 MB, got more"),
        (5, "expected a URL, a Path, bytes, a binary file, a PIL image or a frame of a video, got int"),
        (["https://pictures.example/face.png"], "got list"),
        (Pillow.Image, "expected an image, got the class Image"),
        (Pillow.new("RGB", (0, 0)), "the PIL image cannot be encoded: "),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.promise(9)
def test_bad_image_is_refused(field: str, source: object, said: str) -> None:
    problems = refusals(model=FRAMES, **{"image": URL, "end_image": URL, field: source})
    assert list(problems) == [field]
    assert said in problems[field]


def test_oversized_file_is_not_read_to_its_end() -> None:
    class Endless(io.RawIOBase):
        asked: list[int]

        def read(self, size: int = -1) -> bytes:
            self.asked.append(size)
            return PNG + bytes(size - len(PNG))

    file = Endless()
    file.asked = []
    assert refusals(image=file) == {"image": "expected at most 100 MB, got more"}
    assert file.asked == [MAX_CONVERTED_BYTES + 1]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_text_mode_file_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(PNG)
    with path.open(encoding=encoding) as file:
        assert refusals(image=file) == {"image": "expected a file opened in binary mode"}


def test_unreadable_file_is_a_problem_of_its_field(tmp_path: Path) -> None:
    closed = io.BytesIO(PNG)
    closed.close()
    assert refusals(image=closed)["image"].startswith("the file cannot be read: ValueError")
    with (tmp_path / "new.png").open("wb") as writable:
        assert refusals(image=writable)["image"].startswith("the file cannot be read: UnsupportedOperation")


def test_asynchronous_file_is_refused_and_its_coroutine_closed() -> None:
    class Upload:
        async def read(self, size: int = -1) -> bytes:
            return PNG

    # A coroutine that was never awaited gives a warning, which is an error in this suite.
    assert "await file.read()" in refusals(image=Upload())["image"]


# ---- data URIs ----


def test_data_uri_accepts_jpeg_and_png() -> None:
    for kind, content in (("png", PNG), ("jpeg", JPEG)):
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        assert make(image=uri).image == uri
        wrapped = f"data:image/{kind.replace('jpeg', 'jpg')};base64,\r\n{base64.encodebytes(content).decode()}"
        assert make(image=wrapped).image == uri


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("data:image/png;base64,!!!!", "the data URI is not base64"),
        ("data:image/png;base64,\N{LATIN SMALL LETTER E WITH ACUTE}", "the data URI is not base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,JVBERi0x", "expected a JPEG or PNG, the bytes are neither"),
        ("data:image/png,abc", "expected a data URI of an image in base64: data:image/jpeg;base64,..."),
        ("data:text/html;base64,R0lGODlh", "expected a data URI of an image in base64: data:image/jpeg;base64,..."),
        ("data:", "expected a data URI of an image in base64: data:image/jpeg;base64,..."),
    ],
)
def test_bad_data_uri_is_refused(uri: str, said: str) -> None:
    assert refusals(image=uri) == {"image": said}


# ---- end image ----


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_end_image_follows_the_model(row: Any) -> None:
    if row.end_image is None:
        assert refusals(model=row.name, end_image=URL)["end_image"] == f"not supported by {row.name}"
        return
    body = make(model=row.name, end_image=URL).inputs(URL, "https://pictures.example/last.png")
    assert body[row.end_image.field] == "https://pictures.example/last.png"
    both = {row.end_image.field, row.end_image.also} - {""}
    assert {"end_image", "last_image"} & set(body) == both
    if row.end_image.required:
        assert refusals(model=row.name)["end_image"].startswith(f"required by {row.name}")
    else:
        assert row.end_image.field not in make(model=row.name).inputs(URL, None)


# ---- extra ----


def test_extra_is_sent_unchanged() -> None:
    job = make(extra={"seed": 7, "camera": {"zoom": [1, 2.5, None, "ä"]}})
    assert job.inputs(URL, None)["seed"] == 7
    assert job.inputs(URL, None)["camera"] == {"zoom": [1, 2.5, None, "ä"]}


def test_extra_is_copied() -> None:
    camera = {"zoom": [1]}
    job = make(extra={"camera": camera})
    camera["zoom"].append(2)
    assert job.extra == {"camera": {"zoom": [1]}}


@pytest.mark.parametrize("name", sorted(JobFields.__annotations__.keys() - UNSENT_FIELDS))
def test_extra_refuses_fields_of_job(name: str) -> None:
    assert refusals(extra={name: 1}) == {f"extra.{name}": "is a field of Job: pass it by name"}


def test_extra_may_have_inputs_with_the_names_of_fields_that_are_not_sent() -> None:
    inputs = dict.fromkeys(sorted(UNSENT_FIELDS), 1)
    assert make(extra=inputs, caller="ann", priority=3).inputs(URL, None).items() >= inputs.items()


def deep() -> object:
    nested: object = 1
    for _ in range(200_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    "extra",
    [
        {"a": math.nan},
        {"a": math.inf},
        {"a": object()},
        {("a", "b"): 1},
        {"a": "half \ud83c"},
        {"half \ud83c": 1},
        {"a": deep()},
    ],
    ids=["nan", "inf", "object", "tuple key", "surrogate", "surrogate key", "deep"],
)
def test_extra_must_be_json(extra: object) -> None:
    assert refusals(extra=extra)["extra"].startswith("is not JSON")


@pytest.mark.parametrize("value", [Path("a.png"), b"", [b"a"]])
def test_labels_have_no_files(value: object) -> None:
    assert refusals(labels={"a": value})["labels"].startswith("is not JSON")


@pytest.mark.parametrize("extra", ["seed=1", 5, ["seed"], [("seed", 1)]])
def test_extra_must_be_a_mapping(extra: object) -> None:
    assert refusals(extra=extra) == {"extra": f"expected a mapping, got {type(extra).__name__}"}


# ---- digest ----


def content_digest(image: Image) -> str:
    """Digest an image as a session does: URLs by themselves, files by content."""
    if isinstance(image, str):
        return image
    return hashlib.sha256(image.read_bytes() if isinstance(image, Path) else image).hexdigest()


def test_digest_is_stable() -> None:
    """Ledgers on users' disks use it as job key: another digest would pay for every job again."""
    digest = content_of(make(), content_digest).digest
    assert digest == "9e76039b81d942a12da3821158a4bfb2d58e3d390a8b89b8d218428104ca8176"


def test_digest_depends_on_file_content_not_name(tmp_path: Path) -> None:
    one, other, changed = (tmp_path / name for name in ("one.png", "other.png", "changed.png"))
    one.write_bytes(PNG)
    other.write_bytes(PNG)
    changed.write_bytes(JPEG)
    digest = content_of(make(image=one), content_digest).digest
    assert digest == content_of(make(image=other), content_digest).digest
    assert digest == content_of(make(image=PNG), content_digest).digest
    assert digest != content_of(make(image=changed), content_digest).digest


def test_digest_depends_on_every_field_and_nothing_else() -> None:
    base: dict[str, Any] = {"model": "kling-v2.6-pro"}
    jobs = [
        make(**base, **change)
        for change in (
            {},
            {"prompt": "other"},
            {"image": "https://pictures.example/other.png"},
            {"end_image": URL},
            {"negative_prompt": ""},
            {"negative_prompt": "blur"},
            {"guidance_scale": 0.5},
            {"guidance_scale": 0},
            {"duration": 10},
            {"sound": True},
            {"sound": False},
            {"extra": {"seed": 1}},
            {"extra": {"seed": 2}},
        )
    ] + [make(model="kling-v3.0-pro")]
    assert len({content_of(job, content_digest).digest for job in jobs}) == len(jobs)
    same = [make(**base, duration="5"), make(model="kwaivgi/kling-v2.6-pro/image-to-video"), make(**base, extra={})]
    assert {content_of(job, content_digest).digest for job in same} == {content_of(jobs[0], content_digest).digest}


def test_digest_ignores_order_of_extra() -> None:
    one, other = make(extra={"a": 1, "b": 2}), make(extra={"b": 2, "a": 1})
    assert one == other
    assert content_of(one, content_digest).digest == content_of(other, content_digest).digest


# ---- value semantics ----


def test_job_is_frozen() -> None:
    job = make()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        job.prompt = "other"  # type: ignore[misc]  # that it is frozen is the point
    with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
        job.seed = 1  # type: ignore[attr-defined]  # the same


def test_job_pickles_copies_hashes_and_compares_by_value() -> None:
    job = make(model=FRAMES, image=PNG, end_image=Path("last.png"), duration="10", extra={"seed": 1})
    for other in (pickle.loads(pickle.dumps(job)), copy.deepcopy(job), attrs.evolve(job)):
        assert other == job
        assert hash(other) == hash(job)
    assert {job, copy.copy(job)} == {job}
    assert job != make(model=FRAMES, image=PNG, end_image=Path("last.png"), duration="10", extra={"seed": 2})


def test_evolve_validates_again() -> None:
    # mypy's plugin for attrs does not see the names in `**fields: Unpack[...]`.
    assert attrs.evolve(make(), duration="10").duration == 10  # type: ignore[call-arg]  # see above
    with pytest.raises(InvalidJobError):
        attrs.evolve(make(), duration=15)  # type: ignore[call-arg]  # see above


def test_repr_hides_bytes_signatures_and_passwords() -> None:
    secret = "c2VjcmV0LXNpZ25hdHVyZQ"
    shown = repr(
        make(
            model=FRAMES,
            image=f"https://user:{secret}@pictures.example/face.png?X-Amz-Signature={secret}",
            end_image=PNG + secret.encode(),
            prompt="long " * 400,
            negative_prompt="long " * 400,
        )
    )
    assert "https://pictures.example/face.png" in shown
    assert "<50 bytes>" in shown
    assert secret not in shown
    assert len(shown) < 530
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert repr(make(image=uri).image) not in repr(make(image=uri))
    assert f"<data URI of {len(uri)} characters>" in repr(make(image=uri))


def test_error_hides_query_of_refused_url() -> None:
    assert "secret" not in refusals(image="ftp://user:secret@host/face.png?sig=secret")["image"]


# ---- arbitrary input ----

garbage: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(max_size=100),
    st.binary(max_size=20).map(io.BytesIO),
    st.text(max_size=20).map(io.StringIO),
    st.sampled_from(["data:image/png;base64,", "https://", "kling-v2.1-pro", "5", PNG, JPEG, URL, Path("x"), object]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.one_of(st.text(), st.integers()), st.one_of(st.none(), st.floats(), st.binary()), max_size=3),
)


@given(st.dictionaries(st.one_of(st.sampled_from(sorted(JobFields.__annotations__)), st.text()), garbage))
def test_any_input_is_a_valid_job_or_invalid_job_error(fields: dict[str, Any]) -> None:
    error: InvalidJobError | None = None
    job: Job | None = None
    try:
        job = Job(**cast("JobFields", fields))
    except InvalidJobError as caught:
        error = caught
    if error is not None:
        known = {*fields, "prompt", "image", "end_image"}
        assert error.problems
        assert all(problem.path in known or re.match(r"extra\.|\w+\[", problem.path) for problem in error.problems)
        assert "nothing was spent" in str(error)
    if job is not None:
        assert job == attrs.evolve(job)
        body = job.inputs("https://pictures.example/face.png", None)
        assert json.loads(json.dumps(body, allow_nan=False, ensure_ascii=False).encode()) == body


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pil_image_is_rotated_by_exif_orientation(orientation: int) -> None:
    picture = Pillow.effect_noise((320, 300), 90)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    opened = Pillow.open(io.BytesIO(buffer.getvalue()))
    sent = Pillow.open(io.BytesIO(cast("bytes", make(image=opened).image)))
    shown = ImageOps.exif_transpose(opened)
    assert (sent.size, sent.tobytes(), dict(sent.getexif())) == (shown.size, shown.tobytes(), {})


def test_kinds_of_a_model_of_your_own_differ_by_whatever_may_cost() -> None:
    row = attrs.evolve(MODELS[0], id="other/model", name="other", aliases=())

    def kind(**extra: object) -> object:
        return Job(model=row, prompt="x", image="https://a/b.png", extra=extra).kind

    assert kind(resolution="4k") != kind(resolution="720p")
    assert kind(a=1, b=2) == kind(b=2, a=1)
