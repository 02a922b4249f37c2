"""The commands. Each imports its module only when it is called, so that help is printed without loading it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from kling_async._version import __version__

from .binding import EPILOG, SETTINGS, Command, Group, LedgerGroup, command, execute, group
from .choices import ProviderChoice
from .options import (
    DemoOptions,
    DoubtOptions,
    EmulatorOptions,
    EnqueueOptions,
    EstimateOptions,
    ExportOptions,
    FetchOptions,
    GalleryOptions,
    JoinOptions,
    ModelsOptions,
    ResumeOptions,
    RunOptions,
    StatusOptions,
    WorkerOptions,
)
from .parameters import Json, Provider  # noqa: TC001 -- typer reads the annotations

if TYPE_CHECKING:
    from .exits import Exit

app = typer.Typer(
    cls=Group,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings=SETTINGS,
)
ledgers = typer.Typer(cls=LedgerGroup, epilog=EPILOG, invoke_without_command=True, context_settings=SETTINGS)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 -- the signature of a typer callback
    if wanted:
        sys.stdout.write(f"kling-async {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the whole log.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Kling image-to-video on WaveSpeedAI and GPTProto: many jobs at once, none paid twice, none lost."""
    del version
    context.obj = debug


@command(app, DemoOptions)
def demo(options: DemoOptions) -> Exit:
    """Try everything without a key and for nothing: real MP4s from an emulator on this computer."""
    from . import demo as module  # noqa: PLC0415 -- see the module's docstring

    return module.demo(options)


@command(app, RunOptions)
def run(options: RunOptions) -> Exit:
    """Make videos of images or of a manifest. Every row is checked and priced before the first job is sent.

    kling-async run face.png --out videos --prompt "She smiles"

    A row: {"key": "face-1", "model": "kling-v2.1-pro", "prompt": "She smiles", "image": "face.png", "duration": 5}
    """
    from . import run as module  # noqa: PLC0415 -- see the module's docstring

    return module.run(options)


@command(app, ResumeOptions)
def resume(options: ResumeOptions) -> Exit:
    """Continue a batch from its ledger alone, without the manifest.

    Accepted jobs are followed and saved, unsent jobs are sent, and nothing is paid for twice.
    """
    from . import resume as module  # noqa: PLC0415 -- see the module's docstring

    return module.resume(options)


@command(app, EstimateOptions)
def estimate(options: EstimateOptions) -> Exit:
    """Check and price a manifest without spending anything."""
    from . import estimate as module  # noqa: PLC0415 -- see the module's docstring

    return module.estimate(options)


@command(app, StatusOptions)
def status(options: StatusOptions) -> Exit:
    """Show where the jobs of a ledger stand, what they cost, and what to do next. Works during a run."""
    from . import status as module  # noqa: PLC0415 -- see the module's docstring

    return module.status(options)


@command(app, FetchOptions)
def fetch(options: FetchOptions) -> Exit:
    """Save the videos of predictions that are already paid for. The service keeps them for 7 days."""
    from . import fetch as module  # noqa: PLC0415 -- see the module's docstring

    return module.fetch(options)


@command(app, ExportOptions)
def export(options: ExportOptions) -> Exit:
    """Write results, a manifest of the jobs to run again, statistics or a data set from a ledger."""
    from . import export as module  # noqa: PLC0415 -- see the module's docstring

    return module.export(options)


@command(app, GalleryOptions)
def gallery(options: GalleryOptions) -> Exit:
    """Make the page of an earlier run from its ledger and its saved videos."""
    from . import page as module  # noqa: PLC0415 -- see the module's docstring

    return module.page(options)


@command(app, JoinOptions)
def join(options: JoinOptions) -> Exit:
    """Join clips into one film, in their order and with their sound.

    Equal clips are copied without a new encoding. With --crossfade, or where they differ, they are encoded once.
    """
    from . import join as module  # noqa: PLC0415 -- see the module's docstring

    return module.join(options)


@command(app, EnqueueOptions)
def enqueue(options: EnqueueOptions) -> Exit:
    """Add the jobs of a manifest to a shared ledger, for workers to run. Jobs already in it stay as they are."""
    from . import sharing as module  # noqa: PLC0415 -- see the module's docstring

    return module.enqueue(options)


@command(app, WorkerOptions)
def worker(options: WorkerOptions) -> Exit:
    """Run jobs of a shared ledger beside other workers. Ctrl-C or SIGTERM hands over the running jobs."""
    from . import sharing as module  # noqa: PLC0415 -- see the module's docstring

    return module.worker(options)


@command(app, ModelsOptions)
def models(options: ModelsOptions) -> Exit:
    """List the models with their prices, and the account levels with their limits."""
    from . import models as module  # noqa: PLC0415 -- see the module's docstring

    return module.check(as_json=options.as_json) if options.check else module.models(as_json=options.as_json)


@command(app, EmulatorOptions)
def emulator(options: EmulatorOptions) -> Exit:
    """Run the service on this computer: any client of WaveSpeedAI or GPTProto works against it."""
    from . import serving as module  # noqa: PLC0415 -- see the module's docstring

    return module.serve_emulator(options)


app.add_typer(ledgers, name="ledger")

Key = Annotated[str, typer.Argument(metavar="KEY", help="Key of the job.", show_default=False)]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Batch of the job.", show_default="the only one")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


@group(ledgers, DoubtOptions)
def ledger(options: DoubtOptions) -> Exit:
    """Show the jobs in doubt and settle them by hand.

    A job is in doubt if it may have been paid for, or if it was and its prediction is unknown.

    kling-async ledger run.db adopt KEY PREDICTION_ID
    """
    from . import doubts as module  # noqa: PLC0415 -- see the module's docstring

    return module.doubts(options)


@ledgers.command(cls=Command, epilog=EPILOG)
def adopt(
    context: typer.Context,
    key: Key,
    prediction_id: Annotated[str, typer.Argument(metavar="ID", help="Id of its prediction.", show_default=False)],
    *,
    name: Name = None,
    yes: Yes = False,
) -> None:
    """Settle a job in doubt as accepted: its price counts, and the video of the prediction is fetched."""
    from . import doubts as module  # noqa: PLC0415 -- see the module's docstring

    execute(context, lambda: module.adopt(_of_job(context, name), key, prediction_id, yes=yes))


@ledgers.command(cls=Command, epilog=EPILOG)
def unaccepted(context: typer.Context, key: Key, *, name: Name = None, yes: Yes = False) -> None:
    """Settle a job in doubt as not accepted, so that it can be sent again."""
    from . import doubts as module  # noqa: PLC0415 -- see the module's docstring

    execute(context, lambda: module.unaccepted(_of_job(context, name), key, yes=yes))


@ledgers.command(name="give-up", cls=Command, epilog=EPILOG)
def give_up(context: typer.Context, key: Key, *, name: Name = None, yes: Yes = False) -> None:
    """End a job in doubt: it is neither looked up nor sent again."""
    from . import doubts as module  # noqa: PLC0415 -- see the module's docstring

    execute(context, lambda: module.give_up(_of_job(context, name), key, yes=yes))


@ledgers.command(name="same-account", cls=Command, epilog=EPILOG)
def same_account(context: typer.Context, *, provider: Provider = ProviderChoice.WAVESPEED, yes: Yes = False) -> None:
    """Say that the jobs of this ledger were sent by the account of the present API key."""
    from . import accounts as module  # noqa: PLC0415 -- see the module's docstring

    execute(context, lambda: module.same_account(_of_job(context, None), provider, yes=yes))


@ledgers.command(cls=Command, epilog=EPILOG)
def history(context: typer.Context, key: Key, *, name: Name = None, as_json: Json = False) -> None:
    """Show every recorded step of a job."""
    from . import doubts as module  # noqa: PLC0415 -- see the module's docstring

    options = _of_job(context, name)
    execute(context, lambda: module.history(attrs.evolve(options, as_json=options.as_json or as_json), key))


@ledgers.command(name="declare-complete", cls=Command, epilog=EPILOG)
def declare_complete(context: typer.Context, *, yes: Yes = False) -> None:
    """Declare that a ledger file lacks no steps though no process closed it: a database tool or a backup wrote it."""
    from . import copies as module  # noqa: PLC0415 -- see the module's docstring

    execute(context, lambda: module.declare_complete(_of_job(context, None), yes=yes))


def _of_job(context: typer.Context, name: str | None) -> DoubtOptions:
    """Return the options before the subcommand, with the batch from before or after it."""
    given = context.parent.params if context.parent is not None else {}
    return DoubtOptions(**(given if name is None else {**given, "name": name}))
