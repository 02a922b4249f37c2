"""The clients that are measured, a module each: `run(load)` has every job of the load done, or raises.

A module is imported in a process of its own, so that nobody pays for what another one has imported.
"""

from __future__ import annotations

import attrs

IMAGE = "https://pictures.example/face.png"
KEY = "wsk_benchmark"


@attrs.frozen(kw_only=True)
class Load:
    """What a client is to do.

    Attributes:
        url: Where the server is.
        jobs: How many.
        running: How many at once, at most.
        interval: Seconds from one look at a job to the next; None for what the client does by default.
        ledger: Whether the jobs are written to a ledger on disk; only ours has one.
    """

    url: str
    jobs: int
    running: int
    interval: float | None = None
    ledger: bool = False


def arguments(number: int) -> dict[str, object]:
    """What a job asks for, the same of everybody."""
    return {"prompt": f"number {number}", "image": IMAGE, "duration": 5}
