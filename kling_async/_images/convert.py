"""Images that the service would refuse, made to fit with Pillow (extra `images`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from PIL import Image, ImageOps

from kling_async._core.images import MAX_IMAGE_BYTES, MIN_IMAGE_SIDE

from .preflight import invalid

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_SIDE: Final = 4096
"""Pixels of the longer side of what had too many bytes; a video has fewer than 2,000."""
_QUALITY: Final = 95
_SHRINK: Final = 0.8
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def fitted(content: bytes, *, field: str = "image") -> bytes:
    """A JPEG of the image: upright as its EXIF data says, on white where it is transparent, of at most 10 MB.

    The first picture of an animation is taken. It is made smaller only when it has too many bytes, or far more pixels
    than any video.

    Args:
        content: The whole file, of a format that Pillow reads.
        field: How errors name it.

    Raises:
        InvalidJobError: It cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            # Only a JPEG can be decoded at less than its size; the others ignore it.
            image.draft(None, (MAX_SIDE, MAX_SIDE))
            picture = _flat(ImageOps.exif_transpose(image))
            profile = image.info.get("icc_profile") if image.mode == "RGB" else None
        encoded = _encoded(picture, profile)
        while len(encoded) > MAX_IMAGE_BYTES:
            picture = _smaller(picture)
            encoded = _encoded(picture, profile)
    except Exception as error:  # noqa: BLE001 -- hostile files let Pillow raise many kinds
        raise invalid(field, f"cannot be converted: {type(error).__name__}: {error}") from None
    return encoded


def _flat(image: Picture) -> Picture:
    if image.mode.startswith("I;16"):
        # 16 bits of grey: Pillow would cut off what is above 8 of them.
        image = image.convert("I").point([value >> 8 for value in range(65_536)], "L")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return image if image.mode in {"RGB", "L"} else image.convert("RGB")


def _encoded(picture: Picture, profile: bytes | None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, icc_profile=profile)
    return buffer.getvalue()


def _smaller(picture: Picture) -> Picture:
    """The picture at a smaller size, as long as the service takes it."""
    longest, shortest = max(picture.size), min(picture.size)
    scale = max(min(MAX_SIDE / longest, _SHRINK), MIN_IMAGE_SIDE / shortest)
    if scale >= 1:
        raise ValueError("it has more than 10 MB at the smallest size that is taken")
    width, height = (max(MIN_IMAGE_SIDE, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
