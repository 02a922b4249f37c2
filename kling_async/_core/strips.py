"""Strips: the clips of a film in the order in which they are shown and joined."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import attrs

from .renewal import former_keys
from .video_frames import LastFrame

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .job import Job

LABEL: Final = "film"
"""The label that names the film of a job."""


def film_of(labels: Mapping[str, object]) -> str:
    """Return the name of the film that labels name; empty if they name none."""
    value = labels.get(LABEL)
    name = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return name.strip()


@attrs.frozen
class Clip:
    """A job as part of a film.

    Attributes:
        key: Key of the job.
        film: Name of its film; empty if it has none of its own.
        follows: Key of the job with whose last frame it begins; None if there is none.
        repeats: Whether it is of a row with the key of another one: no way parts because of it.
    """

    key: str
    film: str = ""
    follows: str | None = None
    repeats: bool = False

    @classmethod
    def of(cls, key: str, job: Job) -> Clip:
        """Return the clip of a job."""
        frame = job.frames.get("image")
        return cls(key, film_of(job.labels), frame.parent if isinstance(frame, LastFrame) else None)


@attrs.frozen
class Strip:
    """The clips of a film.

    Attributes:
        name: Name of the film.
        keys: Keys of its clips in their order.
    """

    name: str
    keys: tuple[str, ...]


def strips(clips: Iterable[Clip]) -> list[Strip]:
    """Return the films of clips: those with labels, then the others.

    Clips with the same label are one film: each right after the one that it follows, before what else follows that one.
    What follows a clip, and has no label of its own, has the label of that clip. Without a label, every way from a clip
    that follows none to a clip that none follows is a film. Its name is the key of its first clip, and where ways part,
    that of its last one.

    A clip without a label that neither follows another nor is followed is in no film.

    Args:
        clips: The clips in the order of the input; those that are followed may come later.
    """
    by_key = {clip.key: clip for clip in clips}
    after: defaultdict[str, list[str]] = defaultdict(list)
    for clip in by_key.values():
        if clip.follows in by_key:
            after[clip.follows].append(clip.key)
    names: dict[str, str] = {}
    # Then all keys, as no beginning leads to rows that were left out because they continue themselves or each other.
    for start in (*(key for key in by_key if by_key[key].follows not in by_key), *by_key):
        stack = [start]
        while stack:
            clip = by_key[stack.pop()]
            if clip.key not in names:
                names[clip.key] = clip.film or names.get(clip.follows or "", "")
                stack += reversed(after[clip.key])
    labelled: defaultdict[str, list[str]] = defaultdict(list)
    ways: list[tuple[str, ...]] = []
    for key, name in names.items():
        if name:
            labelled[name].append(key)
        elif all(names[each] for each in after[key]):
            ways.append(_way(key, by_key, names))
    ends = Counter(way[0] for way in ways if not by_key[way[-1]].repeats)
    found = [Strip(name, tuple(keys)) for name, keys in labelled.items()]
    for way in ways:
        if len(way) > 1:
            parts = ends[way[0]] + by_key[way[-1]].repeats > 1
            found.append(Strip(way[-1] if parts else way[0], way))
    return found


def positions(keys: Iterable[str]) -> dict[str, int]:
    """Return the positions of the keys of a ledger that may be in films.

    What was made for a key before that got other content is in none; the key has its position.

    Args:
        keys: All keys of a batch, in the order in which its jobs came into the ledger.
    """
    order = list(keys)
    former, found = former_keys({*order}), dict[str, int]()
    for position, key in enumerate(order):
        found.setdefault(former.get(key, key), position)
    return found


def _way(key: str, clips: Mapping[str, Clip], names: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys from the first clip of a film without a label to its last one."""
    way: dict[str, None] = {}
    at: str | None = key
    while at is not None and at in clips and at not in way and not names[at]:
        way[at] = None
        at = clips[at].follows
    return tuple(reversed(way))
