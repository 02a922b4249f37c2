"""The commands and their options. What they do is in the modules beside this one, imported when they are called."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kling_async import __version__
from kling_async._core.errors import (
    ConfigurationError,
    InvalidJobError,
    KlingError,
    ManifestError,
    UnsupportedError,
)
from kling_async.cli.choices import LevelChoice, ProfileChoice, ProviderChoice
from kling_async.cli.interrupts import Exit
from kling_async.cli.output import show_error
from kling_async.ledger import is_url

if TYPE_CHECKING:
    from collections.abc import Callable

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
LedgerOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|URL",
        help="Where what is paid for is written down: a file, or postgresql://...",
        show_default="OUT/run.db",
    ),
]
UrlOption = Annotated[
    str,
    typer.Option(
        "--ledger",
        envvar="KLING_LEDGER",
        help="A database: postgresql://user:password@host/name. KLING_LEDGER keeps the password out of `ps`.",
        show_default=False,
        show_envvar=False,
    ),
]
AccountOption = Annotated[str, typer.Option(help="What your account on the service is called in the ledger.")]
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
    manifest: Annotated[Path, typer.Argument(help="Jobs: JSON lines (.jsonl) or CSV (.csv).", show_default=False)],
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the videos.", show_default=False)],
    emulator: Annotated[bool, typer.Option("--emulator", help="Rehearse on this computer, for nothing.")] = False,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
    level: Annotated[
        LevelChoice, typer.Option(help="The account's level; see kling-async models.")
    ] = LevelChoice.BRONZE,
    max_in_flight: Annotated[
        int | None, typer.Option(min=1, help="Videos that may run at once.", show_default="the level's")
    ] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="Results in the order of the manifest.")] = False,
    ledger: LedgerOption = None,
    deadline: DeadlineOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Results as JSON lines on stdout, the rest on stderr.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before money is spent.")] = False,
    speed: SpeedOption = 20.0,
    profile: ProfileOption = ProfileChoice.VIDEO,
) -> None:
    """Make the videos of a manifest. All of it is checked and priced before the first job is sent.

    A row: {"key": "face-1", "model": "kling-v2.1-pro", "prompt": "She smiles", "image": "face.png", "duration": 5}
    """
    from kling_async.cli import run as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.RunOptions(
        manifest=manifest,
        out=out,
        emulator=emulator,
        provider=provider,
        level=level,
        max_in_flight=max_in_flight,
        ordered=ordered,
        ledger=_ledger(ledger),
        deadline=deadline,
        quiet=quiet,
        as_json=as_json,
        yes=yes,
        speed=speed,
        profile=profile,
        debug=_debug(context),
    )
    _do(context, lambda: command.run(options))


@app.command(epilog=EPILOG)
def fetch(
    context: typer.Context,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Predictions; without any, the ledger's unsaved ones.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the videos.", show_default=False)],
    ledger: LedgerOption = None,
    provider: ProviderOption = ProviderChoice.WAVESPEED,
    deadline: DeadlineOption = None,
) -> None:
    """Save the videos of predictions that are paid for already. They are kept for 7 days."""
    from kling_async.cli import fetch as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.FetchOptions(
        ids=tuple(dict.fromkeys(ids or ())),
        out=out,
        ledger=_ledger(ledger),
        provider=provider,
        deadline=deadline,
        debug=_debug(context),
    )
    _do(context, lambda: command.fetch(options))


@app.command(epilog=EPILOG)
def enqueue(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(help="Jobs: JSON lines (.jsonl) or CSV (.csv).", show_default=False)],
    *,
    ledger: UrlOption,
    account: AccountOption = "default",
    batch: Annotated[
        str | None, typer.Option(help="What the batch is called.", show_default="the manifest's name")
    ] = None,
) -> None:
    """Write the jobs of a manifest into a shared ledger, for workers to make. Jobs that are there already stay."""
    from kling_async.cli import sharing as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.EnqueueOptions(manifest=manifest, ledger=ledger, account=account, batch=batch)
    _do(context, lambda: command.enqueue(options))


@app.command(epilog=EPILOG)
def worker(
    context: typer.Context,
    *,
    ledger: UrlOption,
    account: AccountOption = "default",
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
    sole_user: Annotated[
        bool,
        typer.Option("--sole-user", help="Nothing but this ledger uses the key: doubts can be settled by counting."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the end.")] = False,
) -> None:
    """Make the jobs of a shared ledger, beside any number of other workers. Ctrl-C or SIGTERM hands over what runs."""
    from kling_async.cli import sharing as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.WorkerOptions(
        ledger=ledger,
        account=account,
        out=out,
        provider=provider,
        level=level,
        max_in_flight=max_in_flight,
        lease=lease,
        sole_user=sole_user,
        quiet=quiet,
        debug=_debug(context),
    )
    _do(context, lambda: command.worker(options))


@app.command(epilog=EPILOG)
def status(
    context: typer.Context,
    *,
    ledger: UrlOption,
    account: AccountOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, once.")] = False,
) -> None:
    """Show where the jobs of a shared ledger are, in a terminal as they move."""
    from kling_async.cli import sharing as command  # noqa: PLC0415 -- help is shown without loading it

    options = command.StatusOptions(ledger=ledger, account=account, as_json=as_json)
    _do(context, lambda: command.status(options))


@app.command(epilog=EPILOG)
def models(
    context: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
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
    seed: Annotated[int | None, typer.Option(help="The same times and ids in every run.")] = None,
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
    )
    _do(context, lambda: command.serve_emulator(options))


def _ledger(given: str | None) -> Path | str | None:
    """A file or a URL; a URL is no path, and would show its password as one."""
    return given if given is None or is_url(given) else Path(given)


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


def _status(error: Exception) -> Exit:
    if isinstance(error, KlingError) and error.account_wide:
        return Exit.NOTHING_DONE
    if isinstance(error, (ConfigurationError, InvalidJobError, ManifestError, UnsupportedError, OSError, ImportError)):
        return Exit.BAD_INPUT
    return Exit.SOME_FAILED
