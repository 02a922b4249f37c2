"""An ffmpeg that is not the one inside of PyAV: it makes clips, and is the second opinion on frames and films."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg  # type: ignore[import-untyped]  # it has no types
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]

RATE = 24
SOUND = 48_000


def ffmpeg(*arguments: str) -> bytes:
    """Run ffmpeg, and return what it writes to stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", "-y", *arguments]
    ran = subprocess.run(command, check=False, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout


def source(size: str = "128x96", rate: int = RATE) -> tuple[str, ...]:
    """Return the options of a moving picture as the input, a minute long."""
    return ("-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d=60")


def make_clip(
    path: Path,
    start: int = 0,
    count: int = RATE,
    *,
    hertz: int | None = None,
    size: str = "128x96",
    rate: int = RATE,
    filters: str = "format=yuv420p",
    options: tuple[str, ...] = ("-c:v", "libx264", "-bf", "2", "-crf", "12"),
) -> Path:
    """Write some frames of the moving picture, with a tone if there is one."""
    tone = () if hertz is None else ("-f", "lavfi", "-i", f"sine=frequency={hertz}:d={count / rate}:r={SOUND}")
    cut = f"trim=start_frame={start}:end_frame={start + count},setpts=PTS-STARTPTS,{filters}"
    ffmpeg(*source(size, rate), *tone, "-vf", cut, "-c:a", "aac", *options, str(path))
    return path


def frames_of(path: Path, width: int = 128, height: int = 96) -> Pixels:
    """Return all frames of a video as they are shown: number, row, column, colour."""
    raw = ffmpeg("-i", str(path), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3).astype(np.int16)


def sound_of(path: Path) -> Pixels:
    """Return the sound of a video: one channel of 48,000 samples a second, with silence where there is a gap."""
    shape = ("-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", str(SOUND), "-f", "s16le", "-")
    return np.frombuffer(ffmpeg("-i", str(path), "-vn", *shape), np.int16).astype(np.float64)


def hertz_at(sound: Pixels, second: float, length: float = 0.05) -> float:
    """Return the strongest frequency around a moment; 0 for silence."""
    begin = int((second - length / 2) * SOUND)
    piece = sound[begin : begin + int(length * SOUND)]
    if np.abs(piece).max() < 50:
        return 0.0
    strengths = np.abs(np.fft.rfft(piece * np.hanning(len(piece)), 8 * len(piece)))
    return float(np.argmax(strengths)) * SOUND / (8 * len(piece))


def difference(one: Pixels, other: Pixels) -> float:
    """Return the mean difference of two pictures, of 255."""
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())
