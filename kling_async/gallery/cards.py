"""What the page shows of each job, learned from events or from the rows of a ledger."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kling_async import events
from kling_async._core.catalogue import find_model
from kling_async._core.images import Image
from kling_async._core.prediction import Prediction, Status
from kling_async.errors import (
    KlingError,
    PredictionTimeoutError,
    SkippedError,
    Spent,
    SubmissionUncertainError,
)
from kling_async.ledger import State

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kling_async._core.job import Job
    from kling_async._core.prediction import Outcome, SavedFile
    from kling_async.events import Event, Observer
    from kling_async.ledger import Row

LIMIT = 20_000
"""Cards that a page holds; beyond them the oldest that have ended leave."""


class Stage(Enum):
    """Where a job is, in the page's words."""

    WAITING = "waiting"
    GENERATING = "generating"
    DOWNLOADING = "downloading"
    DONE = "done"
    FAILED = "failed"
    UNCERTAIN = "uncertain"
    SKIPPED = "skipped"

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected."""
        return self not in {Stage.WAITING, Stage.GENERATING, Stage.DOWNLOADING}


@attrs.frozen
class Trouble:
    """Why there is no video, and what to do about it.

    Attributes:
        kind: Name of the error's class.
        message: What happened.
        spent: Whether money was spent.
        advice: What to do next; may be empty.
    """

    kind: str
    message: str
    spent: str
    advice: str

    @classmethod
    def of(cls, error: KlingError) -> Trouble:
        """What the page says of an error."""
        return cls(type(error).__name__, error.message, error.spent.value, error.advice)


@attrs.define
class Picture:
    """An input image as a page can show it.

    Attributes:
        given: The image, until files were found or made for it; then None.
        said: What it is called: a file's name, or a URL without its query.
        path: The file.
        poster: A small copy of it.
    """

    given: Image | None = None
    said: str = ""
    path: Path | None = None
    poster: Path | None = None


@attrs.define(eq=False)
class Card:
    """What the page shows of one job. Times are seconds since the epoch, by the session's clock.

    Attributes:
        number: Its place among the cards, from 0.
        key: The job's name.
        batch: The batch's name.
        stage: Where it is.
        version: Grows with every change of any card.
        model: The model's name.
        provider: Who makes the video.
        prompt: The prompt, or the prompts of the shots.
        seconds: Length of the video that was asked for.
        settings: What else was asked for, by what it is called.
        image: The first frame.
        end_image: The last frame.
        prediction_id: The paid id.
        attempts: Paid requests that were sent.
        cost: USD by the price list.
        begun: When the job was taken up.
        accepted: When the service accepted it.
        ended: When its prediction was seen to have ended.
        saved: When the video was on the disk.
        video: The file.
        elsewhere: Where the video is, when that is no file of this computer.
        bytes: Its length.
        note: What it waits for, when that is not just its turn.
        trouble: Why there is no video.
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

    def describe(self, job: Job) -> None:
        """Take over what was asked for."""
        self.model = job.row.name
        self.prompt = job.prompt or "\n".join(shot.prompt for shot in job.multi_prompt)
        self.seconds = job.duration or None
        # What was given as bytes is in no ledger.
        self.image = Picture(job.image) if job.image else None
        self.end_image = Picture(job.end_image) if job.end_image else None
        settings = {
            "Negative prompt": job.negative_prompt,
            "Guidance": job.guidance_scale,
            "Sound": None if job.sound is None else "yes" if job.sound else "no",
            "Shots": len(job.multi_prompt) or None,
        }
        self.settings = {name: str(value) for name, value in settings.items() if value is not None}

    @property
    def files(self) -> Mapping[str, Path | None]:
        """Its files, by what they are."""
        files = {"video": self.video}
        for name, picture in (("image", self.image), ("end", self.end_image)):
            if picture is not None:
                files |= {name: picture.path, f"{name}-small": picture.poster}
        return files

    @property
    def pictures(self) -> Iterator[Picture]:
        """The input images."""
        for picture in (self.image, self.end_image):
            if picture is not None:
                yield picture


class Deck:
    """The cards of a run, in the order in which its jobs were taken up.

    Args:
        title: What the page is called.
        total: How many jobs there will be, if that is known.
        limit: Cards that are held.

    Attributes:
        dropped: Cards that had to leave for the limit.
        now: The time of the last event.
    """

    def __init__(self, title: str, *, total: int | None = None, limit: int = LIMIT) -> None:
        self.title = title
        self.total = total
        self.dropped = 0
        self.now = 0.0
        self._limit = limit
        self._numbered = 0
        self._version = 0
        # The last changed last: what is new since a version is found from the end.
        self._cards: dict[tuple[str, str, str], Card] = {}
        self._by_number: dict[int, Card] = {}

    @property
    def cards(self) -> list[Card]:
        """The cards, in their order."""
        return sorted(self._cards.values(), key=lambda card: card.number)

    @property
    def version(self) -> int:
        """That of the last change."""
        return self._version

    def numbered(self, number: int) -> Card | None:
        """The card of that number, unless it has left."""
        return self._by_number.get(number)

    def changed_since(self, version: int) -> list[Card]:
        """Cards that changed after that version, the longest unchanged first."""
        found: list[Card] = []
        for card in reversed(self._cards.values()):
            if card.version <= version:
                break
            found.append(card)
        return found[::-1]

    def observer(self, provider: str) -> Observer:
        """What to give to a session of that provider as an observer."""

        def observe(event: Event) -> None:
            self.take(event, provider)

        return observe

    def take(self, event: Event, provider: str) -> Card:
        """Learn from an event.

        Returns:
            The card that it changed.
        """
        self.now = max(self.now, event.at)
        card = self.card(event.batch, event.key, provider)
        match event:
            case events.Admitted(job=job):
                card.in_batch = True
                card.begun = event.at
                card.describe(job)
            case events.Submitting(job=job, attempt=attempt):
                card.attempts = attempt
                self._begin(card, job, event.at)
            case events.Accepted(job=job, prediction=prediction):
                self._begin(card, job, event.at)
                card.stage, card.accepted = Stage.GENERATING, event.at
                card.prediction_id, card.cost = prediction.id, job.price(provider).usd
                card.note, card.trouble = "", None
            case events.Refused(error=error, again=again) if again is not None:
                card.note = f"Not accepted yet, asked again in {again:.0f} s: {error.message}"
            case events.Refused(error=error):
                card.stage, card.trouble, card.note = Stage.FAILED, Trouble.of(error), ""
            case events.Uncertain(error=error):
                card.stage, card.trouble, card.note = Stage.UNCERTAIN, Trouble.of(error), ""
            case events.Changed(prediction=prediction):
                _progress(card, prediction, event.at)
            case events.Saved(file=file):
                card.stage, card.saved = Stage.DONE, event.at
                _keep(card, file)
            case events.Finished(outcome=outcome):
                _finish(card, outcome, event.at)
        self.touch(card)
        return card

    def card(self, batch: str, key: str, provider: str = "") -> Card:
        """The card of a job, made when it is new."""
        name = (provider, batch, key)
        card = self._cards.get(name)
        if card is None:
            self._make_room()
            card = self._cards[name] = Card(self._numbered, key, batch, provider=provider)
            self._by_number[card.number] = card
            self._numbered += 1
        return card

    def touch(self, card: Card) -> None:
        """Note that a card has changed."""
        name = (card.provider, card.batch, card.key)
        if self._cards.pop(name, None) is None:
            return  # it had to leave meanwhile
        self._version += 1
        card.version = self._version
        self._cards[name] = card

    def _begin(self, card: Card, job: Job, at: float) -> None:
        # What is generated without a batch is not admitted by one.
        if card.begun is None:
            card.begun = at
            card.describe(job)

    def _make_room(self) -> None:
        if len(self._cards) < self._limit:
            return
        # By tenths, so that not every new card looks through all the others.
        leaving = [name for name, card in self._cards.items() if card.stage.ended][: max(1, self._limit // 10)]
        for name in leaving:
            del self._by_number[self._cards.pop(name).number]
        self.dropped += len(leaving)


def _progress(card: Card, prediction: Prediction, at: float) -> None:
    if not prediction.status.ended:
        return
    card.ended = at
    if prediction.status is Status.COMPLETED:
        card.stage = Stage.DOWNLOADING if card.in_batch else Stage.DONE
        return
    card.stage = Stage.FAILED
    error = prediction.failure()
    card.trouble = None if error is None else Trouble.of(error)


def _keep(card: Card, file: SavedFile) -> None:
    if isinstance(file.location, Path):
        card.video = file.location.absolute()
    else:
        card.elsewhere = file.location
    card.bytes = file.bytes


def _finish(card: Card, outcome: Outcome, at: float) -> None:
    error = outcome.error
    card.note = ""
    card.trouble = None if error is None else Trouble.of(error)
    card.cost = outcome.cost if outcome.cost is not None else card.cost
    if outcome.prediction is not None:
        card.prediction_id = outcome.prediction.id
    if outcome.saved is not None:
        _keep(card, outcome.saved)
    match error:
        case None:
            card.stage = Stage.DONE
        case SkippedError():
            card.stage = Stage.SKIPPED
        case SubmissionUncertainError():
            card.stage = Stage.UNCERTAIN
        case PredictionTimeoutError():
            card.stage = Stage.GENERATING  # our waiting has ended, the prediction has not
        case _:
            card.stage = Stage.FAILED
            card.ended = card.ended or at


_STAGES = {
    State.PENDING: Stage.WAITING,
    State.CLAIMED: Stage.WAITING,
    State.INTENT: Stage.UNCERTAIN,
    State.SUBMITTED: Stage.GENERATING,
    State.COMPLETED: Stage.DONE,
    State.FAILED: Stage.FAILED,
    State.REJECTED: Stage.FAILED,
    State.ABANDONED: Stage.FAILED,
    State.UNCERTAIN: Stage.UNCERTAIN,
    State.SKIPPED: Stage.SKIPPED,
    State.EXPIRED: Stage.FAILED,
    State.DOWNLOADED: Stage.DONE,
}


def fill(card: Card, row: Row, completed: float | None = None) -> None:
    """Take over what a ledger knows of a job's way.

    Args:
        card: The job's card.
        row: Its row.
        completed: When its prediction was seen to have completed.
    """
    card.stage = _STAGES[row.state]
    model = find_model(row.model)
    card.model = row.model if model is None else model.name
    card.prediction_id, card.attempts, card.cost = row.prediction_id, row.attempt, row.spent
    card.begun, card.accepted = row.intent_at, row.submitted_at
    if row.state is State.DOWNLOADED:
        card.ended, card.saved, card.bytes = completed, row.updated_at, row.bytes
    elif card.stage.ended:
        card.ended = row.updated_at
    card.trouble = _trouble(row)


def _trouble(row: Row) -> Trouble | None:
    match row.state:
        case State.FAILED:
            ended = Prediction(
                id=row.prediction_id or "", status=Status.FAILED, raw_status="failed", error=row.error, code=row.code
            )
            error = ended.failure()
        case State.UNCERTAIN:
            error = SubmissionUncertainError(row.error or "whether it was accepted is not known")
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
