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

from kling_async import Field, Job, LedgerError, Model, ServiceModel, Shot
from kling_async._core.catalogue import find_model
from kling_async._core.content import Content, Identity, content_of, digests, file_digests, files, recalled
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
    content = content_of(job, str, identity=Identity(1))
    assert content.digest == digest
    assert content_of(recalled(content, {}), str, identity=Identity(1)) == content


RELEASED = {
    "kling-v2.1-standard": (
        "2e1266af499ec8ffaa6a727abb9ca9d3bbe6a2d736979d5e250d92247c5f2f5d",
        "4fcca78c90bb43def5a68b3cae660c7afa38c245d5ba1073a2cbaae3a83d1d36",
    ),
    "kling-v2.1-pro": (
        "996c257c83de70e82bc09f731c4234de2ea5ac7631a571b16f32128f59c2a7e5",
        "a2c1736e4269ccc2339cf9dc1fe2f1355c7ffcf1e507aecb81198bf31ebc4ee4",
    ),
    "kling-v2.1-master": (
        "86cc069bfef9499b8d7d3f7daf1a7c687b6f05247b07e3d6e199f06aafd0597f",
        "8a29b9fef4d268df070c4b3f70be49cc550fc40d9f2f7d989e9638a674650196",
    ),
    "kling-v2.1-pro-start-end-frame": (
        "37a3e8cf79ee6e514fc0bfa24a7120abf8c2ee5d28df7bd3a21f678b0739ab9e",
        "d4a8589f7ea7fd378beee9dffa6afc06f2ed92b0042c5b5c02ee221fac1a5bae",
    ),
    "kling-v1.6-standard": (
        "68a9b5a0360d18bf28d4d35dd8c445867a16d52b8529357fcf6e2bd207d75462",
        "197efed117bb966364d15177ac5c84ceb8b1f158c9f2ab827acd17cfdec1f288",
    ),
    "kling-v1.6-pro": (
        "7c2cd1ca873baf49c822ad441eff4db0e8d51776ddc13dfdd1e0a3aa12c20e5d",
        "4d70b5df3df175b172aade95262602288b34f5dfa9790cce099c0c8c3a7084d5",
    ),
    "kling-v2.0-master": (
        "f6fa716a6484166d209b8c4a3136c5dbe49aa46bafefaeda91832d310fd37249",
        "c7e95f8a7e7920b430a083d0660d10215179a63d639221108cb958c0608f27f8",
    ),
    "kling-v2.5-turbo-pro": (
        "4bdb25cbef87907f867576b50f4cff74c548f3adc534ec360d732b6c7e26fd85",
        "abec7f1c1f2fc7ae1ac5cd4ad7584f9d624bb4722efbf18d6e7d9e654698f808",
    ),
    "kling-v2.5-turbo-std": (
        "b4b4ecb05435367be651ecf0f7e4ad0fa5c4453a0ee716e762a9b21195491297",
        "64294395a87c90b923cd972f6c718e6b0b8a701d8af9a9e1a8969055d293e841",
    ),
    "kling-v2.6-std": (
        "e3c11f3fc7c67f06ecfad4d6251f94e35e604036da9a6e23b8f6b4ca746a391b",
        "b48a0077ce40c83f20d4db0acc45f904ea855a451c88c344045aebfc36870c2d",
    ),
    "kling-v2.6-pro": (
        "65781ab1da63df1f9606c844081fd423d12e0351339c7539c8df6102f1ced2a0",
        "955d8fbaf7a18cf4b44bdb71e7e08f9f3deeb046fcb06cdf28f7a651d88a2b02",
    ),
    "kling-v3.0-std": (
        "42e962d2b178926bb69e4e952c1a0db1ba443b7fb375665d5c1cfc165a1bdffa",
        "6fae83c936251585d779567e60194f1184a17c9388f08325ebb99384b83661c1",
    ),
    "kling-v3.0-pro": (
        "f2f141e1520a02cbd06ada0822953f20d2fb204cf37e03ed4243c2ac68fc1ee2",
        "59ddb937b50ac14bfc29ec2edc7929f0a6039e709d3952b2520aa5059bf3e767",
    ),
    "kling-v3.0-4k": (
        "a7acd6034c55f2b89d12c8873516bf13e615019d7bbb214e167bb81c8f5709a4",
        "8ea5438fe46ec16d1b022aa2db42c18eb015ea048fea2ec35f789070e4a4ebfc",
    ),
    "kling-v3-turbo-std": (
        "fa6de004b6960bdb9c147cb6bc3f8f6c46ef8d41b6dc0bd4f2787865e99ec1ec",
        "a0917d9809c582b0f47e4923b1fe0e462ed99a446dfdeb460857675f563c0f2f",
    ),
    "kling-v3-turbo-pro": (
        "90b12a4405f4129a74913f941921023a2bb99ade45f5ff7de73007535442c18f",
        "9594f6da7c2166e6dc1cf5a0111a993125bb2c77d93da2bfb2a32b9b9a1bc2f5",
    ),
}
"""Digests, by catalogue row, of a job with a copy of it: with another price, and with another name."""


@pytest.mark.parametrize("rule", [1, 2])
@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.promise(1)
def test_every_copied_row_keeps_its_digests(name: str, rule: int) -> None:
    """The catalogue has learned prices, providers and names since; an old batch must find its jobs all the same."""
    row = find_model(name)
    assert row is not None
    end = {"end_image": "https://h/b.png"} if row.end_image is not None and row.end_image.required else {}
    copies = attrs.evolve(row, price_per_5s=Decimal("9.99")), attrs.evolve(row, name="ours")
    jobs = [Job(**{"model": copy, "prompt": "x", "image": "https://h/a.png", **end}) for copy in copies]  # type: ignore[arg-type]  # str
    assert tuple(content_of(job, str, identity=Identity(rule)).digest for job in jobs) == RELEASED[name]
    for job in jobs:
        back = recalled(content_of(job, str), {})
        assert back == job
        assert back.price() == job.price()


@pytest.mark.promise(1)
def test_rows_of_the_service_keep_their_digests() -> None:
    """Formulas, and whether an image is required, make no other job."""
    entry = ServiceModel(
        id="a/b",
        base_price=Decimal("0.5"),
        formula="base_price * duration / 5",
        schema={"properties": {"prompt": {}, "image": {}, "sound": {}, "duration": {"enum": [5]}, "seed": {}}},
    )
    job = Job(model=Model.from_service(entry), prompt="x", image="https://h/a.png", extra={"seed": 1})
    assert job.price().usd == Decimal("0.5")
    assert (
        content_of(job, str, identity=Identity(1)).digest
        == "f73c4293f79036abacdbe7ad7a428a3397fc33abba24dcbf4580c1ef07b066a7"
    )
    assert recalled(content_of(job, str), {}) == job


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
    assert content_of(job, str, identity=Identity(1)).digest == digest


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model": ', "", "5"], ids=["deep", "cut", "empty", "a number"])
@pytest.mark.parametrize("read", [lambda content: recalled(content, {}), files, file_digests, digests])
def test_content_that_cannot_be_read_is_an_error_of_the_ledger(text: str, read: Callable[[Content], object]) -> None:
    with pytest.raises(LedgerError, match="the content of a job in the ledger cannot be read"):
        read(Content(text))
