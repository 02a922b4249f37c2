"""Films without a new encoding: the packets of clips, one clip after the other."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import av

from ._video import open_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from av import Packet
    from av.stream import Stream

    from ._clips import Clip


def copy(clips: Sequence[Clip], target: Path, step: Callable[[float], None]) -> Fraction:
    """Write the packets of clips that `can_be_copied` into one MP4.

    Every clip begins a tick (at most a ten-thousandth of a second) after the time of the last frame of the one before:
    that frame, which is mostly the first one of the next clip, is not seen twice. Its sound is cut there, to a packet.

    Args:
        clips: The clips.
        target: The file, which is overwritten.
        step: Called with the share that is done, for every packet; raises to stop.

    Returns:
        Seconds of the film.

    Raises:
        VideoError: A clip cannot be read.
        FFmpegError: The file cannot be written.
    """
    whole = sum(clip.seconds for clip in clips)
    with av.open(f"file:{target}", "w", format="mp4", options={"movflags": "+faststart"}) as output:
        places: dict[str, _Place] = {}
        start = done = Fraction(0)
        for number, clip in enumerate(clips):
            following = number + 1 < len(clips)
            for streams, packet in _packets(clip):
                if not places:
                    places = {stream.type: _Place(output.add_stream_from_template(stream)) for stream in streams}
                    output.start_encoding()
                place = places[packet.stream.type]
                time = _seconds(packet, packet.pts) - clip.first
                step(float((done + min(max(time, Fraction(0)), clip.seconds)) / whole))
                if packet.stream.type == "video":
                    place.put_picture(packet, start - clip.first)
                elif clip.sound is not None:
                    until = start + clip.last - clip.first if following else None
                    if not place.put_sound(packet, start + time, clip.sound.frame, until):
                        continue
                output.mux(packet)
            if following:
                video = places["video"]
                # The times of decoding must grow, too.
                decodable = (video.end or Fraction(0)) + clips[number + 1].lead
                start = max(start + clip.last - clip.first, decodable) + video.tick
            done += clip.seconds
    return start + clips[-1].seconds


class _Place:
    """A stream of the film.

    Attributes:
        stream: The stream.
        end: Time of decoding of its last picture, or the end of its last sound, in seconds; None before the first.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.end: Fraction | None = None

    @property
    def tick(self) -> Fraction:
        """Unit of time of the stream in seconds, which the container has chosen."""
        return self.stream.time_base or Fraction(1)

    def put_picture(self, packet: Packet[Stream], shift: Fraction) -> None:
        """Move a packet by seconds into this stream."""
        shown, decoded = _seconds(packet, packet.pts) + shift, _seconds(packet, packet.dts) + shift
        self._put(packet, shown, decoded, (packet.duration or 0) * (packet.time_base or Fraction(1)))
        self.end = decoded

    def put_sound(self, packet: Packet[Stream], time: Fraction, length: Fraction, until: Fraction | None) -> bool:
        """Append a packet of sound to this stream, unless it belongs to the time of another clip.

        Packets follow each other without gaps; which one of a clip is the first, and which the last, keeps sound and
        picture together to half a packet, for any number of clips.

        Args:
            packet: The packet.
            time: Its time in the film, in seconds.
            length: Its length.
            until: Time of the next clip; None for the last one.

        Returns:
            Whether it was appended.
        """
        if self.end is not None:
            if time < self.end - length / 2:
                return False
            if time <= self.end + length / 2:
                time = self.end
        if until is not None and time > until - length / 2:
            return False
        self._put(packet, time, time, length)
        self.end = time + length
        return True

    def _put(self, packet: Packet[Stream], shown: Fraction, decoded: Fraction, length: Fraction) -> None:
        packet.stream, packet.time_base = self.stream, self.tick
        packet.pts, packet.dts = round(shown / self.tick), round(decoded / self.tick)
        packet.duration = round(length / self.tick)


def _packets(clip: Clip) -> Iterator[tuple[Sequence[Stream], Packet[Stream]]]:
    """Yield the packets of a clip, each with all streams of the clip."""
    with open_video(clip.path) as video:
        streams: list[Stream] = [video.stream]
        streams += video.container.streams.audio[:1] if clip.sound is not None else []
        for packet in video.container.demux(streams):
            if packet.pts is not None and packet.dts is not None:
                yield streams, packet


def _seconds(packet: Packet[Stream], ticks: int | None) -> Fraction:
    return (ticks or 0) * (packet.time_base or Fraction(1))
