"""Matching of submissions in doubt with predictions of the account's history.

After a dropped reply an *intent* has no id, and the history may have an *orphan*: a prediction that is in no ledger.
`settle` matches them by evidence, in this order, and never by the order of their times (with realistic latencies that
would be wrong for half of them):

1. A **webhook** with the token of an intent names its id.
2. The **input** that the service echoes is the intent's own. Intents with equal content are interchangeable.
3. **Counting**, without echoes: an intent that no orphan can belong to was not accepted; one intent and one orphan
   that can only belong to each other do. As many orphans as intents, each with at least one possible orphan, shows
   that all were paid for, but not which orphan belongs to which intent.

All other intents are held, with their candidates. An absence is evidence only for an intent that is *ripe*: the history
was read completely, after the intent's grace period. A different echo is evidence only where echoes have been seen to
be faithful (`Orphan.fingerprint` is None otherwise): a service may rewrite the input that it echoes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

import attrs

from .job_validation import IMAGE_LISTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence


@attrs.frozen(kw_only=True)
class Intent:
    """A paid request that may have been accepted.

    Attributes:
        name: Batch and key of the job.
        model: Id of the model.
        fingerprint: Digest of the request body.
        sent_from: Time before which it cannot have been accepted, in seconds since the epoch by the service's clock;
            minus infinity where nothing shows that clock to be steady. There is no such time after which: requests are
            delayed, and computers sleep.
    """

    name: tuple[str, str]
    model: str
    fingerprint: str
    sent_from: float


@attrs.frozen(kw_only=True)
class Orphan:
    """A prediction of the account that is in no ledger.

    Attributes:
        id: Its id.
        model: Id of the model; empty when unknown.
        created_at: Time of its creation, in seconds since the epoch by the service's clock; None when unknown.
        fingerprint: Digest of the echoed input; None without an echo, or when echoes are not faithful and it is not the
            fingerprint of an intent.
        others: Other fingerprints that the request may have had (`echoed_fingerprints`).
    """

    id: str
    model: str
    created_at: float | None
    fingerprint: str | None = None
    others: frozenset[str] = frozenset()


class Doubt(Enum):
    """Kind of a doubt that stays."""

    WHOSE = "whose"
    """It was paid for; which of the candidates is its own is not known."""
    WHETHER = "whether"
    """It is not known whether it was paid for."""

    @property
    def reason(self) -> str:
        """The doubt as a clause, for error texts."""
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
    """The evidence does not suffice.

    Attributes:
        doubt: Kind of the doubt.
        candidates: Ids of the orphans that the intent may have become.
    """

    doubt: Doubt
    candidates: tuple[str, ...]

    @property
    def message(self) -> str:
        """The doubt and its candidates as a text for people to read."""
        return f"{self.doubt.reason}; candidates: {', '.join(self.candidates) or 'none'}"


Settlement: TypeAlias = Adopted | Unaccepted | Held


def fingerprint(inputs: Mapping[str, object]) -> str:
    """Return the digest of a request body, equal for the request and for a faithful echo of it.

    Defaults that a service fills in are left out, and numbers are compared as numbers. It has three parts: the inputs
    of all models, images, and all further inputs, which tell jobs apart and exclude none: a service may write them in
    another form, or drop those that it does not know.
    """
    images = _images(inputs)
    if images.get("end_image") == images.get("last_image"):
        # Sent under both names, since the vendor's pages disagree.
        images.pop("last_image", None)
    lists = {name: value for name in IMAGE_LISTS if (value := inputs.get(name))}
    further = {
        name: _comparable(value)
        for name, value in inputs.items()
        if name not in _NOT_FURTHER and _is_given(name, value)
    }
    return f"{_sha256(_plain(inputs))}:{_sha256(images | lists)}:{_sha256(further) if further else _NOTHING_FURTHER}"


def echoed_fingerprints(inputs: Mapping[str, object]) -> frozenset[str]:
    """Return the fingerprints that a request may have had whose echo a service reports.

    An echo may drop one of the two names of a last frame, and have defaults that depend on the model; fingerprints of
    earlier versions had no further inputs.
    """
    renamed = {"end_image" if name == "last_image" else name: value for name, value in inputs.items()}
    found = {f"{_sha256(_plain(inputs))}:{_sha256(_images(inputs))}"}
    for count in range(len(_MODEL_DEFAULTS) + 1):
        for left_out in itertools.combinations(_MODEL_DEFAULTS, count):
            for each in (inputs, renamed):
                found.add(fingerprint({name: value for name, value in each.items() if name not in left_out}))
    return frozenset(found)


def _plain(inputs: Mapping[str, object]) -> dict[str, object]:
    return {
        name: _comparable(value)
        for name, value in inputs.items()
        if name in _DOCUMENTED and name not in _IMAGES and _is_given(name, value)
    }


def _images(inputs: Mapping[str, object]) -> dict[str, object]:
    return {name: _comparable(inputs[name]) for name in _IMAGES if _is_given(name, inputs.get(name))}


def _is_given(name: str, value: object) -> bool:
    return value not in _FILLED_IN.get(name, (None,) if name in _DOCUMENTED else (None, "", [], {}))


_ENCODER = json.JSONEncoder(sort_keys=True, default=str)


def _sha256(value: object) -> str:
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()[:32]


def without_images(fingerprint: str) -> str:
    """Return the part of a fingerprint without images: a service may keep, and echo, its own copies of them."""
    return fingerprint.partition(":")[0]


_IMAGES = ("image", "end_image", "last_image")
_MODEL_DEFAULTS = ("aspect_ratio", "shot_type")
"""Further inputs that a service may fill in with a default of the model."""
_OF_THE_SERVICE = ("seed", "enable_sync_mode", "enable_base64_output", "enable_safety_checker")
"""Inputs that a service draws or sets by itself."""
_NOTHING_FURTHER = _sha256({})

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
_NOT_FURTHER = _DOCUMENTED.union(IMAGE_LISTS, _OF_THE_SERVICE)
_FILLED_IN: Mapping[str, tuple[object, ...]] = {
    "negative_prompt": (None, "", "blur, distort, and low quality"),
    "guidance_scale": (None, 0.5),
    "cfg_scale": (None, 0.5),
    "sound": (None, False),
    "end_image": (None, ""),
    "last_image": (None, ""),
    "resolution": (None, "", "720p"),
}
"""Values that services fill in for a field that was not sent (001, 004 and the schema tables)."""


def _comparable(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # One page of the documentation has the duration as text.
    return float(value) if isinstance(value, str) and value.isdecimal() else value


def possible(intent: Intent, orphan: Orphan) -> bool:
    """Return whether the orphan may have come from the intent, by echoed input, model and time.

    A wrong candidate only leaves a doubt, a missing one costs money: only certainty excludes. An equal echo is stronger
    than any clock, and images are not compared, because a service may keep its own copies of them.
    """
    if orphan.model and orphan.model != intent.model:
        return False
    if orphan.fingerprint is not None:
        if intent.fingerprint in {orphan.fingerprint, *orphan.others}:
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
    """Return the settlement of each intent.

    Args:
        intents: All intents in doubt, of every batch: leaving one out would make the counting wrong.
        orphans: All predictions of the account's history that are in no ledger.
        ripe: Names of the intents for which the history was read to its end after their grace period: only for these is
            an absence evidence.
        alone: True if nothing but these ledgers uses the key, so that every orphan belongs to an intent.
        witnesses: Ids that webhooks reported with the token of an intent, by the intent's name.
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
    """Adopt orphans with the echoed input of an intent: equal ones first, then what a service may have changed."""

    def adopt(alike: Callable[[str], str], echoes: Callable[[Orphan], Iterable[str]]) -> None:
        echoed: dict[str, dict[str, Orphan]] = defaultdict(dict)
        for orphan in free.values():
            for each in echoes(orphan):
                echoed[alike(each)][orphan.id] = orphan
        wanting: dict[tuple[str, str], list[Intent]] = defaultdict(list)
        for intent in open_.values():
            wanting[intent.model, alike(intent.fingerprint)].append(intent)
        for (_, wanted), intents in wanting.items():
            if len({intent.fingerprint for intent in intents}) > 1:
                # It is not known which of them was accepted.
                continue
            found = [orphan for orphan in echoed[wanted].values() if orphan.id in free and _agree(intents[0], orphan)]
            candidates = {one.name: [orphan.id for orphan in found if possible(one, orphan)] for one in intents}
            for id_, name in _match(candidates).items():
                ends[name] = Adopted(id_)
                del open_[name]
                del free[id_]

    adopt(str, lambda orphan: () if orphan.fingerprint is None else (orphan.fingerprint,))
    adopt(str, _echoes)
    adopt(lambda fingerprint: _parted(fingerprint)[0], _echoes)


def _echoes(orphan: Orphan) -> frozenset[str]:
    # Without the first, the echo is not reliable.
    return frozenset() if orphan.fingerprint is None else orphan.others | {orphan.fingerprint}


def _agree(intent: Intent, orphan: Orphan) -> bool:
    """Return whether an echo may be that of a request: one of the two may have no further inputs."""
    core, further = _parted(intent.fingerprint)
    return any(
        core == of and (further == more or _NOTHING_FURTHER in {further, more})
        for of, more in map(_parted, _echoes(orphan))
    )


def _parted(fingerprint: str) -> tuple[str, str]:
    """Return the first two parts of a fingerprint, and the third, which those of earlier versions do not have."""
    parts = fingerprint.split(":")
    return ":".join(parts[:2]), parts[2] if len(parts) > 2 else _NOTHING_FURTHER  # noqa: PLR2004 -- the third


def _components(
    intents: list[Intent], orphans: list[Orphan]
) -> Iterable[tuple[list[Intent], dict[tuple[str, str], list[str]], set[str]]]:
    """Yield the connected components of intents and orphans: intents, the candidates of each, and orphan ids."""
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
    """Return the settlements of one component by the counting rule."""
    if not orphans:
        return {intent.name: Unaccepted() if intent.name in ripe else Held(Doubt.WHETHER, ()) for intent in intents}
    # Another user of the key may own an orphan; then counting is no evidence.
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
    """Return a maximum matching (augmenting paths): names of intents by the id of their orphan."""
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
