"""The catalogue: models, prices, levels, and every point on which the vendors' pages disagree."""

from __future__ import annotations

import re
from decimal import Decimal

import attrs
import pytest

from kling_async import LEVELS, MODELS, Certainty, InvalidJobError, Job, Level, Model, Price
from kling_async._core.catalogue import DEFAULT_MODEL, EndImage, _by_name, find_model, near_names

URL = "https://pictures.example/face.png"
KLING_21 = ("kling-v2.1-standard", "kling-v2.1-pro", "kling-v2.1-master", "kling-v2.1-pro-start-end-frame")


def row(name: str) -> Model:
    found = find_model(name)
    assert found is not None
    return found


def job(name: str, **fields: object) -> Job:
    end = {"end_image": URL} if (taken := row(name).end_image) and taken.required else {}
    image = {"image": URL} if row(name).image else {"images": [URL]}
    return Job(**{"model": name, "prompt": "She smiles", **image, **end, **fields})  # type: ignore[arg-type]  # any


# ---- every row ----


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_row_invariants(model: Model) -> None:
    assert re.fullmatch(r"kwaivgi/[a-z0-9.-]+(/[a-z0-9-]+)?", model.id)
    assert re.fullmatch(r"kling-[a-z0-9.-]+", model.name)
    assert model.providers <= {"wavespeed", "gptproto"}
    assert "wavespeed" in model.providers
    assert list(model.durations) == sorted(set(model.durations))
    assert 5 in model.durations, "the default duration"
    assert 10 in model.durations
    assert model.scale in {None, "guidance_scale", "cfg_scale"}
    assert model.end_image is None or model.end_image.field in {"end_image", "last_image"}
    assert (model.price_per_5s is None) == (model.certainty is Certainty.UNKNOWN)
    assert model.price_per_5s is None or 0 < model.price_per_5s < 10
    assert model.sound_factor is None or model.sound_factor >= 1
    assert (model.sound_factor is None) == (model.sound_certainty is Certainty.UNKNOWN)
    assert model.resolution in {"720p", "1080p", "4k"}
    assert 30 <= model.usual <= 600
    assert model.source, "every row names its source"
    assert model.image != (model.input("images") is not None), "one image, or several"
    for rate in model.rates:
        resolution = model.input("resolution")
        assert resolution is not None
        assert rate.resolution in resolution.choices
        assert (rate.usd_per_second is None) == (rate.certainty is Certainty.UNKNOWN)
    for price in (model.price(5), model.price(5, sound=True), *(model.price(5, resolution="4k") for _ in model.rates)):
        assert (price.usd is None) == (price.certainty is Certainty.UNKNOWN)
        assert price.source, "every price names its source"


def test_names_are_unique() -> None:
    names = [name for model in MODELS for name in (model.id, model.name, *model.aliases)]
    assert len(names) == len(set(names))
    assert all(name == name.lower().strip("/ ") for name in names), "find_model normalises names"
    with pytest.raises(ValueError, match=r"expected one model per name, got two for kling-v2\.1-pro"):
        _by_name([*MODELS, Model(id="kwaivgi/other", name="kling-v2.1-pro")])


def test_default_model_is_cheapest_of_kling_2_1() -> None:
    prices = {name: row(name).price_per_5s or Decimal(0) for name in KLING_21}
    assert min(prices, key=prices.__getitem__) == DEFAULT_MODEL


def test_near_names_suggests_similar_names() -> None:
    assert near_names("kling-2.1-pro")[0] == "kling-v2.1-pro"
    assert near_names("kwaivgi/kling-v2.1-mastr")[0] == "kling-v2.1-master"
    assert near_names("zzz") == [model.name for model in MODELS], "all names if none is similar"
    assert find_model("zzz") is None


# ---- prices (api-contract 0a.2, 0a.4, 0a.5, 9.2) ----


@pytest.mark.parametrize(
    ("name", "five", "ten", "certainty"),
    [
        ("kling-v2.1-standard", "0.25", "0.50", Certainty.REPORTED),
        ("kling-v2.1-pro", "0.45", "0.90", Certainty.STATED),
        ("kling-v2.1-master", "1.30", "2.60", Certainty.STATED),
        ("kling-v2.1-pro-start-end-frame", "0.45", "0.90", Certainty.STATED),
        ("kling-v2.0-master", "1.30", "2.60", Certainty.STATED),
        ("kling-v2.5-turbo-pro", "0.35", "0.70", Certainty.STATED),
        ("kling-v2.5-turbo-std", "0.21", "0.42", Certainty.STATED),
        ("kling-v2.6-std", "0.21", "0.42", Certainty.STATED),
        ("kling-v2.6-pro", "0.35", "0.70", Certainty.STATED),
        ("kling-v3.0-std", "0.42", "0.84", Certainty.STATED),
        ("kling-v3.0-pro", "0.56", "1.12", Certainty.STATED),
        ("kling-v3.0-4k", "2.10", "4.20", Certainty.REPORTED),
        ("kling-v3-turbo-std", "0.56", "1.12", Certainty.STATED),
        ("kling-v3-turbo-pro", "0.70", "1.40", Certainty.STATED),
        ("kling-v1.6-standard", "0.28", "0.56", Certainty.INFERRED),
        ("kling-v1.6-multi-standard", "0.28", "0.56", Certainty.INFERRED),
        ("kling-o3-std", "0.42", "0.84", Certainty.STATED),
        ("kling-o3-pro", "0.56", "1.12", Certainty.STATED),
        ("kling-o3-4k", "2.10", "4.20", Certainty.REPORTED),
        ("kling-o1-std", "0.42", "0.84", Certainty.STATED),
        ("kling-o1-pro", "0.56", "1.12", Certainty.STATED),
        ("kling-v4.0", "0.785", "1.57", Certainty.STATED),
    ],
)
def test_prices_match_contract(name: str, five: str, ten: str, certainty: Certainty) -> None:
    for duration, usd in ((5, five), (10, ten)):
        price = job(name, duration=duration).price()
        assert price.usd == Decimal(usd)
        assert price.certainty is certainty
        assert price.source == row(name).source


def test_price_is_proportional_to_duration() -> None:
    assert job("kling-v3.0-std", duration=7).price().usd == Decimal("0.588")


@pytest.mark.parametrize(
    ("name", "silent", "loud", "certainty"),
    [
        ("kling-v2.6-pro", "0.35", "0.70", Certainty.STATED),
        ("kling-v3.0-std", "0.42", "0.63", Certainty.REPORTED),
        ("kling-v3.0-pro", "0.56", "0.84", Certainty.REPORTED),
        ("kling-v3.0-4k", "2.10", "2.10", Certainty.REPORTED),
        ("kling-o3-pro", "0.56", None, Certainty.UNKNOWN),
    ],
)
def test_disagreement_factor_of_sound(name: str, silent: str, loud: str | None, certainty: Certainty) -> None:
    """2.6 pro doubles its price with sound; five resellers of 3.0 charge 1.5 times as much; 4K includes it."""
    quiet, sounding = job(name, sound=False).price(), job(name, sound=True).price()
    assert (quiet.usd, sounding.usd) == (Decimal(silent), None if loud is None else Decimal(loud))
    assert sounding.certainty is certainty
    assert sounding.source == (row(name).sound_source or row(name).source)


@pytest.mark.parametrize(
    ("resolution", "usd", "certainty"),
    [
        (None, "0.157", Certainty.STATED),
        ("720p", "0.157", Certainty.STATED),
        ("1080p", "0.235", Certainty.STATED),
        ("4k", None, Certainty.UNKNOWN),
    ],
)
def test_disagreement_price_of_4_0_depends_on_resolution(
    resolution: str | None, usd: str | None, certainty: Certainty
) -> None:
    for seconds in (3, 5, 30):
        price = job("kling-v4.0", duration=seconds, resolution=resolution).price()
        assert price.usd == (None if usd is None else Decimal(usd) * seconds)
        assert price.certainty is certainty


def test_disagreement_3_turbo_base_price_is_per_second() -> None:
    """Its `base_price` of 0.112 is not that of five seconds."""
    assert [job(f"kling-v3-turbo-{quality}", duration=3).price().usd for quality in ("std", "pro")] == [
        Decimal("0.336"),
        Decimal("0.42"),
    ]


def test_disagreement_standard_at_0_28_is_withdrawn() -> None:
    assert str(job("kling-v2.1-standard").price()) == "≈ $0.25"


@pytest.mark.parametrize(("name", "provider"), [("kling-v2.1-pro", "gptproto"), ("kling-v1.6-pro", "wavespeed")])
def test_missing_price_is_unknown_not_zero(name: str, provider: str) -> None:
    price = job(name).price(provider)
    assert price.usd is None
    assert price.certainty is Certainty.UNKNOWN
    assert str(price) == "unknown"


def test_price_str_shows_certainty() -> None:
    assert str(Price(Decimal("0.45"), Certainty.STATED)) == "$0.45"
    assert str(Price(Decimal("0.28"), Certainty.INFERRED)) == "≈ $0.28"
    assert str(Price(Decimal("0.25"), Certainty.REPORTED)) == "≈ $0.25"
    assert str(Price(Decimal("0.785"), Certainty.STATED)) == "$0.785"
    assert str(Price(Decimal("1.1749999999999999999"), Certainty.STATED)) == "$1.175"


# ---- levels (api-contract 8) ----


@pytest.mark.parametrize(
    ("name", "starts", "in_flight"),
    [("bronze", 2, 2), ("silver", 500, 300), ("gold", 3_000, 3_000), ("ultra", 5_000, 10_000)],
)
def test_levels_match_contract(name: str, starts: int, in_flight: int) -> None:
    assert LEVELS[name] == Level(name, starts, in_flight, 60.0)


def test_levels_are_complete_and_ordered() -> None:
    assert list(LEVELS) == ["bronze", "silver", "gold", "ultra"], "in ascending order"


# ---- disagreements between the pages ----


@pytest.mark.parametrize("name", KLING_21)
def test_disagreement_duration_string_or_integer(name: str) -> None:
    """Page 001 says `"5"` or `"10"`, the others 5 or 10: both are accepted, the integer is sent."""
    for given in (5, "5"):
        sent = job(name, duration=given).inputs(URL, None)["duration"]
        assert (type(sent), sent) == (int, 5)


@pytest.mark.parametrize("name", KLING_21)
@pytest.mark.parametrize("seconds", [15, 20, "15", "20"])
def test_disagreement_15_and_20_seconds_in_price_tables_only(name: str, seconds: object) -> None:
    """Pages 003 and master price them (1.35, 1.80; 3.90, 5.20), every schema has 5 and 10: they are refused."""
    with pytest.raises(InvalidJobError, match=f"duration: expected 5 or 10, got {seconds!r}"):
        job(name, duration=seconds)


@pytest.mark.parametrize("name", KLING_21)
def test_disagreement_image_optional_on_one_page(name: str) -> None:
    """Page 001 and GPTProto's master page fall back to a sample image, which would be charged: it is required."""
    with pytest.raises(InvalidJobError, match="image: required"):
        job(name, image=None)


@pytest.mark.parametrize("name", KLING_21)
def test_disagreement_prompt_absent_in_samples(name: str) -> None:
    """The curl samples send no prompt, every table requires one: it is required."""
    with pytest.raises(InvalidJobError, match="prompt: required: 1 to 2500 characters"):
        job(name, prompt=None)


def test_disagreement_text_limit_on_some_pages_only() -> None:
    """Pages 001 and 003 say 2,500 characters, 000 and 002 nothing: the limit holds for all."""
    for name in KLING_21:
        assert job(name, prompt="x" * 2500, negative_prompt="x" * 2500).prompt == "x" * 2500
        with pytest.raises(
            InvalidJobError, match=r"prompt: expected at most 2500 .* negative_prompt: expected at most"
        ):
            job(name, prompt="x" * 2501, negative_prompt="x" * 2501)


@pytest.mark.parametrize("name", KLING_21)
def test_disagreement_negative_prompt_defaults(name: str) -> None:
    """Page 001 has "blur, distort, and low quality", 004 has "": none is sent, and the service applies its own."""
    assert set(job(name).inputs(URL, None)) == {"prompt", "image", "duration"}


def test_disagreement_start_end_frame_path_dash_or_slash() -> None:
    slash, dash = "kwaivgi/kling-v2.1-i2v-pro/start-end-frame", "kwaivgi/kling-v2.1-i2v-pro-start-end-frame"
    assert job(dash).model == slash
    assert job(dash) == job(slash)


def test_disagreement_end_image_or_last_image() -> None:
    """2.1 start-end-frame says `end_image` (and not `last_image`), 2.5 turbo pro `last_image`."""
    assert row("kling-v2.1-pro-start-end-frame").end_image == EndImage("end_image", required=True)
    assert row("kling-v2.5-turbo-pro").end_image == EndImage("last_image", required=False)
    body = job("kling-v2.5-turbo-pro", end_image=URL).inputs(URL, "https://pictures.example/last.png")
    assert body["last_image"] == "https://pictures.example/last.png"
    assert "end_image" not in body


def test_disagreement_plain_pro_has_no_end_image() -> None:
    with pytest.raises(InvalidJobError, match=r"end_image: not supported by kling-v2\.1-pro"):
        job("kling-v2.1-pro", end_image=URL)


# ---- disagreements of api-contract 0a ----

LAST = "https://pictures.example/last.png"


def test_disagreement_end_frame_of_2_6_pro_has_two_names() -> None:
    """The newest page says `last_image`, an older one and a copy of the schema `end_image`; other names are charged."""
    two = job("kling-v2.6-pro", end_image=URL)
    sent = two.inputs(URL, LAST)
    assert (sent["end_image"], sent["last_image"]) == (LAST, LAST)
    sent = two.inputs(URL, LAST, provider="gptproto")
    assert sent["last_image"] == LAST
    assert "end_image" not in sent
    assert not {"end_image", "last_image"} & job("kling-v2.6-pro").inputs(URL, None).keys()


@pytest.mark.promise(10)
def test_only_2_6_pro_is_sent_a_name_that_may_be_unknown() -> None:
    assert [model.name for model in MODELS if model.end_image and model.end_image.also] == ["kling-v2.6-pro"]


def test_disagreement_end_frame_and_sound_of_2_6_pro_exclude_each_other() -> None:
    [caution] = job("kling-v2.6-pro", end_image=URL, sound=True).cautions()
    assert caution.path == "end_image"
    assert "together with sound" in caution.message
    assert not job("kling-v2.6-pro", end_image=URL, sound=False).cautions()
    assert not job("kling-v2.6-pro", end_image=URL, sound=True).cautions("gptproto")


def test_disagreement_prompt_of_2_6_std() -> None:
    """Its schema and llms.txt require one, its page does not."""
    [caution] = Job(model="kling-v2.6-std", image=URL).cautions()
    assert caution.path == "prompt"
    assert not job("kling-v2.6-std").cautions()


def test_disagreement_gptproto_makes_sound_by_default() -> None:
    [caution] = job("kling-v3.0-std").cautions("gptproto")
    assert str(caution).startswith("sound: kling-v3.0-std makes sound by default at gptproto")
    for sound in (True, False):
        assert not job("kling-v3.0-std", sound=sound).cautions("gptproto")
    assert not job("kling-v3.0-std").cautions("wavespeed")


def test_disagreement_gptproto_names_the_scale_of_3_0_std() -> None:
    scaled = job("kling-v3.0-std", guidance_scale=0.3)
    assert scaled.inputs(URL, None)["cfg_scale"] == 0.3
    there = scaled.inputs(URL, None, provider="gptproto")
    assert there["guidance_scale"] == 0.3
    assert "cfg_scale" not in there


@pytest.mark.parametrize("name", ["kling-v3.0-std", "kling-v3.0-pro", "kling-o3-std", "kling-o3-pro"])
@pytest.mark.parametrize("given", ["intelligent", "intelligence"])
def test_disagreement_word_of_shot_type(name: str, given: str) -> None:
    """WaveSpeed's newest pages say `intelligent`, GPTProto's OpenAPI `intelligence`."""
    shots = job(name, shot_type=given)
    assert shots.shot_type == given
    assert shots.inputs(URL, None)["shot_type"] == "intelligent"
    assert shots.inputs(URL, None, provider="gptproto")["shot_type"] == "intelligence"
    assert job(name, shot_type="customize").inputs(URL, None)["shot_type"] == "customize"


@pytest.mark.parametrize(
    ("name", "there"),
    [
        *((name, True) for name in KLING_21),
        ("kling-v2.5-turbo-pro", True),
        ("kling-v2.5-turbo-std", True),
        ("kling-v2.6-pro", True),
        ("kling-v2.6-std", True),
        ("kling-v3.0-pro", True),
        ("kling-v3.0-std", True),
        ("kling-v3-omni-pro", True),
        ("kling-v3-omni-std", True),
        ("kling-o1-pro", True),
        ("kling-o1-std", True),
        ("kling-v4.0", False),
        ("kling-v3.0-4k", False),
    ],
)
def test_disagreement_models_of_gptproto(name: str, there: bool) -> None:  # noqa: FBT001 -- a case
    assert ("gptproto" in row(name).providers) == there


def test_disagreement_prompt_of_3_0_4k_is_optional() -> None:
    assert Job(model="kling-v3.0-4k", image=URL).inputs(URL, None) == {"image": URL, "duration": 5}
    with pytest.raises(InvalidJobError, match="prompt: required"):
        Job(model="kling-v3.0-pro", image=URL)


def test_kling_4_0_inputs() -> None:
    frames = [f"https://pictures.example/{number}.png" for number in range(8)]
    made = Job(
        model="kling-v4.0",
        image=URL,
        end_image=LAST,
        keyframes=frames,
        resolution="4k",
        aspect_ratio="21:9",
        dynamic_range="hdr",
        duration=30,
    )
    assert made.inputs(URL, LAST) == {
        "image": URL,
        "last_image": LAST,
        "keyframes": frames,
        "resolution": "4k",
        "aspect_ratio": "21:9",
        "dynamic_range": "hdr",
        "duration": 30,
    }
    assert attrs.evolve(made) == made
    assert hash(made)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"duration": 2}, "duration: expected 3 to 30, got 2"),
        ({"duration": 31}, "duration: expected 3 to 30, got 31"),
        ({"sound": True}, "sound: not supported by kling-v4.0"),
        ({"negative_prompt": "blur"}, "negative_prompt: not supported by kling-v4.0"),
        ({"keyframes": [URL] * 9}, "keyframes: expected at most 8 items, got 9"),
        ({"keyframes": URL}, "keyframes: expected a list of images, got str"),
        (
            {"keyframes": [5]},
            "keyframes.0.: expected a URL, a Path, bytes, a binary file, a PIL image or a frame of a video, got int",
        ),
        ({"keyframes": ["data:image/png;base64,AAAA"]}, "keyframes.0.: expected a JPEG or PNG, the bytes are neither"),
        ({"resolution": "2k"}, "resolution: expected '720p' or '1080p' or '4k', got '2k'"),
        ({"resolution": 720}, "resolution: expected string, got int"),
        ({"aspect_ratio": "4:3"}, "aspect_ratio: expected '16:9'"),
        ({"dynamic_range": "hdr"}, "dynamic_range: kling-v4.0 has it only with resolution '1080p' or '4k'"),
        ({"images": [URL]}, "images: not supported by kling-v4.0"),
        ({"extra": {"resolution": "4k"}}, "extra.resolution: is a field of Job: pass it by name"),
    ],
)
def test_kling_4_0_rules(fields: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidJobError, match=problem):
        Job(model="kling-v4.0", image=URL, **fields)  # type: ignore[arg-type]  # wrong ones are the point


def test_o3_takes_shots_beside_its_prompt() -> None:
    made = job("kling-o3-pro", multi_prompt=["one", "two"], sound=True)
    assert made.inputs(URL, None)["prompt"] == "She smiles"
    with pytest.raises(InvalidJobError, match="prompt: required: 1 to 2500 characters"):
        job("kling-o3-pro", prompt=None, multi_prompt=["one", "two"])


def test_1_6_multi_takes_several_images() -> None:
    made = Job(model="kling-v1.6-multi-pro", prompt="x", images=[URL, LAST], aspect_ratio="9:16")
    assert made.image is None
    assert made.inputs("", None) == {
        "prompt": "x",
        "images": [URL, LAST],
        "aspect_ratio": "9:16",
        "duration": 5,
    }
    for fields, problem in (
        ({}, "images: required by kling-v1.6-multi-pro"),
        ({"images": [URL] * 5}, "images: expected at most 4 items, got 5"),
        ({"images": [URL], "image": URL}, "image: not supported by kling-v1.6-multi-pro"),
    ):
        with pytest.raises(InvalidJobError, match=problem):
            Job(model="kling-v1.6-multi-pro", prompt="x", **fields)


def test_catalogue_is_immutable() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        MODELS[0].price_per_5s = Decimal(0)  # type: ignore[misc]  # that it is frozen is the point
    with pytest.raises(TypeError):
        MODELS[0] = MODELS[1]  # type: ignore[index]  # the same
