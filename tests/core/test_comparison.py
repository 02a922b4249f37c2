"""`Model.check`: every kind of difference is one line, and rows that agree have none."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import attrs
import pytest

from kling_async import EndImage, Model, ServiceModel
from kling_async._core.catalogue import find_model

PROPERTIES: dict[str, Any] = {
    "prompt": {"type": "string", "maxLength": 2500},
    "image": {"type": "string"},
    "negative_prompt": {"type": "string"},
    "end_image": {"type": "string"},
    "cfg_scale": {"type": "number", "minimum": 0, "maximum": 1},
    "duration": {"type": "integer", "enum": list(range(3, 16)), "default": 5},
    "sound": {"type": "boolean", "default": False},
    "multi_prompt": {"type": "array", "maxItems": 6},
    "shot_type": {"type": "string", "enum": ["customize", "intelligent"]},
    "element_list": {"type": "array", "maxItems": 3},
}
FORMULA = "base_price * duration / 5 * (sound ? 1.5 : 1)"


def entry(required: tuple[str, ...] = ("image",), formula: str = FORMULA, **changed: Any) -> ServiceModel:
    properties = {name: rule for name, rule in {**PROPERTIES, **changed}.items() if rule is not None}
    return ServiceModel(
        id="kwaivgi/kling-v3.0-std/image-to-video",
        base_price=Decimal("0.42"),
        formula=formula,
        schema={"required": list(required), "properties": properties},
    )


def row(name: str = "kling-v3.0-std") -> Model:
    found = find_model(name)
    assert found is not None
    return found


def test_agreeing_row_has_no_differences() -> None:
    assert row().check(entry()) == ()


@pytest.mark.parametrize(
    ("described", "lines"),
    [
        (entry(cfg_scale=None, guidance_scale={}), ["cfg_scale: the service does not have it", "guidance_scale: the"]),
        (entry(seed={}), ["seed: the catalogue does not have it"]),
        (entry(("image", "seed"), seed={}), ["seed: the catalogue does not have it, and it is required"]),
        (entry(("image", "prompt")), ["prompt: required by the service, and not by the catalogue"]),
        (entry(()), ["image: required by the catalogue, and not by the service"]),
        (
            entry(duration={"enum": [5, 10], "default": 10}),
            [
                "duration: 3 to 15 s in the catalogue, 5 or 10 s at the service",
                "duration: by default 5 s in the catalogue, 10 s at the service",
            ],
        ),
        (
            entry(shot_type={"enum": ["customize", "intelligence"]}),
            ["shot_type: customize, intelligent in the catalogue, customize, intelligence at the service"],
        ),
        (entry(cfg_scale={"maximum": 2}), ["cfg_scale: 0 to 1 in the catalogue, 0 to 2 at the service"]),
        (
            entry(multi_prompt={"type": "array", "maxItems": 4}, element_list={"type": "array", "maxItems": 7}),
            [
                "multi_prompt: at most 6 shots in the catalogue, 4 at the service",
                "element_list: at most 3 elements in the catalogue, 7 at the service",
            ],
        ),
        (entry(multi_prompt={"type": "array"}, element_list={}), []),
        (entry(prompt={"maxLength": 99}), ["prompt: 2500 characters in the catalogue, 99 at the service"]),
        (
            entry(formula="base_price * duration / 5 * (sound ? 2 : 1)"),
            ["price: 3 s, with sound: $0.378 in the catalogue, $0.504 at the service"],
        ),
        (
            entry(formula="base_price * duration"),
            [
                "price: 3 s: $0.252 in the catalogue, $1.26 at the service",
                "price: 3 s, with sound: $0.378 in the catalogue, $1.26 at the service",
            ],
        ),
        (
            entry(formula="$odd()"),
            ["price: 3 s: $0.252 in the catalogue, an unread formula, '$odd()', at the service", "price: 3 s, with"],
        ),
        (ServiceModel(id="x"), ["inputs: expected a description of its inputs, got none"]),
    ],
)
def test_differences_are_one_line_each(described: ServiceModel, lines: list[str]) -> None:
    found = row().check(described)
    assert len(found) == len(lines)
    for line, beginning in zip(found, lines, strict=True):
        assert line.startswith(beginning)


def test_either_name_of_a_frame_that_has_two_agrees() -> None:
    """The check settles which of the two names the service has."""
    pro = attrs.evolve(row(), end_image=EndImage(also="last_image"))
    assert pro.check(entry()) == ()
    assert pro.check(entry(end_image=None, last_image={})) == ()
    assert pro.check(entry(end_image=None)) == (
        "end_image: the service does not have it",
        "last_image: the service does not have it",
    )


def test_choices_and_prices_by_resolution() -> None:
    properties: dict[str, Any] = {
        **{name: {} for name in ("prompt", "image", "last_image", "dynamic_range")},
        "keyframes": {"type": "array", "maxItems": 9},
        "duration": {"enum": list(range(3, 31)), "default": 5},
        "resolution": {"type": "string", "enum": ["720p", "1080p"], "default": "720p"},
        "aspect_ratio": {"type": "string", "enum": ["16:9", "9:16", "1:1", "21:9"]},
    }
    described = ServiceModel(
        id="kwaivgi/kling-v4.0/image-to-video",
        base_price=Decimal("0.157"),
        formula='base_price * duration * (resolution = "1080p" ? 2 : 1)',
        schema={"required": ["image"], "properties": properties},
    )
    assert row("kling-v4.0").check(described) == (
        "keyframes: at most 8 items in the catalogue, 9 at the service",
        "resolution: 720p, 1080p, 4k in the catalogue, 720p, 1080p at the service",
        "price: 3 s, 1080p: $0.705 in the catalogue, $0.942 at the service",
    )
