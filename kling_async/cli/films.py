"""Films of a run: the clips of each are joined at its end, if `--join` asks for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import anyio.to_thread
import attrs
from rich.text import Text

from kling_async._core.job_key import key_or_problem
from kling_async._core.strips import Clip, Strip, film_of, positions, strips
from kling_async.errors import ConfigurationError, StorageError, VideoError
from kling_async.films import Film
from kling_async.films import join as join_clips
from kling_async.manifest._row import CONTINUES, CONTINUES_AT, NOTE
from kling_async.storage import target_path

from .join import as_json, joining
from .output import plural, print_text
from .places import is_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from kling_async._core.prediction import Outcome

    from .options import BatchOptions
    from .work import Work

FOLDER: Final = "films"
"""Folder of the films in that of the videos, where no clip has the name of a film."""
_FROM_LEDGER: Final = (
    "Films have the clips that the ledger has. Only kling-async run knows of rows that were left out, or not read yet."
)
_MAX_SHOWN: Final = 20
_MAX_KEYS_SHOWN: Final = 3


@attrs.frozen
class Made:
    """Result of joining a film.

    Attributes:
        strip: Name and clips of the film.
        missing: Keys of the clips that have no video.
        unread: What is wrong with left-out rows that do not say which film they are of, so that it may be this one.
        film: The joined film; None if it was not joined.
        error: Reason why its clips cannot be joined; None if they could, or if some are or may be missing.
    """

    strip: Strip
    missing: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    film: Film | None = None
    error: VideoError | StorageError | None = None

    @property
    def line(self) -> dict[str, object]:
        """The film as a line of `--json`."""
        error = self.error
        return {
            "film": self.strip.name,
            "keys": list(self.strip.keys),
            "missing": list(self.missing),
            "unread": len(self.unread),
            "joined": None if self.film is None else as_json(self.film),
            "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
        }


def check_films(options: BatchOptions) -> None:
    """Check, before anything is sent, that films can be joined if that is asked for.

    Raises:
        ConfigurationError: The videos go to an object store, `--crossfade` is without `--join`, or PyAV is missing.
    """
    if not options.join:
        if options.crossfade:
            raise ConfigurationError(
                f"--crossfade: expected --join with it, got {options.crossfade:g} alone. Nothing was sent",
                advice="add --join",
            )
        return
    if is_store(options.out):
        raise ConfigurationError(
            f"--join: expected a folder as --out, got {options.out}: clips are joined from files. Nothing was sent",
            advice="leave out --join, and join the clips later: kling-async join",
        )
    import kling_async.films._video  # noqa: F401, PLC0415 -- raises without PyAV, which takes long to load


class Films:
    """Collects the clips of a run, and joins them. Without `--join` it does nothing.

    Args:
        options: Options of the command.
    """

    def __init__(self, options: BatchOptions) -> None:
        self._options = options
        self._clips: dict[int, Clip] = {}
        self._files: dict[str, Path] = {}

    def add(self, outcome: Outcome) -> None:
        """Take the clip of an outcome."""
        if not self._options.join:
            return
        self._clips[outcome.index] = Clip.of(outcome.key, outcome.job)
        if outcome.saved is not None and isinstance(outcome.saved.location, Path):
            self._files[outcome.key] = outcome.saved.location

    async def join(self, work: Work) -> list[Made]:
        """Join the films whose clips are all there. Nothing is paid for.

        Args:
            work: The batch. A film with rows that it left out of its manifest is not whole.

        Raises:
            OSError: The manifest cannot be read any more.
            LedgerError: The ledger cannot be read any more.
        """
        if not self._options.join:
            return []
        # In a thread: the manifest and the ledger are read again.
        found, unread = await anyio.to_thread.run_sync(self._found, work)
        made: list[Made] = []
        for strip in found:
            missing = tuple(key for key in strip.keys if key not in self._files)
            made.append(Made(strip, missing, unread) if missing or unread else await self._join(strip))
        return made

    def _found(self, work: Work) -> tuple[list[Strip], tuple[str, ...]]:
        """Return the films in the order of the input, and what is wrong with left-out rows that may be of any of them.

        The clips of other left-out rows come after those that ran, whichever of these ended first.
        """
        clips = [self._clips[index] for index in sorted(self._clips)]
        if work.order is not None:
            at = positions(work.order())
            clips = sorted((clip for clip in clips if clip.key in at), key=lambda clip: at[clip.key])
        unread: list[str] = []
        if work.invalid is not None:
            clips += _clips_of_rows(work.invalid(), {clip.key for clip in clips}, unread)
        return strips(clips), tuple(unread)

    async def _join(self, strip: Strip) -> Made:
        files = [self._files[key] for key in strip.keys]
        target = target_path(Path(self._options.videos) / FOLDER, strip.name)
        try:
            with joining(f"joining {strip.name}") as progress:
                film = await join_clips(files, target, crossfade=self._options.crossfade, progress=progress)
        except (VideoError, StorageError) as error:
            return Made(strip, error=error)
        return Made(strip, film=film)


def _clips_of_rows(rows: Iterable[Mapping[str, object]], taken: set[str], unread: list[str]) -> list[Clip]:
    """Return the clips of rows that were left out, each under a key of its own.

    Args:
        rows: The rows; their fields may be of any kind.
        taken: Keys of other clips, which rows with a repeated key have, too. Receives those of the rows.
        unread: Receives what is wrong with rows that do not say which film they are of: they have no field that could
            be read, or no labels.
    """
    clips: list[Clip] = []
    for number, row in enumerate(rows, 1):
        key, labels = key_or_problem(row.get("key")), row.get("labels", {})
        if row.keys() <= {NOTE} or not isinstance(labels, dict):
            unread.append(cast("Mapping[str, str]", row[NOTE])["message"])
            continue
        # What begins with another frame than the last one begins a film.
        follows = key_or_problem(row.get(CONTINUES)) if row.get(CONTINUES_AT) is None else None
        repeats = isinstance(key, str) and key in taken
        name = key if isinstance(key, str) and not repeats else f"left-out row {number}"
        taken.add(name)
        film = film_of(cast("Mapping[str, object]", labels))
        clips.append(Clip(name, film, follows if isinstance(follows, str) else None, repeats))
    return clips


def print_films(console: Console, made: Sequence[Made], *, lines: bool, from_ledger: bool) -> None:
    """Print which films were joined, and what those lack that were not.

    Args:
        console: The console to print to.
        made: The films of the run.
        lines: Print them as JSON lines on stdout, instead.
        from_ledger: The list was not read: what it has, and the ledger does not, is in no film.
    """
    joined = sum(each.film is not None for each in made)
    if lines:
        sys.stdout.writelines(f"{json.dumps(each.line)}\n" for each in made)
    else:
        for each in made[:_MAX_SHOWN]:
            print_text(console, _described(each))
        if len(made) > _MAX_SHOWN:
            print_text(console, Text(f"Films: {joined} of {len(made)} joined; --json lists all", "dim"))
    if joined and from_ledger:
        print_text(console, Text(_FROM_LEDGER, "yellow"))


def _described(made: Made) -> Text:
    name, film = made.strip.name, made.film
    if film is not None:
        return Text.assemble(
            "Film: ", (str(film.path), "bold green"), f", {plural(film.clips, 'clip')}, {film.seconds:.1f} s"
        )
    if made.error is not None:
        return Text(f"Film {name} was not joined: {made.error}", "yellow")
    if not made.missing:
        rows = f"{plural(len(made.unread), 'left-out row')} may be of any film ({made.unread[0]})"
        return Text(f"Film {name} was not joined: {rows}: mend the list, and run it again", "yellow")
    more = len(made.missing) - _MAX_KEYS_SHOWN
    keys = ", ".join(made.missing[:_MAX_KEYS_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return Text(
        f"Film {name} was not joined: {len(made.missing)} of {plural(len(made.strip.keys), 'clip')} missing: {keys}",
        "yellow",
    )
