"""Small real pictures."""

from __future__ import annotations

import io

from PIL import Image


def png(width: int = 400, height: int = 300, colour: tuple[int, int, int] = (200, 120, 40)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(width: int = 400, height: int = 300, colour: tuple[int, int, int] = (40, 120, 200)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def encoded(kind: str, width: int = 400, height: int = 300) -> bytes:
    """Return an image in any format of Pillow's."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 160, 90)).save(buffer, kind)
    return buffer.getvalue()
