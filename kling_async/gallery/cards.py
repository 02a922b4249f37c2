"""Content of the page: one card per job, updated by session events or filled from rows of a ledger."""

from __future__ import annotations

import json
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kling_async import events
from kling_async._core.catalogue import find_model
from kling_async._core.endings import state_after, state_of
from kling_async._core.images import Image
from kling_async._core.marks import Mark
from kling_async._core.picture_names import shown_name
from kling_async._core.prediction import Prediction, Status
from kling_async._core.strips import Clip
from kling_async._core.video_frames import VideoFrame
from kling_async.errors import (
    KlingError,
    SkippedError,
    Spent,
    SubmissionUncertainError,
)
from kling_async.ledger import State

from .films import Film, films_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kling_async._core.job import Job
    from kling_async._core.marks import Marked
    from kling_async._core.prediction import Outcome, SavedFile
    from kling_async.events import Event, Observer
    from kling_async.ledger import Row

MAX_CARDS = 20_000
"""Cards of a page; beyond them the oldest ended ones are dropped."""
_MAX_LABEL = 500
"""Characters of a label's value on the page; a column may have whole texts, and the results have all of them."""


class Stage(Enum):
    """Stage of a job on the page: states with the same color and filter."""

    WAITING = "waiting"
    RUNNING = "running"
    UNSAVED = "unsaved"
    SAVED = "saved"
    FAILED = "failed"
    UNCERTAIN = "uncertain"
    SKIPPED = "skipped"


@attrs.frozen
class Trouble:
    """Error of a job.

    Attributes:
        kind: Name of the error's class.
        message: Message of the error.
        spent: Sentence on the money.
        advice: Next step; may be empty.
    """

    kind: str
    message: str
    spent: str
    advice: str

    @classmethod
    def of(cls, error: KlingError) -> Trouble:
        """Return the page's form of an error."""
        return cls(type(error).__name__, error.message, error.spent.value, error.advice)


@attrs.define
class Picture:
    """An input image.

    Attributes:
        source: The image of the job; None once its files were made.
        label: Name of the file, or URL without its query; empty for bytes.
        path: The image file; None if there is none on this computer.
        poster: Small copy of the file; None if there is none.
    """

    source: Image | None = None
    label: str = ""
    path: Path | None = None
    poster: Path | None = None


@attrs.define(eq=False)
class Card:
    """A job on the page. Times are in seconds since the epoch, on the session's clock; None if not reached.

    Attributes:
        number: Position among the cards, from 0.
        key: Key of the job.
        batch: Name of the batch.
        stage: Stage of the job.
        version: Version of the deck at the card's last change.
        model: Name of the model.
        provider: Name of the provider.
        prompt: The prompt, or the prompts of the shots.
        seconds: Requested seconds of video; None if unknown.
        settings: Further fields of the job, by label.
        labels: Labels of the job as text, without empty ones.
        image: First frame; None if there is none, or it is unknown.
        end_image: Last frame; None if there is none, or it is unknown.
        prediction_id: Id of the paid prediction; None before acceptance.
        attempts: Number of paid requests.
        cost: USD at list price; None if unknown.
        begun: Time of admission.
        accepted: Time of acceptance.
        ended: Time at which the prediction was seen to have ended.
        saved: Time at which the video was saved.
        video: File of the video.
        elsewhere: Location of the video if it is not a file on this computer.
        bytes: Size of the video.
        note: Reason for the wait, other than the queue; empty if there is none.
        trouble: Error of the job; None if there is none.
        in_batch: The job belongs to a batch, which may save its video.
        label: Label of the state.
        finished: The session does nothing more for the job.
        mark: Mark of its video; None if it has none.
        clip: Its place in a film; None until the job is known.
    """

    number: int
    key: str
    batch: str = ""
    stage: Stage = Stage.WAITING
    version: int = 0
    model: str = ""
    provider: str = ""
    prompt: str = ""
    seconds: int | None = None
    settings: dict[str, str] = attrs.field(factory=dict)
    labels: dict[str, str] = attrs.field(factory=dict)
    image: Picture | None = None
    end_image: Picture | None = None
    prediction_id: str | None = None
    attempts: int = 0
    cost: Decimal | None = None
    begun: float | None = None
    accepted: float | None = None
    ended: float | None = None
    saved: float | None = None
    video: Path | None = None
    elsewhere: str | None = None
    bytes: int | None = None
    note: str = ""
    trouble: Trouble | None = None
    in_batch: bool = False
    label: str = Stage.WAITING.value
    finished: bool = False
    mark: Mark | None = None
    clip: Clip | None = None

    @property
    def name(self) -> str:
        """Name on the page: the key, or the name of the picture if the job was given none."""
        return self.key if self.image is None else shown_name(self.key, self.image.label)

    def move(self, stage: Stage, state: State | None = None, *, finished: bool | None = None) -> None:
        """Set the stage and the label of the state.

        Args:
            stage: The stage.
            state: The state; None if its label is that of the stage.
            finished: The session does nothing more for the job; None follows from the stage.
        """
        self.stage = stage
        self.label = stage.value if state is None else state.label
        self.finished = stage in _FINISHED if finished is None else finished

    def describe(self, job: Job) -> None:
        """Set the fields of the job."""
        self.model = job.row.name
        self.clip = Clip.of(self.key, job)
        self.prompt = job.prompt or "\n".join(shot.prompt for shot in job.multi_prompt)
        self.seconds = job.duration or None
        # A job read from a ledger has no image if it was given as bytes.
        self.image = Picture(job.image) if job.image and not isinstance(job.image, VideoFrame) else None
        end = job.end_image
        self.end_image = Picture(end) if end and not isinstance(end, VideoFrame) else None
        settings = {
            "Negative prompt": job.negative_prompt,
            "Guidance": job.guidance_scale,
            "Sound": None if job.sound is None else "yes" if job.sound else "no",
            "Shots": len(job.multi_prompt) or None,
        }
        self.settings = {name: str(value) for name, value in settings.items() if value is not None}
        self.labels = {name: text for name, value in job.labels.items() if (text := _label(value))}

    @property
    def files(self) -> Mapping[str, Path | None]:
        """Files of the card, by the name that their URL ends in."""
        files = {"video": self.video}
        for name, picture in (("image", self.image), ("end", self.end_image)):
            if picture is not None:
                files |= {name: picture.path, f"{name}-small": picture.poster}
        return files

    @property
    def pictures(self) -> Iterator[Picture]:
        """Input images."""
        for picture in (self.image, self.end_image):
            if picture is not None:
                yield picture


def _label(value: object) -> str:
    """Return the value of a label as text, in full precision; empty if there is none."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_LABEL else f"{text[:_MAX_LABEL]}\N{HORIZONTAL ELLIPSIS}"


class Deck:
    """Cards of a run, in the order of admission.

    Args:
        title: Title of the page.
        total: Number of jobs; None if unknown.
        limit: Maximum number of cards.
        past: The cards are of a run that has ended, and change only by marks.

    Attributes:
        dropped: Number of cards dropped because of the limit.
        now: Time of the latest event, in seconds since the epoch.
        marks: Marks of videos, by prediction.
    """

    def __init__(self, title: str, *, total: int | None = None, limit: int = MAX_CARDS, past: bool = False) -> None:
        self.title = title
        self.total = total
        self.past = past
        self.dropped = 0
        self.now = 0.0
        self.marks: Mapping[str, Marked] = {}
        self._limit = limit
        self._numbered = 0
        self._version = 0
        # Sorted by their last change, so that the changes since a version are found from the end.
        self._cards: dict[tuple[str, str, str], Card] = {}
        self._by_number: dict[int, Card] = {}
        self._films: list[Film] | None = None
        self._has_films = False

    @property
    def cards(self) -> list[Card]:
        """Cards, sorted by number."""
        return sorted(self._cards.values(), key=lambda card: card.number)

    @property
    def films(self) -> list[Film]:
        """Films of the cards, those of each batch in the order of their first clips."""
        if self._films is None:
            self._films = films_of(self.cards) if self._has_films else []
        return self._films

    @property
    def version(self) -> int:
        """Version of the last change."""
        return self._version

    def numbered(self, number: int) -> Card | None:
        """Return the card of a number; None if it was dropped."""
        return self._by_number.get(number)

    def changed_since(self, version: int) -> list[Card]:
        """Return the cards changed after a version, oldest change first."""
        found: list[Card] = []
        for card in reversed(self._cards.values()):
            if card.version <= version:
                break
            found.append(card)
        return found[::-1]

    def observer(self, provider: str) -> Observer:
        """Return an observer for a session of a provider."""

        def observe(event: Event) -> None:
            self.update(event, provider)

        return observe

    def update(self, event: Event, provider: str) -> Card:
        """Apply an event and return the card that it changed."""
        self.now = max(self.now, event.at)
        card = self.card(event.batch, event.key, provider)
        match event:
            case events.Admitted(job=job):
                card.in_batch = True
                card.begun = event.at
                self.describe(card, job)
            case events.Submitting(job=job, attempt=attempt):
                card.attempts = attempt
                self._begin(card, job, event.at)
            case events.Accepted(job=job, prediction=prediction):
                self._begin(card, job, event.at)
                card.move(Stage.RUNNING)
                card.accepted = event.at
                card.prediction_id, card.cost = prediction.id, job.price(provider).usd
                card.note, card.trouble = "", None
            case events.Refused(error=error, again=again) if again is not None:
                card.note = f"Not accepted yet, next attempt in {again:.0f} s: {error.message}"
            case events.Refused(error=error):
                _move_to(card, state_after(error))
                card.trouble, card.note = Trouble.of(error), ""
            case events.Uncertain(error=error):
                card.move(Stage.UNCERTAIN)
                card.trouble, card.note = Trouble.of(error), ""
            case events.Changed(prediction=prediction):
                _apply_prediction(card, prediction, event.at)
            case events.Saved(file=file):
                card.move(Stage.SAVED)
                card.saved = event.at
                _set_video(card, file)
            case events.Finished(outcome=outcome):
                _apply_outcome(card, outcome, event.at)
        marked = self.marks.get(card.prediction_id or "")
        card.mark = None if marked is None else marked.mark
        self.touch(card)
        return card

    def card(self, batch: str, key: str, provider: str = "") -> Card:
        """Return the card of a job; create it if it is new."""
        name = (provider, batch, key)
        card = self._cards.get(name)
        if card is None:
            self._drop_oldest()
            card = self._cards[name] = Card(self._numbered, key, batch, provider=provider)
            self._by_number[card.number] = card
            self._numbered += 1
        return card

    def touch(self, card: Card) -> None:
        """Give a changed card a new version."""
        name = (card.provider, card.batch, card.key)
        if self._cards.pop(name, None) is None:
            return  # it was dropped meanwhile
        self._version += 1
        card.version = self._version
        self._cards[name] = card

    def describe(self, card: Card, job: Job) -> None:
        """Set the fields of a card's job."""
        card.describe(job)
        self._films = None
        clip = card.clip
        self._has_films = self._has_films or (clip is not None and bool(clip.film or clip.follows))

    def _begin(self, card: Card, job: Job, at: float) -> None:
        # A job outside of batches has no `Admitted` event.
        if card.begun is None:
            card.begun = at
            self.describe(card, job)

    def _drop_oldest(self) -> None:
        if len(self._cards) < self._limit:
            return
        # A tenth at once, so that not every new card scans all the others.
        names = [name for name, card in self._cards.items() if card.finished][: max(1, self._limit // 10)]
        for name in names:
            del self._by_number[self._cards.pop(name).number]
        self._films = None
        self.dropped += len(names)


def _apply_prediction(card: Card, prediction: Prediction, at: float) -> None:
    if not prediction.status.ended:
        return
    card.ended = at
    if prediction.status is Status.COMPLETED:
        # A job outside of batches has no `Finished` event.
        card.move(Stage.UNSAVED, finished=not card.in_batch)
        return
    card.move(Stage.FAILED)
    error = prediction.failure()
    card.trouble = None if error is None else Trouble.of(error)


def _set_video(card: Card, file: SavedFile) -> None:
    if isinstance(file.location, Path):
        card.video = file.location.absolute()
    else:
        card.elsewhere = file.location
    card.bytes = file.bytes


def _apply_outcome(card: Card, outcome: Outcome, at: float) -> None:
    error = outcome.error
    card.note = ""
    card.trouble = None if error is None else Trouble.of(error)
    card.cost = outcome.cost if outcome.cost is not None else card.cost
    if outcome.prediction is not None:
        card.prediction_id = outcome.prediction.id
    if outcome.saved is not None:
        _set_video(card, outcome.saved)
    state = state_of(outcome)
    _move_to(card, state)
    if state.unsuccessful:
        card.ended = card.ended or at


def _move_to(card: Card, state: State) -> None:
    """Set the stage and the label of a job that the session has finished with; what still runs goes on."""
    card.move(_STAGES[state], state, finished=None if state is State.SUBMITTED else True)


_FINISHED = frozenset({Stage.SAVED, Stage.FAILED, Stage.UNCERTAIN, Stage.SKIPPED})
_STAGES = {
    State.PENDING: Stage.WAITING,
    State.CLAIMED: Stage.WAITING,
    State.INTENT: Stage.UNCERTAIN,
    State.SUBMITTED: Stage.RUNNING,
    State.COMPLETED: Stage.UNSAVED,
    State.FAILED: Stage.FAILED,
    State.REJECTED: Stage.FAILED,
    State.ABANDONED: Stage.FAILED,
    State.UNCERTAIN: Stage.UNCERTAIN,
    State.SKIPPED: Stage.SKIPPED,
    State.EXPIRED: Stage.FAILED,
    State.DOWNLOADED: Stage.SAVED,
    State.REUSED: Stage.SAVED,
}


def fill(card: Card, row: Row, completed: float | None = None) -> None:
    """Fill a card from a row of a ledger.

    Args:
        card: Card of the job.
        row: Row of the job.
        completed: Time at which its prediction completed; None if unknown.
    """
    # Nobody sends an intent of a ledger that is shown afterwards.
    state = State.UNCERTAIN if row.state is State.INTENT else row.state
    card.move(_STAGES[state], state, finished=True if state is State.COMPLETED else None)
    model = find_model(row.model)
    card.model = row.model if model is None else model.name
    card.prediction_id, card.attempts, card.cost = row.reused or row.prediction_id, row.attempt, row.spent
    card.begun, card.accepted = row.intent_at, row.submitted_at
    if row.state is State.DOWNLOADED:
        card.ended, card.saved, card.bytes = completed, row.updated_at, row.bytes
    elif card.finished:
        card.ended = row.updated_at if completed is None else completed
    card.trouble = _trouble(row)


def _trouble(row: Row) -> Trouble | None:
    match row.state:
        case State.FAILED:
            ended = Prediction(
                id=row.prediction_id or "", status=Status.FAILED, raw_status="failed", error=row.error, code=row.code
            )
            error = ended.failure()
        case State.UNCERTAIN:
            error = SubmissionUncertainError(row.error or "it is unknown whether the job was accepted")
        case State.INTENT:
            error = SubmissionUncertainError("the run ended while the job was being sent")
        case State.EXPIRED:
            error = KlingError(
                row.error or "the video was gone before it was fetched",
                spent=Spent.YES,
                advice="videos are kept for 7 days; only a new, paid job brings it again",
            )
        case State.REJECTED:
            error = KlingError(row.error or "the service did not accept the job")
        case State.ABANDONED:
            error = KlingError(row.error or "given up by hand while it was in doubt", spent=Spent.UNKNOWN)
        case State.SKIPPED:
            error = SkippedError(row.error or "never submitted, since the batch had stopped")
        case _:
            return None
    return None if error is None else Trouble.of(error)
