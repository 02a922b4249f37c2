"""Serve a file over HTTP with entity tags and byte ranges."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

__all__ = ["file_response"]

_PARTIAL_CONTENT: Final = 206
_NOT_MODIFIED: Final = 304
_RANGE_NOT_SATISFIABLE: Final = 416
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\s*\Z")


def file_response(request: web.Request, body: bytes, content_type: str, tag: str) -> web.Response:
    """Serve a file with `ETag`, `If-None-Match`, `Range` and `If-Range`; multiple ranges get the whole file.

    Args:
        request: GET or HEAD.
        body: content of the whole file.
        content_type: media type.
        tag: identifies the content; becomes the strong entity tag.
    """
    etag = f'"{tag}"'
    headers = {"Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": "public, max-age=604800"}
    if request.headers.get("If-None-Match") in {etag, "*"}:
        return web.Response(status=_NOT_MODIFIED, headers=headers)
    requested = _RANGE.match(request.headers.get("Range", ""))
    size = len(body)
    if requested is None or requested.groups() == ("", "") or request.headers.get("If-Range", etag) != etag:
        return web.Response(body=body, content_type=content_type, headers=headers)
    low, high = requested.groups()
    if low:
        start, stop = int(low), min(int(high) + 1 if high else size, size)
        if high and int(high) < int(low):
            return web.Response(body=body, content_type=content_type, headers=headers)
    else:
        start, stop = max(0, size - int(high)), size
    if start >= stop:
        return web.Response(status=_RANGE_NOT_SATISFIABLE, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return web.Response(status=_PARTIAL_CONTENT, body=body[start:stop], content_type=content_type, headers=headers)
