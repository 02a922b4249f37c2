"""Which orphan belongs to which intent, and when that cannot be known.

After a dropped reply an *intent* has no id, and the account's history may hold an *orphan*: a prediction that no ledger
knows. `settle` joins them by evidence, in this order, and never by time order (with realistic latencies that would be
wrong for half of them):

1. A **witness** names the id of an intent: a webhook that bore its token.
2. The **input** that the service echoes is the intent's own. Intents of one content are interchangeable: it does not
   matter which of them gets which of their orphans.
3. **Counting**, when nothing is echoed: an intent that no orphan can belong to was not accepted; one intent and one
   orphan that can only belong to each other do. As many orphans as intents, each with at least one possible orphan,
   means that all were paid for, though not whose is whose.

What is left is held, with its candidates. An absence proves something only for an intent that is *ripe*: the history
was read completely, after its grace had passed. And an echo that differs proves something only where echoes have been
seen to be faithful (`Orphan.fingerprint` is None otherwise): a service may rewrite what it echoes.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


@attrs.frozen(kw_only=True)
class Intent:
    """A paid request that may have been accepted.

    Attributes:
        name: The job's batch and key.
        model: The model's id.
        fingerprint: The digest of the request body that was sent.
        sent_from: Seconds since the epoch, by the service's clock, before which it cannot have been accepted. There is
            no such time after which: requests linger, and computers sleep.
    """

    name: tuple[str, str]
    model: str
    fingerprint: str
    sent_from: float


@attrs.frozen(kw_only=True)
class Orphan:
    """A prediction of the account that no ledger knows.

    Attributes:
        id: Its id.
        model: The model's id; empty when the service does not say.
        created_at: Seconds since the epoch, by the service's clock; None when it does not say.
        fingerprint: The digest of the echoed input; None when nothing is echoed, or when it is echoed unfaithfully and
            is no intent's.
    """

    id: str
    model: str
    created_at: float | None
    fingerprint: str | None = None


class Doubt(Enum):
    """Kind of a doubt that stays."""

    WHOSE = "whose"
    """It was paid for; which of the candidates is its own is not known."""
    WHETHER = "whether"
    """It is not known whether it was paid for."""

    @property
    def reason(self) -> str:
        """The same as a clause, for error texts."""
        return _REASONS[self]


_REASONS = {
    Doubt.WHOSE: "it was paid for; which of the candidates is its own is not known",
    Doubt.WHETHER: "it is not known whether it was paid for",
}


@attrs.frozen
class Adopted:
    """The intent was accepted as this prediction."""

    prediction_id: str


@attrs.frozen
class Unaccepted:
    """The intent was not accepted: it may be sent again."""


@attrs.frozen
class Held:
    """Nothing is shown.

    Attributes:
        doubt: What is not known.
        candidates: Ids of the orphans that it may be.
    """

    doubt: Doubt
    candidates: tuple[str, ...]

    @property
    def message(self) -> str:
        """The same as a text for people to read."""
        return f"{self.doubt.reason}; candidates: {', '.join(self.candidates) or 'none'}"


Settlement: TypeAlias = Adopted | Unaccepted | Held


def fingerprint(inputs: Mapping[str, object]) -> str:
    """The digest of a request body, the same for what was sent and for what a faithful service echoes.

    Defaults that a service fills in are left out on both sides, numbers are compared as numbers, and fields outside the
    documented ones, which the service drops, do not count.
    """
    said = {
        name: _comparable(value)
        for name, value in inputs.items()
        if name in _DOCUMENTED and value not in _FILLED_IN.get(name, (None,))
    }
    images = {name: said.pop(name) for name in _IMAGES if name in said}
    return f"{_sha256(said)}:{_sha256(images)}"


_ENCODER = json.JSONEncoder(sort_keys=True, default=str)


def _sha256(said: object) -> str:
    return hashlib.sha256(_ENCODER.encode(said).encode()).hexdigest()[:32]


def without_images(fingerprint: str) -> str:
    """The part of a fingerprint that images have no part in: a service may keep, and echo, its own copy of them."""
    return fingerprint.partition(":")[0]


_IMAGES = ("image", "end_image", "last_image")


_DOCUMENTED = frozenset(
    {
        "prompt",
        "image",
        "end_image",
        "last_image",
        "negative_prompt",
        "guidance_scale",
        "cfg_scale",
        "duration",
        "sound",
    }
)
_FILLED_IN: Mapping[str, tuple[object, ...]] = {
    "negative_prompt": (None, "", "blur, distort, and low quality"),
    "guidance_scale": (None, 0.5),
    "cfg_scale": (None, 0.5),
    "sound": (None, False),
    "end_image": (None, ""),
    "last_image": (None, ""),
}
"""What services put in for a field that was not sent (001, 004 and the schema tables)."""


def _comparable(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # The duration is text on one page.
    return float(value) if isinstance(value, str) and value.isdecimal() else value


def possible(intent: Intent, orphan: Orphan) -> bool:
    """Whether the orphan may have come from the intent, by echoed input, model and time.

    Too many candidates cost an answer, too few cost money: what is doubtful does not exclude. An equal echo is stronger
    than any clock, and images are left out of the comparison, because a service may keep its own copy of them.
    """
    if orphan.model and orphan.model != intent.model:
        return False
    if orphan.fingerprint is not None:
        if orphan.fingerprint == intent.fingerprint:
            return True
        if without_images(orphan.fingerprint) != without_images(intent.fingerprint):
            return False
    return orphan.created_at is None or orphan.created_at >= intent.sent_from


def settle(
    intents: Sequence[Intent],
    orphans: Sequence[Orphan],
    *,
    ripe: Collection[tuple[str, str]],
    alone: bool,
    witnesses: Mapping[tuple[str, str], str] | None = None,
) -> dict[tuple[str, str], Settlement]:
    """What became of each intent.

    Args:
        intents: All that are in doubt, of every batch: leaving one out would make the counting wrong.
        orphans: All predictions of the account's history that no ledger knows.
        ripe: Names of the intents for which the history was read to its end after their grace had passed: only for
            these does an absence show anything.
        alone: Whether nothing but these ledgers uses the key, so that every orphan must be an intent's.
        witnesses: Ids that webhooks named, by the intent whose token they bore.
    """
    ends: dict[tuple[str, str], Settlement] = {}
    free = {orphan.id: orphan for orphan in orphans}
    open_ = {intent.name: intent for intent in intents}

    for name, prediction_id in (witnesses or {}).items():
        if name in open_:
            ends[name] = Adopted(prediction_id)
            del open_[name]
            free.pop(prediction_id, None)

    _by_input(open_, free, ends)
    for group in _components(list(open_.values()), list(free.values())):
        ends.update(_count(*group, ripe=ripe, alone=alone))
    return ends


def _by_input(
    open_: dict[tuple[str, str], Intent], free: dict[str, Orphan], ends: dict[tuple[str, str], Settlement]
) -> None:
    """Adopt what is echoed. Among intents of one content it does not matter which gets which orphan."""
    echoed: dict[str, list[Orphan]] = defaultdict(list)
    for orphan in free.values():
        if orphan.fingerprint is not None:
            echoed[orphan.fingerprint].append(orphan)
    wanting: dict[tuple[str, str], list[Intent]] = defaultdict(list)
    for intent in open_.values():
        wanting[intent.model, intent.fingerprint].append(intent)
    for content, intents in wanting.items():
        found = echoed.get(content[1], [])
        candidates = {intent.name: [orphan.id for orphan in found if possible(intent, orphan)] for intent in intents}
        for id_, name in _match(candidates).items():
            ends[name] = Adopted(id_)
            del open_[name]
            del free[id_]


def _components(
    intents: list[Intent], orphans: list[Orphan]
) -> Iterable[tuple[list[Intent], dict[tuple[str, str], list[str]], set[str]]]:
    """Groups of intents and orphans that have to do with each other, with the candidates of each intent."""
    candidates = {intent.name: [orphan.id for orphan in orphans if possible(intent, orphan)] for intent in intents}
    claimants: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, ids in candidates.items():
        for id_ in ids:
            claimants[id_].append(name)
    by_name = {intent.name: intent for intent in intents}
    seen: set[tuple[str, str]] = set()
    for first in candidates:
        if first in seen:
            continue
        names: list[tuple[str, str]] = []
        group: set[str] = set()
        todo = [first]
        seen.add(first)
        while todo:
            name = todo.pop()
            names.append(name)
            for id_ in candidates[name]:
                group.add(id_)
                for other in claimants[id_]:
                    if other not in seen:
                        seen.add(other)
                        todo.append(other)
        yield [by_name[name] for name in names], {name: candidates[name] for name in names}, group


def _count(
    intents: list[Intent],
    candidates: dict[tuple[str, str], list[str]],
    orphans: set[str],
    *,
    ripe: Collection[tuple[str, str]],
    alone: bool,
) -> dict[tuple[str, str], Settlement]:
    """The counting rule, within one group."""
    if not orphans:
        return {intent.name: Unaccepted() if intent.name in ripe else Held(Doubt.WHETHER, ()) for intent in intents}
    # Whoever else uses the key may own an orphan: then counting shows nothing.
    if (
        alone
        and all(intent.name in ripe for intent in intents)
        and len(orphans) >= len(intents) == len(_match(candidates))
    ):
        if len(intents) == 1 == len(orphans):
            return {intents[0].name: Adopted(next(iter(orphans)))}
        doubt = Doubt.WHOSE
    else:
        doubt = Doubt.WHETHER
    return {intent.name: Held(doubt, tuple(candidates[intent.name])) for intent in intents}


def _match(candidates: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, tuple[str, str]]:
    """One orphan each for as many intents as possible (augmenting paths), by the orphan."""
    taken: dict[str, tuple[str, str]] = {}

    def place(name: tuple[str, str], tried: set[str]) -> bool:
        for id_ in candidates[name]:
            if id_ in tried:
                continue
            tried.add(id_)
            if id_ not in taken or place(taken[id_], tried):
                taken[id_] = name
                return True
        return False

    for name in candidates:
        place(name, set())
    return taken
