"""Keys that belong to callers: in the ledger, a caller's key stands behind the caller's name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from kling_async._core.job_key import checked_key
from kling_async._core.job_validation import MAX_CALLER_LENGTH
from kling_async.errors import InvalidJobError, Problem

if TYPE_CHECKING:
    from kling_async._core.job_key import Key

    from ._job_status import JobStatus


def prefix_of(caller: object) -> str:
    """Return the beginning of a caller's keys in the ledger; that of all keys without one.

    Raises:
        InvalidJobError: The caller is no text, empty, or too long.
    """
    if caller is None:
        return ""
    if not isinstance(caller, str) or not caller or len(caller) > MAX_CALLER_LENGTH or not caller.isprintable():
        expected = f"text of 1 to {MAX_CALLER_LENGTH} printable characters"
        raise InvalidJobError([Problem("caller", f"expected {expected}, got {caller!r:.60}")])
    # Quoted, so that no caller's name begins with another one's and a slash.
    return checked_key(quote(caller, safe="@.") + "/")


def key_in_ledger(key: Key, caller: str | None) -> str:
    """Return a caller's key as it is in the ledger.

    Raises:
        InvalidJobError: One of them is no text, or too long.
    """
    return checked_key(prefix_of(caller) + checked_key(key))


def shown_as(status: JobStatus, key: str) -> JobStatus:
    """Return a state of a job under its caller's own key."""
    if status.key == key:
        return status
    error = status.error
    if error is not None and "key" in error:
        error = {**error, "key": key}
    return replace(status, key=key, error=error)
