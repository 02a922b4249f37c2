"""Keys that belong to callers: in the ledger, a caller's key stands behind the caller's name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

from kling_async._core.job_key import checked_key
from kling_async.errors import InvalidJobError, Problem

if TYPE_CHECKING:
    from kling_async._core.job_key import Key

    from ._job_service import JobStatus


def prefix_of(caller: object) -> str:
    """Return the beginning of a caller's keys in the ledger; that of all keys without one.

    Raises:
        InvalidJobError: The caller is no text, or empty.
    """
    if caller is None:
        return ""
    if not isinstance(caller, str) or not caller:
        raise InvalidJobError([Problem("caller", f"expected text that is not empty, got {type(caller).__name__}")])
    # Quoted, so that no caller's name begins with another one's and a slash.
    return checked_key(quote(caller, safe="@.") + "/")


def key_in_ledger(key: Key, caller: str | None) -> str:
    """Return a caller's key as it stands in the ledger.

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
