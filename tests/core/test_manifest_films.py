"""Films as lists: the column `continues`, in every kind of manifest and in any order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from kling_async import FrameAt, Job, LastFrame
from kling_async.errors import ManifestError, Problem
from kling_async.manifest import Keyed, Manifest, _check, read_manifest, read_rows
from kling_async.manifest._row import Row
from support.pictures import png

URL = "https://example.com/bay.png"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def csv(*lines: str) -> str:
    Path("film.csv").write_text("key,prompt,image,continues,film\n" + "".join(f"{line}\n" for line in lines))
    return "film.csv"


def keys(manifest: Manifest) -> list[str | None]:
    return [key for key, _ in manifest]


def test_rows_continue_others_in_any_order_and_need_no_image() -> None:
    manifest = read_manifest(
        csv("night,Lights,,sail,bay", f"one,Alone,{URL},,", "sail,A boat,,dawn,bay", f"dawn,Mist,{URL},,bay")
    )
    jobs = dict(manifest)
    assert keys(manifest) == ["one", "dawn", "sail", "night"]
    assert jobs["sail"] == Job(prompt="A boat", image=LastFrame("dawn"))
    assert dict(jobs["night"].labels) == {"film": "bay"}
    assert len(manifest) == 4
    assert manifest.price().usd == 4 * (Job(prompt="x", image=URL).price().usd or 0)
    assert manifest.continued == {"dawn", "sail"}


def test_a_list_of_films_alone_has_no_column_of_images_to_miss() -> None:
    Path("film.csv").write_text("key,prompt,continues\nb,Sail,a\na,Mist,\n")
    with pytest.raises(ManifestError, match=r"film.csv:3 image: required"):
        read_manifest("film.csv")


@pytest.mark.anyio
async def test_json_lines_and_rows_have_the_column(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"key": "b", "prompt": "Sail", "continues": "1"},
        {"key": 1, "prompt": "Mist", "image": URL},
        {"prompt": "No key", "continues": "b"},
    ]
    Path("film.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for manifest in (read_manifest("film.jsonl"), read_rows(rows)):
        assert [key async for key, _ in manifest] == ["1", "b", None]
    assert keys(read_rows([rows[1], {"key": "c", "prompt": "x", "image": LastFrame("1")}])) == ["1", "c"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a,x,,b,", "b,y,,a,"], "film.csv:2 continues: continues itself: 'a' -> 'b' -> 'a'"),
        (["a,x,,a,"], "film.csv:2 continues: continues itself"),
        ([f"a,x,{URL},,", "b,y,,dwan,"], "film.csv:3 continues: continues 'dwan', which is no key of the same batch"),
        ([f"a,x,{URL},,", f"b,y,{URL},a,"], "film.csv:3 continues: expected either continues or image, got both"),
        ([f"a,x,{URL},,", ",y,,dwan,"], "film.csv:3 continues: continues 'dwan'"),
    ],
)
def test_broken_chains_are_told_with_their_rows(lines: list[str], said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(csv(*lines))
    assert said in str(caught.value)


def test_rows_that_continue_invalid_ones_are_left_out_with_them() -> None:
    path = csv(f"a,,{URL},,", "b,y,,a,", "c,z,,b,", f"d,w,{URL},,", "e,v,,d,", "f,u,,nobody,")
    manifest = read_manifest(path, skip_invalid=True)
    assert keys(manifest) == ["d", "e"]
    assert len(manifest) == 2
    assert manifest.skipped == 4
    assert [str(problem) for problem in manifest.invalid] == [
        "film.csv:2 prompt: required: 1 to 2500 characters",
        "film.csv:3 continues: continues 'a', which is left out",
        "film.csv:4 continues: continues 'b', which is left out",
        "film.csv:7 continues: continues 'nobody', which is no key of the same batch",
    ]


def test_default_image_is_for_rows_that_continue_nothing() -> None:
    manifest = read_manifest(csv("a,x,,,", "b,y,,a,"), image=URL)
    assert dict(manifest) == {"a": Job(prompt="x", image=URL), "b": Job(prompt="y", image=LastFrame("a"))}


def test_million_rows_without_films_hold_none_of_them() -> None:
    manifest = read_rows([{"prompt": "x", "image": URL}] * 3)
    assert not manifest.continued
    assert len(keys(manifest)) == 3


def test_rows_begin_with_the_frame_at_a_moment_of_another_one() -> None:
    Path("film.csv").write_text(
        f"key,prompt,image,continues,continues_at\na,x,{URL},,\nb,y,,a,2.5\nc,z,,a,0\nd,w,,b,\n"
    )
    rows: list[dict[str, object]] = [
        {"key": "a", "prompt": "x", "image": URL},
        {"key": "b", "prompt": "y", "continues": "a", "continues_at": Decimal("2.5")},
        {"key": "c", "prompt": "z", "continues": "a", "continues_at": 0},
        {"key": "d", "prompt": "w", "continues": "b", "continues_at": float("nan")},
    ]
    for manifest in (read_manifest("film.csv"), read_rows(rows)):
        jobs = dict(manifest)
        assert jobs["b"].image == FrameAt("a", 2.5)
        assert jobs["c"].image == FrameAt("a", 0.0)
        assert jobs["d"].image == LastFrame("b")


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("soon", "expected seconds from the beginning, at least 0, got 'soon'"),
        ("-1", "expected seconds from the beginning, at least 0, got -1.0"),
        ("inf", "expected seconds from the beginning, at least 0, got inf"),
    ],
)
def test_moments_that_no_video_has_are_problems_of_their_column(at: str, said: str) -> None:
    Path("film.csv").write_text(f"key,prompt,image,continues,continues_at\na,x,{URL},,\nb,y,,a,{at}\nc,z,{URL},,1\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest("film.csv")
    assert str(caught.value.problems[0]) == f"film.csv:3 continues_at: {said}"
    if at != "soon":
        assert str(caught.value.problems[1]) == "film.csv:4 continues_at: expected continues with it, got none"


def left_out(manifest: Manifest) -> dict[object, str]:
    """Return the rows that are left out by their keys, with the reasons as `errors.jsonl` has them."""
    notes = {row.get("key"): row["_error"] for row in manifest.invalid_rows()}
    return {key: str(note["message"]) for key, note in notes.items() if isinstance(note, dict)}


def test_row_that_continues_nobody_is_left_out_alone() -> None:
    manifest = read_manifest(csv("f,u,,nobody,", f"d,w,{URL},,", "e,v,,d,", "g,t,,f,"), skip_invalid=True)
    assert keys(manifest) == ["d", "e"]
    assert (len(manifest), manifest.skipped) == (2, 2)
    assert left_out(manifest) == {
        "f": "film.csv:2: continues: continues 'nobody', which is no key of the same batch",
        "g": "film.csv:5: continues: continues 'f', which is left out",
    }


def test_key_of_a_valid_row_is_not_that_of_an_invalid_one() -> None:
    manifest = read_manifest(csv(f"a,,{URL},,", f"a,x,{URL},,", "b,y,,a,"), skip_invalid=True)
    assert keys(manifest) == ["a", "b"]
    assert [str(problem) for problem in manifest.invalid] == ["film.csv:2 prompt: required: 1 to 2500 characters"]


def test_repeated_key_takes_nothing_from_the_row_that_has_it() -> None:
    path = csv(f"a,x,{URL},,", "a,y,,nobody,", "b,z,,a,", "b,z2,,gone,", "c,v,,b,")
    manifest = read_manifest(path, skip_invalid=True)
    assert dict(manifest) == {
        "a": Job(prompt="x", image=URL),
        "b": Job(prompt="z", image=LastFrame("a")),
        "c": Job(prompt="v", image=LastFrame("b")),
    }
    assert (len(manifest), manifest.skipped) == (3, 2)
    assert [str(problem) for problem in manifest.invalid] == [
        "film.csv:3 key: 'a' is already the key of line 2",
        "film.csv:5 key: 'b' is already the key of line 4",
    ]


def test_row_that_is_left_out_late_leaves_no_trace() -> None:
    """Covers price, models, warnings and cautions: a row that continues a wrong one was counted first."""
    wide = png(1000, 320)
    rows: list[dict[str, object]] = [
        {"key": "d", "prompt": "w", "image": URL, "model": "kling-v2.1-pro"},
        {"key": "e", "prompt": "v", "continues": "nobody", "model": "kling-v2.6-pro", "end_image": wide, "sound": True},
        {"key": "f", "prompt": "u", "continues": "e", "model": "kling-v2.6-pro"},
    ]
    whole = read_rows([{**rows[1], "continues": "d"}, rows[0]])
    assert whole.warnings
    assert whole.cautions()
    without, manifest = read_rows(rows[:1]), read_rows(rows, skip_invalid=True)
    assert (manifest.kinds, manifest.models) == (without.kinds, without.models)
    assert manifest.price().usd == without.price().usd
    for provider in ("wavespeed", "gptproto"):
        assert manifest.cautions(provider) == without.cautions(provider)
    assert manifest.warnings == ()


def test_long_chain_behind_an_invalid_row_is_left_out_at_once() -> None:
    rows = [{"key": str(each), "prompt": "x", "continues": str(each - 1)} for each in reversed(range(1, 5_000))]
    rows += [{"key": "0", "prompt": ""}, {"key": "d", "prompt": "x", "image": URL}]
    manifest = read_rows(rows, skip_invalid=True)
    assert keys(manifest) == ["d"]
    assert manifest.skipped == 5_000


def test_check_that_ends_early_blames_no_row_for_what_it_did_not_read() -> None:
    rows = [{"key": "b", "prompt": "x", "continues": "a"}, *[{"prompt": ""}] * 10_000]
    with pytest.raises(ManifestError) as caught:
        read_rows([*rows, {"key": "a", "prompt": "x", "image": URL}])
    assert {problem.path for problem in caught.value.problems} == {"prompt", "image", ""}


def test_every_job_is_made_once_and_held_only_if_it_is_in_a_film(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, object]] = [{"key": f"alone-{each}", "prompt": "x", "image": URL} for each in range(500)]
    rows[250:250] = [{"key": "b", "prompt": "y", "continues": "a"}, {"key": "a", "prompt": "z", "image": URL}]
    manifest = read_rows(rows)
    made: list[str | None] = []
    living: WeakSet[Job] = WeakSet()
    real = _check.job_of_row

    def job_of_row(row: Row, *args: Any, **more: Any) -> Keyed | list[Problem]:
        found = real(row, *args, **more)
        assert isinstance(found, tuple)
        made.append(found[0])
        living.add(found[1])
        return found

    monkeypatch.setattr("kling_async.manifest.job_of_row", job_of_row)
    most, found = 0, []
    for key, _ in manifest:
        most = max(most, len(living))
        found.append(key)
    assert sorted(map(str, made)) == sorted(str(row["key"]) for row in rows)
    assert found == [
        *(f"alone-{each}" for each in range(250)),
        "a",
        "b",
        *(f"alone-{each}" for each in range(250, 500)),
    ]
    assert most <= 2 + 2


def test_film_whose_row_is_gone_is_an_error() -> None:
    manifest = read_manifest(csv(f"a,x,{URL},,", "b,y,,a,"))
    csv(f"a,x,{URL},,")
    with pytest.raises(ManifestError, match=r"film\.csv: has changed since it was checked"):
        keys(manifest)


def begun() -> tuple[list[dict[str, object]], Iterator[Keyed]]:
    """Return rows with a film, and what is left of their jobs after the first."""
    rows: list[dict[str, object]] = [
        {"key": "one", "prompt": "x", "image": URL},
        {"key": "a", "prompt": "x", "image": URL},
        {"key": "b", "prompt": "y", "continues": "a"},
    ]
    read = iter(read_rows(rows))
    assert next(read)[0] == "one"
    return rows, read


def test_film_whose_first_row_goes_between_the_two_reads_is_an_error() -> None:
    rows, read = begun()
    del rows[1]
    with pytest.raises(ManifestError, match=r"rows: has changed since it was checked: 2 of 2 rows of films are gone"):
        list(read)


def test_key_that_comes_twice_in_the_second_read_is_no_other_film() -> None:
    rows, read = begun()
    rows.append(rows[1])
    assert [key for key, _ in read] == ["a", "b"]
