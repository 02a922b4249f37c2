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
    return Job(**{"model": name, "prompt": "She smiles", "image": URL, **end, **fields})  # type: ignore[arg-type]  # any


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
    assert model.sound_factor >= 1
    assert model.resolution in {"720p", "1080p", "4k"}
    assert 30 <= model.usual <= 600
    assert model.source, "every row names its source"


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


# ---- prices (api-contract 9.2) ----


@pytest.mark.parametrize(
    ("name", "five", "ten", "certainty"),
    [
        ("kling-v2.1-standard", "0.28", "0.56", Certainty.INFERRED),
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
        ("kling-v1.6-standard", "0.28", "0.56", Certainty.INFERRED),
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


def test_price_with_sound_is_inferred() -> None:
    silent, loud = job("kling-v2.6-pro", sound=False).price(), job("kling-v2.6-pro", sound=True).price()
    assert (silent.usd, loud.usd) == (Decimal("0.35"), Decimal("0.70"))
    assert (silent.certainty, loud.certainty) == (Certainty.STATED, Certainty.INFERRED)


@pytest.mark.parametrize(("name", "provider"), [("kling-v2.1-pro", "gptproto"), ("kling-v1.6-pro", "wavespeed")])
def test_missing_price_is_unknown_not_zero(name: str, provider: str) -> None:
    price = job(name).price(provider)
    assert price.usd is None
    assert price.certainty is Certainty.UNKNOWN
    assert str(price) == "unknown"


def test_price_str_shows_certainty() -> None:
    assert str(Price(Decimal("0.45"), Certainty.STATED)) == "$0.45"
    assert str(Price(Decimal("0.28"), Certainty.INFERRED)) == "≈ $0.28"


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


def test_disagreement_gptproto_lacks_start_end_frame() -> None:
    assert row("kling-v2.1-pro-start-end-frame").providers == {"wavespeed"}
    for name in KLING_21[:3]:
        assert row(name).providers == {"wavespeed", "gptproto"}


def test_catalogue_is_immutable() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        MODELS[0].price_per_5s = Decimal(0)  # type: ignore[misc]  # that it is frozen is the point
    with pytest.raises(TypeError):
        MODELS[0] = MODELS[1]  # type: ignore[index]  # the same
