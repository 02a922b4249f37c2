"""Other content for a job of a ledger under the same key, to be paid for again on request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async.errors import LedgerError

from .copies import changed
from .states import KEPT, OF_ATTEMPT, OF_REUSE, RENEWABLE, Row, State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from .content import Content


def is_kept(row: Row) -> bool:
    """Return whether a job stays as it is, under another key, when its key gets other content: it has a prediction.

    Raises:
        LedgerError: It is being sent, runs, or is in doubt.
    """
    if row.state in KEPT:
        return True
    if row.state in RENEWABLE:
        return False
    raise LedgerError(
        f"job {row.key!r} is {row.state.label}, so it is not made again now; nothing was sent",
        key=row.key,
        advice="settle it first: kling-async ledger"
        if row.state.in_doubt
        else "let it end first: the same command without --redo waits for it",
    )


def free_key(key: str, taken: Callable[[str], bool]) -> str:
    """Return the key under which what was made for a key stays.

    Args:
        key: The key.
        taken: Returns whether another job of the batch has a key.
    """
    number = 1
    while taken(f"{key}~{number}"):
        number += 1
    return f"{key}~{number}"


def former_keys(keys: Collection[str]) -> dict[str, str]:
    """Return the keys under which what was made for other keys stays, each with the key that it was made for.

    A caller's own key of that form is one of them only if all lower numbers are there, from 1 on.

    Args:
        keys: All keys of a batch.
    """
    found: dict[str, str] = {}
    for key in keys:
        number = 1
        while (former := f"{key}~{number}") in keys:
            found[former] = key
            number += 1
    return found


def renewed(row: Row, content: Content, *, model: str, at: float) -> Row:
    """Return the row of a job that has no prediction any more with other content, to be sent.

    What it has cost and how often it was sent stay.
    """
    names = (*OF_ATTEMPT, *OF_REUSE, "fingerprint", "intent_at", "doubt")
    own = {"digest": content.digest, "model": model, "state": State.PENDING, "updated_at": at, "candidates": ()}
    return changed(row, **dict.fromkeys(names), **own)
