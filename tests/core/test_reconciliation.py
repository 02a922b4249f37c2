"""Reconciliation, compared with what happened in random histories."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async._core.reconciliation import (
    Adopted,
    Doubt,
    Held,
    Intent,
    Orphan,
    Unaccepted,
    _match,
    echoed_fingerprints,
    fingerprint,
    settle,
    without_images,
)


def intent(name: str, *, content: str = "a", at: float = 100.0, model: str = "m") -> Intent:
    return Intent(name=("b", name), model=model, fingerprint=content, sent_from=at - 30)


def orphan(id_: str, *, content: str | None = None, at: float | None = 105.0, model: str = "m") -> Orphan:
    return Orphan(id=id_, model=model, created_at=at, fingerprint=content)


def names(intents: list[Intent]) -> set[tuple[str, str]]:
    return {one.name for one in intents}


@given(st.dictionaries(st.integers(0, 5), st.lists(st.sampled_from("uvwxyz"), unique=True), max_size=6))
def test_match_is_a_largest_one(wanted: dict[int, list[str]]) -> None:
    candidates = {("b", str(number)): ids for number, ids in wanted.items()}

    def largest(left: list[tuple[str, str]], free: frozenset[str]) -> int:
        if not left:
            return 0
        without = largest(left[1:], free)
        return max([without, *(1 + largest(left[1:], free - {id_}) for id_ in candidates[left[0]] if id_ in free)])

    found = _match(candidates)
    assert len(found) == len(set(found.values())) == largest([*candidates], frozenset("uvwxyz"))
    assert all(id_ in candidates[name] for id_, name in found.items())


def test_settle_adopts_echoed_input() -> None:
    intents = [intent("1", content="a"), intent("2", content="b")]
    ends = settle(intents, [orphan("y", content="b"), orphan("x", content="a")], ripe=(), alone=False)
    assert ends == {("b", "1"): Adopted("x"), ("b", "2"): Adopted("y")}


def test_absence_is_evidence_only_for_ripe_intents() -> None:
    intents = [intent("1"), intent("2", content="b")]
    ends = settle(intents, [], ripe={("b", "1")}, alone=False)
    assert ends == {("b", "1"): Unaccepted(), ("b", "2"): Held(Doubt.WHETHER, ())}


def test_intents_with_equal_content_share_orphans() -> None:
    intents = [intent("1"), intent("2"), intent("3")]
    ends = settle(intents, [orphan("x", content="a")], ripe=names(intents), alone=False)
    adopted = [name for name, end in ends.items() if end == Adopted("x")]
    assert len(adopted) == 1
    assert [end for end in ends.values() if end != Adopted("x")] == [Unaccepted(), Unaccepted()]


def test_orphan_of_other_model_or_time_is_no_candidate() -> None:
    intents = [intent("1")]
    others = [orphan("x", model="n"), orphan("y", at=50.0)]
    assert settle(intents, others, ripe=names(intents), alone=True) == {("b", "1"): Unaccepted()}


def test_counting_requires_sole_user_of_key() -> None:
    intents = [intent("1")]
    assert settle(intents, [orphan("x")], ripe=names(intents), alone=True) == {("b", "1"): Adopted("x")}
    held = settle(intents, [orphan("x")], ripe=names(intents), alone=False)
    assert held == {("b", "1"): Held(Doubt.WHETHER, ("x",))}


def test_equal_counts_hold_intents_as_paid() -> None:
    intents = [intent("1", content="a"), intent("2", content="b")]
    ends = settle(intents, [orphan("x"), orphan("y")], ripe=names(intents), alone=True)
    assert ends == {one.name: Held(Doubt.WHOSE, ("x", "y")) for one in intents}


def test_fewer_orphans_than_intents_hold_intents() -> None:
    intents = [intent("1", content="a"), intent("2", content="b")]
    ends = settle(intents, [orphan("x")], ripe=names(intents), alone=True)
    assert ends == {one.name: Held(Doubt.WHETHER, ("x",)) for one in intents}


def test_webhook_decides_and_removes_its_orphan() -> None:
    intents = [intent("1", content="a"), intent("2", content="b")]
    ends = settle(intents, [orphan("x"), orphan("y")], ripe=names(intents), alone=True, witnesses={("b", "2"): "x"})
    assert ends == {("b", "1"): Adopted("y"), ("b", "2"): Adopted("x")}


@st.composite
def histories(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a true history: intents, those accepted, predictions of other users of the key, and the service's echo."""
    count = draw(st.integers(1, 6))
    contents = [draw(st.sampled_from("abc")) for _ in range(count)]
    times = [draw(st.floats(0, 400)) for _ in range(count)]
    accepted = [draw(st.booleans()) for _ in range(count)]
    latency = [draw(st.floats(0, 100)) for _ in range(count)]
    foreign = draw(st.integers(0, 2))
    echoing = draw(st.booleans())
    faithful = draw(st.booleans())
    intents = [intent(f"{n}", content=contents[n], at=times[n]) for n in range(count)]
    orphans = []
    for n in range(count):
        if accepted[n]:
            # An unfaithful echo reaches `settle` as none at all.
            said = contents[n] if echoing and faithful else None
            orphans.append(orphan(f"p{n}", content=said, at=times[n] + latency[n]))
    orphans += [
        orphan(f"foreign{n}", content="z" if echoing and faithful else None, at=draw(st.floats(0, 500)))
        for n in range(foreign)
    ]
    return {
        "intents": intents,
        "orphans": draw(st.permutations(orphans)),
        "accepted": {("b", f"{n}"): accepted[n] for n in range(count)},
        "content": {("b", f"{n}"): contents[n] for n in range(count)},
        "alone": foreign == 0,
        "echo": echoing and faithful,
        "ripe": {("b", f"{n}") for n in range(count) if draw(st.booleans())},
    }


@given(histories())
def test_settlements_agree_with_history(history: dict[str, Any]) -> None:
    """No unaccepted intent was accepted, no two adopt one prediction, and nobody adopts what is not of its content."""
    ends = settle(history["intents"], history["orphans"], ripe=history["ripe"], alone=history["alone"])
    assert ends.keys() == history["accepted"].keys()
    adopted = [end.prediction_id for end in ends.values() if isinstance(end, Adopted)]
    assert len(adopted) == len(set(adopted))
    free = {one.id for one in history["orphans"]} - set(adopted)
    for name, end in ends.items():
        if isinstance(end, Adopted):
            assert end.prediction_id.startswith("p")
            assert history["content"]["b", end.prediction_id[1:]] == history["content"][name]
        elif isinstance(end, Unaccepted):
            assert name in history["ripe"]
            if history["accepted"][name]:
                # Its prediction went to another intent of the same content, which then cannot have been accepted less.
                same = [other for other, content in history["content"].items() if content == history["content"][name]]
                paid = sum(history["accepted"][other] for other in same)
                assert sum(isinstance(ends[other], Adopted) for other in same) == paid
        elif end.doubt is Doubt.WHOSE:
            assert history["accepted"][name]
            assert set(end.candidates) <= free


@given(histories())
def test_echoes_settle_all_ripe_intents(history: dict[str, Any]) -> None:
    ripe = names(history["intents"])
    ends = settle(history["intents"], history["orphans"], ripe=ripe, alone=False)
    if history["echo"]:
        assert not [end for end in ends.values() if isinstance(end, Held)]


@given(histories())
def test_order_of_intents_changes_no_settlement(history: dict[str, Any]) -> None:
    first = settle(history["intents"], history["orphans"], ripe=history["ripe"], alone=history["alone"])
    second = settle(history["intents"][::-1], history["orphans"], ripe=history["ripe"], alone=history["alone"])
    assert sum(isinstance(end, Adopted) for end in first.values()) == sum(
        isinstance(end, Adopted) for end in second.values()
    )


@pytest.mark.parametrize(
    "echo",
    [
        {"guidance_scale": 0.5},
        {"negative_prompt": ""},
        {"negative_prompt": "blur, distort, and low quality"},
        {"duration": "10"},
        {"duration": 10.0},
        {"seed": 7},
        {"cfg_scale": 0.5, "sound": False, "end_image": None},
    ],
)
def test_fingerprint_ignores_defaults_and_number_formats(echo: dict[str, object]) -> None:
    sent: dict[str, object] = {"prompt": "x", "image": "https://a/b.png", "duration": 10}
    assert fingerprint(sent | echo) == fingerprint(sent)


BOTH = {"image": "https://a/b.png", "end_image": "https://a/c.png", "last_image": "https://a/c.png"}


@pytest.mark.parametrize("kept", [("end_image",), ("last_image",), ("end_image", "last_image")])
def test_echo_of_a_frame_with_two_names_may_drop_one(kept: tuple[str, ...]) -> None:
    """2.6 pro is sent both; the service knows one."""
    sent: dict[str, object] = {"prompt": "x", "duration": 5.0, **BOTH}
    echo = {name: value for name, value in sent.items() if name in {"prompt", "duration", "image", *kept}}
    assert fingerprint(sent) in echoed_fingerprints(echo)
    other = echo | dict.fromkeys(kept, "https://a/other.png")
    assert fingerprint(sent) not in echoed_fingerprints(other)
    orphan = Orphan(id="o", model="m", created_at=None, fingerprint=fingerprint(echo), others=echoed_fingerprints(echo))
    one = Intent(name=("b", "a"), model="m", fingerprint=fingerprint(sent), sent_from=0.0)
    two = Intent(name=("b", "z"), model="m", fingerprint=fingerprint(sent | dict.fromkeys(kept, "y")), sent_from=0.0)
    ends = settle([two, one], [orphan], ripe={one.name, two.name}, alone=False)
    assert ends[one.name] == Adopted("o")
    assert not isinstance(ends[two.name], Adopted)


@pytest.mark.promise(1)
def test_fingerprints_of_earlier_versions_match_echoes() -> None:
    """They had two parts, and knew of no further inputs."""
    sent: dict[str, object] = {
        "prompt": "x",
        "duration": 5,
        "image": "https://a/b.png",
        "last_image": "https://a/c.png",
    }
    plain, images, _ = fingerprint(sent).split(":")
    for further in ({}, {"resolution": "4k"}, {"resolution": "720p", "keyframes": ["https://a/d.png"]}):
        assert f"{plain}:{images}" in echoed_fingerprints(sent | further)
        assert without_images(fingerprint(sent | further)) == plain, "further inputs exclude nothing"


@pytest.mark.parametrize(
    "further",
    [
        {"resolution": "4k"},
        {"dynamic_range": "hdr"},
        {"keyframes": ["https://a/d.png"]},
        {"multi_prompt": [{"prompt": "y"}]},
        {"video": "https://a/clip.mp4"},
        {"element_list": [{"element_id": 1}]},
    ],
)
def test_further_inputs_tell_jobs_apart(further: dict[str, object]) -> None:
    sent: dict[str, object] = {"prompt": "x", "image": "https://a/b.png"}
    assert fingerprint(sent | further) != fingerprint(sent)
    assert fingerprint(sent) not in echoed_fingerprints(sent | further)


FURTHER = [
    ({"aspect_ratio": "16:9"}, {"aspect_ratio": "9:16"}),
    ({"multi_prompt": [{"prompt": "y"}]}, {"multi_prompt": [{"prompt": "z"}]}),
    ({"video": "https://a/1.mp4"}, {"video": "https://a/2.mp4"}),
]


def further_intent(name: str, **further: object) -> Intent:
    sent = {"image": "https://a/b.png", "duration": 5} | further
    return Intent(name=("b", name), model="m", fingerprint=fingerprint(sent), sent_from=0.0)


def further_orphan(**further: object) -> Orphan:
    echo = {"image": "https://a/b.png", "duration": 5} | further
    others = echoed_fingerprints(echo)
    return Orphan(id="of-two", model="m", created_at=1.0, fingerprint=fingerprint(echo), others=others)


@pytest.mark.promise(1)
@pytest.mark.parametrize(("one", "two"), FURTHER, ids=["aspect ratio", "shots", "input of another model"])
def test_jobs_that_differ_in_further_inputs_are_not_swapped(one: dict[str, object], two: dict[str, object]) -> None:
    intents = [further_intent("1", **one), further_intent("2", **two)]
    ends = settle(intents, [further_orphan(**two)], ripe=names(intents), alone=True)
    assert ends == {("b", "1"): Unaccepted(), ("b", "2"): Adopted("of-two")}


@pytest.mark.promise(1)
@pytest.mark.parametrize(("one", "two"), FURTHER, ids=["aspect ratio", "shots", "input of another model"])
def test_echo_without_further_inputs_settles_what_is_certain_alone(
    one: dict[str, object], two: dict[str, object]
) -> None:
    """A service drops inputs that it does not know."""
    intents = [further_intent("1", **one), further_intent("2", **two)]
    ends = settle(intents, [further_orphan()], ripe=names(intents), alone=True)
    assert all(isinstance(end, Held) for end in ends.values()), "either may have been accepted"
    ends = settle(intents[:1], [further_orphan()], ripe=(), alone=False)
    assert ends == {("b", "1"): Adopted("of-two")}
    unreliable = attrs.evolve(further_orphan(**one), fingerprint=None)
    assert isinstance(settle(intents[:1], [unreliable], ripe=(), alone=False)["b", "1"], Held)


@pytest.mark.parametrize(
    "filled", [{"resolution": "720p"}, {"aspect_ratio": "16:9"}, {"aspect_ratio": "1:1", "shot_type": "customize"}]
)
def test_defaults_that_a_service_fills_in_make_no_other_job(filled: dict[str, object]) -> None:
    ends = settle([further_intent("1")], [further_orphan(**filled)], ripe=(), alone=False)
    assert ends == {("b", "1"): Adopted("of-two")}


@pytest.mark.parametrize(
    "other", [{"prompt": "y"}, {"duration": 5}, {"guidance_scale": 0.6}, {"end_image": "https://a/c.png"}]
)
def test_fingerprint_depends_on_inputs(other: dict[str, object]) -> None:
    sent: dict[str, object] = {"prompt": "x", "image": "https://a/b.png", "duration": 10}
    assert fingerprint(sent | other) != fingerprint(sent)


def test_intents_compare_by_value() -> None:
    assert attrs.evolve(intent("1")) == intent("1")


@pytest.mark.parametrize("field", ["video", "videos", "keyframes"])
def test_own_copies_of_files_leave_a_doubt_and_no_second_payment(field: str) -> None:
    """A service that echoes the URLs of its own copies of files: the job may be that one, whatever the URLs say."""

    def sent(url: str) -> str:
        return fingerprint({"prompt": "x", "duration": 5, field: url if field == "video" else [url]})

    mine, echo = intent("1", content=sent("https://cdn.example/1.mp4")), sent("https://copies.example/7.mp4")
    copy = orphan("p", content=echo)
    assert settle([mine], [copy], ripe={mine.name}, alone=False) == {mine.name: Held(Doubt.WHETHER, ("p",))}
    assert settle([mine], [copy], ripe={mine.name}, alone=True) == {mine.name: Adopted("p")}
    other = intent("2", content=sent("https://cdn.example/2.mp4"))
    faithful = orphan("q", content=sent("https://cdn.example/2.mp4"))
    ends = settle([mine, other], [copy, faithful], ripe={mine.name, other.name}, alone=True)
    assert ends == {mine.name: Adopted("p"), other.name: Adopted("q")}
