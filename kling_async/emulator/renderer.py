"""Render videos from input pictures: a slow camera move, a cross-fade to the end frame if there is one, and a tone.

The first frame is the start frame, and the last one the end frame, so that a video which goes on from another shows it.

The only module that needs PyAV and Pillow (the extra `emulator`); it is imported lazily.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
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
from av.error import FFmpegError
from av.filter import Graph
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from .scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["FRAMES_PER_SECOND", "Renderer", "RenderingStoppedError", "Scene", "Size", "render"]

FRAMES_PER_SECOND: Final = 24
"""Frame rate of every video."""

Size = Literal["small", "full"]
"""`small` renders quickly (longest side 854 or 896 pixels); `full` has the service's pixel count."""

# The service keeps the aspect ratio of the picture within this pixel count.
_FULL_PIXELS: Final[Mapping[str, int]] = {"720p": 1280 * 720, "1080p": 1920 * 1080, "4k": 3840 * 2160}
_SMALL_SIDE_PIXELS: Final[Mapping[str, int]] = {"720p": 854, "1080p": 896, "4k": 896}
_MAX_SIDE_PIXELS: Final = 3840
_MAX_RENDER_THREADS: Final = 2
_BT709: Final = 1
# Pictures are scaled to this multiple of the frame size, so that zooming in stays sharp.
_ZOOM_HEADROOM: Final = 1.2
# Start and end of the cross-fade, as shares of the video.
_FADE: Final = (0.30, 0.80)
# Share of the picture that is mirrored around it, for zooming out.
_MARGIN: Final = 0.1
_SAMPLES_PER_SECOND: Final = 48_000
_TONE_HZ: Final = (220, 440)


class RenderingStoppedError(Exception):
    """Rendering was aborted because the emulator is closing."""


@attrs.frozen
class Move:
    """Start and end of a camera move: zoom factor, and centre from -1 (left or top edge) to 1."""

    zoom: tuple[float, float]
    across: tuple[float, float] = (0.0, 0.0)
    down: tuple[float, float] = (0.0, 0.0)


# All of them begin with the whole picture.
_PROMPT_MOVES: Final[tuple[tuple[tuple[str, ...], Move], ...]] = (
    (("zoom out", "pull out", "pull back", "pulls back"), Move((1.0, 0.86))),
    (("pan left", "pans left"), Move((1.0, 1.16), across=(0.0, -1.0))),
    (("pan right", "pans right"), Move((1.0, 1.16), across=(0.0, 1.0))),
    (("tilt up", "tilts up"), Move((1.0, 1.16), down=(0.0, -1.0))),
    (("tilt down", "tilts down"), Move((1.0, 1.16), down=(0.0, 1.0))),
)
# Without a phrase of the above in the prompt, its hash selects one of these.
_DEFAULT_MOVES: Final = (
    Move((1.0, 1.16)),
    Move((1.0, 1.18), across=(0.0, 0.7)),
    Move((1.0, 1.18), across=(0.0, -0.7)),
    Move((1.0, 1.18), down=(0.0, -0.6)),
)
_START_FRAME_MOVE: Final = Move((1.0, 1.14))
_END_FRAME_MOVE: Final = Move((1.14, 1.0))


@attrs.frozen
class Scene:
    """Input of the renderer.

    Attributes:
        pictures: encoded frames: the start frame, and others through which the video passes at equal distances; empty
            renders a gradient, for pictures whose content is no longer stored.
        seconds: length of the video.
        resolution: `720p`, `1080p` or `4k`.
        size: `small` or `full`.
        prompt: selects the camera move.
        clip: video that is continued from its last frame, and joined with what is new; None for none.
        sound: whether the video has a tone.
    """

    pictures: tuple[bytes, ...]
    seconds: int
    resolution: str = "1080p"
    size: Size = "small"
    prompt: str = ""
    clip: bytes | None = None
    sound: bool = False

    @property
    def tone_hz(self) -> int:
        """Frequency of the tone, by the prompt."""
        low, high = _TONE_HZ
        return low + self._prompt_digest[1] * (high - low) // 256

    @property
    def _prompt_digest(self) -> bytes:
        return hashlib.sha256(self.prompt.lower().encode(errors="surrogatepass")).digest()

    @property
    def move(self) -> Move:
        """Camera move over the start frame."""
        if len(self.pictures) + (self.clip is not None) > 1:
            return _START_FRAME_MOVE
        prompt = self.prompt.lower()
        for phrases, move in _PROMPT_MOVES:
            if any(phrase in prompt for phrase in phrases):
                return move
        return _DEFAULT_MOVES[self._prompt_digest[0] % len(_DEFAULT_MOVES)]

    @property
    def digest(self) -> str:
        """Hash of all inputs; equal scenes render to equal videos."""
        digest = hashlib.sha256(f"{self.seconds} {self.resolution} {self.size} {self.move}".encode())
        for picture in self.pictures:
            digest.update(hashlib.sha256(picture).digest())
        if self.clip is not None:
            digest.update(hashlib.sha256(self.clip).digest() + b"clip")
        if self.sound:
            digest.update(f"sound {self.tone_hz}".encode())
        return digest.hexdigest()


def frame_size(width: int, height: int, resolution: str, size: Size) -> tuple[int, int]:
    """Return width and height of the video for a picture of that size, in multiples of four pixels."""
    if size == "full":
        scale = math.sqrt(_FULL_PIXELS[resolution] / (width * height))
    else:
        scale = _SMALL_SIDE_PIXELS[resolution] / max(width, height)
    return max(16, round(width * scale) // 4 * 4), max(16, round(height * scale) // 4 * 4)


def _gradient() -> Image.Image:
    ramp = Image.linear_gradient("L").resize((960, 540))
    return Image.merge("RGB", [ramp.point([value // part for value in range(256)]) for part in (4, 3, 2)])


def _decode(content: bytes, side: int) -> Image.Image:
    opened = Image.open(io.BytesIO(content))
    # Decoding a JPEG at a half or a quarter of its size is much faster.
    opened.draft("RGB", (side, side))
    image = ImageOps.exif_transpose(opened)
    if image.mode in {"RGBA", "LA", "PA", "P"}:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    return image.convert("RGB")


@attrs.frozen
class _Still:
    """A picture of a scene.

    Attributes:
        whole: in the size of the video.
        large: larger, with its edges mirrored around it.
        inner: width and height of the picture within `large`.
    """

    whole: Image.Image
    large: Image.Image
    inner: tuple[int, int]

    @classmethod
    def of(cls, image: Image.Image, size: tuple[int, int]) -> _Still:
        """Return a picture that fills a size."""
        width, height = (round(side * _ZOOM_HEADROOM) for side in size)
        across, down = round(width * _MARGIN), round(height * _MARGIN)
        inner = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        mirrored, flipped = ImageOps.mirror(inner), ImageOps.flip(inner)
        large = Image.new("RGB", (width + 2 * across, height + 2 * down))
        for column, row in itertools.product((-1, 0, 1), repeat=2):
            side = mirrored if column else inner
            part = (ImageOps.mirror(flipped) if column else flipped) if row else side
            large.paste(part, (across + column * width, down + row * height))
        return cls(ImageOps.fit(image, size, Image.Resampling.LANCZOS), large, (width, height))


def _frame(still: _Still, size: tuple[int, int], move: Move, at: float, filtering: Image.Resampling) -> Image.Image:
    zoom = move.zoom[0] + (move.zoom[1] - move.zoom[0]) * at
    across = move.across[0] + (move.across[1] - move.across[0]) * at
    down = move.down[0] + (move.down[1] - move.down[0]) * at
    if zoom == 1:
        return still.whole
    (whole_width, whole_height), image = still.inner, still.large
    width, height = whole_width / zoom, whole_height / zoom
    left = max(0.0, (image.width - width + (whole_width - width) * across) / 2)
    top = max(0.0, (image.height - height + (whole_height - height) * down) / 2)
    # Fractional coordinates: cropping to whole pixels would make the slow move jitter.
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.resize(size, filtering, box=box)


def _frames_of(clip: bytes) -> Iterator[Image.Image]:
    """Yield the frames of a video, as pictures whose sides are even; none of a file that cannot be decoded."""
    with contextlib.suppress(FFmpegError), av.open(io.BytesIO(clip), "r") as container:
        for frame in container.decode(video=0):
            image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]  # untyped in PyAV
            yield image.crop((0, 0, image.width // 2 * 2, image.height // 2 * 2))


def _tone(hertz: int) -> Iterator[av.AudioFrame]:
    """Yield a quiet tone without end, in pieces as long as a frame of the video."""
    graph = Graph()
    samples = _SAMPLES_PER_SECOND // FRAMES_PER_SECOND
    graph.link_nodes(
        graph.add("sine", f"frequency={hertz}:sample_rate={_SAMPLES_PER_SECOND}:samples_per_frame={samples}"),
        graph.add("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
        graph.add("abuffersink"),
    ).configure()
    while True:
        piece = graph.pull()
        if isinstance(piece, av.AudioFrame):
            yield piece


def _smoothstep(at: float) -> float:
    return at * at * (3 - 2 * at)


def _end_frame_opacity(at: float) -> float:
    low, high = _FADE
    return _smoothstep(min(1.0, max(0.0, (at - low) / (high - low))))


def _place(at: float, parts: int) -> tuple[int, float]:
    """Return the part of a video that a moment lies in, and where in it; `at` is 0 to 1."""
    part = min(int(at * parts), parts - 1)
    return part, at * parts - part


def render(scene: Scene, target: Path, stop: threading.Event | None = None) -> None:
    """Write the scene as H.264 in MP4 with its index first.

    Five seconds of video take about 1.5 s of CPU time when small, about 9 s at full size.

    Args:
        scene: input.
        target: file to write.
        stop: aborts the rendering when set.

    Raises:
        RenderingStoppedError: if `stop` was set; the file is incomplete.
    """
    side = 2 * (_SMALL_SIDE_PIXELS[scene.resolution] if scene.size == "small" else _MAX_SIDE_PIXELS)
    decoded = [_decode(picture, side) for picture in scene.pictures]
    first = next(_frames_of(scene.clip), None) if scene.clip is not None else None
    if first is None and not decoded:
        decoded = [_gradient()]
    size = frame_size(*decoded[0].size, scene.resolution, scene.size) if first is None else first.size
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
        sound, tone = None, _tone(scene.tone_hz)
        if scene.sound:
            sound = container.add_stream("aac", rate=_SAMPLES_PER_SECOND, layout="stereo")

        def write(image: Image.Image, number: int) -> None:
            if stop is not None and stop.is_set():
                raise RenderingStoppedError
            frame = av.VideoFrame.from_image(image).reformat(  # type: ignore[no-untyped-call]  # untyped in PyAV
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts = number
            frame.time_base = Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
            if sound is not None:
                container.mux(sound.encode(next(tone)))

        before, last = 0, None
        for last in () if scene.clip is None else _frames_of(scene.clip):
            write(last, before)
            before += 1
        decoded = [*([] if last is None else [last]), *decoded]
        pictures = [_Still.of(image, size) for image in decoded]
        for number in range(count):
            # The part of the video between two frames, and the place in it; one frame alone fills the video. What goes
            # on from a video does not show its last frame again.
            place = number / (count - 1) if last is None else (number + 1) / count
            part, at = _place(place, max(1, len(pictures) - 1))
            eased = 0.4 * at + 0.6 * _smoothstep(at)
            opacity = _end_frame_opacity(at) if len(pictures) > 1 else 0.0
            shown, shown_move = (part + 1, _END_FRAME_MOVE) if opacity == 1 else (part, move)
            image = _frame(pictures[shown], size, shown_move, eased, filtering)
            if 0 < opacity < 1:
                image = Image.blend(image, _frame(pictures[part + 1], size, _END_FRAME_MOVE, eased, filtering), opacity)
            write(image, before + number)
        container.mux(stream.encode())
        if sound is not None:
            container.mux(sound.encode())


class Renderer:
    """Cache of videos, each rendered on its first request, at most two at a time, in a temporary directory.

    Args:
        capacity: size of the cache in bytes; the least recently used videos are evicted and rendered again on request.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._scratch: Scratch | None = None
        self._limiter = anyio.CapacityLimiter(_MAX_RENDER_THREADS)
        self._files: OrderedDict[str, int] = OrderedDict()
        self._locks: dict[str, anyio.Lock] = {}
        self._stop = threading.Event()

    async def open(self) -> None:
        """Create the directory."""
        self._scratch = await anyio.to_thread.run_sync(Scratch.make)

    @property
    def _directory(self) -> Path:
        return Path() if self._scratch is None else self._scratch.path

    async def video(self, scene: Scene) -> bytes:
        """Return the MP4 of the scene.

        Raises:
            RenderingStoppedError: if the emulator closes before it is rendered.
        """
        digest = await anyio.to_thread.run_sync(lambda: scene.digest, limiter=self._limiter)
        lock = self._locks.setdefault(digest, anyio.Lock())
        async with lock:
            content = await anyio.to_thread.run_sync(self._read_or_render, digest, scene, limiter=self._limiter)
        if not lock.statistics().locked:
            self._locks.pop(digest, None)
        self._files[digest] = len(content)
        self._files.move_to_end(digest)
        await self._evict()
        return content

    def _read_or_render(self, digest: str, scene: Scene) -> bytes:
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

    async def _evict(self) -> None:
        while sum(self._files.values()) > self._capacity and len(self._files) > 1:
            digest, _ = self._files.popitem(last=False)
            remove = functools.partial((self._directory / f"{digest}.mp4").unlink, missing_ok=True)
            await anyio.to_thread.run_sync(remove)

    def stop(self) -> None:
        """Abort all rendering."""
        self._stop.set()

    async def close(self) -> None:
        """Abort all rendering, wait for its threads, then remove the directory."""
        self.stop()
        workers = [object() for _ in range(_MAX_RENDER_THREADS)]
        for worker in workers:
            await self._limiter.acquire_on_behalf_of(worker)
        if self._scratch is not None:
            await anyio.to_thread.run_sync(self._scratch.remove)
            self._scratch = None
        for worker in workers:
            self._limiter.release_on_behalf_of(worker)
