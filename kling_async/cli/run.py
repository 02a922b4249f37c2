"""`kling-async run`: a manifest becomes videos."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import typer
from rich.text import Text

from kling_async._clock import SystemClock
from kling_async._core.catalogue import Certainty, Price, find_model
from kling_async._core.errors import KlingError, SkippedError, UnsupportedError
from kling_async._session import KlingSession
from kling_async.cli.choices import LevelChoice, ProfileChoice
from kling_async.cli.interrupts import Exit, interruptible, took_interrupt
from kling_async.cli.output import (
    clean,
    console,
    pretty,
    route_logs,
    say,
    show_error,
    shown_ledger,
    span,
    table,
    usd,
)
from kling_async.cli.progress import Board, counted, progress
from kling_async.cli.results import Results, status, tell_unsaved
from kling_async.ledger import read_ledger
from kling_async.manifest import Kind, Manifest, read_manifest

if TYPE_CHECKING:
    from rich.console import Console

    from kling_async._batch import Batch
    from kling_async._core.clock import Clock
    from kling_async._core.prediction import Outcome

_FAILURES_SHOWN: Final = 20


@attrs.frozen(kw_only=True)
class RunOptions:
    """What the user asked for; see the help of the command."""

    manifest: Path
    out: Path
    emulator: bool = False
    provider: str = "wavespeed"
    level: LevelChoice = LevelChoice.BRONZE
    max_in_flight: int | None = None
    ordered: bool = False
    ledger: Path | str | None = None
    deadline: float | None = None
    quiet: bool = False
    as_json: bool = False
    yes: bool = False
    speed: float = 20.0
    profile: ProfileChoice = ProfileChoice.VIDEO
    debug: bool = False

    @property
    def ledger_path(self) -> Path | str:
        """The ledger, a file or a URL. What an emulator was paid is kept apart from what was really paid."""
        return self.ledger or self.out / ("rehearsal.db" if self.emulator else "run.db")

    def session(self, **more: Any) -> KlingSession:
        """A session as asked for."""
        return KlingSession(
            provider=self.provider,
            level=self.level,
            max_in_flight=self.max_in_flight,
            ledger=self.ledger_path,
            images="upload" if self.provider == "wavespeed" else "inline",
            **more,
        )


def run(options: RunOptions) -> Exit:
    """Check, estimate, ask, run, tell."""
    to = console(stderr=options.as_json)
    manifest = read_manifest(options.manifest)
    _supported(manifest, options.provider)
    if not options.emulator:
        options.session()  # a missing key is told before anything else is
    if not options.quiet:
        _tell_plan(to, manifest, options)
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.emulator and not _agreed(to, options):
        to.print("Nothing was sent.")
        return Exit.NOTHING_DONE
    route_logs(to, debug=options.debug)
    return interruptible(lambda: _run(to, manifest, options))


def _supported(manifest: Manifest, provider: str) -> None:
    rows: Counter[str] = Counter()
    for kind, count in manifest.kinds.items():
        row = find_model(kind.model)
        if row is not None and provider not in row.providers:
            rows[row.name] += count
    if rows:
        named = ", ".join(f"{name} ({counted(count, 'job')})" for name, count in rows.items())
        raise UnsupportedError(
            f"{provider} does not have {named}", advice="choose another provider or model; see kling-async models"
        )


def _price(kind: Kind, provider: str) -> Price:
    row = find_model(kind.model)
    if row is None:
        return Price(None, Certainty.UNKNOWN)
    return row.price(kind.duration, provider=provider, sound=kind.sound)


def _tell_plan(to: Console, manifest: Manifest, options: RunOptions) -> None:
    plan = table(to, "model", ">seconds", ">jobs", ">each", ">together")
    total, unknown, inferred = Decimal(0), 0, False
    for kind, count in sorted(manifest.kinds.items(), key=lambda item: attrs.astuple(item[0])):
        price = _price(kind, options.provider)
        together = Price(None if price.usd is None else price.usd * count, price.certainty)
        total += together.usd or 0
        unknown += count if price.usd is None else 0
        inferred = inferred or price.certainty is Certainty.INFERRED
        row = find_model(kind.model)
        name = (row.name if row else kind.model) + (" with sound" if kind.sound else "")
        plan.add_row(name, str(kind.duration), str(count), str(price), str(together))
    at = "the emulator, for nothing" if options.emulator else options.provider
    to.print(Text.assemble((counted(len(manifest), "job"), "bold"), f" from {manifest.path} at {at}"))
    to.print(plan)
    sum_ = Text.assemble("Price by the list: ", (f"{'≈ ' if inferred else ''}{usd(total)}", "bold"))
    if unknown:
        sum_.append(f", and {counted(unknown, 'job')} whose price is not known", "yellow")
    if inferred:
        sum_.append("   (≈: computed from other prices, on no page of the vendor)", "dim")
    say(to, sum_)
    _tell_level(to, manifest, options)


def _tell_level(to: Console, manifest: Manifest, options: RunOptions) -> None:
    """How long it takes at this level, and the word that makes it faster."""
    session = options.session(api_key="-") if options.emulator else options.session()
    level, slots = session.level, session.max_in_flight
    if len(manifest) <= level.in_flight or level.name != "bronze":
        return
    work = sum(
        (row.usual if (row := find_model(kind.model)) else 120.0) * kind.duration / 5 * count
        for kind, count in manifest.kinds.items()
    )
    seconds = max(work / slots, (len(manifest) / level.starts - 1) * level.per)
    say(
        to,
        Text.assemble(
            (f"Level bronze: {level.starts} starts a minute and {slots} at once, so about {span(seconds)}. ", "dim"),
            "If the account has a higher level, say so: ",
            ("--level silver", "bold"),
        ),
    )


def _agreed(to: Console, options: RunOptions) -> bool:
    paid = _paid_before(options)
    if paid:
        said = f"{counted(paid, 'job')} of an earlier run of this file in {options.ledger_path}: not paid for again."
        say(to, Text(said, "green"))
    if options.yes or not sys.stdin.isatty() or not to.is_terminal:
        return True
    return typer.confirm("This costs real money. Go on?", err=options.as_json)


def _paid_before(options: RunOptions) -> int:
    path = options.ledger_path
    if isinstance(path, str) or not path.exists():
        return 0
    return sum(1 for row in read_ledger(path, batch=options.manifest.stem) if row.prediction_id)


async def _run(to: Console, manifest: Manifest, options: RunOptions) -> Exit:
    async with AsyncExitStack() as stack:
        clock: Clock = SystemClock()
        more: dict[str, Any] = {}
        if options.emulator:
            if options.ledger is None and isinstance(options.ledger_path, Path):
                # The emulator of an earlier rehearsal is gone, and its predictions with it.
                options.ledger_path.unlink(missing_ok=True)
            from kling_async.cli.serving import emulator_of  # noqa: PLC0415 -- a server is not wanted in every run

            emulator = await stack.enter_async_context(
                emulator_of(level=options.level, speed=options.speed, profile=options.profile)
            )
            clock = emulator.clock
            real = options.provider == "wavespeed"
            more = {
                "clock": clock,
                "base_url": emulator.base_url if real else emulator.gptproto_url,
                "api_key": emulator.api_key if real else emulator.gptproto_key,
            }
        return await _run_at(to, manifest, options, clock, more)


async def _run_at(to: Console, manifest: Manifest, options: RunOptions, clock: Clock, more: dict[str, Any]) -> Exit:
    display = progress(to, clock, total=len(manifest), quiet=options.quiet)
    session = options.session(observers=[display.observer(options.provider)], **more)
    start = clock.monotonic()
    interrupted = False
    trouble: Exception | None = None
    batch: Batch | None = None
    try:
        with Results(options.out / "results.jsonl") as results:
            async with display, session as kling:
                batch = kling.batch(
                    manifest,
                    name=manifest.path.stem,
                    save_to=options.out,
                    ordered=options.ordered,
                    deadline=options.deadline,
                )
                async with batch:
                    async for outcome in batch:
                        _tell_outcome(results.write(outcome), options)
    except asyncio.CancelledError:
        took_interrupt()
        interrupted = True
    except (KlingError, OSError) as error:
        if options.debug:
            raise
        trouble = error
    _tell_end(to, options, display.board, batch, span(clock.monotonic() - start), interrupted=interrupted)
    tell_unsaved(
        to,
        display.board.unsaved,
        len(session.left_running),
        out=options.out,
        ledger=options.ledger_path if isinstance(options.ledger_path, Path) else None,
        provider=options.provider,
        rehearsal=options.emulator,
    )
    if interrupted and not options.emulator:
        say(to, "The same command goes on where this one stopped, and pays for nothing twice.")
    if trouble is not None:
        show_error(trouble)
    return _exit(display.board, trouble, interrupted=interrupted)


def _tell_outcome(line: str, options: RunOptions) -> None:
    if options.as_json:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _exit(board: Board, trouble: Exception | None, *, interrupted: bool) -> Exit:
    if interrupted:
        return Exit.INTERRUPTED
    if trouble is not None:
        return Exit.BAD_INPUT if not board.accepted else Exit.SOME_FAILED
    if board.failed and not board.accepted and not board.uncertain:
        return Exit.NOTHING_DONE
    return Exit.SOME_FAILED if board.failed else Exit.WELL


def _tell_end(
    to: Console, options: RunOptions, board: Board, batch: Batch | None, took: str, *, interrupted: bool
) -> None:
    failures = [] if batch is None else [found for found in batch.failures if not _of_account(found)]
    if not options.as_json:
        _tell_failures(to, failures)
    if batch is not None and batch.stopped is not None:
        show_error(batch.stopped)
        skipped = batch.statistics().skipped
        if skipped:
            to.print(Text(f"{counted(skipped, 'job')} never submitted, since every one would meet the same.", "red"))
    never = board.total - board.accepted - board.refused_before_acceptance if board.total else 0
    head = Text.assemble(("Interrupted. " if interrupted else "", "bold yellow"))
    head.append(
        f"{board.done} of {counted(board.total or board.admitted, 'video')}", "bold green" if board.done else ""
    )
    head.append(f" in {options.out}")
    if board.failed:
        head.append(f", {board.failed} failed", "red")
    if interrupted and never:
        head.append(f", {never} never sent", "yellow")
    if board.uncertain:
        head.append(f", {len(board.uncertain)} uncertain (see the account's history)", "red")
    head.append(f", {usd(board.spent)} spent")
    if board.unpriced:
        head.append(f" and {counted(board.unpriced, 'job')} without a known price")
    head.append(f", {took}", "dim")
    say(to, head)
    if not options.quiet:
        say(to, Text(f"Results: {options.out / 'results.jsonl'}   Ledger: {shown_ledger(options.ledger_path)}", "dim"))


def _of_account(outcome: Outcome) -> bool:
    """Whether the failure is that of every job after it: it is told once."""
    return isinstance(outcome.error, SkippedError) or (outcome.error is not None and outcome.error.account_wide)


def _tell_failures(to: Console, failures: list[Outcome]) -> None:
    if not failures:
        return
    shown = table(to, "failed job", "how", "what was said")
    for outcome in failures[-_FAILURES_SHOWN:]:
        error = outcome.error
        advice = f" ({error.advice})" if error is not None and error.advice and pretty(to) else ""
        shown.add_row(
            clean(outcome.key),
            Text(status(outcome), "red"),
            clean((error.message if error is not None else "") + advice),
        )
    to.print(shown)
    if len(failures) > _FAILURES_SHOWN:
        to.print(Text(f"and {len(failures) - _FAILURES_SHOWN} more, in results.jsonl", "dim"))
