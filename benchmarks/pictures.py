"""Send every picture of some source distributions through `fit`, and compare what is sent with what a viewer shows.

    python -m pip download --no-binary :all: --no-deps -d FOLDER pillow pillow-heif imagesize imageio exifread thumbor
    python benchmarks/pictures.py FOLDER

The reference is Pillow's upright picture, over white, in sRGB, made here without the package. Needs numpy and
pillow-heif. Prints a line for each picture that differs or is refused, and the figures; exits with 1 if one differs.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import tarfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps

from kling_async import InvalidJobError
from kling_async._core.media import ACCEPTED_IMAGE_TYPES
from kling_async._core.picture_facts import media_type
from kling_async._core.pixels import as_shown
from kling_async._images.convert import _opened, convert, needs_conversion, verify
from kling_async._images.preflight import preflight

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".avif",
        ".avifs",
        ".heic",
        ".heif",
        ".hif",
    ]
)
MAX_MEAN = 1.5
"""Levels of 255 by which a sent picture may differ on average."""
MAX_LEVELS = 2
"""Levels of 255 by which a pixel may differ before encoding."""
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}


def reference(content: bytes) -> np.ndarray[Any, Any]:
    """Return the pixels of a picture as a viewer shows it, as floats of 0 to 255."""
    with Image.open(io.BytesIO(content)) as opened:
        image = ImageOps.exif_transpose(opened)
    profile = image.info.get("icc_profile")
    alpha = np.full((image.height, image.width, 1), 255.0)
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.float32)
        if image.mode.startswith("I;16"):
            if "transparency" in image.info:
                alpha = np.where(levels == image.info["transparency"], 0.0, 255.0)[..., None]
            top, low = 65536.0, 0.0
        else:
            tops = [top for top in (1.0, 255.0, 65535.0) if levels.min() >= 0 and levels.max() <= top]
            tops = [top for top in tops if image.mode == "F" or top > 1]
            low, top = (0.0, tops[0]) if tops else (levels.min(), levels.max())
        image = Image.fromarray(((levels - low) / ((top - low) or 1.0) * 255).clip(0, 255).astype(np.uint8))
    elif image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        alpha = np.asarray(with_alpha)[..., 3:].astype(np.float32)
        image = with_alpha.getchannel(0) if image.mode in {"L", "LA"} else with_alpha.convert("RGB")
    elif image.mode not in {"RGB", "L", "CMYK", "LAB"}:
        image = image.convert("RGB")
    shown = in_srgb(image, profile)
    return np.asarray(shown).astype(np.float32) * (alpha / 255) + 255 * (1 - alpha / 255)


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an image in sRGB by a profile of its own colour space."""
    space = profile[16:20].decode("latin-1") if profile else ""
    if image.mode != SPACES.get(space):
        return image.convert("RGB")
    try:
        transform = ImageCms.buildTransform(
            io.BytesIO(profile or b""), ImageCms.createProfile("sRGB"), image.mode, "RGB"
        )
    except ImageCms.PyCMSError:
        return image.convert("RGB")
    return ImageCms.applyTransform(image, transform) or image.convert("RGB")


def sent(content: bytes) -> bytes:
    """Return what a session with `fit` sends; the least size of pictures, which most of these have not, is left out."""
    if media_type(content[:64]) in ACCEPTED_IMAGE_TYPES and not needs_conversion(content):
        verify(content)
        return content
    return convert(content)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the pixels of an RGB or grey image as floats."""
    return np.asarray(image.convert("RGB")).astype(np.float32)


def differences(content: bytes) -> tuple[float, float]:
    """Return the greatest difference before encoding, and the mean difference as sent.

    Raises:
        InvalidJobError: It is refused.
    """
    result = sent(content)
    expected = reference(content)
    with _opened(io.BytesIO(content)) as opened:
        before = pixels(as_shown(opened))
    with Image.open(io.BytesIO(result)) as opened:
        after = pixels(opened)
    if after.shape != expected.shape:
        height, width = after.shape[:2]
        small = Image.fromarray(expected.round().astype(np.uint8)).resize((width, height), Image.Resampling.LANCZOS)
        return float(np.abs(before - expected).max()), float(np.abs(after - pixels(small)).mean())
    return float(np.abs(before - expected).max()), float(np.abs(after - expected).mean())


def pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every picture in the archives of a folder."""
    for path in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if Path(member.name).suffix.lower() in SUFFIXES else None
                if file is not None:
                    yield member.name, file.read()


def main() -> int:
    """Sweep the pictures, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only-convert", action="store_true", help="without references, for the memory")
    options = parser.parse_args()
    pillow_heif.register_heif_opener()
    Image.MAX_IMAGE_PIXELS = None
    warnings.simplefilter("ignore")
    results: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    worst_level, worst_mean, seconds, slowest = 0.0, 0.0, 0.0, (0.0, "")
    for name, content in pictures(options.folder):
        began = time.process_time()
        try:
            sent(content)
        except InvalidJobError as error:
            reason = refusal(content, error)
            results["refused"] += 1
            reasons[reason.partition(":")[0]] += 1
            print(f"refused {name}: {reason}")
            continue
        finally:
            spent = time.process_time() - began
            seconds += spent
            slowest = max(slowest, (spent, name))
        if options.only_convert:
            results["converted"] += 1
            continue
        try:
            level, mean = differences(content)
        except Exception as error:  # noqa: BLE001 -- the reference may fail in any way, and the sweep goes on
            results["without a reference"] += 1
            print(f"no reference {name}: {type(error).__name__}: {error}")
            continue
        well = level <= MAX_LEVELS and mean <= MAX_MEAN
        results["equal" if well else "DIFFERENT"] += 1
        worst_level, worst_mean = max(worst_level, level), max(worst_mean, mean)
        if not well:
            print(f"DIFFERENT {name}: {level:.1f} levels before encoding, {mean:.2f} on average as sent")
    print(f"{sum(results.values())} pictures: {dict(results)}; refusals: {dict(reasons)}")
    print(f"greatest difference before encoding {worst_level:.1f}, greatest mean as sent {worst_mean:.2f} of 255")
    print(f"conversion: {seconds:.1f} s of processor, slowest {slowest[0]:.2f} s ({slowest[1]})")
    print(f"greatest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")
    return 1 if results["DIFFERENT"] else 0


def refusal(content: bytes, error: InvalidJobError) -> str:
    """Return why a picture is refused: by its first bytes, or by its decoding."""
    try:
        preflight(content, fit=True)
    except InvalidJobError as early:
        if "300x300" not in early.problems[0].message:
            error = early
    return error.problems[0].message


if __name__ == "__main__":
    sys.exit(main())
