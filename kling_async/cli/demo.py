"""`kling-async demo`: the whole way, on this computer, without a key and for nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import attrs
from rich.text import Text

from kling_async._core.job import Job, JobFields
from kling_async._images.preflight import preflight
from kling_async._session.session import KlingSession
from kling_async.errors import ConfigurationError, InvalidJobError, Problem

from .choices import LevelChoice, ProfileChoice
from .interrupts import Exit, interruptible, took_interrupt
from .output import block, clean, console, route_logs, say, size, span, table, usd
from .progress import counted, model_at, progress
from .results import status as state_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from kling_async._core.prediction import Outcome
    from kling_async.emulator import Call, Charge, Emulator

_JOBS: Final = 12
_QUICK_JOBS: Final = 4
_QUICK_SPEED: Final = 60.0
_AT_ONCE: Final = 6
_AT_ONCE_GPTPROTO: Final = 2


@attrs.frozen
class Plan:
    """A video of the demo.

    Attributes:
        name: What its key ends in.
        model: The model.
        duration: Seconds of video.
        picture: Which picture, from 0.
        prompt: The prompt; its words move the emulator's camera.
        end: Which picture it ends on, for the model that has an end.
        provider: Who makes it.
    """

    name: str
    model: str
    duration: int
    picture: int
    prompt: str
    end: int | None = None
    provider: str = "wavespeed"


_STANDARD, _PRO, _MASTER = "kling-v2.1-standard", "kling-v2.1-pro", "kling-v2.1-master"
_ENDS = "kling-v2.1-pro-start-end-frame"
_BROKEN_PROMPT: Final = "Something that does not come out"

PLANS: Final = (
    Plan("standard", _STANDARD, 5, 0, "The sun rises, slow push in"),
    Plan("start-end", _ENDS, 5, 0, "Day becomes night", end=3),
    Plan("gptproto", _PRO, 5, 2, "Drive on, slow push in", provider="gptproto"),
    Plan("pro", _PRO, 5, 5, "The boat sails, pan right"),
    Plan("master", _MASTER, 5, 3, "The lights dance, tilt up"),
    Plan("standard", _STANDARD, 10, 1, "The town sleeps, pan left"),
    Plan("pro", _PRO, 5, 0, "The light changes, zoom out"),
    Plan("start-end", _ENDS, 5, 5, "The day goes by", end=1),
    Plan("master", _MASTER, 5, 5, "A calm sea, slow push in"),
    Plan("gptproto", _PRO, 10, 4, "The shapes come closer", provider="gptproto"),
    Plan("pro", _PRO, 5, 4, "The poster comes alive, zoom out"),
)
"""What is made, again from the first when more is asked for. One more job fails on purpose."""

_BROKEN: Final = Plan("broken", _STANDARD, 5, 2, _BROKEN_PROMPT)


@attrs.frozen(kw_only=True)
class DemoOptions:
    """What the user asked for; see the help of the command."""

    out: Path
    pictures: tuple[Path, ...] = ()
    jobs: int | None = None
    speed: float = 20.0
    quick: bool = False
    debug: bool = False


def demo(options: DemoOptions) -> Exit:
    """Make some videos and show what came of it."""
    started = time.monotonic()
    to = console()
    if options.quick:
        options = attrs.evolve(options, jobs=options.jobs or _QUICK_JOBS, speed=max(options.speed, _QUICK_SPEED))
    own = not options.pictures
    pictures = _painted(options.out / "pictures") if own else list(options.pictures)
    if not own:
        _looked_at(pictures)
    jobs = planned(pictures, options.jobs or _JOBS)
    _greet(to, options, pictures, len(jobs), own=own)
    route_logs(to, debug=options.debug)
    exit_ = interruptible(lambda: _Demo(to, options, jobs).run(started))
    if exit_ is not Exit.INTERRUPTED:
        rehearsal = _manifest(options.out, jobs) if own else None
        _tell_next(to, rehearsal)
    return exit_


def _painted(folder: Path) -> list[Path]:
    try:
        from .pictures import paint  # noqa: PLC0415 -- needs Pillow, of another extra
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the demo needs {error.name}", advice="pip install 'kling-async[demo]' has everything"
        ) from None
    return paint(folder)


def _looked_at(pictures: Sequence[Path]) -> None:
    """Refuse pictures that the service would refuse, all of them at once.

    Raises:
        InvalidJobError: With what is wrong with each.
    """
    problems: list[Problem] = []
    for picture in pictures:
        try:
            preflight(picture.read_bytes(), field=str(picture))
        except InvalidJobError as error:
            problems += error.problems
    if problems:
        raise InvalidJobError(problems, advice="take other pictures, or none: the demo paints some")


def planned(pictures: Sequence[Path], count: int) -> dict[str, tuple[str, Job]]:
    """The jobs by their keys, each with who makes it.

    Args:
        pictures: Files, used in turn.
        count: How many jobs; the last one is meant to fail, unless it is the only one.
    """
    plans = list(itertools.islice(itertools.cycle(PLANS), max(1, count - 1)))
    if count > 1:
        plans.append(_BROKEN)
    jobs: dict[str, tuple[str, Job]] = {}
    for number, plan in enumerate(plans):
        # More rounds than one over the plans make other videos of other pictures.
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


def _greet(to: Console, options: DemoOptions, pictures: Sequence[Path], count: int, *, own: bool) -> None:
    where = f"painted into {options.out / 'pictures'}" if own else "yours"
    lines = [
        Text.assemble(("service    ", "dim"), "an emulator of WaveSpeedAI and GPTProto on this computer, real sockets"),
        Text.assemble(("time       ", "dim"), f"runs {options.speed:g} times as fast as at the service"),
        Text.assemble(("pictures   ", "dim"), f"{len(pictures)}, {where}"),
        Text.assemble(("videos     ", "dim"), f"{count} jobs on Kling 2.1, real MP4s, no key, no cost"),
    ]
    block(to, "kling-async demo", lines)


class _Demo:
    """One run of the command."""

    def __init__(self, to: Console, options: DemoOptions, jobs: Mapping[str, tuple[str, Job]]) -> None:
        self._to = to
        self._options = options
        self._jobs = jobs
        self._outcomes: dict[str, Outcome] = {}

    async def run(self, started: float) -> Exit:
        """Start the emulator, run all jobs, print what came of it."""
        from .serving import emulator_of  # noqa: PLC0415 -- a server is not wanted in every command

        emulator = emulator_of(level=LevelChoice.GOLD, profile=ProfileChoice.VIDEO, speed=self._options.speed, seed=7)
        async with emulator:
            try:
                await self._all(emulator)
            except asyncio.CancelledError:
                took_interrupt()
                self._to.print(
                    f"Interrupted with {counted(len(self._outcomes), 'job')} ended. "
                    "Nothing was spent: the emulator has ended too."
                )
                return Exit.INTERRUPTED
            charges = emulator.charges()
        self._tell(charges, time.monotonic() - started)
        failed = [outcome for outcome in self._outcomes.values() if not outcome.ok]
        meant = [outcome for outcome in failed if outcome.job.prompt == _BROKEN_PROMPT]
        return Exit.WELL if len(failed) == len(meant) else Exit.SOME_FAILED

    async def _all(self, emulator: Emulator) -> None:
        from kling_async.emulator import faults  # noqa: PLC0415 -- the same

        failure = faults.FailTask(code=1405, message="on purpose, to show that the others go on")
        emulator.faults.add("submit", failure, times=None, when=_broken)
        display = progress(self._to, emulator.clock, total=len(self._jobs))
        wavespeed = KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            level="gold",
            max_in_flight=_AT_ONCE,
            clock=emulator.clock,
            observers=[display.observer("wavespeed")],
        )
        gptproto = KlingSession(
            emulator.gptproto_key,
            provider="gptproto",
            base_url=emulator.gptproto_url,
            level="gold",
            max_in_flight=_AT_ONCE_GPTPROTO,
            images="inline",
            clock=emulator.clock,
            observers=[display.observer("gptproto")],
        )
        async with display, wavespeed, gptproto, anyio.create_task_group() as tasks:
            tasks.start_soon(self._one_account, wavespeed)
            tasks.start_soon(self._one_account, gptproto)

    async def _one_account(self, kling: KlingSession) -> None:
        jobs = {key: job for key, (provider, job) in self._jobs.items() if provider == kling.provider.name}
        async with kling.batch(jobs, name=kling.provider.name, save_to=self._options.out) as batch:
            async for outcome in batch:
                self._outcomes[outcome.key] = outcome

    def _tell(self, charges: Sequence[Charge], took: float) -> None:
        shown = table(self._to, "job", "kling-v2.1-", ">length", "status", ">took", ">price", "file", ">size")
        spent, unpriced, total = Decimal(0), 0, 0
        for key, (provider, job) in self._jobs.items():
            outcome = self._outcomes[key]
            spent += outcome.cost or 0
            unpriced += outcome.prediction is not None and outcome.cost is None
            total += outcome.saved.bytes if outcome.saved else 0
            inference = outcome.prediction.inference if outcome.prediction and outcome.ok else None
            state = state_of(outcome)
            shown.add_row(
                Text(clean(key), "bold"),
                model_at(job, provider).removeprefix("kling-v2.1-"),
                f"{job.duration} s",
                Text(state, "green" if outcome.ok else "red"),
                "" if inference is None else span(inference),
                str(job.price(provider)),
                Text("" if outcome.saved is None else Path(str(outcome.saved)).name, "cyan"),
                "" if outcome.saved is None else size(outcome.saved.bytes),
            )
        self._to.print(shown)
        for outcome in self._outcomes.values():
            if outcome.error is not None:
                # What happened was told when it did; here is what it means.
                meaning = f"{outcome.error.spent.value}; {outcome.error.advice}"
                said = Text.assemble((clean(outcome.key), "bold"), (f" {state_of(outcome)}", "red"), f": {meaning}.")
                say(self._to, said)
        self._tell_money(charges, spent, unpriced)
        done = sum(outcome.ok for outcome in self._outcomes.values())
        say(
            self._to,
            Text.assemble(
                (f"{counted(done, 'video')} in {self._options.out}", "bold green"),
                f" ({size(total)}), in {took:.0f} s",
            ),
        )

    def _tell_money(self, charges: Sequence[Charge], spent: Decimal, unpriced: int) -> None:
        charged = sum((charge.amount for charge in charges), Decimal(0))
        refunded = sum((charge.amount for charge in charges if charge.refunded), Decimal(0))
        said = Text.assemble("Price by the list: ", (usd(spent), "bold"))
        if unpriced:
            said.append(f" and {counted(unpriced, 'job')} at gptproto, which prints none")
        said.append(f". The emulated service charged {usd(charged)} for {counted(len(charges), 'prediction')}")
        if refunded:
            said.append(f" and gave {usd(refunded)} back for what failed")
        say(self._to, said.append("."))


def _broken(call: Call) -> bool:
    return call.body.get("prompt") == _BROKEN_PROMPT


def _manifest(out: Path, jobs: Mapping[str, tuple[str, Job]]) -> Path:
    """Write the jobs down as a manifest, to begin with."""
    path = out / "jobs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for key, (provider, job) in jobs.items():
            if provider != "wavespeed" or job.prompt == _BROKEN_PROMPT:
                continue
            row: dict[str, object] = {"key": key, "model": job.row.name, "prompt": job.prompt}
            for name, image in (("image", job.image), ("end_image", job.end_image)):
                if image is not None:
                    row[name] = f"pictures/{image.name}" if isinstance(image, Path) else str(image)
            file.write(json.dumps(row | {"duration": job.duration}, ensure_ascii=False) + "\n")
    return path


def _tell_next(to: Console, manifest: Path | None) -> None:
    lines: list[Text] = []
    jobs = manifest or "jobs.jsonl"
    if manifest is not None:
        lines += [
            Text("The same jobs as a file, rehearsed once more for nothing:"),
            Text(f"  kling-async run {manifest} --out videos --emulator", "bold green"),
        ]
    else:
        lines += [
            Text("Write your jobs into jobs.jsonl, one per line:"),
            Text(
                '  {"key": "face-1", "model": "kling-v2.1-pro", "prompt": "She smiles", "image": "face.png"}', "green"
            ),
        ]
    lines += [
        Text("For real, with a key from wavespeed.ai/accesskey; the price is told before anything is sent:"),
        Text("  export WAVESPEED_API_KEY=...", "bold green"),
        Text(f"  kling-async run {jobs} --out videos", "bold green"),
        Text("Prices and limits: kling-async models", "dim"),
    ]
    block(to, "next", lines, "green")
