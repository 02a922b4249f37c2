"""Films on the page: cards of clips that belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._core.strips import Clip, positions, strips

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .cards import Card


@attrs.frozen
class Film:
    """A film on the page.

    Attributes:
        name: Name of the film.
        numbers: Numbers of the cards of its clips, in their order.
    """

    name: str
    numbers: tuple[int, ...]


def films_of(cards: Iterable[Card]) -> list[Film]:
    """Return the films of cards. A key belongs to one batch at one provider."""
    groups: dict[tuple[str, str], dict[str, tuple[int, Clip]]] = {}
    for card in cards:
        if card.clip is not None:
            groups.setdefault((card.provider, card.batch), {})[card.key] = card.number, card.clip
    found: list[Film] = []
    for group in groups.values():
        at = positions(group)
        shown = strips(clip for key, (_, clip) in group.items() if key in at)
        found += (Film(strip.name, tuple(group[key][0] for key in strip.keys)) for strip in shown)
    return found
