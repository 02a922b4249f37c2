"""Convert images that the service would refuse, with Pillow (extra `images`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageOps

from kling_async._core.images import MAX_IMAGE_BYTES, MIN_IMAGE_SIDE

from .preflight import invalid

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_CONVERTED_SIDE_PX: Final = 4096
"""Pixels of the longer side of an image that is made smaller; a video has fewer than 2,000."""
_JPEG_QUALITY: Final = 95
_RESIZE_FACTOR: Final = 0.8
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def convert(content: bytes, *, field: str = "image") -> bytes:
    """Return an image as a JPEG of at most 10 MB: rotated as its EXIF data says, with transparency on white.

    An animation becomes its first frame. The image is made smaller only if it has too many bytes, or far more pixels
    than any video.

    Args:
        content: The whole file, in a format that Pillow reads.
        field: Name of the field in errors.

    Raises:
        InvalidJobError: It cannot be decoded, or has more than 10 MB at the least size that the service takes.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            # Decodes a large JPEG at a smaller size; other formats ignore it.
            image.draft(None, (MAX_CONVERTED_SIDE_PX, MAX_CONVERTED_SIDE_PX))
            picture = _opaque(ImageOps.exif_transpose(image))
            profile = image.info.get("icc_profile") if image.mode == "RGB" else None
        encoded = _encode(picture, profile)
        while len(encoded) > MAX_IMAGE_BYTES:
            picture = _resize(picture)
            encoded = _encode(picture, profile)
    except Exception as error:  # noqa: BLE001 -- hostile files let Pillow raise many kinds
        raise invalid(field, f"cannot be converted: {type(error).__name__}: {error}") from None
    return encoded


def _opaque(image: Picture) -> Picture:
    if image.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey to 8 bits.
        image = image.convert("I").point([value >> 8 for value in range(65_536)], "L")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return image if image.mode in {"RGB", "L"} else image.convert("RGB")


def _encode(picture: Picture, profile: bytes | None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, icc_profile=profile)
    return buffer.getvalue()


def _resize(picture: Picture) -> Picture:
    """Return a picture at a smaller size.

    Raises:
        ValueError: The service would refuse a smaller one.
    """
    longest, shortest = max(picture.size), min(picture.size)
    scale = max(min(MAX_CONVERTED_SIDE_PX / longest, _RESIZE_FACTOR), MIN_IMAGE_SIDE / shortest)
    if scale >= 1:
        raise ValueError("expected at most 10 MB, got more at the least size that the service takes")
    width, height = (max(MIN_IMAGE_SIDE, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
