"""`kling-async demo`: real videos from an emulator on this computer, without a key and for nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import shlex
import shutil
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import attrs
from rich.text import Text

from kling_async._core.endings import state_of
from kling_async._core.job import Job, JobFields
from kling_async._core.strips import LABEL
from kling_async._core.text import one_line
from kling_async._core.video_frames import LastFrame
from kling_async._images.preflight import preflight
from kling_async._session.session import KlingSession
from kling_async.errors import InvalidJobError, Problem
from kling_async.films import Film, join
from kling_async.progress._display import model_name, new_display

from .choices import LevelChoice, ProfileChoice
from .exits import Exit
from .interrupts import interruptible, took_interrupt
from .output import (
    format_duration,
    format_size,
    format_usd,
    make_console,
    new_table,
    plural,
    print_panel,
    print_text,
    route_logs,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from kling_async._core.prediction import Outcome
    from kling_async.emulator import Call, Charge, Emulator

    from .options import DemoOptions

_JOBS: Final = 12
_QUICK_JOBS: Final = 4
_QUICK_SPEED: Final = 60.0
_MAX_IN_FLIGHT: Final = 6
_MAX_IN_FLIGHT_GPTPROTO: Final = 2
_WIDE_TABLE_COLUMNS: Final = 110
"""Terminal width from which the table has every column."""
_PICTURES: Final = Path(__file__).parent / "demo_images"
_PICTURE_NAMES: Final = ("dawn.jpg", "desert.jpg", "aurora.jpg")


@attrs.frozen
class Plan:
    """A video of the demo.

    Attributes:
        name: End of the job's key.
        model: Name of the model.
        duration: Seconds of video.
        picture: Index of the picture.
        prompt: The prompt; its words move the emulator's camera.
        end: Index of the last frame's picture, for the model that has a last frame.
        provider: Name of the provider.
    """

    name: str
    model: str
    duration: int
    picture: int
    prompt: str
    end: int | None = None
    provider: str = "wavespeed"


_STANDARD, _PRO, _MASTER = "kling-v2.1-standard", "kling-v2.1-pro", "kling-v2.1-master"
_START_END = "kling-v2.1-pro-start-end-frame"
_FAILING_PROMPT: Final = "Something that does not come out"

PLANS: Final = (
    Plan("standard", _STANDARD, 5, 0, "The sun rises, slow push in"),
    Plan("start-end", _START_END, 5, 0, "Day becomes night", end=2),
    Plan("gptproto", _PRO, 5, 1, "Drive on, slow push in", provider="gptproto"),
    Plan("pro", _PRO, 5, 1, "The sun sinks lower, pan right"),
    Plan("master", _MASTER, 5, 2, "The lights dance, tilt up"),
    Plan("standard", _STANDARD, 10, 2, "The stars turn, pan left"),
    Plan("pro", _PRO, 5, 0, "The light changes, zoom out"),
    Plan("start-end", _START_END, 5, 2, "Night becomes day", end=0),
    Plan("master", _MASTER, 5, 0, "Mist in the valleys, slow push in"),
    Plan("gptproto", _PRO, 10, 2, "The lights come closer", provider="gptproto"),
    Plan("master", _MASTER, 5, 1, "Dust in the wind, zoom out"),
)
"""Videos of the demo, repeated if more are requested. One more job fails on purpose."""

_FAILING: Final = Plan("failing", _STANDARD, 5, 1, _FAILING_PROMPT)

_FILM: Final = "film"
_SHOTS: Final = ("Mist lifts, slow push in", "Birds cross the sky, pan right", "The day is there, zoom out")
"""Prompts of the film's clips, each of which begins with the last frame of the one before."""


def demo(options: DemoOptions) -> Exit:
    """Make some videos and print the results."""
    started = time.monotonic()
    console = make_console()
    if options.quick:
        options = attrs.evolve(options, jobs=options.jobs or _QUICK_JOBS, speed=max(options.speed, _QUICK_SPEED))
    own = list(options.pictures or ())
    _check_pictures(own)
    pictures = own or _copy_pictures(options.out / "pictures")
    jobs = plan_jobs(pictures, options.jobs or _JOBS) | plan_film(pictures[0])
    _print_greeting(console, options, pictures, len(jobs), own=bool(own))
    route_logs(console, debug=options.debug)
    status = interruptible(lambda: _Demo(console, options, jobs).run(started))
    if status is not Exit.INTERRUPTED:
        _print_next_steps(console, None if own else _write_manifest(options.out, jobs))
    return status


def _copy_pictures(folder: Path) -> list[Path]:
    """Copy the pictures of the package to a folder and return the copies."""
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copyfile(_PICTURES / name, folder / name)) for name in _PICTURE_NAMES]


def _check_pictures(pictures: Sequence[Path]) -> None:
    """Check that the service would accept every picture.

    Raises:
        InvalidJobError: It would refuse some; `problems` has all of them.
    """
    problems: list[Problem] = []
    for picture in pictures:
        try:
            preflight(picture.read_bytes(), field=str(picture))
        except InvalidJobError as error:
            problems += error.problems
    if problems:
        raise InvalidJobError(problems, advice="use other pictures, or none: the demo has three of its own")


def plan_jobs(pictures: Sequence[Path], count: int) -> dict[str, tuple[str, Job]]:
    """Return provider and job, by key.

    Args:
        pictures: Files, used in turn.
        count: Number of jobs; the last one fails on purpose, unless it is the only one.
    """
    plans = list(itertools.islice(itertools.cycle(PLANS), max(1, count - 1)))
    if count > 1:
        plans.append(_FAILING)
    jobs: dict[str, tuple[str, Job]] = {}
    for number, plan in enumerate(plans):
        # Every further round uses other pictures, so that its videos differ.
        shift = number // len(PLANS)
        picture = pictures[(plan.picture + shift) % len(pictures)]
        fields: JobFields = {"model": plan.model, "prompt": plan.prompt, "duration": plan.duration, "image": picture}
        if plan.end is not None:
            fields["end_image"] = pictures[(plan.end + shift) % len(pictures)]
        key = f"{picture.stem}-{plan.name}"
        if key in jobs:
            key = f"{key}-{number + 1}"
        jobs[key] = plan.provider, Job(**fields)
    return jobs


def plan_film(picture: Path) -> dict[str, tuple[str, Job]]:
    """Return provider and job of each clip of the film, by key.

    Args:
        picture: Picture that the first clip begins with.
    """
    jobs: dict[str, tuple[str, Job]] = {}
    image: Path | LastFrame = picture
    for number, prompt in enumerate(_SHOTS, start=1):
        key = f"{_FILM}-{number}"
        jobs[key] = "wavespeed", Job(model=_STANDARD, prompt=prompt, duration=5, image=image, labels={LABEL: _FILM})
        image = LastFrame(key)
    return jobs


def _print_greeting(console: Console, options: DemoOptions, pictures: Sequence[Path], count: int, *, own: bool) -> None:
    where = "yours" if own else f"copied to {options.out / 'pictures'}"
    lines = [
        Text.assemble(("service    ", "dim"), "WaveSpeedAI and GPTProto emulated on this computer, real sockets"),
        Text.assemble(("time       ", "dim"), f"runs {options.speed:g} times as fast as at the service"),
        Text.assemble(("pictures   ", "dim"), f"{len(pictures)}, {where}"),
        Text.assemble(("videos     ", "dim"), f"{plural(count, 'job')} on Kling 2.1, real MP4s, no key, no cost"),
        Text.assemble(("film       ", "dim"), f"{len(_SHOTS)} of them, each from the last frame of the one before"),
    ]
    print_panel(console, "kling-async demo", lines)


class _Demo:
    """One run of the command."""

    def __init__(self, console: Console, options: DemoOptions, jobs: Mapping[str, tuple[str, Job]]) -> None:
        self._console = console
        self._options = options
        self._jobs = jobs
        self._outcomes: dict[str, Outcome] = {}
        self._film: Film | None = None

    async def run(self, started: float) -> Exit:
        """Start the emulator, run all jobs and print their results.

        Args:
            started: Real time of the start, on the monotonic clock.
        """
        from .serving import new_emulator  # noqa: PLC0415 -- imported after the pictures are checked

        emulator = new_emulator(level=LevelChoice.GOLD, profile=ProfileChoice.VIDEO, speed=self._options.speed, seed=7)
        async with emulator:
            try:
                await self._run_jobs(emulator)
                await self._join_film()
            except asyncio.CancelledError:
                took_interrupt()
                self._console.print(
                    f"Interrupted with {plural(len(self._outcomes), 'job')} ended. "
                    "Nothing was spent: the emulator has ended too."
                )
                return Exit.INTERRUPTED
            charges = emulator.charges()
        self._print_results(charges, time.monotonic() - started)
        failed = [outcome for outcome in self._outcomes.values() if not outcome.ok]
        expected = [outcome for outcome in failed if outcome.job.prompt == _FAILING_PROMPT]
        return Exit.WELL if len(failed) == len(expected) else Exit.SOME_FAILED

    async def _run_jobs(self, emulator: Emulator) -> None:
        from kling_async.emulator import faults  # noqa: PLC0415 -- see above

        failure = faults.FailTask(code=1405, message="on purpose, to show that the others go on")
        emulator.faults.add("submit", failure, times=None, when=_is_failing)
        display = new_display(self._console, emulator.clock, total=len(self._jobs))
        wavespeed = KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            level="gold",
            max_in_flight=_MAX_IN_FLIGHT,
            clock=emulator.clock,
            observers=[display.observer("wavespeed")],
        )
        gptproto = KlingSession(
            emulator.gptproto_key,
            provider="gptproto",
            base_url=emulator.gptproto_url,
            level="gold",
            max_in_flight=_MAX_IN_FLIGHT_GPTPROTO,
            images="inline",
            clock=emulator.clock,
            observers=[display.observer("gptproto")],
        )
        async with display, wavespeed, gptproto, anyio.create_task_group() as tasks:
            tasks.start_soon(self._run_batch, wavespeed)
            tasks.start_soon(self._run_batch, gptproto)

    async def _run_batch(self, kling: KlingSession) -> None:
        """Run the jobs of a session's provider."""
        jobs = {key: job for key, (provider, job) in self._jobs.items() if provider == kling.provider.name}
        async with kling.batch(jobs, name=kling.provider.name, save_to=self._options.out) as batch:
            async for outcome in batch:
                self._outcomes[outcome.key] = outcome

    async def _join_film(self) -> None:
        """Join the clips of the film, if they are all there."""
        saved = [self._outcomes[key].saved for key, (_, job) in self._jobs.items() if LABEL in job.labels]
        clips = [file.location for file in saved if file is not None and isinstance(file.location, Path)]
        if len(clips) == len(_SHOTS):
            self._film = await join(clips, self._options.out / f"{_FILM}.mp4", replace=True)

    def _print_results(self, charges: Sequence[Charge], seconds: float) -> None:
        self._print_table()
        for outcome in self._outcomes.values():
            if outcome.error is not None:
                # The display has shown the message; this is its meaning.
                meaning = f"{outcome.error.spent.value}; {outcome.error.advice}"
                name = (one_line(outcome.key), "bold")
                print_text(self._console, Text.assemble(name, (f" {state_of(outcome).label}", "red"), f": {meaning}."))
        self._print_money(charges)
        saved = [outcome.saved.bytes for outcome in self._outcomes.values() if outcome.saved is not None]
        done = sum(outcome.ok for outcome in self._outcomes.values())
        print_text(
            self._console,
            Text.assemble(
                (f"{plural(done, 'video')} in {self._options.out}", "bold green"),
                f" ({format_size(sum(saved))}), in {seconds:.0f} s",
            ),
        )
        film = self._film
        if film is not None:
            made = f", {plural(film.clips, 'clip')} joined, {film.seconds:.1f} s"
            print_text(self._console, Text.assemble("Film: ", (str(film.path), "bold green"), made))

    def _print_table(self) -> None:
        """Print a row per job. A narrow terminal shows no file names: they are the keys."""
        wide = self._console.width >= _WIDE_TABLE_COLUMNS
        file = ("file",) if wide else ()
        table = new_table(self._console, "job", "kling-v2.1-", ">length", "status", ">took", ">price", *file, ">size")
        for key, (provider, job) in self._jobs.items():
            outcome = self._outcomes[key]
            saved = outcome.saved
            inference = outcome.prediction.inference if outcome.prediction and outcome.ok else None
            name = Text("" if saved is None else Path(str(saved)).name, "cyan")
            table.add_row(
                Text(one_line(key), "bold"),
                model_name(job, provider).removeprefix("kling-v2.1-").removesuffix("-frame"),
                f"{job.duration} s",
                Text(state_of(outcome).label, "green" if outcome.ok else "red"),
                "" if inference is None else format_duration(inference),
                str(job.price(provider)),
                *([name] if wide else []),
                "" if saved is None else format_size(saved.bytes),
            )
        self._console.print(table)

    def _print_money(self, charges: Sequence[Charge]) -> None:
        """Print the list price and the charges of the emulated service."""
        spent = sum((outcome.cost or Decimal(0) for outcome in self._outcomes.values()), Decimal(0))
        unpriced = sum(outcome.prediction is not None and outcome.cost is None for outcome in self._outcomes.values())
        charged = sum((charge.amount for charge in charges), Decimal(0))
        refunded = sum((charge.amount for charge in charges if charge.refunded), Decimal(0))
        text = Text.assemble("List price: ", (format_usd(spent), "bold"))
        if unpriced:
            text.append(f", and {plural(unpriced, 'job')} at GPTProto, which publishes none")
        text.append(f". The emulated service charged {format_usd(charged)} for {plural(len(charges), 'prediction')}")
        if refunded:
            text.append(f" and refunded {format_usd(refunded)} for failures")
        print_text(self._console, text.append("."))


def _is_failing(call: Call) -> bool:
    return call.body.get("prompt") == _FAILING_PROMPT


def _write_manifest(out: Path, jobs: Mapping[str, tuple[str, Job]]) -> Path:
    """Write the jobs at WaveSpeed, except the failing one, as a manifest."""
    path = out / "jobs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for key, (provider, job) in jobs.items():
            if provider != "wavespeed" or job.prompt == _FAILING_PROMPT:
                continue
            row: dict[str, object] = {"key": key, "model": job.row.name, "prompt": job.prompt}
            row |= job.labels
            for name, image in (("image", job.image), ("end_image", job.end_image)):
                if isinstance(image, LastFrame):
                    row["continues"] = image.parent
                elif image is not None:
                    row[name] = f"pictures/{image.name}" if isinstance(image, Path) else str(image)
            file.write(json.dumps(row | {"duration": job.duration}, ensure_ascii=False) + "\n")
    return path


def _print_next_steps(console: Console, manifest: Path | None) -> None:
    lines: list[Text] = []
    jobs = manifest or "jobs.jsonl"
    if manifest is not None:
        lines += [
            Text("The jobs at WaveSpeed as a file, to rehearse for nothing:"),
            Text(f"  kling-async run {shlex.quote(str(manifest))} --out videos --join --emulator", "bold green"),
        ]
    else:
        lines += [
            Text("Write your jobs into jobs.jsonl, one per line:"),
            Text(
                '  {"key": "face-1", "model": "kling-v2.1-pro", "prompt": "She smiles", "image": "face.png"}', "green"
            ),
        ]
    lines += [
        Text("For real, with a key from wavespeed.ai/accesskey; the price is shown before anything is sent:"),
        Text("  export WAVESPEED_API_KEY=...", "bold green"),
        Text(f"  kling-async run {shlex.quote(str(jobs))} --out videos{' --join' if manifest else ''}", "bold green"),
        Text("Prices and limits: kling-async models", "dim"),
    ]
    print_panel(console, "next", lines, "green")
