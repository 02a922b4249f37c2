"""Convert images that the service would refuse, with Pillow (extra `images`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, cast

from PIL import Image, ImageCms, ImageOps

from kling_async._core.images import MAX_IMAGE_BYTES, MIN_IMAGE_SIDE

from .preflight import invalid

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_CONVERTED_SIDE_PX: Final = 4096
"""Pixels of the longer side of an image that is made smaller; a video has fewer than 2,000."""
_MANY_PIXELS: Final = 25_000_000
_SHRINKABLE_MODES: Final = frozenset({"RGB", "RGBA", "L", "LA", "CMYK"})
_JPEG_QUALITY: Final = 95
_RESIZE_FACTOR: Final = 0.8
_LEVELS_16: Final = 2**16
_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Mode of Pillow by the colour space of a profile."""
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def convert(content: bytes, *, field: str = "image") -> bytes:
    """Return an image as a viewer shows it, as a JPEG of at most 10 MB in sRGB.

    It is rotated as its EXIF data says, with transparency on white, and without a colour profile.

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
            if image.width * image.height > _MANY_PIXELS and image.mode in _SHRINKABLE_MODES:
                # Before its copies are made: one whole takes up to 4 bytes a pixel.
                image.thumbnail((MAX_CONVERTED_SIDE_PX, MAX_CONVERTED_SIDE_PX), Image.Resampling.LANCZOS)
            picture = _on_white(_in_eight_bits(ImageOps.exif_transpose(image)))
        encoded = _encode(picture)
        while len(encoded) > MAX_IMAGE_BYTES:
            picture = _resize(picture)
            encoded = _encode(picture)
    except Exception as error:  # noqa: BLE001 -- hostile files let Pillow raise many kinds
        raise invalid(field, f"cannot be converted: {type(error).__name__}: {error}") from None
    return encoded


def _in_eight_bits(image: Picture) -> Picture:
    """Return an image with 8 bits per channel; Pillow would clip the levels of deeper ones."""
    if image.mode.startswith("I;16"):
        return _with_info(image.convert("I").point([level >> 8 for level in range(_LEVELS_16)], "L"), image)
    if image.mode not in {"I", "F"}:
        return image
    least, most = cast("tuple[float, float]", image.getextrema())
    # Fractions, levels of 8 and of 16 bits; anything else is stretched to its own range.
    scales = ((1.0,) if image.mode == "F" else ()) + (255.0, _LEVELS_16 - 1.0)
    low, high = next(((0.0, scale) for scale in scales if least >= 0 and most <= scale), (least, most))
    factor = 255.0 / (high - low or 1.0)
    return _with_info(image.convert("F").point(lambda level: level * factor - low * factor).convert("L"), image)


def _on_white(image: Picture) -> Picture:
    """Return an image in sRGB, with transparency on white."""
    if not image.has_transparency_data:
        return _in_srgb(image)
    picture = image.convert("RGBA")
    alpha = picture.getchannel("A")
    ground = Image.new("RGB", picture.size, "white")
    ground.paste(_in_srgb(_with_info(picture.convert("RGB"), image)), mask=alpha)
    return ground


def _in_srgb(image: Picture) -> Picture:
    """Return an image as RGB or grey in sRGB; its profile is ignored where it does not fit."""
    profile = image.info.get("icc_profile")
    plain = image if image.mode in {"RGB", "L"} else image.convert("RGB")
    if not profile:
        return plain
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        given = plain if image.mode == "P" else image
        if given.mode != _MODES.get(str(getattr(source.profile, "xcolor_space", "")).strip()):
            return plain
        converted = ImageCms.profileToProfile(given, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ImportError):
        return plain
    return plain if converted is None else converted


def _with_info(picture: Picture, image: Picture) -> Picture:
    """Return a picture with the profile of the image that it was made from."""
    picture.info["icc_profile"] = image.info.get("icc_profile")
    return picture


def _encode(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    # Pillow would write the profile of the original.
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, icc_profile=None)
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
