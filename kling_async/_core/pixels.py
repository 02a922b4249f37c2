"""Pictures as a viewer shows them: upright, of 8 bits a channel, on a ground, with colours in sRGB (needs Pillow)."""

from __future__ import annotations

import io
import math
import statistics
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Final, cast

from PIL import Image, ImageChops, ImageCms, ImageStat

from .former_pictures import former_orientation, former_pil_image, with_former
from .images import EncodedImage
from .media import MAX_IMAGE_BYTES, MIN_IMAGE_SIDE

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_CONVERTED_SIDE_PX: Final = 4096
"""Pixels of the longer side of an image that is made smaller; a video has fewer than 2,000."""
MAX_LOSS: Final = 1.4
"""Levels of 255 by which a JPEG may differ on average: 1.5 are promised, of which rounding takes a little."""
_JPEG_QUALITY: Final = 95
_RESIZE_FACTOR: Final = 0.8
_LEVELS_16: Final = 2**16
_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Mode of Pillow by the colour space of a profile."""
_ROUNDING: Final = 2
"""Levels of 255 by which conversions between equal colour spaces differ."""
_ORIENTATION: Final = 0x0112
"""Tag of EXIF data."""
_TRANSPOSED: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that undoes each orientation."""


def as_shown(image: Picture, background: str = "white") -> Picture:
    """Return an image as a viewer shows it, in the mode RGB or L and without a profile that has to be applied.

    * It is rotated and mirrored as its EXIF data says, whatever type the number there has.
    * 16-bit grey is divided by 256: the file says how deep it is, and a dark picture stays dark. Integers of 32 bits
      and floating-point levels have no white of their own: levels within 0 to 1 (floating point only), else within 0
      to 255, else within 0 to 65,535 are taken for that scale; any others are stretched, least to greatest.
    * Colours are converted to sRGB by their profile. A profile of another colour space than the image is ignored.
    * Transparency is laid on a ground.

    Args:
        image: The image; it is left as it is.
        background: Colour of the ground, as Pillow names it: "white", "#f0f0f0".

    Raises:
        OSError: The pixels cannot be decoded.
        ValueError: A level is infinite or no number.
    """
    return _on_ground(_in_eight_bits(_upright(image)), background)


def is_as_shown(image: Picture) -> bool:
    """Return whether an image is as a viewer shows it already; a PNG is decoded: its EXIF data may be at the end."""
    return _orientation(image) not in _TRANSPOSED and _is_plain(image)


def encoded(image: Picture) -> EncodedImage:
    """Return a PIL image as a viewer shows it, as a PNG, or as a JPEG of quality 95 if that has more than 10 MB.

    What earlier versions encoded in the same way has the same bytes.

    Raises:
        OSError: The pixels cannot be decoded.
        ValueError: A level is infinite, or the image cannot be made small enough.
    """
    before = _as_opened(image)
    upright = _upright(image)
    if _is_plain(upright) and (upright is image or isinstance(image.getexif().get(_ORIENTATION), int)):
        # With its profile, as ever.
        content = _png_or_jpeg(upright if upright.mode in {"RGB", "L"} else upright.convert("RGB"))
        if before == _as_opened(image):
            return EncodedImage(content)
    else:
        content = _png_or_jpeg(as_shown(image), icc_profile=None)
    former = b"" if before is None else former_pil_image(image, *before)
    return with_former(content, {1: former, 2: former})


def fitted(picture: Picture) -> bytes:
    """Return a picture as a JPEG of quality 95, or as a PNG where a JPEG would be another picture: at most 10 MB.

    It is made smaller only if it has more bytes. A JPEG loses what palettes, dithering and small graphics are made of.

    Args:
        picture: The picture, as it is shown.

    Raises:
        ValueError: It cannot be made small enough.
    """
    content = _jpeg(picture)
    while len(content) > MAX_IMAGE_BYTES:
        picture = _smaller(picture)
        content = _jpeg(picture)
    if _loss(picture, content) <= MAX_LOSS:
        return content
    exact = _png(picture, icc_profile=None)
    return content if exact is None else exact


@lru_cache(64)
def is_srgb(profile: bytes, mode: str = "RGB") -> bool:
    """Return whether a profile shows the levels of an image as sRGB does; False if it is broken or of another space.

    Args:
        profile: The ICC profile.
        mode: Mode of the image, "RGB" or "L".
    """
    levels = bytes(range(0, 256, 51))
    probe = Image.frombytes("RGB", (6, 36), bytes(level for colour in product(levels, repeat=3) for level in colour))
    probe = probe if mode == "RGB" else probe.getchannel(0)
    shown = _by_profile(probe, profile)
    if shown is None:
        return False
    extrema = cast("tuple[tuple[int, int], ...]", ImageChops.difference(shown, probe.convert("RGB")).getextrema())
    return max(most for _, most in extrema) <= _ROUNDING


def _is_plain(image: Picture) -> bool:
    """Return whether the pixels of an image need no conversion."""
    profile = image.info.get("icc_profile")
    opaque = image.mode in {"RGB", "L", "P", "1"} and not image.has_transparency_data
    return opaque and (not profile or is_srgb(profile, "L" if image.mode in {"L", "1"} else "RGB"))


def _as_opened(image: Picture) -> tuple[str, object] | None:
    """Return the mode and orientation of an image, which decoding may change; None if they cannot be read."""
    try:
        orientation = former_orientation(image)
    except Exception:  # noqa: BLE001 -- hostile EXIF data lets Pillow raise many kinds
        return None
    return image.mode, orientation


def _upright(image: Picture) -> Picture:
    image.load()
    orientation = _orientation(image)
    return image.transpose(_TRANSPOSED[orientation]) if orientation in _TRANSPOSED else image


def _orientation(image: Picture) -> int:
    """Return the EXIF orientation; 1 without one, or with one that makes no sense."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
        # Writers store it as a list, a fraction, a text and a byte, too.
        while isinstance(value, (tuple, list)):
            value = value[0]
        if isinstance(value, bytes):
            value = value[0] if value[0] in _TRANSPOSED else value.decode("ascii")
        number = float(value.strip("\0 ") if isinstance(value, str) else value)
        return int(number) if number in _TRANSPOSED else 1
    except Exception:  # noqa: BLE001 -- hostile EXIF data lets Pillow raise many kinds; viewers ignore it
        return 1


def _in_eight_bits(image: Picture) -> Picture:
    """Return an image with 8 bits per channel; Pillow would clip the levels of deeper ones."""
    if image.mode.startswith("I;16"):
        wide = image.convert("I")
        picture = _with_info(wide.point([level >> 8 for level in range(_LEVELS_16)], "L"), image)
        clear = image.info.get("transparency")
        if not isinstance(clear, int):
            return picture
        picture.putalpha(wide.point([255 * (level != clear) for level in range(_LEVELS_16)], "L"))
        return picture
    if image.mode not in {"I", "F"}:
        return image
    least, most = cast("tuple[float, float]", image.getextrema())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError("expected finite levels, got infinite ones or some that are no numbers")
    # Fractions, levels of 8 and of 16 bits; anything else is stretched to its own range.
    scales = ((1.0,) if image.mode == "F" else ()) + (255.0, _LEVELS_16 - 1.0)
    low, high = next(((0.0, scale) for scale in scales if least >= 0 and most <= scale), (least, most))
    factor = 255.0 / (high - low or 1.0)
    return _with_info(image.convert("F").point(lambda level: level * factor - low * factor).convert("L"), image)


def _on_ground(image: Picture, background: str) -> Picture:
    """Return an image in sRGB, with transparency on a ground."""
    if not image.has_transparency_data:
        return _in_srgb(image)
    # Pillow knows no way from premultiplied grey to colours.
    picture = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = picture.getchannel("A")
    ground = Image.new("RGB", picture.size, background)
    grey = image.mode in {"L", "LA", "La"}
    colours = _with_info(picture.getchannel(0) if grey else picture.convert("RGB"), image)
    ground.paste(_in_srgb(colours).convert("RGB"), mask=alpha)
    return ground


def _in_srgb(image: Picture) -> Picture:
    """Return an image as RGB or grey in sRGB; its profile is ignored where it does not fit."""
    profile = image.info.get("icc_profile")
    if image.mode == "LAB":
        return _by_profile(image, profile) or _by_lab(image)
    plain = image if image.mode in {"RGB", "L"} else image.convert("RGB")
    if not profile:
        return plain
    return _by_profile(plain if image.mode == "P" else image, profile) or plain


def _by_profile(image: Picture, profile: bytes | None) -> Picture | None:
    """Return an image in sRGB by a profile; None if that is broken, or of another colour space."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        if image.mode != _MODES.get(str(getattr(source.profile, "xcolor_space", "")).strip()):
            return None
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ImportError):
        return None


def _by_lab(image: Picture) -> Picture:
    shown = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    if shown is None:  # pragma: no cover -- only a conversion in place returns None
        raise ValueError("cannot be converted from LAB")
    return shown


def _with_info(picture: Picture, image: Picture) -> Picture:
    """Return a picture with the profile of the image that it was made from."""
    picture.info = {"icc_profile": image.info.get("icc_profile")}
    return picture


def _jpeg(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    # Pillow would write the profile of the original.
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, icc_profile=None)
    return buffer.getvalue()


def _smaller(picture: Picture) -> Picture:
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


def _loss(picture: Picture, content: bytes) -> float:
    """Return the levels of 255 by which a picture differs from its encoded form on average."""
    with Image.open(io.BytesIO(content)) as seen:
        return statistics.mean(ImageStat.Stat(ImageChops.difference(picture, seen)).mean)


def _png_or_jpeg(picture: Picture, **options: None) -> bytes:
    """Return a picture as a PNG, saved with these options; as a JPEG of at most 10 MB if that has more."""
    content = _png(picture, **options)
    if content is not None:
        return content
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue() if buffer.tell() <= MAX_IMAGE_BYTES else fitted(_smaller(picture))


def _png(picture: Picture, **options: None) -> bytes | None:
    """Return a picture as a PNG, saved with these options; None if that has more than 10 MB."""
    content = _Capped(MAX_IMAGE_BYTES)
    try:
        picture.save(content, "PNG", **options)
    except _FullError:
        return None
    return content.getvalue()


class _FullError(Exception):
    """More was written than a buffer takes."""


class _Capped(io.BytesIO):
    """Buffer of limited length, so that no time is spent on the rest of a PNG that is too large."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: object, /) -> int:
        written = super().write(cast("bytes", data))
        if self.tell() > self._most:
            raise _FullError
        return written
