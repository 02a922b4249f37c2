"""Single frames of videos as pictures, exact to the frame and in the colours that a player shows."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Final, cast

from kling_async.errors import VideoError

# First, because it says what to install.
from ._video import EXACT, colours, line, open_video, pulled, scale, square_size, turns, video_source

# isort: split
import av
from av import VideoFrame
from av.error import FFmpegError
from av.filter import Graph

if TYPE_CHECKING:
    from pathlib import Path

    from av.video.codeccontext import VideoCodecContext

    from kling_async._core.video_frames import Position

    from ._video import OpenVideo, Step

MAX_PNG_BYTES: Final = 10_000_000
"""Greatest length of a frame as PNG; beyond that it is a JPEG, since the service takes pictures of up to 10 MB."""
_JPEG_QUANTIZERS: Final = ("1", "2", "4", "8", "16", "31")
"""From the best to the worst."""
_PLAIN_420: Final = {"yuv420p", "yuvj420p"}


def extract_frame(path: Path, position: Position) -> bytes:
    """Return one frame of a video as a picture: PNG, or JPEG of high quality where the PNG would pass 10 MB.

    The picture has the size of the video, upright as players turn it, and in square pixels: other pixels are made
    square by the width. Colour matrix, range and 10 bits are respected; the values are those of the video, as sRGB.
    The same file and position give the same bytes. Blocks; at no time more than a few frames are in memory.

    Args:
        path: MP4, MOV or WebM.
        position: `"first"`, `"last"`, or seconds from the beginning of the first frame.

    Raises:
        VideoError: The file is no video, is cut off or damaged, is HDR, or ends before `position`.
    """
    if not isinstance(position, str) and not (math.isfinite(position) and position >= 0):
        raise VideoError(f"{path}: expected seconds from 0 on, got {position!r}", path=path)
    with open_video(path) as video:
        if position == "first":
            frame = next(video.frames(), None)
        elif position == "last":
            frame = _last(video)
        else:
            frame = _at(video, position)
        if frame is None:
            raise VideoError(f"{path}: expected frames, and none can be decoded", path=path)
        return _encoded(_rgb(video, frame))


def _last(video: OpenVideo) -> VideoFrame | None:
    """Decode from the last key frame to the end; from the beginning, where the file misplaces its end."""
    for is_seeking in (True, False):
        _seek(video, video.stream.duration or 0 if is_seeking else 0)
        last: VideoFrame | None = None
        for frame in video.frames():
            if last is None or (frame.pts or 0) >= (last.pts or 0):
                last = frame
        if last is not None:
            return last
    return None


def _at(video: OpenVideo, seconds: float) -> VideoFrame | None:
    """Decode from the key frame before a moment to the frame that is shown then."""
    first = next(video.frames(), None)
    if first is None or first.pts is None or first.time_base is None:
        return first
    wanted = first.pts + round(Fraction(seconds) / first.time_base)
    for target in (wanted, first.pts):
        _seek(video, target - (video.stream.start_time or 0))
        shown: VideoFrame | None = None
        for frame in video.frames():
            if (frame.pts or 0) > wanted:
                break
            shown = frame
        else:
            _check_end(video, shown, first, seconds)
        if shown is not None:
            return shown
    return None


def _check_end(video: OpenVideo, last: VideoFrame | None, first: VideoFrame, seconds: float) -> None:
    """Check that a moment is not beyond the end of the last frame."""
    if last is None or last.pts is None or first.pts is None or last.time_base is None:
        return
    length = last.duration * last.time_base or 1 / (video.stream.average_rate or Fraction(24))
    end = float((last.pts - first.pts) * last.time_base + length)
    if seconds >= end:
        raise VideoError(
            f"{video.path}: expected seconds below {end:.3f}, where the video ends, got {seconds:g}",
            path=video.path,
            advice="take the last frame instead",
        )


def _seek(video: OpenVideo, ticks: int) -> None:
    """Go to the key frame at or before a moment after the beginning of the stream."""
    start = video.stream.start_time or 0
    try:
        video.container.seek(start + ticks, stream=video.stream)
    except FFmpegError:
        # No index leads there: from the beginning, then.
        video.container.seek(start, stream=video.stream)


def _rgb(video: OpenVideo, frame: VideoFrame) -> VideoFrame:
    """Convert a frame to 8 bits of RGB."""
    size = square_size(frame.width, frame.height, video.stream.sample_aspect_ratio)
    steps = [scale(frame, video.path, size, matrix="", is_full=True), ("format", "pix_fmts=rgb24")]
    pixels = frame.format.name
    if "420p" in pixels and frame.width % 2 == 0 and (pixels not in _PLAIN_420 or frame.height % 2):
        # As ffmpeg does it: of these, colours are interpolated from line to line, and not within lines.
        matrix, values = colours(frame, video.path)
        same = f"in_color_matrix={matrix}:out_color_matrix={matrix}:in_range={values}:out_range={values}"
        steps[:0] = [("scale", f"flags=bicubic+{EXACT}:{same}"), ("format", f"pix_fmts={pixels.replace('420', '422')}")]
    # Viewers would apply the transfer curve of a video a second time.
    steps.append(("setparams", "color_primaries=unknown:color_trc=unknown"))
    return _through(frame, *steps, *turns(frame, video.path))


def _through(frame: VideoFrame, *steps: Step) -> VideoFrame:
    """Send one frame through filters."""
    graph = Graph()
    line(graph, video_source(graph, frame), steps)
    graph.push(frame)
    graph.push(None)
    (result,) = pulled(graph, VideoFrame)
    return result


def _encoded(picture: VideoFrame) -> bytes:
    """Encode an RGB frame; at the best quality at which it fits, if it must be a JPEG."""
    content = _encode(picture, "png", {"pred": "mixed"})
    if len(content) <= MAX_PNG_BYTES:
        return content
    # JPEG has BT.601 in full range.
    conversion = f"out_color_matrix=bt601:out_range=pc:flags=bicubic+{EXACT}"
    picture = _through(picture, ("scale", conversion), ("format", "pix_fmts=yuvj444p"))
    for quantizer in _JPEG_QUANTIZERS:
        content = _encode(picture, "mjpeg", {"qmin": quantizer, "qmax": quantizer, "flags": "+bitexact"})
        if len(content) <= MAX_PNG_BYTES:
            break
    return content


def _encode(picture: VideoFrame, codec: str, options: dict[str, str]) -> bytes:
    context = cast("VideoCodecContext", av.CodecContext.create(codec, "w"))
    context.width, context.height, context.pix_fmt = picture.width, picture.height, picture.format.name
    context.time_base = Fraction(1, 1)
    context.options = options
    picture.pts, picture.time_base = 0, Fraction(1, 1)
    return b"".join(bytes(packet) for packet in (*context.encode(picture), *context.encode(None)))
