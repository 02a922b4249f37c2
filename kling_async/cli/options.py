"""Options of every command, each declared once: `binding.py` builds the command line from these classes.

The classes have no slots, since several of them are combined by inheritance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from kling_async._core.http import MAX_OUTPUT_BYTES, MAX_REPLY_BYTES
from kling_async._core.media import WHITE
from kling_async._core.polling import DEADLINE_S, FORGET_AFTER_S
from kling_async.errors import ConfigurationError

from .choices import FormatChoice, LevelChoice, NetworkChoice, PollingChoice, ProfileChoice, ProviderChoice, SeenChoice
from .ledgers import (
    DEFAULT_ACCOUNT,
    LEDGER_VARIABLE,
    REHEARSAL_FILE,
    REHEARSAL_FOLDER,
    LedgerName,
    parse_existing_ledger,
    parse_ledger,
    required_ledger,
)
from .parameters import (
    EMULATOR_PANEL,
    LEVEL_NAMES,
    MONEY_PANEL,
    RESULTS_PANEL,
    ROWS_PANEL,
    Account,
    AllowEstimate,
    AnyLedger,
    Background,
    BatchBudget,
    BatchName,
    Columns,
    Deadline,
    Fit,
    ForgetAfter,
    FromService,
    IgnoredParameters,
    Json,
    Labels,
    Level,
    Manifests,
    MaxInFlight,
    MaxOutputBytes,
    MaxReadsPerSecond,
    MaxReplyBytes,
    MaxSaving,
    MaxUploads,
    NewBatchName,
    Out,
    Polling,
    Provider,
    Quiet,
    Recursive,
    Redo,
    RetryFailed,
    Root,
    Seen,
    SkipInvalid,
    Speed,
    Verify,
    WorkersBudget,
)
from .places import below, is_store, normalized

if TYPE_CHECKING:
    _LedgerArgument = LedgerName
else:
    # For an argument with a parser, typer's help prints the name of the type and ignores `metavar`.
    _LedgerArgument = type("file|url", (), {})


@attrs.frozen(kw_only=True, slots=False)
class Options:
    """Options of every command.

    Attributes:
        debug: Raise errors with their traceback and log everything. It stands before the command.
    """

    debug: bool = False


@attrs.frozen(kw_only=True, slots=False)
class SourceOptions(Options):
    """Jobs, and defaults for their rows."""

    manifest: Manifests
    columns: Columns = None
    recursive: Recursive = False
    skip_invalid: SkipInvalid = False
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="For rows without a prompt.", rich_help_panel=ROWS_PANEL)
    ] = None
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="For rows without a model.", rich_help_panel=ROWS_PANEL)
    ] = None
    duration: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Length, for rows without a duration.", rich_help_panel=ROWS_PANEL),
    ] = None
    from_service: FromService = False
    root: Root = None
    fit: Fit = False


@attrs.frozen(kw_only=True, slots=False)
class NewBatchOptions(SourceOptions):
    """Jobs that become a batch of a ledger."""

    name: NewBatchName = None
    ignored_parameters: IgnoredParameters = None

    @property
    def batch(self) -> str:
        """Name of the batch."""
        if self.name is not None:
            return self.name
        # Imported here: commands are listed without it.
        from kling_async.manifest import batch_name  # noqa: PLC0415 -- see above

        return batch_name(self.manifest)


@attrs.frozen(kw_only=True, slots=False)
class LedgerOptions(Options):
    """Ledger of an earlier run."""

    ledger: Annotated[
        _LedgerArgument | None,
        typer.Argument(
            parser=parse_existing_ledger,
            envvar=LEDGER_VARIABLE,
            help="Ledger file of a run, or a shared database: postgresql://...",
            show_default=False,
        ),
    ] = None
    account: Account = DEFAULT_ACCOUNT

    @property
    def ledger_name(self) -> LedgerName:
        """Ledger with its account.

        Raises:
            ConfigurationError: Neither the argument nor the environment names a ledger.
        """
        return required_ledger(self.ledger, self.account)


@attrs.frozen(kw_only=True, slots=False)
class SessionOptions(Options):
    """Options of the session in which jobs are sent, the same for `run`, `resume` and `worker`."""

    provider: Provider = ProviderChoice.WAVESPEED
    level: Level = LevelChoice.BRONZE
    fit: Fit = False
    background: Background = WHITE
    verify: Verify = None
    quiet: Quiet = False
    max_in_flight: MaxInFlight = None
    max_uploads: MaxUploads = None
    max_saving: MaxSaving = None
    deadline: Deadline = DEADLINE_S
    forget_after: ForgetAfter = FORGET_AFTER_S
    polling: Polling = PollingChoice.BALANCED
    max_reads_per_second: MaxReadsPerSecond = None
    max_reply_bytes: MaxReplyBytes = MAX_REPLY_BYTES
    max_output_bytes: MaxOutputBytes = MAX_OUTPUT_BYTES
    budget: BatchBudget = None
    allow_estimate: AllowEstimate = False
    retry_failed: RetryFailed = 0
    seen: Seen = SeenChoice.STOP


@attrs.frozen(kw_only=True, slots=False)
class BatchOptions(SessionOptions, ABC):
    """Options of the commands that run a batch."""

    out: Out = attrs.field(converter=normalized)
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results as JSON lines on stdout, all else on stderr.")
    ] = False
    results: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            metavar="FOLDER",
            help="Folder for results.jsonl, errors.jsonl and stats.json.",
            show_default="the videos' folder",
            rich_help_panel=RESULTS_PANEL,
        ),
    ] = None
    no_results: Annotated[
        bool,
        typer.Option(
            "--no-results",
            help="Write no result files; kling-async export can do it later.",
            rich_help_panel=RESULTS_PANEL,
        ),
    ] = False
    gallery: Annotated[
        bool,
        typer.Option(
            "--gallery",
            help="Serve a page of the videos during the run and keep it in OUT/gallery.",
            rich_help_panel=RESULTS_PANEL,
        ),
    ] = False
    join: Annotated[
        bool,
        typer.Option(
            "--join", help="Join the clips of every finished film into OUT/films.", rich_help_panel=RESULTS_PANEL
        ),
    ] = False
    crossfade: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Time for which clips fade into each other, with --join.",
            rich_help_panel=RESULTS_PANEL,
        ),
    ] = 0.0
    ignored_parameters: IgnoredParameters = None
    audit: Annotated[
        bool,
        typer.Option(
            "--audit/--no-audit", help="Compare with the service's bill at the end.", rich_help_panel=MONEY_PANEL
        ),
    ] = True
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Spend money without asking.", rich_help_panel=MONEY_PANEL)
    ] = False

    @property
    @abstractmethod
    def ledger_name(self) -> LedgerName:
        """Ledger of the batch, with its account."""

    @property
    @abstractmethod
    def local_folder(self) -> Path:
        """Folder on this computer for results and gallery when the videos go to an object store."""

    @property
    def videos(self) -> str:
        """Folder or URL of the videos: `out`, and for a rehearsal a place of its own in it."""
        return below(self.out, REHEARSAL_FOLDER) if self.rehearsal else self.out

    @property
    def folder(self) -> Path:
        """Folder of the ledger, the gallery, and by default the results: the videos', if it is on this computer."""
        return self._own(self.local_folder) if is_store(self.out) else Path(self.videos)

    @property
    def results_folder(self) -> Path:
        """Folder of the result files."""
        return self.folder if self.results is None else self._own(self.results)

    def _own(self, folder: Path) -> Path:
        """Return a folder, or what a rehearsal has instead of it."""
        return folder / REHEARSAL_FOLDER if self.rehearsal else folder

    @property
    def rehearsal(self) -> bool:
        """True if an emulator in this process makes the videos."""
        return False

    @property
    def ledger_is_complete(self) -> bool:
        """True if the ledger has every job before the first one is sent."""
        return False


@attrs.frozen(kw_only=True, slots=False)
class RunOptions(NewBatchOptions, BatchOptions):
    """Options of `run`."""

    ordered: Annotated[bool, typer.Option("--ordered", help="Report outcomes in the order of the manifest.")] = False
    redo: Redo = None
    ledger: AnyLedger = None
    account: Account = DEFAULT_ACCOUNT
    emulator: Annotated[
        bool,
        typer.Option(
            "--emulator",
            help="Rehearse against an emulator on this computer, for nothing, in OUT/rehearsal.",
            rich_help_panel=EMULATOR_PANEL,
        ),
    ] = False
    speed: Speed = 20.0
    profile: Annotated[
        ProfileChoice,
        typer.Option(
            help="Real videos, about 2 s of a processor each, or one tiny file for hundreds.",
            rich_help_panel=EMULATOR_PANEL,
        ),
    ] = ProfileChoice.VIDEO

    @property
    def ledger_name(self) -> LedgerName:
        """Ledger of the batch. A rehearsal has one of its own, apart from real payments."""
        if self.ledger is not None:
            return self.ledger.with_account(self.account)
        return LedgerName(self.folder / (REHEARSAL_FILE if self.emulator else "run.db"))

    @property
    def local_folder(self) -> Path:
        """Folder of the ledger's file; for a database, a folder with the name of the batch."""
        file = None if self.ledger is None else self.ledger.path
        return Path(f"kling-{self.batch}") if file is None else file.parent

    @property
    def rehearsal(self) -> bool:
        """True if an emulator in this process makes the videos."""
        return self.emulator


@attrs.frozen(kw_only=True, slots=False)
class ResumeOptions(LedgerOptions, BatchOptions):
    """Options of `resume`."""

    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The batch to resume; a run's batch has its manifest's name.",
            show_default="the only one",
        ),
    ] = None

    @property
    def local_folder(self) -> Path:
        """Folder of the ledger's file; for a database, a folder with the name of the batch."""
        file = self.ledger_name.path
        return Path(f"kling-{self.name}" if self.name else "kling-results") if file is None else file.parent

    @property
    def ledger_is_complete(self) -> bool:
        """True if the ledger has every job before the first one is sent."""
        return True


@attrs.frozen(kw_only=True, slots=False)
class DemoOptions(Options):
    """Options of `demo`."""

    pictures: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="JPEG or PNG files instead of the three that come with it."),
    ] = None
    out: Annotated[Path, typer.Option(file_okay=False, metavar="FOLDER", help="Folder for the videos.")] = Path(
        "kling-demo"
    )
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=200, metavar="N", help="Number of videos besides the film.", show_default="12"),
    ] = None
    speed: Speed = 20.0
    quick: Annotated[bool, typer.Option("--quick", help="Make only a few short videos.")] = False


@attrs.frozen(kw_only=True, slots=False)
class EstimateOptions(SourceOptions):
    """Options of `estimate`."""

    provider: Provider = ProviderChoice.WAVESPEED
    ask: Annotated[
        bool, typer.Option("--ask", help="Also ask the service for this account's prices. Needs the key.")
    ] = False
    as_json: Json = False


@attrs.frozen(kw_only=True, slots=False)
class StatusOptions(LedgerOptions):
    """Options of `status`."""

    name: BatchName = None
    label: Labels = None
    as_json: Json = False
    watch: Annotated[bool, typer.Option("--watch", help="Repeat until nothing changes any more.")] = False

    @property
    def labels(self) -> dict[str, str]:
        """The labels that counted jobs have.

        Raises:
            ConfigurationError: One is not NAME=VALUE.
        """
        found: dict[str, str] = {}
        for text in self.label or ():
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise ConfigurationError(
                    f"--label: expected NAME=VALUE, got {text}", advice="such as --label order=1742"
                )
            found[name] = value
        return found


@attrs.frozen(kw_only=True, slots=False)
class DoubtOptions(LedgerOptions):
    """Options of `ledger`, which its subcommands inherit."""

    name: BatchName = None
    as_json: Json = False


@attrs.frozen(kw_only=True, slots=False)
class FetchOptions(Options):
    """Options of `fetch`."""

    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID...", help="Prediction ids; by default the ledger's unsaved ones."),
    ] = None
    out: Out = attrs.field(converter=normalized)
    ledger: AnyLedger = None
    account: Account = DEFAULT_ACCOUNT
    provider: Provider = ProviderChoice.WAVESPEED
    deadline: Deadline = DEADLINE_S
    max_reply_bytes: MaxReplyBytes = MAX_REPLY_BYTES
    max_output_bytes: MaxOutputBytes = MAX_OUTPUT_BYTES

    @property
    def ledger_name(self) -> LedgerName:
        """Ledger with its account."""
        return (self.ledger or LedgerName(Path(self.out) / "run.db")).with_account(self.account)


@attrs.frozen(kw_only=True, slots=False)
class ExportOptions(LedgerOptions):
    """Options of `export`."""

    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            metavar="FOLDER",
            help="Folder for the files; use the videos' folder.",
            show_default="the ledger's",
        ),
    ] = None
    formats: Annotated[
        list[FormatChoice] | None,
        typer.Option("--format", help="What to write; can be repeated.", show_default="results, errors and stats"),
    ] = None
    name: BatchName = None


@attrs.frozen(kw_only=True, slots=False)
class GalleryOptions(LedgerOptions):
    """Options of `gallery`."""

    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, metavar="FOLDER", help="Folder for the page.", show_default="gallery beside the ledger"
        ),
    ] = None
    name: BatchName = None
    provider: Provider = ProviderChoice.WAVESPEED
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve the page on this computer, to mark videos as good, bad or again."),
    ] = False
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="PORT", help="Port of --serve; 0 takes a free one.")
    ] = 0


@attrs.frozen(kw_only=True, slots=False)
class JoinOptions(Options):
    """Options of `join`."""

    clips: Annotated[
        list[Path],
        typer.Argument(metavar="CLIP", help="Videos in their order: MP4, MOV or WebM.", show_default=False),
    ]
    out: Annotated[Path, typer.Option(metavar="FILE", help="The film, ending in .mp4.", show_default=False)]
    crossfade: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time for which two clips fade into each other.")
    ] = 0.0
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Fit clips of other sizes and frame rates into those of the first one."),
    ] = False
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Replace an existing file; otherwise the film gets a name beside it."),
    ] = False
    as_json: Json = False


@attrs.frozen(kw_only=True, slots=False)
class SharedOptions(Options):
    """Ledger in a database that several workers share."""

    ledger: Annotated[
        LedgerName | None,
        typer.Option(
            parser=parse_ledger,
            metavar="URL",
            envvar=LEDGER_VARIABLE,
            help="Required: postgresql://user:password@host/name. Set in the environment, it is hidden from `ps`.",
            show_default=False,
        ),
    ] = None
    account: Account = DEFAULT_ACCOUNT

    @property
    def ledger_name(self) -> LedgerName:
        """Ledger with its account.

        Raises:
            ConfigurationError: Neither the option nor the environment names a ledger.
        """
        return required_ledger(self.ledger, self.account)


@attrs.frozen(kw_only=True, slots=False)
class EnqueueOptions(NewBatchOptions, SharedOptions):
    """Options of `enqueue`."""

    provider: Provider = ProviderChoice.WAVESPEED
    seen: Seen = SeenChoice.STOP
    quiet: Quiet = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the counts as JSON on stdout, or the problems of rows as JSON lines.")
    ] = False


@attrs.frozen(kw_only=True, slots=False)
class WorkerOptions(SharedOptions, SessionOptions):
    """Options of `worker`."""

    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, metavar="FOLDER", help="Folder for the videos; without it none is saved."),
    ] = None
    budget: WorkersBudget = None
    lease: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Time without a sign of life after which others take over a worker's jobs.",
        ),
    ] = 60.0
    sole_user: Annotated[
        bool,
        typer.Option("--sole-user", help="Only this ledger uses the key, so doubts can be settled by counting."),
    ] = False


@attrs.frozen(kw_only=True, slots=False)
class ModelsOptions(Options):
    """Options of `models`."""

    check: Annotated[
        bool, typer.Option("--check", help="Compare with the service's own list of models. Needs the key.")
    ] = False
    as_json: Json = False


@attrs.frozen(kw_only=True, slots=False)
class EmulatorOptions(Options):
    """Options of `emulator`."""

    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1"
    advertise: Annotated[
        str | None, typer.Option(metavar="NAME", help="Host name that clients use.", show_default="the address")
    ] = None
    port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Port of WaveSpeed; 0 takes a free one.")
    ] = 8787
    gptproto_port: Annotated[
        int, typer.Option(metavar="PORT", min=0, max=65535, help="Port of GPTProto; 0 takes a free one.")
    ] = 8788
    speed: Annotated[
        float, typer.Option(metavar="TIMES", min=0.1, max=1000, help="How many times as fast as the real service.")
    ] = 1.0
    seconds: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Seconds to make every video.", show_default="as the real service"),
    ] = None
    level: Annotated[LevelChoice, typer.Option(metavar="LEVEL", help=f"Level of the accounts: {LEVEL_NAMES}.")] = (
        LevelChoice.GOLD
    )
    balance: Annotated[float, typer.Option(metavar="USD", help="USD on each account.")] = 1000.0
    profile: Annotated[
        ProfileChoice, typer.Option(help="Real videos, about 2 s of a processor each, or one tiny file for hundreds.")
    ] = ProfileChoice.VIDEO
    seed: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="Repeat times, ids and faults.", show_default="random")
    ] = None
    chaos: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="RATE", help="Share of requests that meet a fault: 0.1 is one in ten."),
    ] = 0.0
    network: Annotated[
        NetworkChoice | None,
        typer.Option(
            metavar="LINE",
            help="Line to the clients: wan, far from the service, or thin, the same with 2 MB/s for uploads.",
            show_default="without latency",
        ),
    ] = None
