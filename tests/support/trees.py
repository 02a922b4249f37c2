"""Films of random shapes, and how long they take. Nothing else, so that worker processes can draw the same ones."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping


def trees(films: int, seed: int) -> dict[str, str | None]:
    """Return the keys of films of 2 to 12 clips in random trees, each with the key that it continues, shuffled."""
    rng = random.Random(seed)
    clips: list[tuple[str, str | None]] = []
    for film in range(films):
        names = [f"f{film}-{number}" for number in range(rng.randint(2, 12))]
        clips += [(name, rng.choice(names[:number]) if number else None) for number, name in enumerate(names)]
    rng.shuffle(clips)
    return dict(clips)


def list_schedule(seconds: Mapping[str, float], parents: Mapping[str, str], *, slots: int) -> float:
    """Return the seconds of a schedule without overhead, in the order of the input, depth first."""
    order = {name: number for number, name in enumerate(seconds)}
    free = [0.0] * slots
    ends: dict[str, float] = {}
    left = dict(order)
    while left:
        now = min(free)
        ready = [
            name
            for name in left
            if ends.get(parents.get(name, ""), -math.inf if name not in parents else math.inf) <= now
        ]
        if not ready:
            later = min(end for end in ends.values() if end > now)
            free = [max(moment, later) for moment in free]
            continue
        name = min(ready, key=lambda each: (each not in parents, order[each]))
        del left[name]
        slot = free.index(now)
        free[slot] = ends[name] = now + seconds[name]
    return max(ends.values())
