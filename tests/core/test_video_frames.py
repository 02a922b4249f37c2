"""Frames of videos as pictures of jobs: what is refused, and what identifies a job that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import FirstFrame, FrameAt, InvalidJobError, Job, LastFrame, Model, Prediction, Status
from kling_async._core.chains import broken_chains, films
from kling_async._core.content import Content, content_of, files, possible_digests, recalled
from kling_async._core.video_frames import VideoFrame
from kling_async._images.preflight import sha256
from kling_async._session.keys import read_content

pytestmark = pytest.mark.anyio

IMAGE = "https://pictures.example/bay.png"
DONE = Prediction(id="p1", status=Status.COMPLETED, raw_status="completed", outputs=("https://outputs.example/1.mp4",))
PLAIN = Job(prompt="Mist lifts", image=IMAGE)


def content(job: Job, **parents: str) -> Content:
    return content_of(job, lambda file: sha256(file, "image"), parents=parents)  # type: ignore[arg-type]  # no URL


def digest(image: object, **parents: str) -> str:
    return content(Job(prompt="Sail", image=image), **parents).digest  # type: ignore[arg-type]  # a picture


class OtherFrame(VideoFrame):
    """A frame of a kind that no text of a content names."""

    @property
    def position(self) -> Literal["last"]:
        return "last"


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (LastFrame(""), "image.of: expected a key of the same batch, a completed Prediction or the Path of a video, "),
        (LastFrame(b"x"), "image.of: expected a key .* got bytes"),  # type: ignore[arg-type]  # wrong on purpose
        (LastFrame(None), "image.of: expected a key .* got NoneType"),  # type: ignore[arg-type]  # wrong on purpose
        (LastFrame(Prediction(id="p")), "image.of: expected a completed prediction, got one that is created"),
        (FrameAt("dawn", -0.1), r"image.seconds: expected seconds from the beginning, at least 0, got -0.1"),
        (FrameAt("dawn", float("nan")), "image.seconds: .* got nan"),
        (FrameAt("dawn", "2"), "image.seconds: .* got str"),  # type: ignore[arg-type]  # wrong on purpose
        (OtherFrame("dawn"), "image: expected LastFrame, FirstFrame or FrameAt, got OtherFrame"),
    ],
)
def test_wrong_frame_is_refused_with_its_field_path(frame: VideoFrame, said: str) -> None:
    with pytest.raises(InvalidJobError, match=said):
        Job(prompt="Sail", image=frame)


def test_frames_stand_wherever_a_picture_stands() -> None:
    job = Job(
        model="kling-v2.1-pro-start-end-frame",
        prompt="Sail",
        image=LastFrame("dawn"),
        end_image=FirstFrame(DONE),
    )
    assert list(job.frames) == list(job.sources) == ["image", "end_image"]
    assert (job.parents, dict(job.files)) == (("dawn",), {})
    assert (
        job.price().usd
        == Job(model="kling-v2.1-pro-start-end-frame", prompt="S", image=IMAGE, end_image=IMAGE).price().usd
    )
    assert job.priced_inputs()["image"] == "https://example.com/image.png"
    assert not job.cautions(fit=False)
    with pytest.raises(InvalidJobError, match="extra: is not JSON"):
        Job(prompt="Sail", image=IMAGE, extra={"video": LastFrame("dawn")})


def test_lists_of_pictures_take_frames() -> None:
    job = Job(model="kling-v1.6-multi-pro", prompt="Sail", images=[LastFrame("dawn"), IMAGE, FrameAt("noon", 2)])
    assert list(job.frames) == ["images[0]", "images[2]"]
    assert job.parents == ("dawn", "noon")
    made = content(job, dawn="d1", noon="d2")
    assert recalled(made, {}) == job
    sent = job.with_files(dict.fromkeys(job.sources, "https://uploads.example/frame.png"))
    assert sent.inputs("", None)["images"] == [
        "https://uploads.example/frame.png",
        IMAGE,
        "https://uploads.example/frame.png",
    ]


def test_numbers_are_keys_as_everywhere() -> None:
    assert Job(prompt="Sail", image=LastFrame(7)).parents == ("7",)


def test_content_identifies_a_frame_by_what_its_video_is_made_of(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"video")
    frames = (LastFrame("a"), FirstFrame("a"), FrameAt("a", 1), FrameAt("a", 2), LastFrame(DONE), LastFrame(clip))
    digests = [digest(frame, a="d1") for frame in frames]
    assert len({*digests, digest(IMAGE), digest(clip)}) == len(frames) + 2
    assert digest(LastFrame("a"), a="d1") == digest(LastFrame("b"), b="d1"), "the key of the parent is only a name"
    assert digest(LastFrame("a"), a="d1") != digest(LastFrame("a"), a="d2")
    assert digest(FrameAt("a", 2), a="d1") == digest(FrameAt("a", 2.0), a="d1")
    clip.write_bytes(b"other")
    assert digest(LastFrame(clip)) != digests[-1]


def test_a_change_of_the_first_clip_changes_every_clip_of_its_film() -> None:
    def chain(prompt: str) -> list[str]:
        made = [content(Job(prompt=prompt, image=IMAGE)).digest]
        for number in range(3):
            made.append(content(Job(prompt=f"{number}", image=LastFrame("x")), x=made[-1]).digest)
        return made

    assert not {*chain("Mist")} & {*chain("Rain")}
    assert chain("Mist") == chain("Mist")


def test_digests_of_jobs_without_frames_are_as_ever() -> None:
    made = content(PLAIN)
    text = f'{{"duration":5,"image":"{IMAGE}","model":"{PLAIN.model}","prompt":"Mist lifts"}}'
    assert made == Content(text), "the whole text, and nothing beside it"


def test_job_is_recalled_from_its_content(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"video")
    for frame in (LastFrame("dawn"), FirstFrame("dawn"), FrameAt("dawn", 1.5), LastFrame(clip)):
        job = Job(prompt="Sail", image=frame)
        made = content(job, dawn="d1")
        assert recalled(made, {}) == job
        assert made.parents == (("dawn",) if frame.parent else ())
    assert files(content(Job(prompt="Sail", image=LastFrame(clip)))) == [(clip, sha256(clip, "image"))]
    of = recalled(content(Job(prompt="Sail", image=LastFrame(DONE))), {}).image
    assert isinstance(of, LastFrame)
    assert isinstance(of.of, Prediction)
    assert of.of.id == "p1"
    assert len(possible_digests(content(PLAIN), [()])) == 1


async def test_a_key_means_a_job_of_the_batch_alone() -> None:
    from kling_async._core.content import Identity  # noqa: PLC0415 -- of this test alone

    async def known(key: str) -> str | None:
        return "d1" if key == "dawn" else None

    job = Job(prompt="Sail", image=LastFrame("https://outputs.example/1.mp4"))
    with pytest.raises(InvalidJobError, match=r"image.of: expected the key of a job before it in the same batch, got"):
        await read_content(job, identity=Identity(), digest_of=known)
    with pytest.raises(InvalidJobError, match=r"image.of: expected the key of a job in a batch, got 'dawn'"):
        await read_content(Job(prompt="Sail", image=LastFrame("dawn")), identity=Identity())


def test_broken_chains_are_named() -> None:
    said = broken_chains(
        {"self": ("self",), "b": ("a",), "c": ("b", "nobody"), "x": ("z",), "y": ("x",), "z": ("y",)},
        {"a", "b", "c", "self", "x", "y", "z"},
    )
    assert said == {
        "self": "continues itself",
        "c": "continues 'nobody', which is no key of the same batch",
        "x": "continues itself: 'x' -> 'z' -> 'y' -> 'x'",
    }


def test_films_are_depth_first_with_parents_first() -> None:
    parents = {"a2": ("a1",), "a3": ("a2",), "b2": ("b1",), "a2x": ("a1",), "both": ("a3", "b2")}
    order = ("a3", "b1", "a2", "a1", "alone", "a2x", "b2", "both")
    assert films(parents, order) == {"b1": ("b1", "b2"), "a1": ("a1", "a2", "a3", "both", "a2x")}


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 2)), max_size=60), st.randoms(use_true_random=False))
def test_films_hold_every_job_once_after_its_parents(shape: list[tuple[int, int]], rng: object) -> None:
    parents = {
        str(number): tuple({str(seed * (each + 1) % number) for each in range(count)})
        for number, (seed, count) in enumerate(shape)
        if number and count
    }
    keys = [str(number) for number in range(len(shape))]
    rng.shuffle(keys)  # type: ignore[attr-defined]  # hypothesis gives a Random
    assert not broken_chains(parents, {*keys})
    read = [key for film in films(parents, keys).values() for key in film]
    assert len(read) == len({*read})
    assert {*read} == {*parents, *(each for of in parents.values() for each in of)}
    assert all(read.index(of) < read.index(key) for key, ofs in parents.items() for of in ofs)


def test_chains_may_be_longer_than_the_stack() -> None:
    parents = {str(number): (str(number - 1),) for number in range(1, 50_000)}
    keys = {*parents, "0"}
    assert not broken_chains(parents, keys)
    assert len(films(parents, ["0"])["0"]) == 50_000
    assert broken_chains({**parents, "0": ("49999",)}, keys)


def test_own_models_take_frames() -> None:
    model = Model(id="kwaivgi/new/image-to-video", name="new", usual=100.0)
    assert content(Job(model=model, prompt="Sail", image=LastFrame("dawn")), dawn="d1").frames == '{"image": "dawn"}'
