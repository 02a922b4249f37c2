"""The routes of files: tickets, storage, uploads, outputs."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from kling_async.emulator import bodies

from .exchange import Exchange, RefusedError
from .outputs import TICKET_SECONDS, StorageFullError, Ticket, Upload, kind_of, ranged
from .tiny import TINY_MP4
from .wire import Json, iso, reply

if TYPE_CHECKING:
    from .predictions import Prediction

__all__ = ["output", "upload_binary", "upload_get", "upload_put", "upload_ticket"]

_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_PRECONDITION_FAILED: Final = 412
_TOO_LARGE: Final = 413
_UNAVAILABLE: Final = 503
_PIECE: Final = 1 << 18
_TINY_TAG: Final = hashlib.sha256(TINY_MP4).hexdigest()[:32]


def _failed(reason: str) -> web.Response:
    # The service tells of a failed upload inside of an HTTP 200.
    return reply({"code": 500, "message": f"Upload failed: {reason}"})


async def upload_ticket(exchange: Exchange) -> web.Response:
    """`POST /api/v3/media/uploads`: a signed URL to put one file to."""
    exchange.account()
    service, now = exchange.service, exchange.now
    asked = bodies.read(bodies.TICKET, await exchange.body())
    filename, size = PurePosixPath(asked["filename"]).name, asked["size"]
    if size > service.rules.max_upload_bytes:
        raise RefusedError(_TOO_LARGE, "File too large")
    kind = kind_of(filename, asked["content_type"])
    if kind is None:
        return _failed("invalid file type")
    path = service.media.path(kind[0], filename, now)
    ticket = Ticket(path, kind[1], size, now + TICKET_SECONDS)
    signature = service.media.ticket(ticket, now)
    origin = exchange.site.origin
    return exchange.site.persona.ok(
        {
            "type": kind[0],
            "filename": filename,
            "size": size,
            "download_url": f"{origin}{path}",
            "upload": {
                "method": "PUT",
                "url": f"{origin}/storage{path}?X-Amz-Expires={int(TICKET_SECONDS)}&X-Amz-Signature={signature}",
                "headers": {"Content-Type": kind[1], "If-None-Match": "*"},
                "expires_at": iso(ticket.expires_at),
            },
        }
    )


def _storage_error(status: int, code: str, message: str) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


async def upload_put(exchange: Exchange) -> web.Response:
    """`PUT /storage/media/...`: takes the file that a ticket was given for; answers as an object store does."""
    service, request, now = exchange.service, exchange.request, exchange.now
    path = request.path.removeprefix("/storage")
    signature = parse_qs(request.query_string).get("X-Amz-Signature", [""])[0]
    ticket = service.media.redeem(signature, path, now)
    content = await request.read()
    if "Authorization" in request.headers:
        return _storage_error(_BAD_REQUEST, "InvalidArgument", "Only one auth mechanism allowed")
    if ticket is None:
        return _storage_error(_FORBIDDEN, "AccessDenied", "Request has expired or the signature does not match")
    if request.headers.get("Content-Type") != ticket.content_type:
        return _storage_error(_FORBIDDEN, "SignatureDoesNotMatch", "Content-Type differs from the signed one")
    if len(content) != ticket.size:
        return _storage_error(_BAD_REQUEST, "IncompleteBody", "The body is not as long as was announced")
    if request.headers.get("If-None-Match") == "*" and service.media.upload(path, now) is not None:
        return _storage_error(_PRECONDITION_FAILED, "PreconditionFailed", "The object exists already")
    try:
        upload = service.media.put(path, content, ticket.content_type, now)
    except StorageFullError:
        return _storage_error(507, "QuotaExceeded", "The storage quota is used up")
    return web.Response(headers={"ETag": f'"{upload.digest[:32]}"'})


async def upload_binary(exchange: Exchange) -> web.Response:
    """`POST /api/v3/media/upload/binary`: multipart, field `file`."""
    exchange.account()
    service, request, now = exchange.service, exchange.request, exchange.now
    if not request.content_type.startswith("multipart/"):
        raise RefusedError(_BAD_REQUEST, "Invalid request body: multipart/form-data is expected")
    try:
        found = await _file_part(exchange)
    except (ValueError, HttpProcessingError):
        raise RefusedError(_BAD_REQUEST, "Invalid request body: malformed multipart") from None
    if found is None:
        raise RefusedError(_BAD_REQUEST, "Missing parameter: file is required")
    filename, content_type, content = found
    kind = kind_of(filename, content_type)
    if kind is None:
        return _failed("invalid file type")
    path = service.media.path(kind[0], filename, now)
    try:
        service.media.put(path, content, kind[1], now)
    except StorageFullError:
        return _failed("storage quota exceeded")
    data: Json = {
        "type": kind[0],
        "download_url": f"{exchange.site.origin}{path}",
        "filename": filename,
        "size": len(content),
    }
    return exchange.site.persona.ok(data)


async def _file_part(exchange: Exchange) -> tuple[str, str | None, bytes] | None:
    async for part in await exchange.request.multipart():
        if not isinstance(part, aiohttp.BodyPartReader) or part.name != "file":
            continue
        content = bytearray()
        while piece := await part.read_chunk(_PIECE):
            content += piece
            if len(content) > exchange.service.rules.max_upload_bytes:
                raise RefusedError(_TOO_LARGE, "File too large")
        content_type = part.headers.get("Content-Type")
        if content_type == "application/octet-stream":
            content_type = None
        return PurePosixPath(part.filename or "file").name, content_type, bytes(content)
    return None


async def upload_get(exchange: Exchange) -> web.Response:
    """`GET /media/...`: an upload, to anybody."""
    upload: Upload | None = exchange.service.media.upload(exchange.request.path, exchange.now)
    content = None if upload is None else exchange.service.media.content(upload.digest)
    if upload is None or content is None:
        return web.Response(status=_NOT_FOUND, text="Not found")
    return ranged(exchange.request, content, upload.content_type, upload.digest[:32])


async def output(exchange: Exchange) -> web.Response:
    """`GET /output/...`: a video, to anybody; it is rendered when it is first asked for."""
    service = exchange.service
    prediction = service.store.by_output(exchange.request.match_info["file"], exchange.now)
    if prediction is None:
        return web.Response(status=_NOT_FOUND, text="Not found")
    if service.rules.tiny or service.renderer is None:
        return ranged(exchange.request, TINY_MP4, "video/mp4", _TINY_TAG)
    content = await _rendered(exchange, prediction)
    return ranged(exchange.request, content, "video/mp4", hashlib.sha256(content).hexdigest()[:32])


async def _rendered(exchange: Exchange, prediction: Prediction) -> bytes:
    from .renderer import RenderingStoppedError, Scene  # noqa: PLC0415 - PyAV and Pillow are optional

    service = exchange.service
    pictures = tuple(content for digest in prediction.pictures if (content := service.media.content(digest)))
    scene = Scene(
        pictures=pictures,
        seconds=prediction.length,
        resolution=prediction.model.resolution,
        size=service.rules.resolution,
        prompt=str(prediction.inputs.get("prompt", "")),
    )
    if service.renderer is None:
        raise RefusedError(_NOT_FOUND)
    try:
        return await service.renderer.video(scene)
    except RenderingStoppedError:
        raise RefusedError(_UNAVAILABLE) from None
