"""The measured clients, one module each: `run(load)` completes all jobs of the load or raises.

Each module is imported in a process of its own, so that no client benefits from another one's imports.
"""

from __future__ import annotations

import attrs

IMAGE = "https://pictures.example/face.png"
KEY = "wsk_benchmark"


@attrs.frozen(kw_only=True)
class Load:
    """Work for a client.

    Attributes:
        url: base URL of the server.
        jobs: number of jobs.
        running: maximum number of concurrent jobs.
        interval: seconds between polls of a job; None for the client's default.
        ledger: record the jobs in a ledger on disk; only kling_async has one.
    """

    url: str
    jobs: int
    running: int
    interval: float | None = None
    ledger: bool = False


def arguments(number: int) -> dict[str, object]:
    """Return the inputs of a job, equal for all clients."""
    return {"prompt": f"number {number}", "image": IMAGE, "duration": 5}
