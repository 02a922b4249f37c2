"""Films of random shapes, without anything else, so that worker processes can draw the same ones."""

from __future__ import annotations

import random


def trees(films: int, seed: int) -> dict[str, str | None]:
    """Return the keys of films of 2 to 12 clips in random trees, each with the key that it continues, shuffled."""
    rng = random.Random(seed)
    clips: list[tuple[str, str | None]] = []
    for film in range(films):
        names = [f"f{film}-{number}" for number in range(rng.randint(2, 12))]
        clips += [(name, rng.choice(names[:number]) if number else None) for number, name in enumerate(names)]
    rng.shuffle(clips)
    return dict(clips)
