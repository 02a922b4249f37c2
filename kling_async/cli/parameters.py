"""Parameters of commands that several classes of options share: each name, type and help text stands once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from kling_async._core.polling import WATCH_VARIABLE

from .choices import LevelChoice, PollingChoice, ProviderChoice, SeenChoice
from .ledgers import LedgerName, parse_ledger

ROWS_PANEL: Final = "Rows"
RESULTS_PANEL: Final = "Results"
MONEY_PANEL: Final = "Money"
PACE_PANEL: Final = "Pace and limits"
EMULATOR_PANEL: Final = "Emulator"
LEVEL_NAMES: Final = " or ".join(", ".join(LevelChoice).rsplit(", ", 1))

Out = Annotated[
    str, typer.Option(metavar="FOLDER|URL", help="Folder for the videos, or s3://, gs://, az://...", show_default=False)
]
Provider = Annotated[ProviderChoice, typer.Option(envvar="KLING_PROVIDER", help="Service that makes the videos.")]
Account = Annotated[str, typer.Option(metavar="NAME", help="Name of the account in a shared database.")]
AnyLedger = Annotated[
    LedgerName | None,
    typer.Option(
        parser=parse_ledger,
        metavar="FILE|URL",
        help="Record of paid jobs: a file, or a shared database postgresql://...",
        show_default="OUT/run.db",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the summary.")]
BatchName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Only this batch; a run's batch has its manifest's name.", show_default="all"),
]
NewBatchName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Name of the batch; that of an earlier one continues it.",
        show_default="the manifest's name",
    ),
]
Manifests = Annotated[
    list[Path],
    typer.Argument(
        metavar="LIST|FOLDER|PICTURE",
        help="Jobs: .xlsx, .csv, .tsv, .jsonl, .json or .parquet, - for stdin; or a folder of pictures, or pictures.",
        show_default=False,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=COLUMN",
        help="Column of a field, such as image=Filename; can be repeated.",
        show_default="by their names",
        rich_help_panel=ROWS_PANEL,
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="NAME=VALUE",
        help="Only jobs with this label, such as order=1742; can be repeated.",
        show_default=False,
    ),
]
Recursive = Annotated[
    bool, typer.Option("--recursive", help="Take the pictures in subfolders, too.", rich_help_panel=ROWS_PANEL)
]
SkipInvalid = Annotated[
    bool,
    typer.Option(
        "--skip-invalid",
        help="Leave rows with problems out, into errors.jsonl, instead of refusing all.",
        rich_help_panel=ROWS_PANEL,
    ),
]
FromService = Annotated[
    bool,
    typer.Option(
        "--from-service",
        help="Take the models that the catalogue lacks from the service's own list. Needs the key.",
        rich_help_panel=ROWS_PANEL,
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        file_okay=False,
        metavar="FOLDER",
        help="Folder of the files that rows name; files outside of it are refused.",
        show_default="the manifest's folder",
        rich_help_panel=ROWS_PANEL,
    ),
]
Fit = Annotated[
    bool, typer.Option("--fit", help="Convert images that the service refuses, or may show otherwise than a viewer.")
]
Background = Annotated[
    str,
    typer.Option(
        metavar="COLOUR",
        help="Colour under transparent images with --fit: a name or #rrggbb.",
        rich_help_panel=ROWS_PANEL,
    ),
]
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify",
        help="Decode images to their end, so that damaged ones are not paid for.",
        show_default="up to 50 megapixels",
        rich_help_panel=ROWS_PANEL,
    ),
]
Level = Annotated[
    LevelChoice, typer.Option(metavar="LEVEL", envvar="KLING_LEVEL", help=f"Account level: {LEVEL_NAMES}.")
]
MaxInFlight = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        envvar="KLING_MAX_IN_FLIGHT",
        help="Videos running at once; workers count together.",
        show_default="the level's limit",
        rich_help_panel=PACE_PANEL,
    ),
]
MaxUploads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        envvar="KLING_MAX_UPLOADS",
        help="Most pictures uploaded at once.",
        show_default="as many as pay",
        rich_help_panel=PACE_PANEL,
    ),
]
MaxSaving = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        envvar="KLING_MAX_SAVING",
        help="Most videos downloaded at once.",
        show_default="as many as pay",
        rich_help_panel=PACE_PANEL,
    ),
]
Deadline = Annotated[
    float,
    typer.Option(
        min=1,
        metavar="SECONDS",
        help="Wait for each video; the service goes on with it after that.",
        rich_help_panel=PACE_PANEL,
    ),
]
ForgetAfter = Annotated[
    float,
    typer.Option(
        min=1,
        metavar="SECONDS",
        help="Time after which a video that never ends frees its slot for another one.",
        rich_help_panel=PACE_PANEL,
    ),
]
Polling = Annotated[
    PollingChoice,
    typer.Option(
        metavar="POLICY",
        envvar=WATCH_VARIABLE,
        help="How status is read: balanced as the vendor asks, gentle, eager, or by its list, which it asks not to "
        "poll.",
        rich_help_panel=PACE_PANEL,
    ),
]
MaxReadsPerSecond = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        metavar="N",
        help="Status reads per second.",
        show_default="a tenth of the videos at once, 100 to 400",
        rich_help_panel=PACE_PANEL,
    ),
]
MaxReplyBytes = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="BYTES",
        help="Greatest size of a reply of the service.",
        show_default="16 MiB",
        rich_help_panel=PACE_PANEL,
    ),
]
MaxOutputBytes = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="BYTES",
        help="Greatest size of a video.",
        show_default="2 GiB",
        rich_help_panel=PACE_PANEL,
    ),
]
Speed = Annotated[
    float,
    typer.Option(
        min=0.1,
        max=1000,
        metavar="TIMES",
        help="How many times as fast as the real service.",
        rich_help_panel=EMULATOR_PANEL,
    ),
]
BatchBudget = Annotated[
    str | None,
    typer.Option(
        metavar="USD", help="Most that the batch may cost, earlier runs included.", rich_help_panel=MONEY_PANEL
    ),
]
WorkersBudget = Annotated[
    str | None,
    typer.Option(metavar="USD", help="Most that the jobs of all workers may cost.", rich_help_panel=MONEY_PANEL),
]
AllowEstimate = Annotated[
    bool,
    typer.Option(
        "--allow-estimate",
        help="Let an estimated price count against the budget where the service quotes none.",
        rich_help_panel=MONEY_PANEL,
    ),
]
RetryFailed = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="TIMES",
        help="Send, and pay for, a job again that failed through the service's fault.",
        rich_help_panel=MONEY_PANEL,
    ),
]
Seen = Annotated[
    SeenChoice,
    typer.Option(
        help="Jobs that another batch of the ledger has paid for: stop, reuse the videos unpaid, or pay for others.",
        rich_help_panel=MONEY_PANEL,
    ),
]
IgnoredParameters = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-parameter",
        metavar="NAME",
        help="Parameter of pictures' URLs that makes no other job, such as token; can be repeated. The batch keeps it.",
        show_default="the batch's own",
        rich_help_panel=MONEY_PANEL,
    ),
]
Redo = Annotated[
    list[str] | None,
    typer.Option(
        "--redo",
        metavar="KEY",
        help="Pay again for this job, whose row has new content; can be repeated.",
        rich_help_panel=MONEY_PANEL,
    ),
]
