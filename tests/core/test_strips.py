"""Films of clips: which clips are one film, in which order."""

from __future__ import annotations

import pytest

from kling_async import FirstFrame, Job, LastFrame
from kling_async._core.strips import Clip, Strip, positions, strips


def test_a_chain_is_a_film_named_by_its_first_clip() -> None:
    clips = [Clip("c", follows="b"), Clip("alone"), Clip("a"), Clip("b", follows="a")]
    assert strips(clips) == [Strip("a", ("a", "b", "c"))]


def test_every_way_through_a_tree_is_a_film_named_by_its_last_clip() -> None:
    clips = [Clip("a"), Clip("b", follows="a"), Clip("c", follows="b"), Clip("d", follows="a")]
    assert strips(clips) == [Strip("c", ("a", "b", "c")), Strip("d", ("a", "d"))]


def test_no_way_parts_at_a_row_with_the_key_of_another_one() -> None:
    again = Clip("left-out row 1", follows="a", repeats=True)
    films = [Strip("a", ("a", "b")), Strip("left-out row 1", ("a", "left-out row 1"))]
    assert strips([Clip("a"), Clip("b", follows="a"), again]) == films
    assert strips([Clip("a"), again]) == [Strip("a", ("a", "left-out row 1"))]


def test_a_label_makes_one_film_depth_first_and_is_handed_down() -> None:
    clips = [
        Clip("a", "bay"),
        Clip("d", follows="a"),
        Clip("last", "bay"),
        Clip("b", follows="a"),
        Clip("e", follows="d"),
        Clip("other", "bay 2", follows="b"),
    ]
    assert strips(clips) == [Strip("bay", ("a", "d", "e", "b", "last")), Strip("bay 2", ("other",))]


def test_a_way_ends_where_a_label_begins() -> None:
    clips = [Clip("a"), Clip("b", follows="a"), Clip("c", "credits", follows="b")]
    assert strips(clips) == [Strip("credits", ("c",)), Strip("a", ("a", "b"))]


def test_keys_of_the_caller_may_look_like_those_of_what_was_made_before() -> None:
    clips = [Clip("shot", "bay"), Clip("shot~1", "bay"), Clip("shot~2", "bay")]
    assert strips(clips) == [Strip("bay", ("shot", "shot~1", "shot~2"))]


def test_a_clip_whose_parent_is_not_there_begins_a_film() -> None:
    assert strips([Clip("b", follows="gone"), Clip("c", follows="b")]) == [Strip("b", ("b", "c"))]


@pytest.mark.parametrize("labels", [("bay", "bay"), ("bay", ""), ("", "bay")])
def test_clips_that_continue_each_other_are_in_their_film(labels: tuple[str, str]) -> None:
    clips = [Clip("a", "bay"), Clip("b", labels[0], follows="c"), Clip("c", labels[1], follows="b")]
    (strip,) = strips(clips)
    assert strip.name == "bay"
    assert {*strip.keys} > {"a"}
    assert strips([Clip("a", "bay"), Clip("b", "bay", follows="b")]) == [Strip("bay", ("a", "b"))]


def test_a_way_from_clips_that_continue_each_other_has_an_end() -> None:
    clips = [Clip("b", follows="c"), Clip("c", follows="b"), Clip("d", follows="b")]
    assert strips(clips) == [Strip("c", ("c", "b", "d"))]


def test_a_long_chain_is_one_film() -> None:
    clips = [Clip(str(each), follows=str(each - 1) if each else None) for each in reversed(range(5000))]
    (strip,) = strips(clips)
    assert strip == Strip("0", tuple(map(str, range(5000))))


@pytest.mark.parametrize(("value", "name"), [("bay", "bay"), (7, "7"), (None, ""), ("", ""), (" ", "")])
def test_the_clip_of_a_job_has_its_label(value: object, name: str) -> None:
    job = Job(prompt="x", image=LastFrame("a"), labels={"film": value})
    assert Clip.of("b", job) == Clip("b", name, "a")


def test_only_a_last_frame_at_the_beginning_goes_on() -> None:
    assert Clip.of("b", Job(prompt="x", image=FirstFrame("a"))) == Clip("b")
    assert Clip.of("b", Job(prompt="x", image="https://example.com/a.png")) == Clip("b")


def test_new_content_of_a_key_has_the_place_of_what_was_made_before_which_is_in_no_film() -> None:
    assert positions(["one~1", "two", "one~2", "one", "alone"]) == {"one": 0, "two": 1, "alone": 4}


def test_keys_without_the_lower_numbers_are_those_of_the_caller() -> None:
    keys = ["shot", "shot~2", "shot~3", "take~1", "cut~01", "cut"]
    assert positions(keys) == {key: position for position, key in enumerate(keys)}
