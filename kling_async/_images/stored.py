"""Replies of the storage to which files are uploaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async._core.transport import loggable_url
from kling_async.errors import ApiError, RateLimitedError, RequestRejectedError, ServerError

if TYPE_CHECKING:
    from kling_async._core.http import HttpResponse
    from kling_async._core.media import UploadTicket


def is_stored(response: HttpResponse, ticket: UploadTicket, now: float) -> bool:
    """Return whether the storage certainly has the file; False if only a look can tell.

    Raises:
        ApiError: It refused it.
    """
    status = response.status
    if 200 <= status < 300:  # noqa: PLR2004 -- success, whichever
        # Every object store sends it; a portal that answers anything with its own page does not.
        return "etag" in response.headers
    # With `If-None-Match: *` at an address made for this file, 412 means that an earlier attempt, whose reply was lost,
    # has stored it; or a proxy says so. aiohttp itself also sends a PUT again when a pooled connection turns out to be
    # closed.
    if status == 412 and any(name.lower() == "if-none-match" for name in ticket.headers):  # noqa: PLR2004
        return False
    kind: type[ApiError] = RequestRejectedError
    if status == 429:  # noqa: PLR2004 -- as the standard names it
        kind = RateLimitedError
    elif status >= 500:  # noqa: PLR2004 -- the same
        kind = ServerError
    # Without the body, because storages quote the signature in it.
    raise kind(
        f"the upload of a file to {loggable_url(ticket.url)} was refused with status {status}",
        status=status,
        retry_after=response.retry_after(now),
        request_id=response.request_id,
        advice="try again, or give the file as a URL",
    )
