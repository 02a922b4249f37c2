"""Pictures that are hard to show right, made here, each with the levels that a viewer shows at some places."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final, TypeAlias

import attrs
import pillow_heif
from PIL import Image, ImageCms

Colour: TypeAlias = tuple[int, int, int]

WHITE: Final = (255, 255, 255)
GREY: Final = (128, 128, 128)
SIZE: Final = (480, 320)
ORIENTATION: Final = 0x0112


@attrs.frozen
class Look:
    """A picture file, and what a viewer shows.

    Attributes:
        content: The file.
        size: Width and height, as shown.
        shown: Colours by place.
    """

    content: bytes = attrs.field(repr=False)
    size: tuple[int, int]
    shown: dict[tuple[int, int], Colour]


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as a file of a format of Pillow's."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(left: Colour = (200, 40, 40), right: Colour = (40, 40, 200)) -> Image.Image:
    """Return a picture whose left half has one colour, and its right half another."""
    picture = Image.new("RGB", SIZE, left)
    picture.paste(right, (240, 0, 480, 320))
    return picture


def exif(value: object, kind: int) -> bytes:
    """Return EXIF data with an orientation of any type of TIFF: 1 byte, 2 text, 3 short, 4 long, 5 fraction."""
    match kind, value:
        case 5, int():
            # Of 26 bytes before it: head, number of entries, one entry, end.
            field, rest = struct.pack("<I", 26), struct.pack("<II", value, 1)
            count = 1
        case 2, str():
            field, rest, count = f"{value}\0".encode().ljust(4, b"\0"), b"", len(value) + 1
        case 1, int():
            field, rest, count = bytes([value, 0, 0, 0]), b"", 1
        case _, int():
            field, rest, count = struct.pack("<I", value), b"", 1
        case _:
            raise ValueError(value)
    entry = struct.pack("<HHI", ORIENTATION, kind, count) + field
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + rest


def swapped_profile() -> bytes:
    """Return a profile under which red is shown as green, and green as red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)


def with_chunk(png: bytes, name: bytes, data: bytes, *, at_end: bool = False) -> bytes:
    """Return a PNG with one more chunk, after its head or before its end."""
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    place = len(png) - 12 if at_end else 33
    return png[:place] + chunk + png[place:]


def turned(content: bytes) -> Look:
    """Return the look of `halves` that its orientation 6 turns by a quarter, clockwise."""
    return Look(content, (320, 480), {(160, 100): (200, 40, 40), (160, 400): (40, 40, 200)})


def cut_out() -> Image.Image:
    """Return a picture whose transparent left half hides a colour, and whose right half is half transparent black."""
    picture = Image.new("RGBA", SIZE, (255, 0, 255, 0))
    picture.paste((0, 0, 0, 128), (240, 0, 480, 320))
    return picture


def ramp(mode: str, levels: tuple[float, float, float]) -> Image.Image:
    """Return a deep grey picture of three upright bars."""
    if mode == "I;16":
        row = b"".join(int(level).to_bytes(2, "little") * 160 for level in levels)
        return Image.frombytes(mode, SIZE, row * 320)
    picture = Image.new(mode, SIZE)
    for number, level in enumerate(levels):
        picture.paste(level, (160 * number, 0, 160 * number + 160, 320))
    return picture


def bars(content: bytes, *shades: int) -> Look:
    return Look(content, SIZE, {(160 * number + 80, 160): (shade,) * 3 for number, shade in enumerate(shades)})


def heic(picture: Image.Image, **options: object) -> bytes:
    """Return a picture as phones of one maker write it."""
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture).save(buffer, quality=90, **options)
    return buffer.getvalue()


def deep_rgb() -> bytes:
    """Return a PNG of 16 bits a channel, one level of which is transparent: left half, whose low bytes differ."""
    rows = b"".join(b"\0" + b"\x80\x01" * 3 * 240 + b"\x80\x00" * 3 * 240 for _ in range(320))
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IEND\xaeB`\x82"
    for name, data in (
        (b"IDAT", zlib.compress(rows)),
        (b"IHDR", struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)),
    ):
        chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        png = png[:8] + chunk + png[8:]
    return png


def worst() -> dict[str, Look]:
    """Return the pictures that are most often shown wrong, by name."""
    grey = encoded(ramp("I;16", (0, 0x8000, 0xFFFF)), "PNG")
    sideways = encoded(halves(), "PNG")
    tall = {(160, 100): (200, 40, 40), (160, 400): (40, 40, 200)}
    clear = Look(b"", SIZE, {(100, 160): WHITE, (400, 160): (127, 127, 127)})
    palette = Image.new("P", SIZE, 0)
    palette.putpalette([255, 0, 255, 0, 0, 0])
    palette.paste(1, (240, 0, 480, 320))
    return {
        "16-bit grey": bars(grey, 0, 128, 255),
        "16-bit grey with a transparent level": bars(with_chunk(grey, b"tRNS", b"\x80\x00"), 0, 255, 255),
        "16-bit colour": Look(deep_rgb(), SIZE, {(100, 160): GREY, (400, 160): GREY}),
        "floating point": bars(encoded(ramp("F", (0.0, 0.5, 1.0)), "TIFF"), 0, 127, 255),
        "hidden colours": attrs.evolve(clear, content=encoded(cut_out(), "PNG")),
        "transparent palette": Look(
            encoded(palette, "PNG", transparency=0), SIZE, {(100, 160): WHITE, (400, 160): (0, 0, 0)}
        ),
        "colours of printing": Look(
            encoded(Image.new("CMYK", SIZE, (0, 200, 200, 0)), "JPEG"), SIZE, {(9, 9): (255, 55, 55)}
        ),
        "profile of another space": Look(
            encoded(Image.new("RGB", SIZE, (200, 60, 60)), "PNG", icc_profile=swapped_profile()),
            SIZE,
            {(9, 9): (60, 200, 60)},
        ),
        "PNG turned at its end": turned(with_chunk(sideways, b"eXIf", exif(6, 3), at_end=True)),
        "JPEG turned by text": turned(encoded(halves(), "JPEG", exif=b"Exif\0\0" + exif("6", 2))),
        "JPEG turned by a fraction": turned(encoded(halves(), "JPEG", exif=b"Exif\0\0" + exif(6, 5))),
        "WebP turned by a byte": turned(encoded(halves(), "WEBP", exif=exif(6, 1))),
        "AVIF turned": turned(encoded(halves(), "AVIF", exif=exif(6, 3))),
        "HEIC turned": Look(heic(halves(), exif=exif(6, 3)), (320, 480), tall),
        "WebP with broken EXIF": Look(
            encoded(halves(), "WEBP", exif=b"II*\0\xff\xff\xff\xff"), SIZE, {(100, 160): (200, 40, 40)}
        ),
    }
