"""Sentences in which ledgers of the first release kept state. Only migrations, and reading of old tables, know them.

Until SQLite version 1 and PostgreSQL version 2 a job that was given up by hand was `rejected` with a certain error, and
the kind of a doubt and its candidates were part of the error's text.
"""

from __future__ import annotations

import json
from typing import Final

GIVEN_UP: Final = "given up by hand; it may have been paid for, and is not sent again"
WHOSE: Final = "it was paid for; which of the candidates is its own is not known"
CANDIDATES: Final = "; candidates: "
"""Separates the kind of a doubt from the ids of its candidates, or `none`."""


def old_state(state: str, error: str | None) -> str:
    """Return the state of an old row or step."""
    return "abandoned" if state == "rejected" and error == GIVEN_UP else state


def old_doubt(state: str, error: str | None) -> str | None:
    """Return the kind of an old row's doubt, or None when it has none."""
    if state != "uncertain" or error is None or CANDIDATES not in error:
        return None
    return "whose" if error.partition(CANDIDATES)[0] == WHOSE else "whether"


def old_candidates(state: str, error: str | None) -> str | None:
    """Return the candidates of an old row as a JSON array, or None without candidates."""
    if old_doubt(state, error) is None:
        return None
    ids = (error or "").partition(CANDIDATES)[2]
    return None if ids in {"", "none"} else json.dumps(ids.split(", "))
