"""Clips that are to be joined: what each of them has, and how their times fit into one film."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from kling_async.errors import VideoError

from ._video import is_quarter, open_video, square_size, turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from av import Packet, VideoFrame
    from av.audio.stream import AudioStream
    from av.stream import Stream

    from ._video import OpenVideo

_COPIED_VIDEO: Final = {"h264", "hevc", "av1"}
_COPIED_SOUND: Final = {"aac"}
"""Codecs that players expect in an MP4."""
_SAME_RATE: Final = Fraction(1, 2000)
"""Share by which frame rates may differ, for files with coarse times; 24 and 23.976 differ by twice as much."""


@attrs.frozen
class Sound:
    """The first sound of a clip.

    Attributes:
        codec: Name of the codec.
        rate: Samples per second.
        layout: Name of the channels, such as `stereo`.
        extradata: Header of the codec.
        frame: Seconds of one packet.
        covers: Whether it is as long as the picture, but for one frame.
    """

    codec: str
    rate: int
    layout: str
    extradata: bytes | None
    frame: Fraction
    covers: bool


@attrs.frozen
class Clip:
    """A clip with all that its packets say; nothing but its first frame is decoded.

    Attributes:
        path: The file.
        size: Width and height as they are shown.
        rate: Frames per second.
        frames: Number of frames at that rate.
        first: Time of the first frame in the file, in seconds.
        last: Time of the last frame.
        lead: Seconds from the first time of decoding to the first frame.
        identity: All that has to be equal for packets to be copied; None if they cannot be.
        sound: Its sound; None if it is silent.
    """

    path: Path
    size: tuple[int, int]
    rate: Fraction
    frames: int
    first: Fraction
    last: Fraction
    lead: Fraction
    identity: tuple[object, ...] | None
    sound: Sound | None

    @property
    def seconds(self) -> Fraction:
        """Length of the picture."""
        return self.last - self.first + 1 / self.rate


@attrs.frozen
class Segment:
    """A clip within a film, counted in frames of the film.

    Attributes:
        clip: The clip.
        start: Frame of the film at which it begins.
        frames: Number of its frames that are shown; without a cross-fade, its last one gives way to the next clip.
        overlap: Number of frames that it shares with the next clip.
    """

    clip: Clip
    start: int
    frames: int
    overlap: int


def survey(path: Path, step: Callable[[], None]) -> Clip:
    """Read all packets of a clip.

    Args:
        path: The file.
        step: Called for every packet; raises to stop.

    Raises:
        VideoError: It is no video, is damaged, has a single frame, or is HDR.
    """
    with open_video(path) as video:
        frame = next(video.frames(), None)
        if frame is None:
            raise VideoError(f"{path}: expected frames, and none can be decoded", path=path)
        video.container.seek(video.stream.start_time or 0, stream=video.stream)
        sounds = video.container.streams.audio
        sound = sounds[0] if sounds else None
        times = _Times()
        heard_to: list[Fraction] = []
        packet_length = Fraction(0)
        for packet in video.container.demux([one for one in (video.stream, sound) if one is not None]):
            step()
            if packet.pts is None or packet.time_base is None:
                continue
            if packet.stream is video.stream:
                times.add(packet)
            else:
                packet_length = packet_length or (packet.duration or 0) * packet.time_base
                heard_to += [packet.pts * packet.time_base, (packet.pts + (packet.duration or 0)) * packet.time_base]
                heard_to = [min(heard_to), max(heard_to)]
        return _clip(video, frame, times, sound, packet_length=packet_length, heard=heard_to)


@attrs.define
class _Times:
    """Times of the packets of a stream, in seconds."""

    count: int = 0
    first: Fraction = Fraction(0)
    last: Fraction = Fraction(0)
    decoded: Fraction | None = None
    is_plain: bool = True

    def add(self, packet: Packet[Stream]) -> None:
        """Add a packet in the order of decoding."""
        base, shown = packet.time_base or Fraction(1), packet.pts or 0
        if self.decoded is None:
            self.decoded = (shown if packet.dts is None else packet.dts) * base
            self.is_plain = packet.is_keyframe
        # Frames that an edit list hides are decoded only.
        if packet.is_discard:
            self.is_plain = False
            return
        time = shown * base
        self.first = min(self.first, time) if self.count else time
        self.last = max(self.last, time)
        self.count += 1


def _clip(
    video: OpenVideo,
    frame: VideoFrame,
    times: _Times,
    sound: AudioStream | None,
    *,
    packet_length: Fraction,
    heard: Sequence[Fraction],
) -> Clip:
    stream, context = video.stream, video.stream.codec_context
    rate = stream.average_rate or Fraction(0)
    if times.count < 2 or not rate:  # noqa: PLR2004 -- one gives way to the next clip
        raise VideoError(f"{video.path}: expected at least 2 frames, got {times.count}", path=video.path)
    upright = turns(frame, video.path)
    size = square_size(frame.width, frame.height, stream.sample_aspect_ratio)
    is_plain = times.is_plain and not upright and context.name in _COPIED_VIDEO and context.extradata is not None
    colours = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
    aspect = stream.sample_aspect_ratio or Fraction(1)
    identity = (context.name, context.profile, stream.width, stream.height, aspect, context.pix_fmt, *colours)
    frames = round((times.last - times.first) * rate) + 1
    track = None
    if sound is not None and heard:
        covers = heard[0] <= times.first + 1 / rate and heard[-1] >= times.last
        coded = sound.codec_context
        layout, header = coded.layout.name, coded.extradata
        track = Sound(coded.name, sound.rate, layout, header, packet_length, covers and coded.name in _COPIED_SOUND)
    return Clip(
        path=video.path,
        size=(size[1], size[0]) if is_quarter(upright) else size,
        rate=rate,
        frames=frames,
        first=times.first,
        last=times.last,
        lead=times.first - (times.first if times.decoded is None else times.decoded),
        identity=(*identity, context.extradata) if is_plain else None,
        sound=track,
    )


def can_be_copied(clips: Sequence[Clip]) -> bool:
    """Return whether the packets of all clips fit into one stream of each kind."""
    first = clips[0]
    if first.identity is None or any(clip.identity != first.identity for clip in clips):
        return False
    return all(clip.sound == first.sound and (clip.sound is None or clip.sound.covers) for clip in clips)


def check_alike(clips: Sequence[Clip]) -> None:
    """Check that clips have one size and one frame rate.

    Raises:
        VideoError: They differ.
    """
    first = clips[0]
    for clip in clips[1:]:
        if clip.size != first.size or abs(clip.rate / first.rate - 1) > _SAME_RATE:
            raise VideoError(
                f"{clip.path}: expected {_described(first)}, as {first.path}, got {_described(clip)}",
                path=clip.path,
                advice="pass fit=True, on the command line --fit, to fit clips into the size and rate of the first one",
            )


def _described(clip: Clip) -> str:
    return f"{clip.size[0]}x{clip.size[1]} at {float(clip.rate):.6g} frames per second"


def arrange(clips: Sequence[Clip], crossfade: float) -> Iterator[Segment]:
    """Yield clips one after the other at the rate of the first one.

    Args:
        clips: The clips.
        crossfade: Seconds that neighbours share; 0 for none.

    Raises:
        VideoError: A clip is too short for its cross-fades.
    """
    rate = clips[0].rate
    overlap = round(Fraction(crossfade) * rate)
    if crossfade and not overlap:
        text = f"crossfade: expected 0, or at least one frame, {1 / float(rate):.3f} seconds, got {crossfade:g}"
        raise VideoError(text, advice="give more seconds")
    start = 0
    for number, clip in enumerate(clips):
        is_last = number == len(clips) - 1
        frames = max(2, round(clip.seconds * rate))
        needed = overlap * ((number > 0) + (not is_last))
        if frames < needed:
            raise VideoError(
                f"{clip.path}: expected at least {needed / float(rate):.3f} seconds for its cross-fades, "
                f"got {float(clip.seconds):.3f}",
                path=clip.path,
                advice="give a shorter cross-fade",
            )
        shown = frames if overlap or is_last else frames - 1
        yield Segment(clip, start, shown, 0 if is_last else overlap)
        start += shown - overlap
