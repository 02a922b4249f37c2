"""Films in one new encoding: clips that differ, or that fade into each other."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

import av
from av import AudioFrame, VideoFrame
from av.audio.fifo import AudioFifo
from av.filter import Graph
from av.video.reformatter import ColorRange

from ._video import colours, filtered, is_quarter, line, open_video, pulled, scale, turns, video_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from av.audio.stream import AudioStream

    from ._clips import Segment, Sound
    from ._video import Step

_QUALITY: Final = {"preset": "medium", "crf": "17"}
_SOUND_BITS_PER_S: Final = 192_000
_CHUNK_SAMPLES: Final = 1024
_NUMBERS: Final = {"bt709": 1, "bt601": 6}
"""Colour matrices of films by their numbers in ITU-T H.273."""


def encode(segments: Sequence[Segment], target: Path, step: Callable[[float], None]) -> Fraction:
    """Decode clips, bring them to the size, the rate and the colour matrix of the first one, and encode them together.

    Pictures become H.264 in `yuv420p` of limited range, and sounds AAC; silent clips among others get silence.

    Args:
        segments: The clips; at most one cross-fade of frames is in memory.
        target: The file, which is overwritten.
        step: Called with the share that is done, for every frame; raises to stop.

    Returns:
        Seconds of the film.

    Raises:
        VideoError: A clip cannot be read, or is HDR.
        FFmpegError: The file cannot be written.
    """
    first = segments[0].clip
    size = (max(2, first.size[0] // 2 * 2), max(2, first.size[1] // 2 * 2))
    sound = next((segment.clip.sound for segment in segments if segment.clip.sound is not None), None)
    film = _Film(size, first.rate, _matrix(first.path), sound)
    whole = sum(segment.frames - segment.overlap for segment in segments)
    with av.open(f"file:{target}", "w", format="mp4", options={"movflags": "+faststart"}) as output:
        video = output.add_stream("libx264", rate=film.rate, options=_QUALITY)
        context = video.codec_context
        context.width, context.height, context.pix_fmt = *size, "yuv420p"
        context.time_base = 1 / film.rate
        context.color_range, context.colorspace = ColorRange.MPEG, _NUMBERS[film.matrix]
        context.color_primaries = context.color_trc = _NUMBERS[film.matrix]
        track: AudioStream | None = None
        if sound is not None:
            track = output.add_stream("aac", rate=sound.rate, layout=sound.layout)
            track.codec_context.bit_rate = _SOUND_BITS_PER_S
        heard = film.sounds(segments) if track is not None else iter(())
        samples = number = 0
        for number, frame in enumerate(film.pictures(segments)):
            step(number / whole)
            while track is not None and Fraction(samples, track.rate) <= number / film.rate:
                chunk = next(heard, None)
                if chunk is None:
                    break
                chunk.pts, chunk.time_base = samples, Fraction(1, track.rate)
                samples += chunk.samples
                output.mux(track.encode(chunk))
            frame.pts, frame.time_base = number, 1 / film.rate
            # The encoder decides which frames are key frames.
            frame.pict_type = 0
            output.mux(video.encode(frame))
        for chunk in heard:
            step(number / whole)
            if track is not None:
                chunk.pts, chunk.time_base = samples, Fraction(1, track.rate)
                samples += chunk.samples
                output.mux(track.encode(chunk))
        output.mux(video.encode(None))
        if track is not None:
            output.mux(track.encode(None))
    return whole / film.rate


def _matrix(path: Path) -> str:
    """Return the colour matrix of a film whose first clip is this file."""
    with open_video(path) as video:
        frame = next(video.frames())
        return "bt601" if colours(frame, path)[0] in {"bt601", "fcc"} else "bt709"


class _Film:
    """Frames and samples of a film, one clip after the other, and the cross-fades between them."""

    def __init__(self, size: tuple[int, int], rate: Fraction, matrix: str, sound: Sound | None) -> None:
        self.size = size
        self.rate = rate
        self.matrix = matrix
        self._sound = sound

    def pictures(self, segments: Sequence[Segment]) -> Iterator[VideoFrame]:
        """Yield all frames."""
        tail: list[VideoFrame] = []
        for segment in segments:
            head: list[VideoFrame] = []
            expected, tail, before = segment.frames, [], tail
            for number, frame in enumerate(self._clip(segment)):
                if number < len(before):
                    head.append(frame)
                    if len(head) == len(before):
                        yield from self._fade(before, head)
                elif number < expected - segment.overlap:
                    yield frame
                else:
                    tail.append(frame)

    def _clip(self, segment: Segment) -> Iterator[VideoFrame]:
        """Yield exactly the frames of a segment: the last one is repeated if there are fewer."""
        clip = segment.clip
        frame, number = None, 0
        with open_video(clip.path) as video:
            for frame in filtered(video.frames(), VideoFrame, lambda first: self._canvas(segment, first)):
                if number == segment.frames:
                    return
                yield frame
                number += 1
        while frame is not None and number < segment.frames:
            yield frame
            number += 1

    def _canvas(self, segment: Segment, frame: VideoFrame) -> Graph:
        """Return the filters that bring frames like this one to the size, the rate and the colours of the film."""
        path, (width, height) = segment.clip.path, segment.clip.size
        share = min(Fraction(self.size[0], width), Fraction(self.size[1], height))
        fitted = (max(2, round(width * share / 2) * 2), max(2, round(height * share / 2) * 2))
        upright = turns(frame, path)
        unturned = (fitted[1], fitted[0]) if is_quarter(upright) else fitted
        steps: list[Step] = [scale(frame, path, unturned, matrix=self.matrix, is_full=False)]
        steps += [("format", "pix_fmts=yuv420p"), *upright, ("setsar", "1"), ("setpts", "PTS-STARTPTS")]
        if fitted != self.size:
            steps.append(("pad", f"w={self.size[0]}:h={self.size[1]}:x=-1:y=-1"))
        steps.append(("fps", f"fps={self.rate.numerator}/{self.rate.denominator}:start_time=0"))
        graph = Graph()
        line(graph, video_source(graph, frame, segment.clip.rate), steps)
        return graph

    def _fade(self, before: Sequence[VideoFrame], after: Sequence[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield a cross-fade of two equally long rows of frames."""
        graph = Graph()
        sources = []
        for frame in (before[0], after[0]):
            frame.time_base = 1 / self.rate
            sources.append(video_source(graph, frame, self.rate))
        fade = graph.add("xfade", f"transition=fade:offset=0:duration={float(len(before) / self.rate):.9f}")
        for number, source in enumerate(sources):
            source.link_to(fade, 0, number)
        fade.link_to(graph.add("buffersink"))
        graph.configure()
        for number, frames in enumerate(zip(before, after, strict=True)):
            for source, frame in zip(sources, frames, strict=True):
                frame.pts, frame.time_base = number, 1 / self.rate
                source.push(frame)
            yield from pulled(graph, VideoFrame)
        for source in sources:
            source.push(None)
        yield from pulled(graph, VideoFrame)

    def sounds(self, segments: Sequence[Segment]) -> Iterator[AudioFrame]:
        """Yield the sound, in pieces."""
        if self._sound is None:
            return
        tail: AudioFrame | None = None
        for segment in segments:
            begin, end = self._sample(segment.start), self._sample(segment.start + segment.frames)
            keep = end - self._sample(segment.start + segment.frames - segment.overlap)
            fifo = AudioFifo()
            for chunk in self._heard(segment, end - begin):
                chunk.pts = None
                fifo.write(chunk)
                if tail is not None and fifo.samples >= tail.samples:
                    head = fifo.read(tail.samples)
                    yield from self._fade_sound(tail, head) if head is not None else ()
                    tail = None
                while tail is None and fifo.samples >= _CHUNK_SAMPLES + keep:
                    piece = fifo.read(_CHUNK_SAMPLES)
                    if piece is not None:
                        yield piece
            rest = fifo.read(fifo.samples - keep) if fifo.samples > keep else None
            if rest is not None:
                yield rest
            tail = fifo.read(keep) if keep else None

    def _sample(self, frame: int) -> int:
        """Return the sample at which a frame of the film begins."""
        return round(frame / self.rate * (self._sound.rate if self._sound is not None else 0))

    def _format(self) -> str:
        sound = self._sound
        return "" if sound is None else f"sample_fmts=fltp:sample_rates={sound.rate}:channel_layouts={sound.layout}"

    def _heard(self, segment: Segment, samples: int) -> Iterator[AudioFrame]:
        """Yield exactly that many samples of a clip from its first picture on; silence where it has none."""
        clip, rate = segment.clip, 0 if self._sound is None else self._sound.rate
        exactly: list[Step] = [("aformat", self._format()), ("apad", ""), ("atrim", f"end_sample={samples}")]
        if clip.sound is None:
            graph = Graph()
            layout = "" if self._sound is None else self._sound.layout
            silence = graph.add("anullsrc", f"sample_rate={rate}:channel_layout={layout}")
            line(graph, silence, exactly, "abuffersink")
            yield from pulled(graph, AudioFrame)
            return

        def build(frame: AudioFrame) -> Graph:
            graph = Graph()
            base = frame.time_base or Fraction(1, frame.sample_rate)
            source = graph.add_abuffer(
                sample_rate=frame.sample_rate, format=frame.format, layout=frame.layout, time_base=base
            )
            # Sound that begins before the picture is cut, and silence put before one that begins after it.
            since = ("asetpts", f"PTS-{float(clip.first):.9f}/TB")
            line(graph, source, (since, ("aresample", f"{rate}:async=1:first_pts=0"), *exactly), "abuffersink")
            return graph

        with open_video(clip.path) as video:
            yield from filtered(video.container.decode(audio=0), AudioFrame, build)

    def _fade_sound(self, before: AudioFrame, after: AudioFrame) -> Iterator[AudioFrame]:
        """Yield a cross-fade of two equally long sounds."""
        graph = Graph()
        fade = graph.add("acrossfade", f"ns={before.samples}")
        sources = []
        for number, frame in enumerate((before, after)):
            frame.pts, frame.time_base = 0, Fraction(1, frame.sample_rate)
            source = graph.add_abuffer(
                sample_rate=frame.sample_rate, format=frame.format, layout=frame.layout, time_base=frame.time_base
            )
            source.link_to(fade, 0, number)
            sources.append(source)
        shape = graph.add("aformat", self._format())
        fade.link_to(shape)
        shape.link_to(graph.add("abuffersink"))
        graph.configure()
        for source, frame in zip(sources, (before, after), strict=True):
            source.push(frame)
            source.push(None)
        yield from pulled(graph, AudioFrame)
