"""Small real videos and sounds, written by FFmpeg's encoders."""

from __future__ import annotations

import functools
import io
import wave
from fractions import Fraction
from typing import cast

import av
from PIL import Image


@functools.cache
def video(kind: str = "mp4", colours: tuple[tuple[int, int, int], ...] = ((200, 30, 30),), each: int = 4) -> bytes:
    """Return a video of 320x320 pixels and 24 frames a second.

    Args:
        kind: Name of FFmpeg's format, such as "mp4", "mov", "webm", "matroska" or "avi".
        colours: Colours that follow each other.
        each: Number of frames of each colour.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("libvpx-vp9" if kind == "webm" else "libx264", rate=24)
        stream.width = stream.height = 320
        stream.pix_fmt = "yuv420p"
        for number in range(each * len(colours)):
            image = Image.new("RGB", (320, 320), colours[number // each])
            frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]  # untyped in PyAV
            frame.pts, frame.time_base = number, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@functools.cache
def sound(kind: str, codec: str) -> bytes:
    """Return a tenth of a second of silence.

    Args:
        kind: Name of FFmpeg's format, such as "mp3", "ogg", "flac", "adts" or "ipod".
        codec: Name of the encoder.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as container:
        stream = cast("av.AudioStream", container.add_stream(codec, rate=44100))
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="stereo", rate=44100)
        frame = av.AudioFrame(format="s16", layout="stereo", samples=4410)
        frame.sample_rate = 44100
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for each in resampler.resample(frame):
            each.pts = None
            container.mux(stream.encode(each))
        container.mux(stream.encode())
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(800))
    return buffer.getvalue()


def frames(content: bytes, *at: float) -> list[tuple[int, int, int]]:
    """Return the colour in the middle of a video's frames at these seconds."""
    with av.open(io.BytesIO(content), "r") as container:
        decoded = list(container.decode(video=0))
    images = [(frame.time or 0.0, frame.to_image()) for frame in decoded]  # type: ignore[no-untyped-call]  # in PyAV
    found = []
    for second in at:
        _, image = min(images, key=lambda one: abs(one[0] - second))
        found.append(image.resize((1, 1), Image.Resampling.BOX).convert("RGB").getpixel((0, 0)))
    return found
