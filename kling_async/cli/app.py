"""The commands and their options. What they do is in the modules beside this one, imported when they are called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import typer
from typer.core import TyperGroup

from kling_async import __version__
from kling_async.errors import (
    ConfigurationError,
    InvalidJobError,
    KlingError,
    LedgerError,
    ManifestError,
    UnsupportedError,
)

from .choices import FormatChoice, LevelChoice, ProfileChoice, ProviderChoice
from .interrupts import Exit
from .ledgers import ACCOUNT, VARIABLE, LedgerName
from .output import show_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from .doubts import LedgerOptions

EPILOG = (
    "Exit status: 0 all went well, 1 some jobs failed, 2 bad input or usage, 3 nothing was done, 130 interrupted. "
    "The API key is read from WAVESPEED_API_KEY or GPTPROTO_API_KEY."
)

app = typer.Typer(
    help="Kling image-to-video on WaveSpeedAI and GPTProto: many jobs at once, none paid twice, none lost.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_OUT = Path("kling-demo")

ProviderOption = Annotated[ProviderChoice, typer.Option(help="Who makes the videos.")]
DeadlineOption = Annotated[
    float | None, typer.Option(min=1, help="Seconds to wait for each video; by default 1800. It runs on after that.")
]


def _ledger(given: str) -> LedgerName:
    """The ledger that is meant. What is wrong with a URL is said without it: it may hold a password."""
    try:
        return LedgerName.of(given)
    except ConfigurationError as error:
        raise typer.BadParameter(f"{error.message} ({error.advice})") from None


def _known_ledger(given: str) -> LedgerName:
    """A ledger that is there, as far as that can be told without asking a database."""
    ledger = _ledger(given)
    if ledger.path is not None and not ledger.path.is_file():
        raise typer.BadParameter(f"there is no file {given!r}")
    return ledger


def _folder(ledger: LedgerName) -> Path:
    """Where files go that nobody said a folder for."""
    if ledger.path is None:
        raise typer.BadParameter("a database lies in no folder: say where its videos are", param_hint="--out")
    return ledger.path.parent


if TYPE_CHECKING:
    _LedgerName = LedgerName
else:
    # Of an argument that a parser reads, typer's help shows the name of its type, whatever its metavar.
    _LedgerName = type("file|url", (), {})

LedgerOption = Annotated[
    LedgerName | None,
    typer.Option(
        parser=_ledger,
        metavar="FILE|URL",
        help="Where what is paid for is written down: a file, or a database that is shared: postgresql://...",
        show_default="OUT/run.db",
    ),
]
ManifestArgument = Annotated[
    Path, typer.Argument(help="Jobs: .jsonl, .csv or .parquet, or a folder of images.", show_default=False)
]
PromptOption = Annotated[str | None, typer.Option(help="Of the rows that have none.")]
ModelOption = Annotated[str | None, typer.Option(help="Of the rows that name none.")]
DurationOption = Annotated[int | None, typer.Option(help="Seconds, of the rows that say none.")]
RootOption = Annotated[
    Path | None, typer.Option(file_okay=False, help="Folder of the image files.", show_default="the manifest's own")
]
FitOption = Annotated[
    bool, typer.Option("--fit", help="Convert images of other formats, of more than 10 MB, or turned by EXIF data.")
]
OutOption = Annotated[
    str,
    typer.Option(metavar="FOLDER|URL", help="Folder for the videos; or s3://, gs://, az://...", show_default=False),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option(
        file_okay=False, help="Folder for results.jsonl, errors.jsonl, stats.json.", show_default="the videos' own"
    ),
]
NoResultsOption = Annotated[bool, typer.Option("--no-results", help="Write none; kling-async export does it later.")]
LevelOption = Annotated[LevelChoice, typer.Option(help="The account's level; see kling-async models.")]
SlotsOption = Annotated[
    int | None, typer.Option(min=1, help="Videos that may run at once.", show_default="the level's")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(metavar="USD", help="What the batch may cost, with what it has cost before.", rich_help_panel="Money"),
]
AllowEstimateOption = Annotated[
    bool,
    typer.Option(
        "--allow-estimate",
        help="Let a computed price do for the budget when the service tells none.",
        rich_help_panel="Money",
    ),
]
RetryOption = Annotated[
    int,
    typer.Option(
        min=0, help="How often to pay again for what the service failed by its own fault.", rich_help_panel="Money"
    ),
]
AuditOption = Annotated[
    bool,
    typer.Option("--audit/--no-audit", help="Compare with the service's bill at the end.", rich_help_panel="Money"),
]
GalleryOption = Annotated[
    bool, typer.Option("--gallery", help="A page to watch it on, kept in OUT/gallery at the end.")
]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Do not ask before money is spent.", rich_help_panel="Money")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the end.")]
JsonLinesOption = Annotated[bool, typer.Option("--json", help="Results as JSON lines on stdout, the rest on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON.")]
LedgerArgument = Annotated[
    _LedgerName,
    typer.Argument(
        parser=_known_ledger,
        envvar=VARIABLE,
        help="The file that a run wrote, or the database that is shared: postgresql://... By default KLING_LEDGER.",
        show_default=False,
        show_envvar=False,
    ),
]
NameOption = Annotated[
    str | None, typer.Option(help="The batch; a run is called as its manifest.", show_default="the only one")
]
UrlOption = Annotated[
    LedgerName,
    typer.Option(
        "--ledger",
        parser=_ledger,
        metavar="URL",
        envvar=VARIABLE,
        help="A database: postgresql://user:password@host/name. KLING_LEDGER keeps the password out of `ps`.",
        show_default=False,
        show_envvar=False,
    ),
]
AccountOption = Annotated[str, typer.Option(help="What your account on the service is called in a database.")]
SpeedOption = Annotated[
    float,
    typer.Option(min=0.1, max=1000, help="How many times as fast as the real service.", rich_help_panel="Emulator"),
]
ProfileOption = Annotated[
    ProfileChoice, typer.Option(help="Real videos, or one tiny file for load tests.", rich_help_panel="Emulator")
]


def _version(wanted: bool) -> None:  # noqa: FBT001 -- typer calls it so
    if wanted:
        sys.stdout.write(f"kling-async {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the whole log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Kling image-to-video on WaveSpeedAI and GPTProto: many jobs at once, none paid twice, none lost."""
    del version
    context.obj = debug


@app.command(epilog=EPILOG)
def demo(
    context: typer.Context,
    pictures: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="JPEG or PNG files; without any, some are painted."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the videos.")] = _OUT,
    jobs: Annotated[int | None, typer.Option(min=1, max=200, help="How many videos.", show_default="12")] = None,
    speed: SpeedOption = 20.0,
    quick: Annotated[bool, typer.Option("--quick", help="A few short videos only.")] = False,
) -> None:
    """See it all without a key and for nothing: real pictures become real MP4s in an emulator on this computer."""
    from kling_async.cli import demo as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.DemoOptions(
        pictures=tuple(pictures or ()), out=out, jobs=jobs, speed=speed, quick=quick, debug=_debug(context)
    )
    _do(context, lambda: command.demo(options))


@app.command(epilog=EPILOG)
def run(
    context: typer.Context,
    manifest: ManifestArgument,
    *,
    out: OutOption,
    prompt: PromptOption = None,
    model: ModelOption = None,
    duration: DurationOption = None,
    root: RootOption = None,
    fit: FitOption = False,
    emulator: Annotated[bool, typer.Option("--emulator", help="Rehearse on this computer, for nothing.")] = False,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
    level: LevelOption = LevelChoice.BRONZE,
    max_in_flight: SlotsOption = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="Outcomes in the order of the manifest.")] = False,
    ledger: LedgerOption = None,
    account: AccountOption = ACCOUNT,
    deadline: DeadlineOption = None,
    budget: BudgetOption = None,
    allow_estimate: AllowEstimateOption = False,
    retry_failed: RetryOption = 0,
    audit: AuditOption = True,
    gallery: GalleryOption = False,
    results: ResultsOption = None,
    no_results: NoResultsOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    as_json: JsonLinesOption = False,
    speed: SpeedOption = 20.0,
    profile: ProfileOption = ProfileChoice.VIDEO,
) -> None:
    """Make the videos of a manifest. All of it is checked and priced before the first job is sent.

    A row: {"key": "face-1", "model": "kling-v2.1-pro", "prompt": "She smiles", "image": "face.png", "duration": 5}
    """
    from kling_async.cli import run as command  # noqa: PLC0415 -- help is shown without loading it

    from .sources import Source  # noqa: PLC0415 -- see above

    options = command.RunOptions(
        source=Source(manifest=manifest, prompt=prompt, model=model, duration=duration, root=root, fit=fit),
        out=out,
        fit=fit,
        emulator=emulator,
        provider=provider,
        level=level,
        max_in_flight=max_in_flight,
        ordered=ordered,
        ledger=None if ledger is None else ledger.of_account(account),
        deadline=deadline,
        budget=budget,
        allow_estimate=allow_estimate,
        retry_failed=retry_failed,
        audit=audit,
        quiet=quiet,
        as_json=as_json,
        yes=yes,
        gallery=gallery,
        results=results,
        no_results=no_results,
        speed=speed,
        profile=profile,
        debug=_debug(context),
    )
    _do(context, lambda: command.run(options))


@app.command(epilog=EPILOG)
def resume(
    context: typer.Context,
    ledger: LedgerArgument,
    *,
    out: OutOption,
    account: AccountOption = ACCOUNT,
    name: NameOption = None,
    fit: FitOption = False,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
    level: LevelOption = LevelChoice.BRONZE,
    max_in_flight: SlotsOption = None,
    deadline: DeadlineOption = None,
    budget: BudgetOption = None,
    allow_estimate: AllowEstimateOption = False,
    retry_failed: RetryOption = 0,
    audit: AuditOption = True,
    gallery: GalleryOption = False,
    results: ResultsOption = None,
    no_results: NoResultsOption = False,
    yes: YesOption = False,
    quiet: QuietOption = False,
    as_json: JsonLinesOption = False,
) -> None:
    """Go on with a batch out of its ledger alone: its manifest need not be there any more.

    What was accepted is followed and saved, what was not is sent, and nothing is paid for twice.
    """
    from kling_async.cli import resume as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.ResumeOptions(
        ledger=ledger.of_account(account),
        name=name,
        out=out,
        fit=fit,
        provider=provider,
        level=level,
        max_in_flight=max_in_flight,
        deadline=deadline,
        budget=budget,
        allow_estimate=allow_estimate,
        retry_failed=retry_failed,
        audit=audit,
        gallery=gallery,
        results=results,
        no_results=no_results,
        quiet=quiet,
        as_json=as_json,
        yes=yes,
        debug=_debug(context),
    )
    _do(context, lambda: command.resume(options))


@app.command(epilog=EPILOG)
def estimate(
    context: typer.Context,
    manifest: ManifestArgument,
    *,
    prompt: PromptOption = None,
    model: ModelOption = None,
    duration: DurationOption = None,
    root: RootOption = None,
    fit: FitOption = False,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask the service too, for this account's prices. Needs the key.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check and price a manifest, and spend nothing."""
    from kling_async.cli import estimate as command  # noqa: PLC0415 -- help is shown without loading it

    from .sources import Source  # noqa: PLC0415 -- see above

    options = command.EstimateOptions(
        source=Source(manifest=manifest, prompt=prompt, model=model, duration=duration, root=root, fit=fit),
        provider=provider,
        ask=ask,
        as_json=as_json,
    )
    _do(context, lambda: command.estimate(options))


@app.command(epilog=EPILOG)
def status(
    context: typer.Context,
    ledger: LedgerArgument,
    *,
    account: AccountOption = ACCOUNT,
    name: Annotated[
        str | None, typer.Option(help="Only this batch; a run is called as its manifest.", show_default="all")
    ] = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until nothing moves in it any more.")] = False,
) -> None:
    """Show where the jobs of a ledger stand, what they cost, and what to do next. It may be written meanwhile."""
    from kling_async.cli import status as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.StatusOptions(ledger=ledger.of_account(account), name=name, as_json=as_json, watch=watch)
    _do(context, lambda: command.status(options))


@app.command(epilog=EPILOG)
def fetch(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Predictions; without any, the ledger's unsaved ones.")
    ] = None,
    *,
    out: OutOption,
    ledger: LedgerOption = None,
    account: AccountOption = ACCOUNT,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
    deadline: DeadlineOption = None,
) -> None:
    """Save the videos of predictions that are paid for already. They are kept for 7 days."""
    from kling_async.cli import fetch as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.FetchOptions(
        ids=tuple(dict.fromkeys(ids or ())),
        out=out,
        ledger=None if ledger is None else ledger.of_account(account),
        provider=provider,
        deadline=deadline,
        debug=_debug(context),
    )
    _do(context, lambda: command.fetch(options))


@app.command(epilog=EPILOG)
def export(
    context: typer.Context,
    ledger: LedgerArgument,
    *,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder of the files, that of the videos.", show_default="the file's"),
    ] = None,
    account: AccountOption = ACCOUNT,
    formats: Annotated[
        list[FormatChoice] | None,
        typer.Option("--format", help="What to write; may be repeated.", show_default="results, errors and stats"),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Only this batch; a run is called as its manifest.", show_default="all")
    ] = None,
) -> None:
    """Write results, a manifest of what may be run again, statistics or a data set from a ledger."""
    from kling_async.cli import export as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.ExportOptions(
        ledger=ledger.of_account(account),
        out=out or _folder(ledger),
        formats=tuple(formats or ()),
        batch=batch,
    )
    _do(context, lambda: command.export(options))


@app.command(epilog=EPILOG)
def gallery(
    context: typer.Context,
    ledger: LedgerArgument,
    *,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for the page.", show_default="gallery beside the file"),
    ] = None,
    account: AccountOption = ACCOUNT,
    batch: Annotated[str | None, typer.Option(help="Only the jobs of this batch.")] = None,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
) -> None:
    """Make the page of an earlier run, from its ledger and the videos that it saved."""
    from kling_async.cli import page as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.PageOptions(
        ledger=ledger.of_account(account), out=out or _folder(ledger) / "gallery", batch=batch, provider=provider
    )
    _do(context, lambda: command.page(options))


@app.command(epilog=EPILOG)
def enqueue(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="Jobs: JSON lines (.jsonl) or CSV (.csv).", show_default=False)],
    *,
    ledger: UrlOption,
    account: AccountOption = ACCOUNT,
    batch: Annotated[
        str | None, typer.Option(help="What the batch is called.", show_default="the manifest's name")
    ] = None,
) -> None:
    """Write the jobs of a manifest into a shared ledger, for workers to make. Jobs that are there already stay."""
    from kling_async.cli import sharing as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.EnqueueOptions(manifest=manifest, ledger=ledger.of_account(account), batch=batch)
    _do(context, lambda: command.enqueue(options))


@app.command(epilog=EPILOG)
def worker(
    context: typer.Context,
    *,
    ledger: UrlOption,
    account: AccountOption = ACCOUNT,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the videos; without, none is saved.")
    ] = None,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
    level: Annotated[
        LevelChoice, typer.Option(help="The account's level; all workers together stay within it.")
    ] = LevelChoice.BRONZE,
    max_in_flight: Annotated[
        int | None,
        typer.Option(min=1, help="Videos that may run at once, of all workers together.", show_default="the level's"),
    ] = None,
    lease: Annotated[float, typer.Option(min=1, help="Seconds after which a silent worker's jobs are others'.")] = 60.0,
    budget: Annotated[
        str | None,
        typer.Option(metavar="USD", help="What the jobs may cost, of all workers together.", rich_help_panel="Money"),
    ] = None,
    allow_estimate: AllowEstimateOption = False,
    retry_failed: RetryOption = 0,
    sole_user: Annotated[
        bool,
        typer.Option("--sole-user", help="Nothing but this ledger uses the key: doubts can be settled by counting."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the end.")] = False,
) -> None:
    """Make the jobs of a shared ledger, beside any number of other workers. Ctrl-C or SIGTERM hands over what runs."""
    from kling_async.cli import sharing as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.WorkerOptions(
        ledger=ledger.of_account(account),
        out=out,
        provider=provider,
        level=level,
        max_in_flight=max_in_flight,
        lease=lease,
        budget=budget,
        allow_estimate=allow_estimate,
        retry_failed=retry_failed,
        sole_user=sole_user,
        quiet=quiet,
        debug=_debug(context),
    )
    _do(context, lambda: command.worker(options))


@app.command(epilog=EPILOG)
def models(
    context: typer.Context,
    *,
    as_json: JsonOption = False,
) -> None:
    """List the models with their prices, and the account levels with their limits."""
    from kling_async.cli import models as command  # noqa: PLC0415 -- help is shown without loading it

    _do(context, lambda: command.models(as_json=as_json))


@app.command(epilog=EPILOG)
def emulator(
    context: typer.Context,
    *,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="WaveSpeed's port; 0 takes a free one.")] = 8787,
    gptproto_port: Annotated[int, typer.Option(min=0, max=65535, help="GPTProto's port; 0 takes a free one.")] = 8788,
    speed: Annotated[float, typer.Option(min=0.1, max=1000, help="How many times as fast as the real service.")] = 1.0,
    seconds: Annotated[float | None, typer.Option(min=0, help="How long every video takes to make.")] = None,
    level: Annotated[LevelChoice, typer.Option(help="The level of its accounts.")] = LevelChoice.GOLD,
    balance: Annotated[float, typer.Option(help="USD on each account.")] = 1000.0,
    profile: Annotated[ProfileChoice, typer.Option(help="Real videos, or one tiny file.")] = ProfileChoice.VIDEO,
    seed: Annotated[int | None, typer.Option(help="The same times, ids and faults in every run.")] = None,
    chaos: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="RATE", help="Share of all requests that go wrong: 0.1 is every tenth."),
    ] = 0.0,
) -> None:
    """Run the service on this computer: any client of WaveSpeedAI or GPTProto works against it."""
    from kling_async.cli import serving as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.ServeOptions(
        host=host,
        port=port,
        gptproto_port=gptproto_port,
        speed=speed,
        seconds=seconds,
        level=level,
        balance=balance,
        profile=profile,
        seed=seed,
        chaos=chaos,
    )
    _do(context, lambda: command.serve_emulator(options))


class _Ledgers(TyperGroup):
    """Options may stand behind the file too, as in `ledger run.db --json`; behind a subcommand they are its own."""

    # typer has a click within itself or beside itself, by its version: the context's type cannot be named.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = not any(word in self.commands for word in args)
        given, rest, _ = self.make_parser(ctx).parse_args(list(args))
        if VARIABLE in os.environ and given.get("ledger") in self.commands:
            # What stands in the ledger's place is the subcommand: the environment names the ledger.
            place = len(args) - len(rest) - 1
            args = [*args[:place], os.environ[VARIABLE], *args[place:]]
        return super().parse_args(ctx, args)


ledgers = typer.Typer(
    cls=_Ledgers, epilog=EPILOG, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]}
)
app.add_typer(ledgers, name="ledger")

KeyArgument = Annotated[str, typer.Argument(help="The job.", show_default=False)]
SettleOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether that is meant.")]


@ledgers.callback()
def ledger(
    context: typer.Context,
    ledger: LedgerArgument,
    *,
    account: AccountOption = ACCOUNT,
    name: Annotated[str | None, typer.Option(help="Only this batch.", show_default="all")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the jobs in doubt: paid but whose is unknown, or not known whether paid; and settle them by hand.

    kling-async ledger run.db adopt KEY PREDICTION_ID
    """
    from kling_async.cli import doubts as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.LedgerOptions(ledger=ledger.of_account(account), name=name, as_json=as_json)
    if context.invoked_subcommand is None:
        _do(context, lambda: command.doubts(options))


@ledgers.command(epilog=EPILOG)
def adopt(
    context: typer.Context,
    key: KeyArgument,
    prediction_id: Annotated[str, typer.Argument(help="What it was accepted as.", show_default=False)],
    *,
    name: NameOption = None,
    yes: SettleOption = False,
) -> None:
    """Say that a job in doubt was accepted as a prediction: its price counts, and its video is fetched."""
    from kling_async.cli import doubts as command  # noqa: PLC0415 -- help is shown without loading it

    _do(context, lambda: command.adopt(_named(context, name), key, prediction_id, yes=yes))


@ledgers.command(epilog=EPILOG)
def unaccepted(context: typer.Context, key: KeyArgument, *, name: NameOption = None, yes: SettleOption = False) -> None:
    """Say that a job in doubt was not accepted: it is free to be sent again."""
    from kling_async.cli import doubts as command  # noqa: PLC0415 -- help is shown without loading it

    _do(context, lambda: command.unaccepted(_named(context, name), key, yes=yes))


@ledgers.command(name="give-up", epilog=EPILOG)
def give_up(context: typer.Context, key: KeyArgument, *, name: NameOption = None, yes: SettleOption = False) -> None:
    """Let a job in doubt end there: it is neither looked for nor sent again."""
    from kling_async.cli import doubts as command  # noqa: PLC0415 -- help is shown without loading it

    _do(context, lambda: command.give_up(_named(context, name), key, yes=yes))


@ledgers.command(epilog=EPILOG)
def history(context: typer.Context, key: KeyArgument, *, name: NameOption = None, as_json: JsonOption = False) -> None:
    """Show all that a job has gone through."""
    from kling_async.cli import doubts as command  # noqa: PLC0415 -- help is shown without loading it

    options = _named(context, name)
    _do(context, lambda: command.history(attrs.evolve(options, as_json=options.as_json or as_json), key))


def _named(context: typer.Context, name: str | None) -> LedgerOptions:
    """The ledger that stands before the subcommand, and the batch that may stand before or behind it."""
    from .doubts import LedgerOptions  # noqa: PLC0415 -- help is shown without loading it

    given = context.parent.params if context.parent is not None else {}
    return LedgerOptions(
        ledger=given["ledger"].of_account(given["account"]),
        name=given["name"] if name is None else name,
        as_json=given["as_json"],
    )


def _debug(context: typer.Context) -> bool:
    return bool(context.obj)


def _do(context: typer.Context, work: Callable[[], Exit]) -> None:
    """Run a command; its errors become a readable block and an exit status.

    Raises:
        typer.Exit: Always.
    """
    try:
        status = work()
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("\nInterrupted.\n")
        status = Exit.INTERRUPTED
    except BrokenPipeError:
        raise  # typer deals with it: nobody reads any more
    except Exception as error:
        if _debug(context):
            raise
        cause = _single(error)
        show_error(cause)
        status = _status(cause)
    raise typer.Exit(int(status))


def _single(error: Exception) -> Exception:
    """The error itself, out of the groups that task groups put around it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


_BAD_INPUT = (
    ConfigurationError,
    InvalidJobError,
    LedgerError,
    ManifestError,
    UnsupportedError,
    OSError,
    ImportError,
)


def _status(error: Exception) -> Exit:
    if isinstance(error, KlingError) and error.account_wide:
        return Exit.NOTHING_DONE
    if isinstance(error, _BAD_INPUT):
        return Exit.BAD_INPUT
    return Exit.SOME_FAILED
