"""Jobs as text, and jobs from text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import Field, Job, Model, Shot
from kling_async._core.catalogue import find_model
from kling_async._core.content import Content, content_of, digests, recalled
from kling_async._core.images import Image
from support.service import IMAGE

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)
OWN = Model(
    id="other/model-9",
    more=(Field(name="seed", type="integer", choices=(1, 2.5, "a"), default={"a": [1]}),),
    required=frozenset({"negative_prompt", "guidance_scale"}),
    providers=frozenset({"wavespeed", "gptproto"}),
    price_per_5s=Decimal("0.31"),
)


def sha(image: Image) -> str:
    assert not isinstance(image, str) or image.startswith("data:"), "a URL is its own content"
    return "5e" * 32


def again(job: Job, **uploads: str) -> Job:
    return recalled(content_of(job, sha), uploads)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(str.strip)


@given(
    st.fixed_dictionaries(
        {"prompt": texts, "image": st.sampled_from([IMAGE, Path("/pictures/face.png")])},
        optional={
            "negative_prompt": texts,
            "guidance_scale": st.floats(0, 1),
            "duration": st.sampled_from([5, 10]),
            "extra": st.dictionaries(
                st.sampled_from("abü"), st.none() | st.integers() | texts | st.lists(st.booleans())
            ),
        },
    )
)
def test_job_survives_round_trip(fields: dict[str, Any]) -> None:
    job = Job(**fields)
    assert again(job) == job
    assert content_of(again(job), sha) == content_of(job, sha)


def test_shots_elements_and_sound_survive_round_trip() -> None:
    job = Job(
        model="kling-v3.0-pro",
        multi_prompt=["one", Shot("two")],
        image=IMAGE,
        sound=False,
        element_list=[{"name": "cat"}],
        shot_type="customize",
    )
    assert again(job) == job


def test_custom_model_survives_round_trip() -> None:
    job = Job(model=OWN, prompt="p", negative_prompt="n", guidance_scale=0.2, image=IMAGE, extra={"seed": 1})
    back = again(job)
    assert back == job
    assert back.row == OWN
    assert back.price().usd == Decimal("0.31")


def test_text_is_equal_in_every_process() -> None:
    """Sets come in another order in each: a key that changed would pay again."""
    script = (
        "from decimal import Decimal; from kling_async import *; from kling_async._core.content import content_of;"
        "row = Model(id='x/y', required=frozenset({'negative_prompt', 'guidance_scale', 'sound'}),"
        " providers=frozenset('abcdefg'), sound=True);"
        "job = Job(model=row, prompt='p', negative_prompt='n', guidance_scale=1, sound=True,"
        " image='https://x.example/a.png', extra={'b': 1, 'a': 2});"
        "print(content_of(job, str).digest)"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


def test_bytes_are_restored_from_upload_only() -> None:
    job = Job(prompt="p", image=PNG)
    content = content_of(job, sha)
    assert digests(content) == {"5e" * 32}
    assert recalled(content, {"5e" * 32: "https://uploads.example/1.png"}).image == "https://uploads.example/1.png"
    assert recalled(content, {}).image == b""
    assert b"PNG" not in content.text.encode()


def test_paths_are_not_part_of_digest(tmp_path: Path) -> None:
    one, other = (content_of(Job(prompt="p", image=tmp_path / name), sha) for name in ("a.png", "b.png"))
    assert one.digest == other.digest
    assert one.files != other.files
    assert recalled(one, {}).image == tmp_path / "a.png"
    assert digests(one) == frozenset()


def test_data_uri_is_stored_as_digest() -> None:
    uri = "data:image/png;base64,iVBORw0KGgoAAAAA"
    assert "base64" not in content_of(Job(prompt="p", image=uri), sha).text


@pytest.mark.parametrize("path", ["/pictures/\udcff.png", "/pictures/ü/π.png"])
def test_path_that_is_not_unicode_is_stored(path: str) -> None:
    content = content_of(Job(prompt="p", image=Path(path)), sha)
    assert content.files is not None
    content.files.encode()
    assert recalled(content, {}).image == Path(path)


def test_digest_is_sha256_of_text() -> None:
    assert Content("a").digest != Content("b").digest
    assert Content("a", '{"image":"x"}').digest == Content("a").digest


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("kling-v1.6-pro", "7c2cd1ca873baf49c822ad441eff4db0e8d51776ddc13dfdd1e0a3aa12c20e5d"),
        ("kling-v2.0-master", "f6fa716a6484166d209b8c4a3136c5dbe49aa46bafefaeda91832d310fd37249"),
        ("kling-v2.5-turbo-pro", "4bdb25cbef87907f867576b50f4cff74c548f3adc534ec360d732b6c7e26fd85"),
        ("kling-v2.6-pro", "65781ab1da63df1f9606c844081fd423d12e0351339c7539c8df6102f1ced2a0"),
    ],
)
@pytest.mark.promise(1)
def test_copied_catalogue_rows_keep_digests_of_first_release(name: str, digest: str) -> None:
    """Another digest would pay for jobs of old ledgers again."""
    row = find_model(name)
    assert row is not None
    job = Job(model=attrs.evolve(row, price_per_5s=Decimal("9.99")), prompt="x", image="https://h/a.png")
    content = content_of(job, str)
    assert content.digest == digest
    assert content_of(recalled(content, {}), str) == content


@pytest.mark.parametrize(
    ("change", "digest"),
    [
        (
            lambda row: attrs.evolve(row, name="ours"),
            "4d70b5df3df175b172aade95262602288b34f5dfa9790cce099c0c8c3a7084d5",
        ),
        (
            lambda _: Model(id="own/path", name="kling-v2.0-master"),
            "32405f4651c5971b205d9b3ecb5e4b24980e4a2ad26b50cdf177d1f48dbeaeed",
        ),
        (
            lambda _: Model(id="own/path", name="k", aspect_note=True),
            "a6a555949124c8a7734421f83861013a3a438763b7310016001b05d518463881",
        ),
    ],
    ids=["renamed", "name reused", "field given"],
)
@pytest.mark.promise(1)
def test_rows_under_other_names_keep_digests_of_first_release(change: Callable[[Model], Model], digest: str) -> None:
    row = find_model("kling-v1.6-pro")
    assert row is not None
    job = Job(model=change(row), prompt="x", image="https://h/a.png")
    assert content_of(job, str).digest == digest
