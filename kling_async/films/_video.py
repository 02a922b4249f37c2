"""Video files opened for reading, and filters that make their frames upright, in square pixels and known colours."""

from __future__ import annotations

import contextlib
import os
import struct
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import attrs

from kling_async._files import open_file
from kling_async.errors import ConfigurationError, VideoError
from kling_async.storage._mp4 import flaw as mp4_flaw

try:
    import av
    from av.container import InputContainer
    from av.error import BlockingIOError as NothingReadyError
    from av.error import EOFError as EndOfStreamError
    from av.error import FFmpegError
    from av.sidedata.sidedata import SideData
    from av.stream import Disposition
    from av.video.reformatter import ColorRange
    from av.video.stream import VideoStream
except ImportError as missing:
    raise ConfigurationError(
        "frames and joining need PyAV 17.1 or later, which is not installed", advice="pip install 'kling-async[film]'"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from av import AudioFrame, VideoFrame
    from av.filter import Graph
    from av.filter.context import FilterContext

Step = tuple[str, str]
"""A filter: its name and its arguments."""
Frame = TypeVar("Frame", "VideoFrame", "AudioFrame")

EXPECTED: Final = "expected a video (MP4, MOV, WebM)"
EXACT: Final = "accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
"""Without these, libswscale rounds down: a chain of ten clips would be darker by ten values of 255 in the end."""

# Playlists and scripts, which name other files and hosts, are not among them.
_FORMATS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm"
_MATRICES: Final = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m"}
"""Colour matrices by their numbers in ITU-T H.273."""
_UNSPECIFIED: Final = 2
_RGB: Final = 0
_BT2020: Final = {9, 10}
_BT2020_PRIMARIES: Final = 9
_HDR_TRANSFERS: Final = {16: "PQ", 18: "HLG"}
"""Transfer curves by their numbers there, too."""
_HD_LINES: Final = 720
_TURNS: Final = {
    (1, 0, 0, 1): (),
    (-1, 0, 0, 1): (("hflip", ""),),
    (1, 0, 0, -1): (("vflip", ""),),
    (-1, 0, 0, -1): (("hflip", ""), ("vflip", "")),
    (0, 1, 1, 0): (("transpose", "0"),),
    (0, 1, -1, 0): (("transpose", "1"),),
    (0, -1, 1, 0): (("transpose", "2"),),
    (0, -1, -1, 0): (("transpose", "3"),),
}
"""Filters by the signs of the display matrix (ISO/IEC 14496-12, `tkhd`), whose rows are where x and y go."""


@attrs.frozen
class OpenVideo:
    """An open file with its first video stream; cover pictures are none."""

    path: Path
    container: InputContainer
    stream: VideoStream

    def frames(self) -> Iterator[VideoFrame]:
        """Decode from the present place to the end, in the order in which frames are shown."""
        yield from self.container.decode(self.stream)


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[OpenVideo]:
    """Open a video. What fails to be read or decoded inside the block is raised as an error of the file.

    Raises:
        VideoError: It cannot be opened, is no video, is cut off, or is damaged.
    """
    with _errors_of(path), open_file(path) as file:
        # A video that is cut off would otherwise end early without an error.
        found = mp4_flaw(file, os.fstat(file.fileno()).st_size)
        if found is not None and found.is_mp4:
            raise VideoError(f"{path}: expected a complete video, and {found.reason}", path=path)
        file.seek(0)
        with av.open(file, "r", container_options={"format_whitelist": _FORMATS}) as container:
            streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{path}: {EXPECTED}, got a file without a video stream", path=path)
            streams[0].thread_type = "AUTO"
            yield OpenVideo(path, container, streams[0])


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except FFmpegError as error:
        raise VideoError(f"{path}: {EXPECTED}, and it cannot be read: {error.strerror}", path=path) from error
    except OSError as error:
        text = f"{path}: {EXPECTED}, and it cannot be opened: {error.strerror or error}"
        raise VideoError(text, path=path, advice="check the path") from error


def turns(frame: VideoFrame, path: Path) -> tuple[Step, ...]:
    """Return the filters that turn a frame upright.

    Raises:
        VideoError: It is to be turned by something else than quarters.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return ()
    a, b, _, c, d, *_ = struct.unpack("9i", bytes(matrix))
    signs = (_sign(a), _sign(b), _sign(c), _sign(d))
    if signs not in _TURNS:
        raise VideoError(f"{path}: expected a rotation by a multiple of 90 degrees, got another one", path=path)
    return _TURNS[signs]


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def is_quarter(steps: Iterable[Step]) -> bool:
    """Return whether filters exchange width and height."""
    return any(name == "transpose" for name, _ in steps)


def square_size(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Return the size in square pixels; `aspect` is the width of a pixel by its height, and only the width changes."""
    return max(1, round(width * aspect)) if aspect else width, height


def colours(frame: VideoFrame, path: Path) -> tuple[str, str]:
    """Return the colour matrix and the range of a frame by the names of the filter `scale`.

    A video that does not name its matrix has BT.709 from 720 lines on, and BT.601 below, as players show it.

    Raises:
        VideoError: It is HDR, or has a matrix that is not known.
    """
    hdr = _HDR_TRANSFERS.get(frame.color_trc)
    if hdr or frame.colorspace in _BT2020 or frame.color_primaries == _BT2020_PRIMARIES:
        raise VideoError(
            f"{path}: expected a video in BT.709 or BT.601, got HDR ({hdr or 'BT.2020'})",
            path=path,
            advice="make the clip without HDR, or convert it",
        )
    is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    if frame.format.is_rgb:
        return "", "pc"
    matrix = _MATRICES.get(frame.colorspace)
    if frame.colorspace == _UNSPECIFIED:
        matrix = "bt709" if min(frame.width, frame.height) >= _HD_LINES else "bt601"
    if matrix is None:
        raise VideoError(
            f"{path}: expected the colour matrix BT.709 or BT.601, got number {frame.colorspace} of ITU-T H.273",
            path=path,
        )
    return matrix, "pc" if is_full else "tv"


def scale(frame: VideoFrame, path: Path, size: tuple[int, int], *, matrix: str, is_full: bool) -> Step:
    """Return the filter that converts the colours and the size of frames like this one.

    Args:
        frame: A frame as it is decoded.
        path: Its file, for errors.
        size: Width and height to scale to, before anything is turned.
        matrix: Colour matrix to convert to; empty for RGB.
        is_full: Whether to convert to the full range.
    """
    before, values = colours(frame, path)
    # Interpolated colours would be blurred a little more by every clip of a chain; odd widths cannot do without.
    method = "neighbor" if size == (frame.width, frame.height) and frame.width % 2 == 0 else "bicubic"
    arguments = [f"w={size[0]}:h={size[1]}:flags={method}+{EXACT}"]
    arguments += [f"in_range={values}", f"out_range={'pc' if is_full else 'tv'}"]
    arguments += [f"in_color_matrix={before}"] * bool(before) + [f"out_color_matrix={matrix}"] * bool(matrix)
    return "scale", ":".join(arguments)


def video_source(graph: Graph, frame: VideoFrame, rate: Fraction | None = None) -> FilterContext:
    """Add the source of frames like this one to a graph; `rate` in frames per second, where filters need it."""
    base = frame.time_base or Fraction(1, 1000)
    arguments = [f"video_size={frame.width}x{frame.height}", f"pix_fmt={frame.format.name}"]
    arguments += [f"time_base={base.numerator}/{base.denominator}", "pixel_aspect=1/1"]
    arguments += [f"colorspace={frame.colorspace}", f"range={frame.color_range}"]
    arguments += [] if rate is None else [f"frame_rate={rate.numerator}/{rate.denominator}"]
    return graph.add("buffer", ":".join(arguments))


def line(graph: Graph, source: FilterContext, steps: Iterable[Step], sink: str = "buffersink") -> None:
    """Link a source with filters, one after the other, and with a sink."""
    graph.link_nodes(source, *(graph.add(name, arguments or None) for name, arguments in steps), graph.add(sink))
    graph.configure()


def pulled(graph: Graph, kind: type[Frame]) -> Iterator[Frame]:
    """Yield the frames that a graph has ready."""
    while True:
        try:
            frame = graph.pull()
        except (NothingReadyError, EndOfStreamError):
            return
        if isinstance(frame, kind):
            yield frame


def filtered(frames: Iterable[Frame], kind: type[Frame], build: Callable[[Frame], Graph]) -> Iterator[Frame]:
    """Send frames through the graph that `build` makes for the first of them; ends early if the graph does."""
    graph = None
    for frame in frames:
        graph = graph or build(frame)
        try:
            graph.push(frame)
        except EndOfStreamError:
            return
        yield from pulled(graph, kind)
    if graph is not None:
        with contextlib.suppress(EndOfStreamError):
            graph.push(None)
        yield from pulled(graph, kind)
