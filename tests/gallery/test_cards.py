"""Cards of a run, from events of a session or rows of a ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from kling_async import LastFrame, Status, events
from kling_async.emulator.tiny import TINY_MP4
from kling_async.errors import (
    AuthenticationError,
    ConnectFailedError,
    KlingError,
    PredictionTimeoutError,
    RateLimitedError,
    RequestRejectedError,
    SkippedError,
    SubmissionUncertainError,
)
from kling_async.gallery.cards import Card, Deck, Picture, Stage, fill
from kling_async.gallery.films import Film
from kling_async.ledger import Row, State
from support.gallery import START, Script


@pytest.fixture
def deck() -> Deck:
    return Deck("spring", total=10)


@pytest.fixture
def script(deck: Deck) -> Script:
    return Script(deck.observer("wavespeed"))


def test_card_follows_job_through_stages(deck: Deck, script: Script, tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(TINY_MP4)
    script.admitted("a", prompt="She smiles", duration=10, negative_prompt="blur", model="kling-v2.1-pro")
    (card,) = deck.cards
    assert (card.stage, card.model, card.prompt, card.seconds) == (Stage.WAITING, "kling-v2.1-pro", "She smiles", 10)
    assert card.settings == {"Negative prompt": "blur"}
    script.at += 3
    script.accepted("a")
    assert (card.stage, float(card.cost or 0), card.prediction_id) == (Stage.RUNNING, 0.9, "id-of-a")
    script.at += 90
    script.ended("a")
    assert card.stage is Stage.UNSAVED
    script.at += 1
    script.saved("a", video)
    assert (card.stage, card.video, card.bytes) == (Stage.SAVED, video, len(TINY_MP4))
    assert [card.begun, card.accepted, card.ended, card.saved] == [START, START + 3, START + 93, START + 94]


@pytest.mark.parametrize(
    ("error", "stage"),
    [
        (SkippedError("the batch was drained"), Stage.WAITING),
        (AuthenticationError("wrong key", status=401), Stage.SKIPPED),
        (ConnectFailedError("no connection"), Stage.WAITING),
        (SubmissionUncertainError("the reply was lost"), Stage.UNCERTAIN),
        (PredictionTimeoutError("it still runs"), Stage.RUNNING),
        (RequestRejectedError("too long", status=400), Stage.FAILED),
    ],
)
def test_error_sets_stage_and_trouble(deck: Deck, script: Script, error: KlingError, stage: Stage) -> None:
    script.admitted("a")
    script.finished("a", error)
    (card,) = deck.cards
    assert card.stage is stage
    assert card.trouble is not None
    assert (card.trouble.message, card.trouble.spent, card.trouble.advice) == (
        error.message,
        error.spent.value,
        error.advice,
    )


def test_acceptance_clears_trouble_of_uncertain_submission(deck: Deck, script: Script) -> None:
    script.admitted("a")
    job = script.jobs["a"]

    def now() -> tuple[Stage, str, bool]:
        (card,) = deck.cards
        return card.stage, card.note, card.trouble is not None

    refused = RateLimitedError("too many", status=429)
    script.observer(events.Refused(at=script.at, key="a", batch="spring", job=job, error=refused, again=4.0))
    assert now() == (Stage.WAITING, "Not accepted yet, next attempt in 4 s: too many", False)
    lost = SubmissionUncertainError("the reply was lost")
    script.observer(events.Uncertain(at=script.at, key="a", batch="spring", job=job, error=lost))
    assert now() == (Stage.UNCERTAIN, "", True)
    script.accepted("a")
    assert now() == (Stage.RUNNING, "", False)


def test_job_outside_batch_is_done_when_completed(deck: Deck, script: Script) -> None:
    script.batch = ""
    script.admitted("in a batch without a name")
    script.accepted("in a batch without a name")
    script.jobs["alone"] = script.jobs["in a batch without a name"]
    script.accepted("alone")
    for key in script.jobs:
        script.ended(key)
    assert [(card.stage, card.finished) for card in deck.cards] == [(Stage.UNSAVED, False), (Stage.UNSAVED, True)]
    assert deck.cards[1].prompt == "Waves"


def test_same_key_at_two_providers_is_two_cards(deck: Deck, script: Script) -> None:
    other = Script(deck.observer("gptproto"))
    script.admitted("a")
    other.admitted("a")
    other.accepted("a")
    assert [(card.provider, card.stage) for card in deck.cards] == [
        ("wavespeed", Stage.WAITING),
        ("gptproto", Stage.RUNNING),
    ]
    assert deck.cards[1].cost is None, "the provider publishes no prices"


def test_changed_since_returns_later_changes(deck: Deck, script: Script) -> None:
    for key in "abc":
        script.admitted(key)
    seen = deck.version
    assert deck.changed_since(seen) == []
    script.accepted("a")
    assert [card.key for card in deck.changed_since(seen)] == ["a"]
    script.accepted("c")
    script.accepted("a")
    changed = deck.changed_since(seen)
    assert [card.key for card in changed] == ["c", "a"]
    assert changed[-1].version == deck.version
    assert [card.key for card in deck.cards] == ["a", "b", "c"], "the order is unchanged"


def test_limit_drops_oldest_ended_cards(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(TINY_MP4)
    deck = Deck("spring", limit=20)
    script = Script(deck.observer("wavespeed"))
    script.admitted("runs")
    for number in range(100):
        script.done(str(number), video)
    assert len(deck.cards) <= 20
    assert deck.dropped + len(deck.cards) == 101
    assert [deck.cards[0].key, deck.cards[-1].key] == ["runs", "99"]
    assert [deck.numbered(0), deck.numbered(1), deck.numbered(100)] == [deck.cards[0], None, deck.cards[-1]]
    gone = deck.dropped
    script.ended("0", Status.FAILED)
    assert deck.dropped >= gone


def test_films_of_cards_follow_the_jobs(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(TINY_MP4)
    deck = Deck("spring", limit=3)
    script, other = Script(deck.observer("wavespeed")), Script(deck.observer("wavespeed"), batch="summer")
    script.done("a", video)
    assert deck.films == []
    script.admitted("b", image=LastFrame("a"))
    assert deck.films == [Film("a", (0, 1))]
    other.admitted("c", image=LastFrame("a"), labels={"film": "bay"})
    assert deck.films == [Film("a", (0, 1)), Film("bay", (2,))]
    assert deck.films is deck.films
    script.admitted("d")
    assert deck.films == [Film("bay", (2,))], "the card of a was dropped"


def test_what_was_made_before_other_content_is_in_no_film_of_the_page(deck: Deck, script: Script) -> None:
    for key in ("one", "one~1", "two", "two~2"):
        script.admitted(key, labels={"film": "bay"})
    assert deck.films == [Film("bay", (0, 2, 3))]


def row(state: State, **more: object) -> Row:
    return Row(batch="b", key="k", digest="d", model="kwaivgi/kling-v2.1-i2v-pro", state=state, updated_at=9.0, **more)  # type: ignore[arg-type]  # the columns of the test


@pytest.mark.parametrize(
    ("source", "stage", "text"),
    [
        (row(State.DOWNLOADED, prediction_id="p", bytes=5), Stage.SAVED, None),
        (row(State.PENDING), Stage.WAITING, None),
        (row(State.COMPLETED, prediction_id="p"), Stage.UNSAVED, None),
        (row(State.SUBMITTED, prediction_id="p"), Stage.RUNNING, None),
        (row(State.INTENT), Stage.UNCERTAIN, "check the account's prediction history"),
        (row(State.FAILED, prediction_id="p", code=1200, error="nsfw"), Stage.FAILED, "change the prompt or the image"),
        (row(State.REJECTED, error="no such field"), Stage.FAILED, "no such field"),
        (row(State.EXPIRED), Stage.FAILED, "7 days"),
        (row(State.ABANDONED), Stage.FAILED, "given up by hand"),
        (row(State.SKIPPED), Stage.SKIPPED, "run the batch again"),
    ],
)
def test_fill_reads_ledger_row(deck: Deck, source: Row, stage: Stage, text: str | None) -> None:
    card = deck.card("b", "k")
    fill(card, source)
    assert (card.stage, card.model) == (stage, "kling-v2.1-pro")
    assert card.label == (State.UNCERTAIN if source.state is State.INTENT else source.state).label
    assert (card.trouble is None) == (text is None)
    if card.trouble is not None and text is not None:
        assert text in f"{card.trouble.message} {card.trouble.advice}"


@pytest.mark.parametrize(
    ("key", "label", "name"),
    [
        ("02981234ae7c0eef", "SKU-1000.jpg", "SKU-1000"),
        ("02981234ae7c0eef-2", "https://example.com/shots/SKU-1000.jpg", "SKU-1000"),
        ("02981234ae7c0eef", "", "02981234ae7c0eef"),
        ("A-1000", "SKU-1000.jpg", "A-1000"),
    ],
)
def test_card_of_a_job_without_a_key_has_the_name_of_its_picture(key: str, label: str, name: str) -> None:
    assert Card(0, key, image=Picture(label=label)).name == name
