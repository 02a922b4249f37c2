"""Real videos from the input pictures: a slow camera move, with a cross-fade where an end frame was given.

The only room that needs PyAV and Pillow (the extra `emulator`); nothing imports it before a video is asked for.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import threading
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import anyio
import anyio.to_thread
import attrs
import av
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from .scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FRAMES_PER_SECOND", "Renderer", "RenderingStoppedError", "Scene", "Size", "render"]

FRAMES_PER_SECOND: Final = 24
"""Frame rate of every video."""

Size = Literal["small", "full"]
"""`small` is quick to make (longest side 854 or 896 pixels); `full` has the service's own pixel count."""

# The service keeps the picture's shape within this many pixels.
_FULL_PIXELS: Final[Mapping[str, int]] = {"720p": 1280 * 720, "1080p": 1920 * 1080, "4k": 3840 * 2160}
_SMALL_SIDE: Final[Mapping[str, int]] = {"720p": 854, "1080p": 896, "4k": 896}
_WORKERS: Final = 2
_BT709: Final = 1
# Pictures are kept this much larger than the frame, so that a push-in stays sharp.
_HEADROOM: Final = 1.2
_FADE: Final = (0.30, 0.80)


class RenderingStoppedError(Exception):
    """The emulator closes; nobody waits for this video any more."""


@attrs.frozen
class Move:
    """Where the camera begins and ends: zoom, and the place of its centre (-1 left or top edge, 1 the other)."""

    zoom: tuple[float, float]
    across: tuple[float, float] = (0.0, 0.0)
    down: tuple[float, float] = (0.0, 0.0)


# A word of the prompt decides; else its hash picks one of the quiet ones.
_SPOKEN: Final[tuple[tuple[tuple[str, ...], Move], ...]] = (
    (("zoom out", "pull out", "pull back", "pulls back"), Move((1.18, 1.0))),
    (("pan left", "pans left"), Move((1.16, 1.16), across=(1.0, -1.0))),
    (("pan right", "pans right"), Move((1.16, 1.16), across=(-1.0, 1.0))),
    (("tilt up", "tilts up"), Move((1.16, 1.16), down=(1.0, -1.0))),
    (("tilt down", "tilts down"), Move((1.16, 1.16), down=(-1.0, 1.0))),
)
_QUIET: Final = (
    Move((1.0, 1.16)),
    Move((1.0, 1.18), across=(0.0, 0.7)),
    Move((1.0, 1.18), across=(0.0, -0.7)),
    Move((1.0, 1.18), down=(0.0, -0.6)),
)
_TO_END: Final = Move((1.0, 1.14))
_FROM_END: Final = Move((1.14, 1.0))


@attrs.frozen
class Scene:
    """Everything a video is made of.

    Attributes:
        pictures: the encoded start frame, and the end frame if there is one; none gives a plain
            gradient, for pictures that are no longer kept.
        seconds: length of the video.
        resolution: `720p`, `1080p` or `4k`.
        size: whether to render at full size.
        prompt: picks the camera move.
    """

    pictures: tuple[bytes, ...]
    seconds: int
    resolution: str = "1080p"
    size: Size = "small"
    prompt: str = ""

    @property
    def move(self) -> Move:
        """The camera move over the start frame."""
        if len(self.pictures) > 1:
            return _TO_END
        prompt = self.prompt.lower()
        for words, move in _SPOKEN:
            if any(word in prompt for word in words):
                return move
        return _QUIET[hashlib.sha256(prompt.encode(errors="surrogatepass")).digest()[0] % len(_QUIET)]

    @property
    def digest(self) -> str:
        """The same for scenes that give the same video."""
        digest = hashlib.sha256(f"{self.seconds} {self.resolution} {self.size} {self.move}".encode())
        for picture in self.pictures:
            digest.update(hashlib.sha256(picture).digest())
        return digest.hexdigest()


def frame_size(width: int, height: int, resolution: str, size: Size) -> tuple[int, int]:
    """Width and height of the video for a picture of that shape, in whole multiples of four pixels."""
    if size == "full":
        scale = math.sqrt(_FULL_PIXELS[resolution] / (width * height))
    else:
        scale = _SMALL_SIDE[resolution] / max(width, height)
    return max(16, round(width * scale) // 4 * 4), max(16, round(height * scale) // 4 * 4)


def _gradient() -> Image.Image:
    ramp = Image.linear_gradient("L").resize((960, 540))
    return Image.merge("RGB", [ramp.point([value // part for value in range(256)]) for part in (4, 3, 2)])


def _open(content: bytes, side: int) -> Image.Image:
    opened = Image.open(io.BytesIO(content))
    # A JPEG can be decoded at a half or a quarter of its size for much less than the whole costs.
    opened.draft("RGB", (side, side))
    image = ImageOps.exif_transpose(opened)
    if image.mode in {"RGBA", "LA", "PA", "P"}:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    return image.convert("RGB")


def _frame(
    image: Image.Image, size: tuple[int, int], move: Move, at: float, filtering: Image.Resampling
) -> Image.Image:
    zoom = move.zoom[0] + (move.zoom[1] - move.zoom[0]) * at
    width, height = image.width / zoom, image.height / zoom
    across = move.across[0] + (move.across[1] - move.across[0]) * at
    down = move.down[0] + (move.down[1] - move.down[0]) * at
    left = (image.width - width) * (1 + across) / 2
    top = (image.height - height) * (1 + down) / 2
    # A box of fractions of pixels: a whole-pixel crop would make the slow move tremble.
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.resize(size, filtering, box=box)


def _smooth(at: float) -> float:
    return at * at * (3 - 2 * at)


def _fading(at: float) -> float:
    low, high = _FADE
    return _smooth(min(1.0, max(0.0, (at - low) / (high - low))))


def render(scene: Scene, target: Path, stop: threading.Event | None = None) -> None:
    """Write the scene as H.264 in MP4, its index first.

    A second and a half of CPU for five seconds, small; about nine at full size.

    Args:
        scene: what to show.
        target: the file to write.
        stop: gives up when it is set.

    Raises:
        RenderingStoppedError: when `stop` was set; the file is not complete.
    """
    side = 2 * _SMALL_SIDE[scene.resolution] if scene.size == "small" else 2 * 3840
    opened = [_open(picture, side) for picture in scene.pictures] or [_gradient()]
    size = frame_size(*opened[0].size, scene.resolution, scene.size)
    roomy = (round(size[0] * _HEADROOM), round(size[1] * _HEADROOM))
    pictures = [ImageOps.fit(image, roomy, Image.Resampling.LANCZOS) for image in opened]
    move, count = scene.move, scene.seconds * FRAMES_PER_SECOND
    quick = scene.size == "small"
    filtering = Image.Resampling.BILINEAR if quick else Image.Resampling.BICUBIC
    options = {"preset": "superfast" if quick else "veryfast", "crf": "20", "x264-params": "threads=1"}
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, FRAMES_PER_SECOND)
        context.color_range = ColorRange.MPEG
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        for number in range(count):
            if stop is not None and stop.is_set():
                raise RenderingStoppedError
            at = number / (count - 1)
            eased = 0.4 * at + 0.6 * _smooth(at)
            fade = _fading(at) if len(pictures) > 1 else 0.0
            image = _frame(pictures[fade == 1], size, move if fade < 1 else _FROM_END, eased, filtering)
            if 0 < fade < 1:
                image = Image.blend(image, _frame(pictures[1], size, _FROM_END, eased, filtering), fade)
            frame = av.VideoFrame.from_image(image).reformat(  # type: ignore[no-untyped-call]  # PyAV has it untyped
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts = number
            frame.time_base = Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class Renderer:
    """Makes videos when they are first asked for, at most two at a time, and keeps them in a temporary directory.

    Args:
        capacity: bytes of videos that are kept; those not asked for longest go first and are made anew when wanted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._scratch: Scratch | None = None
        self._limiter = anyio.CapacityLimiter(_WORKERS)
        self._files: OrderedDict[str, int] = OrderedDict()
        self._locks: dict[str, anyio.Lock] = {}
        self._stop = threading.Event()

    async def open(self) -> None:
        """Make the directory."""
        self._scratch = await anyio.to_thread.run_sync(Scratch.make)

    @property
    def _directory(self) -> Path:
        return Path() if self._scratch is None else self._scratch.path

    async def video(self, scene: Scene) -> bytes:
        """The MP4 of that scene.

        Raises:
            RenderingStoppedError: when the emulator closes before it is ready.
        """
        digest = await anyio.to_thread.run_sync(lambda: scene.digest, limiter=self._limiter)
        lock = self._locks.setdefault(digest, anyio.Lock())
        async with lock:
            content = await anyio.to_thread.run_sync(self._produce, digest, scene, limiter=self._limiter)
        if not lock.statistics().locked:
            self._locks.pop(digest, None)
        self._files[digest] = len(content)
        self._files.move_to_end(digest)
        await self._trim()
        return content

    def _produce(self, digest: str, scene: Scene) -> bytes:
        if self._stop.is_set():
            raise RenderingStoppedError
        file = self._directory / f"{digest}.mp4"
        try:
            return file.read_bytes()
        except FileNotFoundError:
            part = file.with_suffix(".part")
            render(scene, part, self._stop)
            part.replace(file)
            return file.read_bytes()

    async def _trim(self) -> None:
        while sum(self._files.values()) > self._capacity and len(self._files) > 1:
            digest, _ = self._files.popitem(last=False)
            remove = functools.partial((self._directory / f"{digest}.mp4").unlink, missing_ok=True)
            await anyio.to_thread.run_sync(remove)

    def stop(self) -> None:
        """Give up what is being made."""
        self._stop.set()

    async def close(self) -> None:
        """Remove every video, once nobody writes any more."""
        self.stop()
        workers = [object() for _ in range(_WORKERS)]
        for worker in workers:
            await self._limiter.acquire_on_behalf_of(worker)
        if self._scratch is not None:
            await anyio.to_thread.run_sync(self._scratch.remove)
            self._scratch = None
        for worker in workers:
            self._limiter.release_on_behalf_of(worker)
