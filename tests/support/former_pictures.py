"""Pictures that earlier versions encoded otherwise, and the ledgers in which these versions paid for them.

The ledgers lie in `tests/resume/data`; `make_former_pictures.py` beside them made them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from PIL import Image, ImageCms

from kling_async import Job
from kling_async.manifest import read_rows
from support.looks import cut_out, encoded, halves, ramp, swapped_profile

DATA: Final = Path(__file__).parents[1] / "resume" / "data"
LEDGERS: Final = {rule: DATA / f"pictures_of_rule_{rule}.db" for rule in (1, 2)}
"""Completed batches without keys, by the identity rule of the version that made them."""
BATCH: Final = "spring"


def _turned() -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = 6
    return made


def _undated(profile: bytes) -> bytes:
    """Return a profile without the time at which it was made, so that it is always the same."""
    return profile[:24] + bytes(12) + profile[36:]


def row_pictures() -> dict[str, bytes]:
    """Return picture files for rows that are converted, by prompt."""
    shown, other = halves(), _undated(swapped_profile())
    srgb = _undated(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    clear = cut_out()
    return {
        "JPEG turned": encoded(shown, "JPEG", exif=_turned()),
        "JPEG turned, in sRGB": encoded(shown, "JPEG", exif=_turned(), icc_profile=srgb),
        "JPEG turned, of another space": encoded(shown, "JPEG", exif=_turned(), icc_profile=other),
        "JPEG of printing, turned": encoded(shown.convert("CMYK"), "JPEG", exif=_turned()),
        "WebP": encoded(shown, "WEBP"),
        "WebP in sRGB": encoded(shown, "WEBP", icc_profile=srgb),
        "WebP of another space": encoded(shown, "WEBP", icc_profile=other),
        "WebP, hidden colours": encoded(clear, "WEBP", lossless=True, exact=True),
        "WebP, hidden colours of another space": encoded(clear, "WEBP", lossless=True, exact=True, icc_profile=other),
        "TIFF of another space": encoded(shown, "TIFF", icc_profile=other),
        "TIFF turned": encoded(shown, "TIFF", exif=_turned()),
        "TIFF of 16 bits": encoded(ramp("I;16", (0, 0x8000, 0xFFFF)), "TIFF"),
        "TIFF of 32 bits": encoded(ramp("I", (0, 0x8000, 0xFFFF)), "TIFF"),
        "TIFF of fractions": encoded(ramp("F", (0.0, 0.5, 1.0)), "TIFF"),
        "TIFF in Lab": encoded(shown.convert("LAB"), "TIFF"),
        "GIF": encoded(shown.quantize(8), "GIF"),
        "GIF, transparent": encoded(shown.quantize(8), "GIF", transparency=0),
        "BMP": encoded(shown, "BMP"),
    }


def opened_pictures() -> dict[str, Image.Image]:
    """Return PIL images that nothing has decoded yet, by prompt."""
    shown = halves()
    files = {
        "PIL image of a TIFF, turned": encoded(shown, "TIFF", exif=_turned()),
        "PIL image of a JPEG, turned": encoded(shown, "JPEG", exif=_turned()),
        "PIL image of another space": encoded(shown, "PNG", icc_profile=_undated(swapped_profile())),
        "PIL image, hidden colours": encoded(cut_out(), "PNG"),
        "PIL image of an animation": _animation(),
    }
    opened: dict[str, Image.Image] = {name: Image.open(io.BytesIO(file)) for name, file in files.items()}
    opened["PIL image of an animation"].seek(1)
    return opened


def _animation() -> bytes:
    frames = [cut_out().rotate(angle) for angle in (0, 90)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2)


async def jobs() -> list[Job]:
    """Return the jobs of the ledgers: rows with `fit`, and PIL images; none has a key."""
    rows = read_rows([{"image": picture, "prompt": name} for name, picture in row_pictures().items()], fit=True)
    of_rows = [job async for _, job in rows]
    return of_rows + [Job(prompt=name, image=image) for name, image in opened_pictures().items()]
