"""Rows of models as earlier versions knew them, by which jobs that carry a row of their own are identified.

A row in the text of a job is part of its identity. What the catalogue has learned since, such as a corrected price,
would make another job of a copied row, which would be paid for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

_NAMES: Final = frozenset(
    {
        "id",
        "name",
        "aliases",
        "providers",
        "prompt_required",
        "max_text",
        "durations",
        "default_duration",
        "duration_type",
        "scale",
        "scale_range",
        "negative_prompt",
        "end_image",
        "sound",
        "shots",
        "shot_types",
        "elements",
        "voices",
        "required",
        "more",
        "price_per_5s",
        "sound_factor",
        "certainty",
        "resolution",
        "aspect_note",
        "usual",
        "source",
    }
)
"""Attributes of `Model` that texts had when the identity rules 1 and 2 were made."""
_SENT: Final = frozenset({"id", "duration_type", "scale", "end_image"})
"""Attributes of `Model` that shape a request: its path, and the names and types of its inputs."""
_END_IMAGE_NAMES: Final = frozenset({"field", "required", "elsewhere"})
_DOCS: Final = "wavespeed.ai/docs/docs-api/kwaivgi"
_WITHOUT_PRICE: Final = {"certainty": None, "price_per_5s": None}

_WAS: Final[Mapping[str, Mapping[str, object]]] = {
    "kwaivgi/kling-v2.1-i2v-standard": {
        "certainty": "inferred",
        "price_per_5s": "0.28",
        "source": "inferred: 2.5 turbo std at 0.21 is called 25 % cheaper",
    },
    "kwaivgi/kling-v2.1-i2v-pro/start-end-frame": {
        "providers": None,
        "source": "wavespeed.ai/models/kwaivgi/kling-v2.1-i2v-pro/start-end-frame",
    },
    "kwaivgi/kling-v2.6-std/image-to-video": {"providers": None, "source": f"{_DOCS}, 2.6 std"},
    "kwaivgi/kling-v2.6-pro/image-to-video": {"source": f"{_DOCS}, 2.6 pro; price with sound inferred"},
    **{
        f"kwaivgi/kling-v3.0-{quality}/image-to-video": {
            "providers": None,
            "sound_factor": None,
            "source": f"{_DOCS}, 3.0 {quality}; price with sound inferred",
        }
        for quality in ("std", "pro")
    },
    "kwaivgi/kling-v3.0-4k/image-to-video": {
        **_WITHOUT_PRICE,
        "prompt_required": None,
        "sound_factor": None,
        "source": f"{_DOCS}, 3.0 4k; no price found",
    },
    **{
        f"kwaivgi/kling-v3-turbo-{quality}/image-to-video": {
            **_WITHOUT_PRICE,
            "source": f"{_DOCS}, 3 turbo {quality}; no price found",
        }
        for quality in ("std", "pro")
    },
}
"""Facts of the catalogue that have changed since, as they were in texts; None where they were left out."""


def released_row(row: Mapping[str, object], now: Callable[[str], Mapping[str, object]]) -> dict[str, object]:
    """Return a row as the versions wrote it that made the identity rules 1 and 2.

    Args:
        row: The row in the text of a job.
        now: Returns today's row of the catalogue by its id, in the same form; empty if there is none.
    """
    then = {name: value for name, value in row.items() if name in _NAMES}
    end_image = then.get("end_image")
    if isinstance(end_image, Mapping):
        then["end_image"] = {name: value for name, value in end_image.items() if name in _END_IMAGE_NAMES}
    model = str(row.get("id"))
    today = now(model)
    # Only a copy of the catalogue's row has its source; what the caller has changed in it stays.
    for name, was in _WAS.get(model, {}).items() if row.get("source") == today.get("source") else ():
        if row.get(name) == today.get(name):
            then.pop(name, None)
            then |= {} if was is None else {name: was}
    return then


def row_as_sent(row: Mapping[str, object]) -> dict[str, object]:
    """Return what shapes the requests of a row; its price and its limits make no other job.

    Args:
        row: The row in the text of a job.
    """
    return {name: value for name, value in row.items() if name in _SENT}
