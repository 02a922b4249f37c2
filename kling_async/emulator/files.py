"""Handlers of the file routes: upload tickets, storage, uploads, outputs."""

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
from .media import TICKET_SECONDS, StorageFullError, Ticket, media_kind, own_path
from .serving import file_response
from .tiny import TINY_MP4, TINY_PNG
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
_INSUFFICIENT_STORAGE: Final = 507
_CHUNK_BYTES: Final = 1 << 18
_TAG_CHARS: Final = 32
_TINY_TAG: Final = hashlib.sha256(TINY_MP4).hexdigest()[:_TAG_CHARS]


def _upload_failed(reason: str) -> web.Response:
    # The service reports a failed upload with HTTP 200.
    return reply({"code": 500, "message": f"Upload failed: {reason}"})


async def upload_ticket(exchange: Exchange) -> web.Response:
    """`POST /api/v3/media/uploads`: return a signed URL for the upload of one file."""
    exchange.account()
    service, now = exchange.service, exchange.now
    query = bodies.read(bodies.TICKET, await exchange.body())
    filename, size = PurePosixPath(query["filename"]).name, query["size"]
    if size > service.rules.max_upload_bytes:
        raise RefusedError(_TOO_LARGE, "File too large")
    found = media_kind(filename, query["content_type"])
    if found is None:
        return _upload_failed("invalid file type")
    kind, content_type = found
    path = service.media.new_path(kind, filename, now)
    ticket = Ticket(path, content_type, size, now + TICKET_SECONDS)
    signature = service.media.add_ticket(ticket, now)
    origin = exchange.site.origin
    return exchange.site.persona.ok(
        {
            "type": kind,
            "filename": filename,
            "size": size,
            "download_url": f"{origin}{path}",
            "upload": {
                "method": "PUT",
                "url": f"{origin}/storage{path}?X-Amz-Expires={int(TICKET_SECONDS)}&X-Amz-Signature={signature}",
                "headers": {"Content-Type": content_type, "If-None-Match": "*"},
                "expires_at": iso(ticket.expires_at),
            },
        }
    )


def _storage_error(status: int, code: str, message: str) -> web.Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


async def upload_put(exchange: Exchange) -> web.Response:
    """`PUT /storage/media/...`: store the file of a ticket; errors look like those of an object store."""
    service, request, now = exchange.service, exchange.request, exchange.now
    path = request.path.removeprefix("/storage")
    signature = parse_qs(request.query_string).get("X-Amz-Signature", [""])[0]
    ticket = service.media.redeem(signature, path, now)
    if "Authorization" in request.headers:
        return _storage_error(_BAD_REQUEST, "InvalidArgument", "Only one auth mechanism allowed")
    # Before the body is read, which may be as large as the largest file: no key is needed to send one.
    if ticket is None:
        return _storage_error(_FORBIDDEN, "AccessDenied", "Request has expired or the signature does not match")
    if "Content-Encoding" in request.headers:
        return _storage_error(_BAD_REQUEST, "InvalidArgument", "Content-Encoding was not signed")
    content = await exchange.read()
    if request.headers.get("Content-Type") != ticket.content_type:
        return _storage_error(_FORBIDDEN, "SignatureDoesNotMatch", "Content-Type differs from the signed one")
    if len(content) != ticket.size:
        return _storage_error(_BAD_REQUEST, "IncompleteBody", "The body is not as long as was announced")
    if request.headers.get("If-None-Match") == "*" and service.media.upload(path, now) is not None:
        return _storage_error(_PRECONDITION_FAILED, "PreconditionFailed", "The object exists already")
    try:
        upload = service.media.put(path, content, ticket.content_type, now)
    except StorageFullError:
        return _storage_error(_INSUFFICIENT_STORAGE, "QuotaExceeded", "The storage quota is used up")
    return web.Response(headers={"ETag": f'"{upload.digest[:_TAG_CHARS]}"'})


async def upload_binary(exchange: Exchange) -> web.Response:
    """`POST /api/v3/media/upload/binary`: store the multipart field `file`."""
    exchange.account()
    service, request, now = exchange.service, exchange.request, exchange.now
    if not request.content_type.startswith("multipart/"):
        raise RefusedError(_BAD_REQUEST, "Invalid request body: multipart/form-data is expected")
    try:
        part = await _file_part(exchange)
    except (ValueError, HttpProcessingError):
        raise RefusedError(_BAD_REQUEST, "Invalid request body: malformed multipart") from None
    if part is None:
        raise RefusedError(_BAD_REQUEST, "Missing parameter: file is required")
    filename, declared_type, content = part
    found = media_kind(filename, declared_type)
    if found is None:
        return _upload_failed("invalid file type")
    kind, content_type = found
    path = service.media.new_path(kind, filename, now)
    try:
        service.media.put(path, content, content_type, now)
    except StorageFullError:
        return _upload_failed("storage quota exceeded")
    data: Json = {
        "type": kind,
        "download_url": f"{exchange.site.origin}{path}",
        "filename": filename,
        "size": len(content),
    }
    return exchange.site.persona.ok(data)


async def _file_part(exchange: Exchange) -> tuple[str, str | None, bytes] | None:
    """Return file name, declared media type and content of the multipart field `file`; None without that field."""
    line = exchange.service.line
    flow = None if line is None else line.upstream()
    async for part in await exchange.request.multipart():
        if not isinstance(part, aiohttp.BodyPartReader) or part.name != "file":
            continue
        content = bytearray()
        while chunk := await part.read_chunk(_CHUNK_BYTES):
            content += chunk
            if flow is not None:
                await flow.carry(len(chunk))
            if len(content) > exchange.service.rules.max_upload_bytes:
                raise RefusedError(_TOO_LARGE, "File too large")
        content_type = part.headers.get("Content-Type")
        if content_type == "application/octet-stream":
            content_type = None
        return PurePosixPath(part.filename or "file").name, content_type, bytes(content)
    return None


async def upload_get(exchange: Exchange) -> web.Response:
    """`GET /media/...`: return an uploaded file, without authentication."""
    upload = exchange.service.media.upload(exchange.request.path, exchange.now)
    content = None if upload is None else exchange.service.media.content(upload.digest)
    if upload is None or content is None:
        return web.Response(status=_NOT_FOUND, text="Not found")
    return file_response(exchange.request, content, upload.content_type, upload.digest[:_TAG_CHARS])


async def output(exchange: Exchange) -> web.Response:
    """`GET /output/...`: return a video, without authentication; it is rendered on the first request."""
    service = exchange.service
    prediction = service.store.by_output(exchange.request.match_info["file"], exchange.now)
    if prediction is None:
        return web.Response(status=_NOT_FOUND, text="Not found")
    if prediction.model.suffix == ".png":
        return file_response(exchange.request, TINY_PNG, "image/png", _TINY_TAG)
    if service.rules.tiny or service.renderer is None:
        return file_response(exchange.request, TINY_MP4, "video/mp4", _TINY_TAG)
    content = await _render(exchange, prediction)
    return file_response(exchange.request, content, "video/mp4", hashlib.sha256(content).hexdigest()[:_TAG_CHARS])


async def _render(exchange: Exchange, prediction: Prediction) -> bytes:
    from .renderer import RenderingStoppedError, Scene  # noqa: PLC0415 -- PyAV and Pillow are optional

    service = exchange.service
    video = prediction.inputs.get("video")
    pictures = tuple(content for digest in prediction.pictures if (content := service.media.content(digest)))
    scene = Scene(
        pictures=pictures,
        seconds=prediction.length,
        resolution=str(prediction.inputs.get("resolution", prediction.model.resolution)),
        size=service.rules.resolution,
        prompt=str(prediction.inputs.get("prompt", "")),
        clip=await _clip(exchange, video) if isinstance(video, str) else None,
        sound=prediction.inputs.get("sound") is True,
    )
    if service.renderer is None:
        raise RefusedError(_NOT_FOUND)
    try:
        return await service.renderer.video(scene)
    except RenderingStoppedError:
        raise RefusedError(_UNAVAILABLE) from None


async def _clip(exchange: Exchange, url: str) -> bytes | None:
    """Return the video that is to be extended; None if it is on another host, or gone."""
    service, now = exchange.service, exchange.now
    path = own_path(url, service.origins) or ""
    made = service.store.by_output(path.removeprefix("/output/"), now)
    if made is not None:
        return await _render(exchange, made)
    upload = service.media.upload(path, now)
    return None if upload is None else service.media.content(upload.digest)
