"""Formulas of prices, against an implementation of JSONata: the price is right, or unknown."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import attrs
import jsonata  # type: ignore[import-untyped]  # ships no types
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kling_async import Certainty, InvalidJobError, Job, Model, ServiceModel
from kling_async._core.formula import Formula, FormulaInput

INPUTS = (
    FormulaInput("duration", 5),
    FormulaInput("sound", False),
    FormulaInput("resolution", "720p"),
    FormulaInput("steps"),
    FormulaInput("images", absent=True),
    FormulaInput("prompt", absent=True),
)
BASE = Decimal("0.42")


def price(text: str, given: dict[str, Any], base: Decimal = BASE) -> Decimal | None:
    return Formula(text, base, INPUTS).price(given)


@pytest.mark.parametrize(
    ("text", "inputs", "usd"),
    [
        ("", {}, "0.42"),
        ("base_price", {}, "0.42"),
        ('{"total_price": base_price * duration / 5}', {"duration": 10}, "0.84"),
        ("base_price*duration/5", {}, "0.42"),
        ('{"total_price": base_price * duration / 5 * (sound ? 1.5 : 1)}', {"sound": True}, "0.63"),
        ('{"total_price": base_price * duration / 5 * (sound ? 1.5 : 1)}', {}, "0.42"),
        ('base_price * (resolution = "1080p" ? 2 : (resolution = "480p" ? 0.5 : 1))', {"resolution": "1080p"}, "0.84"),
        ('base_price * $lookup({"720p": 1, "1080p": 1.5}, resolution)', {"resolution": "1080p"}, "0.63"),
        ('base_price * (resolution in ["1080p", "4k"] ? 2 : 1)', {"resolution": "4k"}, "0.84"),
        ("base_price * (1 + 0.5 * $count(images))", {"images": ["a", "b"]}, "0.84"),
        ("base_price * (1 + 0.5 * $count(images))", {}, "0.42"),
        ("base_price * ($min([duration, 30]) + $max([1, 2])) / 5", {"duration": 3}, "0.42"),
        ("base_price * $ceil(duration / 5)", {"duration": 6}, "0.84"),
        ("base_price * $floor(duration / 5)", {"duration": 9}, "0.42"),
        ("base_price * (sound and duration > 5 ? 2 : 1)", {"sound": True, "duration": 6}, "0.84"),
        ("base_price * (sound or duration >= 5 ? 2 : 1)", {}, "0.84"),
        ("base_price * ($exists(images) ? 2 : 1)", {}, "0.42"),
        ("base_price + base_price * (sound ? 0.5 : 0)", {"sound": True}, "0.63"),
        ("base_price * $length(prompt) / 10", {"prompt": "0123456789"}, "0.42"),
        ("-base_price * -1", {}, "0.42"),
        # What a third party has seen of the vendor's, with amounts in millionths of a USD.
        ('{"total_price": base_price * 2 + ($count(images) > 5 ? 50000 * ($count(images) - 5) : 0)}', {}, "0.84"),
    ],
)
def test_formulas_that_are_read(text: str, inputs: dict[str, object], usd: str) -> None:
    found = price(text, inputs)
    assert found is not None
    assert math.isclose(found, Decimal(usd), rel_tol=1e-9)


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ('{"total_price": base_price * 2 + ($count(images) > 5 ? 50000 * 1 : 0)}', {"images": ["a"] * 6}),
        ("base_price + 0.1", {}),
        ("$ceil(base_price * 7) / 7", {}),
        ("base_price > 0.5 ? base_price * 2 : base_price", {}),
        ("base_price * (0.1 + 0.2 = 0.3 ? 1 : 2)", {}),
        ("base_price * get_duration(video)", {}),
        ("base_price * get_duration(videos, min=2, max=15)", {}),
        ("$round(base_price * duration, 2)", {}),
        ("base_price * steps", {}),
        ("base_price * (steps ? 2 : 1)", {}),
        ("base_price * unknown", {}),
        ("base_price * (unknown ? 2 : 1)", {}),
        ("base_price * images.width", {"images": ["a"]}),
        ("base_price * images", {"images": ["a"]}),
        ('base_price * "2"', {}),
        ("base_price * sound", {"sound": True}),
        ("[base_price]", {}),
        ('{"price": base_price}', {}),
        ('{"total_price": "0.42"}', {}),
        ('{"total_price": base_price, "total_price": 0}', {}),
        ("base_price / 0", {}),
        ("0 - base_price", {}),
        ("base_price *", {}),
        ("base_price * (1", {}),
        ("base_price base_price", {}),
        ("base_price * 1.", {}),
        ("base_price * 05", {}),
        ("base_price * 1e400", {}),
        ("base_price & ''", {}),
        ("base_price * (duration % 3)", {}),
        ("base_price * ($exists(images + true) ? 2 : 1)", {}),
        ("$x := 2; base_price * $x", {}),
        ("/* none */ base_price", {}),
        ("base_price ~> $abs", {}),
        ("ä", {}),
        ("(" * 10_000, {}),
        ("base_price" + " + base_price" * 10_000, {}),
        ("-" * 5_000 + "base_price", {}),
    ],
)
def test_what_is_not_certain_is_unknown(text: str, inputs: dict[str, object]) -> None:
    assert price(text, inputs) is None


@pytest.mark.parametrize("base", ["450000", "-1", "NaN", "Infinity"])
def test_base_price_in_another_unit_is_unknown(base: str) -> None:
    assert price("base_price", {}, Decimal(base)) is None


# ---- against JSONata ----

names = st.sampled_from([each.name for each in INPUTS])
atoms = st.one_of(
    st.just("base_price"),
    names,
    st.integers(0, 30).map(str),
    st.decimals(0, 4, places=2).map(str),
    st.sampled_from(['"720p"', '"1080p"', "'4k'", "true", "false", "null", "unknown", "$x", "-1"]),
)
operators = st.sampled_from(["+", "-", "*", "/", "%", "=", "!=", "<", "<=", ">", ">=", "and", "or", "in", "&"])
FUNCTIONS = "$min $max $sum $ceil $floor $count $length $exists $not $abs $round get_duration"
functions = st.sampled_from(FUNCTIONS.split(" "))


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, operators, inner).map(" ".join),
        st.tuples(inner, st.sampled_from(["*", "/", "+"]), inner).map(" ".join),
        inner.map("({})".format),
        inner.map("-{}".format),
        st.tuples(inner, inner, inner).map(lambda parts: "({} ? {} : {})".format(*parts)),
        st.tuples(functions, inner).map(lambda parts: "{}({})".format(*parts)),
        st.tuples(functions, st.lists(inner, max_size=3)).map(lambda parts: f"{parts[0]}([{', '.join(parts[1])}])"),
        inner.map('$lookup({{"720p": 1, "1080p": {}}}, resolution)'.format),
    )


expressions = st.recursive(atoms, larger, max_leaves=12)
scaled = st.tuples(expressions, st.sampled_from(["base_price * ({})", '{{"total_price": base_price * ({})}}', "{}"]))
given_inputs = st.fixed_dictionaries(
    {},
    optional={
        "duration": st.integers(1, 30),
        "sound": st.booleans(),
        "resolution": st.sampled_from(["720p", "1080p", "4k"]),
        "steps": st.integers(1, 9),
        "images": st.lists(st.just("https://h/a.png"), max_size=3),
        "prompt": st.text("ab", max_size=3),
    },
)


def of_jsonata(text: str, inputs: dict[str, Any], base: float) -> float | None:
    """Return what JSONata computes; None for an error, or anything but a number."""
    fields = {each.name: each.default for each in INPUTS if each.default is not None} | inputs
    try:
        found = jsonata.Jsonata(text or "base_price").evaluate({**fields, "base_price": base})
    except Exception:  # noqa: BLE001 -- its errors are of many kinds
        return None
    found = found.get("total_price") if isinstance(found, dict) else found
    return None if isinstance(found, bool) or not isinstance(found, (int, float)) else float(found)


@settings(max_examples=1000)
@given(scaled, given_inputs)
@example(("(sound ? 1.5 : 1) * duration / 5", "base_price * ({})"), {"sound": True, "duration": 10})
@pytest.mark.repeats
def test_price_is_that_of_jsonata_or_unknown(formula: tuple[str, str], inputs: dict[str, Any]) -> None:
    text = formula[1].format(formula[0])
    found = price(text, inputs)
    if found is None:
        return
    for unit in (1, 1_000_000):
        expected = of_jsonata(text, inputs, float(BASE * unit))
        assert expected is not None
        assert math.isclose(float(found), expected / unit, rel_tol=1e-6, abs_tol=1e-9)


@settings(max_examples=1000)
@given(st.text(st.characters(codec="ascii"), max_size=60) | st.text(), st.decimals(allow_nan=True))
@pytest.mark.repeats
def test_any_text_is_read_or_unknown(text: str, base: Decimal) -> None:
    Formula(text, base, INPUTS).price({"duration": 5})


# ---- in rows of the service ----

SCHEMA: dict[str, Any] = {
    "required": ["image", "prompt"],
    "properties": {
        "prompt": {"type": "string"},
        "image": {"type": "string"},
        "duration": {"type": "integer", "enum": [3, 5, 10, 30], "default": 5},
        "sound": {"type": "boolean", "default": False},
        "resolution": {"type": "string", "enum": ["720p", "1080p"], "default": "720p"},
        "steps": {"type": "integer", "default": 10},
    },
}
ENTRY = ServiceModel(id="kwaivgi/kling-v9", base_price=BASE, path="/api/v3/kwaivgi/kling-v9", schema=SCHEMA)
BY_ALL = 'base_price * duration / 5 * (sound ? 2 : 1) * (resolution = "1080p" ? 1.5 : 1) * steps / 10'


def job(formula: str, **fields: Any) -> Job:
    row = Model.from_service(attrs.evolve(ENTRY, formula=formula))
    return Job(model=row, prompt="x", image="https://h/a.png", **fields)


@pytest.mark.parametrize(
    ("fields", "usd"),
    [
        ({}, "0.42"),
        ({"duration": 30}, "2.52"),
        ({"sound": True}, "0.84"),
        ({"resolution": "1080p"}, "0.63"),
        ({"extra": {"resolution": "1080p"}}, "0.63"),
        ({"extra": {"steps": 20}}, "0.84"),
        ({"sound": True, "resolution": "1080p", "duration": 10, "extra": {"steps": 5}}, "1.26"),
    ],
)
def test_price_of_a_job_follows_the_formula(fields: dict[str, Any], usd: str) -> None:
    made = job(BY_ALL, **fields)
    assert made.price().usd == Decimal(usd)
    assert made.price().certainty is Certainty.INFERRED


def test_kinds_differ_in_what_the_formula_names() -> None:
    assert job(BY_ALL, extra={"steps": 1}).kind != job(BY_ALL, extra={"steps": 2}).kind
    by_duration = "base_price * duration / 5"
    assert job(by_duration, extra={"steps": 1}).kind == job(by_duration, extra={"steps": 2}).kind
    unreadable = "$random() * steps"
    assert job(unreadable, extra={"steps": 1}).kind != job(unreadable, extra={"steps": 2}).kind
    assert job(unreadable).price().usd is None


rules = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["string", "integer", "number", "boolean", "array", "object", "nonsense"]) | st.none(),
        "enum": st.lists(st.sampled_from([5, 10, "5", "720p", True, None]), max_size=3),
        "default": st.sampled_from([5, 0.5, "5", "720p", True, False, None, [], [1], {"a": 1}]),
        "minimum": st.integers(-1, 5),
        "maximum": st.integers(3, 30),
        "maxItems": st.integers(0, 3),
    },
)
schemas = st.dictionaries(
    st.sampled_from(["image", "duration", "sound", "resolution", "steps", "images", "prompt", "keyframes", "seed"]),
    rules,
    min_size=1,
)


def test_long_lists_make_the_price_unknown_at_once() -> None:
    """The time of a formula is bounded by its tokens times the length of a list, which is as long as a schema says."""
    text = f"base_price * $sum([{', '.join(['images'] * 190)}])"
    assert price(text, {"images": [1] * 100}) == 19_000 * BASE
    assert price(text, {"images": [1] * 101}) is None
    assert price("base_price * $count(images)", {"images": [[[1] * 101]]}) is None


def test_pictures_of_one_number_are_of_one_kind() -> None:
    schema = {"properties": {"prompt": {"type": "string"}, "images": {"type": "array", "items": {"type": "string"}}}}
    entry = ServiceModel(id="a/b", base_price=BASE, formula="base_price * (1 + $count(images))", schema=schema)
    row = Model.from_service(entry)

    def job(*names: str) -> Job:
        return Job(model=row, prompt="x", images=[f"https://h/{name}.png" for name in names])

    assert job("a").kind == job("b").kind
    assert (job("a").price().usd, job("a", "b").price().usd) == (2 * BASE, 3 * BASE)


@settings(max_examples=1000)
@given(schemas, st.lists(st.sampled_from(["image", "duration", "images", "prompt"])), scaled, st.booleans())
@pytest.mark.repeats
def test_any_schema_and_formula_make_a_row(
    properties: dict[str, Any],
    required: list[str],
    formula: tuple[str, str],
    sound: bool,  # noqa: FBT001 -- drawn
) -> None:
    text = formula[1].format(formula[0])
    entry = ServiceModel(
        id="a/b", base_price=BASE, formula=text, schema={"properties": properties, "required": required}
    )
    row = Model.from_service(entry)
    assert hash(row)
    fields: dict[str, Any] = {"sound": sound} if row.sound else {}
    fields |= {"image": "https://h/a.png"} if row.image else {}
    try:
        made = Job(model=row, prompt="x", **fields)
    except InvalidJobError:
        return
    found = made.price().usd
    assert found == row.price_of(made.kind).usd
    if found is None or (not text.strip() and row.durations):
        return
    inputs = made.inputs("u" if row.image else "", None) | ({"duration": made.duration} if row.durations else {})
    defaults = {name: rule["default"] for name, rule in properties.items() if rule.get("default") is not None}
    expected = of_jsonata(text, defaults | inputs, float(BASE))
    assert expected is not None
    assert math.isclose(float(found), expected, rel_tol=1e-6, abs_tol=1e-9)
