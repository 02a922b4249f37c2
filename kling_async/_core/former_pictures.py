"""Pictures as versions with the identity rules 1 and 2 encoded them (needs Pillow). Nothing here is ever changed.

The batches that they began know a picture by the digest of these bytes; under another one it would be paid for again.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Final, cast

from PIL import Image, ImageCms, ImageOps

from .images import EncodedImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL.Image import Image as Picture

MAX_FORMER_PIXELS: Final = 80_000_000
"""Greatest number of pixels of a picture that these versions converted."""
FORMER_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""Formats that they read, as Pillow names them."""
_MAX_BYTES: Final = 10 * 1024 * 1024
_MIN_SIDE: Final = 300
_MAX_SIDE: Final = 4096
_MANY_PIXELS: Final = 25_000_000
_SHRINKABLE_MODES: Final = frozenset({"RGB", "RGBA", "L", "LA", "CMYK"})
_QUALITY: Final = 95
_LEVELS_16: Final = 2**16
_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_ORIENTATION: Final = 0x0112
_TRANSPOSED: Final = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


def with_former(content: bytes, former: Mapping[int, bytes]) -> EncodedImage:
    """Return an image with the digests of what earlier versions made of it.

    Args:
        content: The image as it is encoded now.
        former: The bytes that were made of it then, by identity rule; empty where it was refused.
    """
    others = {rule: each for rule, each in former.items() if each not in {b"", content}}
    return EncodedImage(content, {rule: hashlib.sha256(each).hexdigest() for rule, each in others.items()})


def former_orientation(image: Picture) -> object:
    """Return the orientation that these versions read of a PIL image, before they decoded it."""
    return image.getexif().get(_ORIENTATION)


def former_pil_image(image: Picture, mode: str, orientation: object) -> bytes:
    """Return the bytes that both rules made of a PIL image; empty if it was refused.

    Args:
        image: The image; it may be decoded, which turns a TIFF.
        mode: Its mode before it was decoded.
        orientation: Its orientation before it was decoded.
    """
    buffer = io.BytesIO()
    try:
        transpose = _TRANSPOSED.get(cast("int", orientation))
        upright = image if transpose is None else image.transpose(Image.Transpose(transpose))
        flat = upright if (mode if upright is image else upright.mode) in {"RGB", "L"} else upright.convert("RGB")
        flat.save(buffer, "PNG")
        if buffer.tell() > _MAX_BYTES:
            buffer = io.BytesIO()
            flat.save(buffer, "JPEG", quality=_QUALITY)
    except Exception:  # noqa: BLE001 -- Pillow raises many kinds
        return b""
    return buffer.getvalue() if buffer.tell() <= _MAX_BYTES else b""


def former_bytes(content: bytes, rule: int) -> bytes:
    """Return the bytes that a rule made of image bytes in a row that had to be converted; empty if they were refused.

    Args:
        content: The image, of at most `MAX_FORMER_PIXELS`.
        rule: The identity rule: 1 or 2.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMER_FORMATS) as image:
            image.draft(None, (_MAX_SIDE, _MAX_SIDE))
            if rule > 1 and image.width * image.height > _MANY_PIXELS and image.mode in _SHRINKABLE_MODES:
                image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
            upright = ImageOps.exif_transpose(image)
            picture = _opaque(upright) if rule == 1 else _on_white(_in_eight_bits(upright))
            profile = image.info.get("icc_profile") if rule == 1 and image.mode == "RGB" else None
        encoded = _jpeg(picture, profile)
        while len(encoded) > _MAX_BYTES:
            picture = _smaller(picture)
            encoded = _jpeg(picture, profile)
    except Exception:  # noqa: BLE001 -- hostile files let Pillow raise many kinds
        return b""
    return encoded


def _opaque(image: Picture) -> Picture:
    """Return an image as rule 1 flattened it: its profile is kept, and levels of 32 bits are clipped."""
    if image.mode.startswith("I;16"):
        image = image.convert("I").point([value >> 8 for value in range(_LEVELS_16)], "L")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(ground, picture).convert("RGB")
    return image if image.mode in {"RGB", "L"} else image.convert("RGB")


def _in_eight_bits(image: Picture) -> Picture:
    if image.mode.startswith("I;16"):
        return _with_info(image.convert("I").point([level >> 8 for level in range(_LEVELS_16)], "L"), image)
    if image.mode not in {"I", "F"}:
        return image
    least, most = cast("tuple[float, float]", image.getextrema())
    scales = ((1.0,) if image.mode == "F" else ()) + (255.0, _LEVELS_16 - 1.0)
    low, high = next(((0.0, scale) for scale in scales if least >= 0 and most <= scale), (least, most))
    factor = 255.0 / (high - low or 1.0)
    return _with_info(image.convert("F").point(lambda level: level * factor - low * factor).convert("L"), image)


def _on_white(image: Picture) -> Picture:
    if not image.has_transparency_data:
        return _in_srgb(image)
    picture = image.convert("RGBA")
    alpha = picture.getchannel("A")
    ground = Image.new("RGB", picture.size, "white")
    ground.paste(_in_srgb(_with_info(picture.convert("RGB"), image)), mask=alpha)
    return ground


def _in_srgb(image: Picture) -> Picture:
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
    picture.info["icc_profile"] = image.info.get("icc_profile")
    return picture


def _jpeg(picture: Picture, profile: bytes | None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, icc_profile=profile)
    return buffer.getvalue()


def _smaller(picture: Picture) -> Picture:
    longest, shortest = max(picture.size), min(picture.size)
    scale = max(min(_MAX_SIDE / longest, 0.8), _MIN_SIDE / shortest)
    if scale >= 1:
        raise ValueError
    width, height = (max(_MIN_SIDE, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)
