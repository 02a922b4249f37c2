"""Pictures for those who have none at hand: posters of landscapes, painted, the same every time."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final, TypeAlias

from PIL import Image, ImageChops, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

Colour: TypeAlias = tuple[int, int, int]

_WIDE: Final = (1280, 720)
_TALL: Final = (832, 1104)
_SQUARE: Final = (960, 960)
_SMOOTH: Final = 2
"""Painted this much larger and then reduced: edges without steps."""


def paint(folder: Path) -> list[Path]:
    """Paint all pictures into a folder, as JPEGs.

    Returns:
        The files, by the order of `POSTERS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, poster in POSTERS.items():
        file = folder / f"{name}.jpg"
        poster().save(file, "JPEG", quality=92)
        files.append(file)
    return files


def _canvas(size: tuple[int, int], stops: Sequence[Colour]) -> Image.Image:
    """A sky: colours from the top to the bottom, blended."""
    width, height = size[0] * _SMOOTH, size[1] * _SMOOTH
    strip = Image.new("RGB", (1, len(stops)))
    strip.putdata(list(stops))
    # The half steps at both ends of the strip would be flat.
    box = (0.0, 0.5, 1.0, len(stops) - 0.5)
    return strip.resize((width, height), Image.Resampling.BILINEAR, box=box)


def _finish(image: Image.Image, *, seed: int, grain: int = 5) -> Image.Image:
    """Reduce, and add what paper has."""
    small = image.resize((image.width // _SMOOTH, image.height // _SMOOTH), Image.Resampling.LANCZOS)
    # Pillow's own noise is another one every time.
    noise = Image.frombytes("L", small.size, random.Random(seed).randbytes(small.width * small.height))  # noqa: S311
    dark = noise.point([value * grain >> 8 for value in range(256)]).convert("RGB")
    return ImageChops.subtract(small, dark)


def _disc(image: Image.Image, centre: tuple[float, float], radius: float, colour: Colour, *, glow: float = 0.0) -> None:
    """A sun or a moon; places and sizes are shares of width and height."""
    x, y, r = centre[0] * image.width, centre[1] * image.height, radius * image.height
    if glow:
        mask = Image.new("L", (image.width // 8, image.height // 8))
        reach = r * (1 + glow) / 8
        ImageDraw.Draw(mask).ellipse((x / 8 - reach, y / 8 - reach, x / 8 + reach, y / 8 + reach), fill=110)
        mask = mask.filter(ImageFilter.GaussianBlur(reach / 2.2)).resize(image.size, Image.Resampling.BILINEAR)
        image.paste(colour, (0, 0), mask)
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _ridge(rng: random.Random, points: int, *, rough: float) -> Callable[[float], float]:
    """A line of hills: heights from -1 to 1 over 0 to 1."""
    waves = [
        (rng.uniform(0.6, 1.4) * frequency, rng.uniform(0, math.tau), rough**octave)
        for octave, frequency in enumerate(2.0**power for power in range(points))
    ]
    whole = sum(height for _, _, height in waves)

    def height(at: float) -> float:
        return sum(math.sin(at * math.tau * frequency + phase) * size for frequency, phase, size in waves) / whole

    return height


def _hills(
    image: Image.Image, rng: random.Random, layers: Sequence[tuple[float, float, Colour]], *, rough: float = 0.45
) -> None:
    """Layers of hills, the farthest first: base line, height, colour."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for base, tall, colour in layers:
        ridge = _ridge(rng, 5, rough=rough)
        line = [(x, (base + tall * ridge(x / width)) * height) for x in range(0, width + 8, 8)]
        draw.polygon([*line, (width, height), (0, height)], fill=colour)


def _stars(image: Image.Image, rng: random.Random, count: int, *, until: float) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        x, y = rng.random() * image.width, rng.random() ** 1.4 * until * image.height
        r = rng.choice((1, 1, 2, 3))
        shade = rng.randint(150, 255)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(shade, shade, min(255, shade + 15)))


def _dawn() -> Image.Image:
    rng = random.Random(3)  # noqa: S311 -- a picture
    image = _canvas(_WIDE, ((38, 52, 110), (122, 84, 148), (236, 122, 116), (255, 190, 120), (255, 226, 168)))
    _disc(image, (0.64, 0.56), 0.115, (255, 240, 205), glow=2.6)
    layers = (
        (0.62, 0.05, (206, 112, 124)),
        (0.70, 0.06, (150, 82, 118)),
        (0.79, 0.06, (96, 58, 104)),
        (0.88, 0.06, (52, 38, 80)),
        (0.97, 0.05, (24, 22, 50)),
    )
    _hills(image, rng, layers)
    return _finish(image, seed=3)


def _harbour() -> Image.Image:
    rng = random.Random(11)  # noqa: S311 -- a picture
    image = _canvas(_WIDE, ((8, 14, 38), (16, 34, 72), (34, 66, 108), (70, 108, 140)))
    _stars(image, rng, 130, until=0.45)
    _disc(image, (0.24, 0.22), 0.06, (246, 240, 214), glow=2.2)
    draw = ImageDraw.Draw(image)
    width, height = image.size
    water = 0.64 * height
    x = -0.01
    while x < 1:
        broad, tall = rng.uniform(0.025, 0.06), rng.uniform(0.06, 0.28)
        tone = rng.randint(14, 34)
        left, top = x * width, water - tall * height
        draw.rectangle((left, top, left + broad * width, water), fill=(tone, tone + 8, tone + 26))
        for row in range(int(tall * 26)):
            for column in range(int(broad * 90)):
                if rng.random() < 0.32:  # noqa: PLR2004 -- a third of the windows is lit
                    at, down = left + 14 + column * 26, top + 16 + row * 26
                    glass = rng.choice(((255, 214, 140), (255, 190, 104), (190, 220, 255)))
                    draw.rectangle((at, down, at + 9, down + 12), fill=glass)
        x += broad + rng.uniform(0.0, 0.012)
    # The water shows the town upside down, darker and smeared.
    town = image.crop((0, int(2 * water - height), width, int(water))).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    town = town.filter(ImageFilter.GaussianBlur(7)).point(lambda value: int(value * 0.62))
    image.paste(town, (0, int(water)))
    for _ in range(240):
        y = rng.uniform(water + 6, height)
        reach = rng.uniform(20, 150) * (0.4 + (y - water) / (height - water))
        start = rng.uniform(0, width)
        shade = rng.randint(60, 130)
        draw.line((start, y, start + reach, y), fill=(shade // 2, int(shade * 0.75), shade), width=2)
    return _finish(image, seed=11)


def _desert() -> Image.Image:
    rng = random.Random(23)  # noqa: S311 -- a picture
    image = _canvas(_TALL, ((20, 96, 128), (92, 166, 168), (236, 214, 164), (250, 190, 120)))
    _disc(image, (0.5, 0.33), 0.14, (250, 236, 196))
    _hills(image, rng, ((0.56, 0.03, (214, 128, 82)), (0.63, 0.05, (190, 96, 62))), rough=0.35)
    draw = ImageDraw.Draw(image)
    width, height = image.size
    draw.rectangle((0, int(0.68 * height), width, height), fill=(150, 66, 48))
    for line in range(14):
        y = (0.68 + 0.32 * (line / 14) ** 1.6) * height
        draw.rectangle((0, y, width, y + (line + 1) * 3), fill=(164 + line * 2, 76 + line, 52))
    road = ((0.495, 0.68), (0.505, 0.68), (0.86, 1.0), (0.14, 1.0))
    draw.polygon([(x * width, y * height) for x, y in road], fill=(48, 40, 52))
    for dash in range(9):
        top, low = 0.69 + 0.31 * (dash / 9) ** 1.7, 0.69 + 0.31 * ((dash + 0.5) / 9) ** 1.7
        wide_top, wide_low = 0.004 + (top - 0.68) * 0.05, 0.004 + (low - 0.68) * 0.05
        corners = ((0.5 - wide_top, top), (0.5 + wide_top, top), (0.5 + wide_low, low), (0.5 - wide_low, low))
        draw.polygon([(x * width, y * height) for x, y in corners], fill=(250, 224, 150))
    for x, tall in ((0.14, 0.16), (0.84, 0.12), (0.93, 0.2)):
        _cactus(draw, x * width, 0.80 * height, tall * height)
    return _finish(image, seed=23)


def _cactus(draw: ImageDraw.ImageDraw, x: float, ground: float, tall: float) -> None:
    green, thick = (34, 74, 66), tall * 0.13
    draw.rounded_rectangle((x - thick, ground - tall, x + thick, ground), thick, fill=green)
    for side, low, high in ((-1, 0.35, 0.72), (1, 0.48, 0.85)):
        out, arm = x + side * thick * 3, thick * 0.75
        left, right = min(x, out), max(x, out)
        draw.rounded_rectangle(
            (left, ground - tall * low - arm, right + arm, ground - tall * low + arm), arm, fill=green
        )
        draw.rounded_rectangle((out - arm, ground - tall * high, out + arm, ground - tall * low + arm), arm, fill=green)


def _aurora() -> Image.Image:
    rng = random.Random(31)  # noqa: S311 -- a picture
    image = _canvas(_WIDE, ((6, 10, 34), (10, 26, 56), (14, 50, 74), (30, 84, 92)))
    _stars(image, rng, 260, until=0.75)
    width, height = image.size
    for colour, base, strength in (
        ((70, 255, 180), 0.46, 150),
        ((110, 160, 255), 0.36, 105),
        ((210, 110, 240), 0.26, 85),
    ):
        mask = Image.new("L", (width // 4, height // 4))
        draw = ImageDraw.Draw(mask)
        sway = _ridge(rng, 4, rough=0.5)
        flicker = _ridge(rng, 7, rough=0.85)
        for x in range(mask.width):
            at = x / mask.width
            low = (base + 0.13 * sway(at)) * mask.height
            tall = (0.26 + 0.12 * flicker(at)) * mask.height
            for step in range(24):
                y = low - tall * step / 24
                bright = strength * (1 - step / 24) ** 1.5 * (0.75 + 0.25 * flicker(at * 3))
                draw.line((x, y, x, y - tall / 24), fill=max(0, int(bright)))
        mask = mask.filter(ImageFilter.GaussianBlur(3)).resize(image.size, Image.Resampling.BILINEAR)
        image.paste(colour, (0, 0), mask)
    layers = ((0.80, 0.07, (16, 44, 62)), (0.88, 0.06, (8, 26, 42)), (0.96, 0.04, (4, 12, 24)))
    _hills(image, rng, layers, rough=0.6)
    return _finish(image, seed=31)


def _shapes() -> Image.Image:
    image = _canvas(_SQUARE, ((244, 232, 208), (240, 224, 196)))
    draw = ImageDraw.Draw(image)
    side = image.width
    red, blue, yellow, ink, teal = (214, 64, 48), (36, 72, 128), (240, 178, 50), (34, 32, 44), (60, 140, 134)
    cell = side // 4
    pattern = ("abcd", "dcab", "bdac", "cabd")
    fills = ((red, yellow), (blue, red), (yellow, ink), (teal, blue))
    for row, letters in enumerate(pattern):
        for column, letter in enumerate(letters):
            ground, figure = fills[(row + 2 * column) % 4]
            left, top = column * cell, row * cell
            right, low = left + cell, top + cell
            inset = cell // 24
            left, top, right, low = left + inset, top + inset, right - inset, low - inset
            draw.rectangle((left, top, right, low), fill=ground)
            match letter:
                case "a":
                    draw.pieslice((2 * left - right, top, right, 2 * low - top), 270, 360, fill=figure)
                case "b":
                    draw.ellipse((left + cell // 6, top + cell // 6, right - cell // 6, low - cell // 6), fill=figure)
                case "c":
                    draw.polygon(((left, low), (right, low), (right, top)), fill=figure)
                case _:
                    for line in range(0, cell - 2 * inset, cell // 6):
                        draw.rectangle((left, top + line, right, min(low, top + line + cell // 12)), fill=figure)
    return _finish(image, seed=5)


def _islands() -> Image.Image:
    rng = random.Random(47)  # noqa: S311 -- a picture
    image = _canvas(_WIDE, ((70, 160, 190), (140, 204, 206), (226, 238, 214), (250, 240, 206)))
    _disc(image, (0.3, 0.3), 0.09, (255, 252, 232), glow=1.8)
    draw = ImageDraw.Draw(image)
    width, height = image.size
    sea = 0.6
    for band in range(12):
        share = band / 12
        tone = (int(70 - 40 * share), int(158 - 70 * share), int(172 - 50 * share))
        draw.rectangle((0, (sea + (1 - sea) * share**1.3) * height, width, height), fill=tone)
    for x, broad, tall, colour in (
        (0.80, 0.32, 0.15, (96, 152, 150)),
        (0.52, 0.22, 0.22, (62, 116, 118)),
        (0.14, 0.26, 0.12, (40, 92, 98)),
    ):
        ridge = _ridge(rng, 5, rough=0.55)
        steps = range(-100, 101, 2)
        line = [
            (
                (x + broad / 2 * step / 100) * width,
                (sea - max(0.0, (1 - (step / 100) ** 2) * tall * (1 + 0.35 * ridge(step / 200 + 0.5)))) * height,
            )
            for step in steps
        ]
        shore = (sea + 0.004) * height
        draw.polygon([*line, ((x + broad / 2) * width, shore), ((x - broad / 2) * width, shore)], fill=colour)
    _boat(draw, 0.66 * width, 0.80 * height, 0.15 * height)
    return _finish(image, seed=47)


def _boat(draw: ImageDraw.ImageDraw, x: float, y: float, tall: float) -> None:
    hull = ((-0.55, 0.0), (0.6, 0.0), (0.42, 0.2), (-0.38, 0.2))
    draw.polygon([(x + tall * dx, y + tall * dy) for dx, dy in hull], fill=(112, 46, 44))
    draw.polygon(
        [(x + tall * dx, y + tall * dy) for dx, dy in ((0.04, -1.0), (0.52, -0.08), (0.04, -0.08))],
        fill=(252, 244, 224),
    )
    draw.polygon(
        [(x + tall * dx, y + tall * dy) for dx, dy in ((-0.03, -0.86), (-0.42, -0.08), (-0.03, -0.08))],
        fill=(226, 96, 70),
    )


POSTERS: Final[Mapping[str, Callable[[], Image.Image]]] = {
    "dawn": _dawn,
    "harbour": _harbour,
    "desert": _desert,
    "aurora": _aurora,
    "shapes": _shapes,
    "islands": _islands,
}
"""What can be painted, by name."""
