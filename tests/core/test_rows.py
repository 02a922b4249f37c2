"""Models beyond Kling 2.1: rare fields, rules between fields, and models that are not in the catalogue."""

from __future__ import annotations

import copy
import csv
import json
import pickle
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import (
    MODELS,
    Certainty,
    EndImage,
    Field,
    GPTProto,
    InvalidJobError,
    Job,
    Model,
    ServiceModel,
    Shot,
    UnsupportedError,
    WaveSpeed,
)
from kling_async._core.catalogue import find_model
from kling_async._core.content import content_of
from kling_async._core.job import JobFields
from kling_async.manifest import read_manifest

URL = "https://pictures.example/face.png"
V3 = "kling-v3.0-pro"
SHOTS = [{"prompt": "She turns", "duration": 4}, {"prompt": "She smiles", "duration": "8"}]


def make(**fields: Any) -> Job:
    return Job(**cast("JobFields", {"image": URL, **fields}))


def refusals(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidJobError) as caught:
        make(**fields)
    return {problem.path: problem.message for problem in caught.value.problems}


# ---- rows of the contract, 9.3 ----


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("kling-v1.6-standard", {"negative_prompt", "guidance_scale"}),
        ("kling-v1.6-pro", {"negative_prompt", "guidance_scale", "end_image"}),
        ("kling-v2.0-master", {"negative_prompt", "guidance_scale", "end_image"}),
        ("kling-v2.5-turbo-pro", {"negative_prompt", "guidance_scale", "end_image"}),
        ("kling-v2.5-turbo-std", {"negative_prompt", "guidance_scale"}),
        ("kling-v2.6-std", {"negative_prompt"}),
        ("kling-v2.6-pro", {"negative_prompt", "guidance_scale", "end_image", "sound", "voice_list"}),
        *(
            (name, {"negative_prompt", "guidance_scale", "end_image", "sound", "shot_type", "element_list"})
            for name in ("kling-v3.0-std", "kling-v3.0-pro", "kling-v3.0-4k")
        ),
        ("kling-v3-turbo-std", set()),
        ("kling-v3-turbo-pro", set()),
    ],
)
def test_unsupported_field_is_refused(name: str, taken: set[str]) -> None:
    values: dict[str, object] = {
        "negative_prompt": "blur",
        "guidance_scale": 0.7,
        "end_image": URL,
        "sound": True,
        "shot_type": "customize",
        "element_list": [{"element_id": 1}],
        "voice_list": ["v1"],
    }
    for field, value in values.items():
        if field in taken:
            make(model=name, prompt="x", **{field: value})
        else:
            assert field in refusals(model=name, prompt="x", **{field: value})


@pytest.mark.parametrize("name", ["kling-v3.0-std", "kling-v3.0-4k", "kling-v3-turbo-pro"])
def test_kling_3_accepts_3_to_15_seconds(name: str) -> None:
    for seconds in (3, 7, 15):
        assert make(model=name, prompt="x", duration=seconds).inputs(URL, None)["duration"] == seconds
    for seconds in (2, 16):
        assert refusals(model=name, prompt="x", duration=seconds) == {"duration": f"expected 3 to 15, got {seconds}"}


def test_prices_per_second_and_unknown_prices() -> None:
    assert make(model="kling-v3.0-std", prompt="x", duration=3).price().usd == Decimal("0.252")
    assert make(model=V3, prompt="x", duration=15).price().usd == Decimal("1.68")
    assert make(model="kling-v1.6-pro", prompt="x").price().usd is None


def test_guidance_scale_uses_wire_name_of_row() -> None:
    assert make(model=V3, prompt="x", guidance_scale=1).inputs(URL, None)["cfg_scale"] == 1.0
    assert "not supported by kling-v2.6-std" in refusals(model="kling-v2.6-std", guidance_scale=1)["guidance_scale"]
    assert make(model="kling-v2.6-std").inputs(URL, None) == {"image": URL, "duration": 5}


# ---- shots ----


def test_shots_replace_prompt() -> None:
    job = make(model=V3, multi_prompt=SHOTS, shot_type="customize", element_list=[{"element_id": 7}], sound=False)
    assert job.multi_prompt == (Shot("She turns", 4), Shot("She smiles", 8))
    assert job.prompt == ""
    assert job.duration == 12, "the total of the shots is generated and charged"
    assert job.inputs(URL, None) == {
        "multi_prompt": [{"prompt": "She turns", "duration": 4}, {"prompt": "She smiles", "duration": 8}],
        "image": URL,
        "duration": 12,
        "sound": False,
        "shot_type": "customize",
        "element_list": [{"element_id": 7}],
    }


def test_shots_without_durations_use_total_duration() -> None:
    job = make(model="kling-v3-turbo-std", multi_prompt=["She turns", Shot("She smiles")], duration=9)
    assert job.inputs(URL, None) == {
        "multi_prompt": [{"prompt": "She turns"}, {"prompt": "She smiles"}],
        "image": URL,
        "duration": 9,
    }


@pytest.mark.parametrize(
    ("fields", "path", "said"),
    [
        ({"prompt": "x", "multi_prompt": SHOTS}, "prompt", "expected either prompt or multi_prompt, got both"),
        ({}, "prompt", "required: 1 to 2500 characters, or multi_prompt"),
        ({"multi_prompt": []}, "prompt", "required: 1 to 2500 characters, or multi_prompt"),
        ({"multi_prompt": SHOTS, "end_image": URL}, "end_image", "expected either end_image or multi_prompt, got both"),
        ({"multi_prompt": ["x"] * 7}, "multi_prompt", "expected 1 to 6 shots, got 7"),
        ({"multi_prompt": "x"}, "multi_prompt", "expected a list of shots, got str"),
        ({"multi_prompt": {"prompt": "x"}}, "multi_prompt", "expected a list of shots, got dict"),
        ({"multi_prompt": ["x", ""]}, "multi_prompt[1].prompt", "is empty"),
        ({"multi_prompt": ["x", 5]}, "multi_prompt[1]", "expected text, a mapping or a Shot, got int"),
        (
            {"multi_prompt": [{"prompt": "x", "seed": 1}]},
            "multi_prompt[0].seed",
            "unknown field: a shot has prompt and duration",
        ),
        (
            {"multi_prompt": [{"prompt": "x", "duration": 2.5}]},
            "multi_prompt[0].duration",
            "expected whole seconds, got 2.5",
        ),
        (
            {"multi_prompt": [{"prompt": "x" * 2501}]},
            "multi_prompt[0].prompt",
            "expected at most 2500 characters, got 2501",
        ),
        ({"multi_prompt": [SHOTS[0], "x"]}, "multi_prompt", "expected a duration for every shot or for none, got some"),
        ({"multi_prompt": SHOTS, "duration": 5}, "duration", "expected 12, the total of the shots, got 5"),
        ({"multi_prompt": [*SHOTS, *SHOTS]}, "multi_prompt", "expected shots of 3 to 15 s in total, got 24 s"),
        (
            {"prompt": "x", "shot_type": "automatic"},
            "shot_type",
            "expected 'customize' or 'intelligence', got 'automatic'",
        ),
        ({"prompt": "x", "element_list": [1, 2, 3, 4]}, "element_list", "expected at most 3 items, got 4"),
        ({"prompt": "x", "element_list": "7"}, "element_list", "expected a list, got str"),
        (
            {"prompt": "x", "element_list": [object()]},
            "element_list",
            "is not JSON: Object of type object is not JSON serializable",
        ),
        ({"prompt": "x", "voice_list": ["v"]}, "voice_list", "not supported by kling-v3.0-pro"),
    ],
)
def test_rules_between_fields_name_the_field(fields: dict[str, Any], path: str, said: str) -> None:
    assert refusals(model=V3, **fields) == {path: said}


def test_multi_prompt_is_refused_by_other_models() -> None:
    assert refusals(model="kling-v2.1-pro", multi_prompt=SHOTS) == {"multi_prompt": "not supported by kling-v2.1-pro"}


def test_job_with_shots_pickles_copies_and_hashes() -> None:
    job = make(model=V3, multi_prompt=SHOTS, element_list=[{"element_id": 7}])
    for other in (pickle.loads(pickle.dumps(job)), copy.deepcopy(job), attrs.evolve(job)):
        assert (other, hash(other)) == (job, hash(job))
    assert job != make(model=V3, multi_prompt=SHOTS, element_list=[{"element_id": 8}])


def test_digest_covers_rare_fields() -> None:
    jobs = [
        make(model=V3, **fields)
        for fields in (
            {"multi_prompt": SHOTS},
            {"multi_prompt": SHOTS[::-1]},
            {"multi_prompt": ["x", "y"], "duration": 12},
            {"multi_prompt": SHOTS, "shot_type": "customize"},
            {"multi_prompt": SHOTS, "shot_type": "intelligence"},
            {"multi_prompt": SHOTS, "element_list": [1]},
            {"multi_prompt": SHOTS, "element_list": [2]},
        )
    ]
    jobs += [make(model="kling-v2.6-pro", prompt="x", voice_list=voices) for voices in ([], ["a"], ["b"])]
    assert len({content_of(job, str).digest for job in jobs}) == len(jobs)


def test_lists_are_copied() -> None:
    element = {"element_id": [1]}
    job = make(model=V3, prompt="x", element_list=[element])
    element["element_id"].append(2)
    assert job.element_list == ({"element_id": [1]},)


def test_manifests_accept_shots(tmp_path: Path) -> None:
    fields = {"model": V3, "image": URL, "multi_prompt": SHOTS, "element_list": [{"element_id": 7}]}
    lines, cells = tmp_path / "jobs.jsonl", tmp_path / "jobs.csv"
    lines.write_text(json.dumps(fields) + "\n")
    with cells.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(fields)
        table.writerow([value if isinstance(value, str) else json.dumps(value) for value in fields.values()])
    assert list(read_manifest(lines)) == list(read_manifest(cells)) == [(None, make(**fields))]


# ---- custom models ----

OWN = Model(
    id="kwaivgi/kling-v9-pro/image-to-video",
    durations=(6, 8),
    scale="cfg_scale",
    scale_range=(0.0, 2.0),
    end_image=EndImage("tail_image"),
    price_per_5s=Decimal("0.5"),
    certainty=Certainty.STATED,
)


def test_custom_model_stays_with_its_job() -> None:
    job = make(model=OWN, prompt="x", end_image=URL, guidance_scale=1.5, extra={"seed": 7})
    assert (job.model, job.row, job.duration) == (OWN.id, OWN, 6)
    assert find_model(OWN.id) is None, "the catalogue is unchanged"
    assert job.price().usd == Decimal("0.6")
    assert job.inputs(URL, URL) == {
        "prompt": "x",
        "image": URL,
        "tail_image": URL,
        "cfg_scale": 1.5,
        "duration": 6,
        "seed": 7,
    }
    for other in (pickle.loads(pickle.dumps(job)), copy.deepcopy(job), attrs.evolve(job)):
        assert (other, hash(other), other.row) == (job, hash(job), OWN)
    assert WaveSpeed(api_key="wsk_x").submit(job, URL, URL).url.endswith("/api/v3/kwaivgi/kling-v9-pro/image-to-video")
    with pytest.raises(UnsupportedError, match="gptproto has no model kwaivgi/kling-v9"):
        GPTProto(api_key="sk-x").submit(job, URL, URL)


def test_custom_model_validates_fields() -> None:
    assert refusals(model=OWN, prompt="x", duration=5, guidance_scale=2.1, sound=True) == {
        "duration": "expected 6 or 8, got 5",
        "guidance_scale": "expected a number from 0 to 2, got 2.1",
        "sound": f"not supported by {OWN.id}",
    }


def test_evolving_the_model_drops_own_row() -> None:
    job = make(model=OWN, prompt="x")
    other = attrs.evolve(job, model="kling-v3.0-std")  # type: ignore[call-arg]  # mypy's plugin does not see the names
    assert (other.own_row, other.row.name) == (None, "kling-v3.0-std")


def test_catalogue_row_equals_its_name() -> None:
    assert make(model=MODELS[1], prompt="x") == make(model="kling-v2.1-pro", prompt="x")
    assert make(model=MODELS[1], prompt="x").own_row is None


@pytest.mark.parametrize(
    "id_", ["", "../balance", "a//b", "a?webhook=x", "a b", "/a", "https://evil.example", "a/..", "ä"]
)
def test_model_id_must_be_a_plain_path(id_: str) -> None:
    with pytest.raises(ValueError, match="id: expected a model path"):
        Model(id=id_)


# ---- models from the service's own catalogue ----

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image", "camera"],
    "x-order-properties": ["image"],
    "properties": {
        "prompt": {"type": "string", "maxLength": 100},
        "image": {"type": "string"},
        "last_image": {"type": "string"},
        "negative_prompt": {"type": "string"},
        "cfg_scale": {"type": "number", "minimum": 0, "maximum": 2, "default": 0.5},
        "duration": {"type": "string", "enum": ["10", "6"], "default": "10"},
        "sound": {"type": "boolean"},
        "seed": {"type": "integer", "minimum": -1, "maximum": 2147483647, "default": -1},
        "camera": {"type": "string", "enum": ["still", "pan"]},
        "tags": {"type": "array", "maxItems": 2},
        "odd": "not a rule",
    },
}
ENTRY = ServiceModel(
    id="kwaivgi/kling-v9-pro/image-to-video",
    base_price=Decimal("0.7"),
    formula='{"total_price": base_price * duration / 5}',
    path="/api/v3/kwaivgi/kling-v9-pro/image-to-video",
    schema=SCHEMA,
)


def test_from_service_reads_schema() -> None:
    row = Model.from_service(ENTRY)
    assert (row.id, row.name) == (ENTRY.id, ENTRY.id)
    assert not row.prompt_required
    assert (row.durations, row.default_duration, row.duration_type) == ((6, 10), 10, "string")
    assert (row.scale, row.scale_range) == ("cfg_scale", (0.0, 2.0))
    assert row.end_image == EndImage("last_image")
    assert (row.sound, row.negative_prompt, row.shots, row.voices) == (True, True, 0, False)
    assert row.price(10).usd == Decimal("1.4")
    assert row.price(10).certainty is Certainty.INFERRED
    assert row.more is not None
    assert row.more[0] == Field(name="seed", type="integer", minimum=-1.0, maximum=2147483647.0, default=-1)
    assert hash(row)


def test_job_uses_service_schema() -> None:
    job = make(model=Model.from_service(ENTRY), end_image=URL, extra={"camera": "pan", "tags": ["a"]})
    assert job.inputs(URL, URL) == {"image": URL, "last_image": URL, "duration": "10", "camera": "pan", "tags": ["a"]}
    assert pickle.loads(pickle.dumps(job)) == job


@pytest.mark.parametrize(
    ("extra", "path", "said"),
    [
        ({}, "extra.camera", f"required by {ENTRY.id}"),
        ({"camera": "zoom"}, "extra.camera", "expected 'still' or 'pan', got 'zoom'"),
        ({"camera": 5}, "extra.camera", "expected string, got int"),
        ({"camera": "pan", "seed": True}, "extra.seed", "expected integer, got bool"),
        ({"camera": "pan", "seed": -2}, "extra.seed", "expected -1 to 2.14748e+09, got -2"),
        ({"camera": "pan", "tags": ["a", "b", "c"]}, "extra.tags", "expected at most 2 items, got 3"),
        (
            {"camera": "pan", "sed": 1},
            "extra.sed",
            (
                f"not supported by {ENTRY.id}: the service would ignore it and charge; "
                "its inputs are seed, camera, tags, odd"
            ),
        ),
        ({"camera": "pan", "cfg_scale": 1}, "extra.cfg_scale", None),
    ],
)
def test_extra_is_checked_against_service_schema(extra: dict[str, Any], path: str, said: str | None) -> None:
    found = refusals(model=Model.from_service(ENTRY), extra=extra)
    assert list(found) == [path]
    assert said is None or found[path] == said


def test_text_and_duration_bounds_of_schema_hold() -> None:
    row = Model.from_service(ENTRY)
    assert refusals(model=row, prompt="x" * 101, duration=5, extra={"camera": "pan"}) == {
        "prompt": "expected at most 100 characters, got 101",
        "duration": "expected 6 or 10, got 5",
    }


def test_model_without_duration_has_constant_price() -> None:
    entry = attrs.evolve(ENTRY, formula="", schema={"properties": {"image": {}, "prompt": {}}, "required": ["prompt"]})
    row = Model.from_service(entry)
    job = make(model=row, prompt="x")
    assert (job.duration, job.inputs(URL, None)) == (0, {"prompt": "x", "image": URL})
    assert job.price().usd == Decimal("0.7")
    assert attrs.evolve(job) == job
    assert refusals(model=row, prompt="x", duration=5) == {"duration": f"not supported by {row.name}"}


@pytest.mark.parametrize(
    ("formula", "usd"),
    [
        ('{"total_price": base_price * duration / 5}', "1.4"),
        ("base_price*duration/5", "1.4"),
        ('{"total_price": $round(base_price * duration, 2)}', None),
        ("", None),
    ],
)
def test_unknown_formula_makes_price_unknown(formula: str, usd: str | None) -> None:
    price = Model.from_service(attrs.evolve(ENTRY, formula=formula)).price(10).usd
    assert price == (None if usd is None else Decimal(usd))


def test_from_service_reads_shots() -> None:
    schema = {
        "required": ["image", "shot_type"],
        "properties": {
            "image": {},
            "prompt": {},
            "multi_prompt": {"maxItems": 3},
            "shot_type": {"enum": ["one", "two"]},
            "element_list": {},
            "voice_list": {},
            "duration": {"minimum": 2, "maximum": 4.0},
        },
    }
    row = Model.from_service(attrs.evolve(ENTRY, schema=schema))
    assert (row.shots, row.shot_types, row.elements, row.voices, row.durations) == (
        3,
        ("one", "two"),
        3,
        True,
        (2, 3, 4),
    )
    assert refusals(model=row, multi_prompt=["x"]) == {"shot_type": f"required by {row.name}"}
    assert make(model=row, multi_prompt=["x"], shot_type="two").duration == 2


@pytest.mark.parametrize(
    "entry",
    [
        ServiceModel(id="wavespeed-ai/flux-dev"),
        ServiceModel(id="wavespeed-ai/flux-dev", schema={"properties": {}}),
        attrs.evolve(ENTRY, path="/api/v3/../balance"),
        attrs.evolve(ENTRY, id="not an id", path=""),
    ],
)
def test_unusable_description_is_refused(entry: ServiceModel) -> None:
    with pytest.raises(UnsupportedError, match="cannot be run"):
        Model.from_service(entry)


words = st.sampled_from(
    [
        "properties",
        "required",
        "image",
        "duration",
        "enum",
        "default",
        "minimum",
        "maxItems",
        "prompt",
        "cfg_scale",
        "type",
    ]
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=4)),
    max_leaves=10,
)


@given(rules=st.dictionaries(st.one_of(words, st.text()), values, max_size=6), required=values)
def test_any_schema_makes_a_usable_row(rules: dict[str, Any], required: object) -> None:
    row = Model.from_service(attrs.evolve(ENTRY, schema={"properties": {"image": {}, **rules}, "required": required}))
    assert hash(row)
    try:
        job = make(model=row, prompt="x")
    except InvalidJobError:
        return
    job.price()
    assert job.inputs(URL, None)["image"] == URL
