"""Ledgers written by the first release of the package, and their jobs.

The files lie in `tests/resume/data`; `make.py` beside them made them.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import psycopg
from PIL import Image

from kling_async import Budget, Job, KlingError, KlingSession, Level, Outcome, WatchPolicy, read_ledger
from kling_async._core.sender import UNRECORDED
from kling_async._session.session import engine_of
from kling_async.cli import doubts, status
from kling_async.cli.ledgers import LedgerName
from kling_async.cli.options import DoubtOptions, StatusOptions
from kling_async.emulator import ScaledClock
from kling_async.results import Format, export
from kling_async.testing import LoopClock
from support.service import Service, open_session

DATA: Final = Path(__file__).parents[1] / "resume" / "data"
STATES: Final = DATA / "states.db"
"""A row in every state, in the batch `BATCH`; a key is named after what is special about its row."""
GATE: Final = DATA / "gate.db"
"""Completed batch without keys."""
BATCH: Final = "spring"
PICTURE: Final = DATA / "face.png"
START: Final = 1_800_000_000.0
"""Time at which the ledgers begin, in seconds since the epoch."""
LEVEL: Final = Level("test", 1_000_000, 1_000)
_SIGNED: Final = (
    "https://pictures.example/face.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=key%2F20270115%2Fs3"
    "&X-Amz-Date=20270115T080000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature="
)


KEYS: Final = (
    "pending",
    "claimed",
    "intent",
    "submitted",
    "completed",
    "downloaded",
    "failed",
    "moderated",
    "expired",
    "rejected",
    "skipped",
    "uncertain",
    "whose",
    "whether",
    "whether-none",
    "given-up",
    "given-up-intent",
    "resent",
)
"""Keys of the rows of `BATCH` in `STATES`."""


def clock(after: float = 0.0) -> ScaledClock:
    """Return a fast clock that begins some seconds after `START`."""
    made = ScaledClock(20)
    made._start = START + after
    return made


def job(key: str) -> Job:
    """Return the job of a row in `STATES`."""
    return Job(prompt=f"About {key}", image="https://pictures.example/face.png", model="kling-v2.1-pro")


def gate_jobs(folder: Path) -> list[Job]:
    """Return the jobs of `GATE`: PIL images, bytes, files, signed URLs, and the same job twice.

    Args:
        folder: Folder that the image file is put into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PICTURE.name
    file.write_bytes(PICTURE.read_bytes())
    pro = "kling-v2.1-pro-start-end-frame"
    return [
        Job(prompt="A PIL image", image=pil_image()),
        Job(prompt="A PIL image", image=pil_image()),
        Job(prompt="Bytes", image=PICTURE.read_bytes()),
        Job(prompt="A file", image=file),
        Job(prompt="A signed URL", image=f"{_SIGNED}{'1' * 64}"),
        Job(prompt="A signed URL", image=f"{_SIGNED}{'2' * 64}"),
        Job(prompt="Two images", image=pil_image(), end_image=file, model=pro),
    ]


def pil_image() -> Image.Image:
    """Return an image that Pillow encodes to the bytes of `PICTURE`."""
    image = Image.open(PICTURE)
    image.load()
    return image


def pillow_encodes_as_then() -> bool:
    """Return whether this Pillow encodes an image to the same bytes as the one that `GATE` was made with."""
    buffer = io.BytesIO()
    pil_image().save(buffer, "PNG")
    return buffer.getvalue() == PICTURE.read_bytes()


Fresh = Callable[[], "Path | str"]
"""Returns a new copy of a ledger, as its path or URL."""


async def decisions(fresh: Fresh, folder: Path) -> dict[str, Any]:
    """Return everything that is decided about the rows of `STATES`: what is paid, followed, held, refused, counted.

    Args:
        fresh: Copies the ledger.
        folder: For what is written.
    """
    runs: dict[str, dict[str, Any]] = {
        "hold": {"on_uncertain": "hold"},
        "reconcile": {"on_uncertain": "reconcile", "sole_user": True},
        "reconcile own": {"on_uncertain": "reconcile", "sole_user": True, "own": True},
        "resubmit": {"on_uncertain": "resubmit"},
        "retry": {"on_uncertain": "hold", "retry_failed": 1},
    }
    found: dict[str, Any] = {}
    for name, options in runs.items():
        for resumed in (False, True):
            found[f"{name}, {'resume' if resumed else 'run'}"] = await _run(fresh(), resumed=resumed, **options)
    budget = Budget(6)
    run = await _run(fresh(), resumed=False, on_uncertain="hold", budget=budget)
    # The first job over the budget ends the batch, whichever it is.
    found["budget"] = run["budget"], run["paid"]
    # In a thread: the commands run a loop of their own.
    found["by hand"] = await anyio.to_thread.run_sync(lambda: {way: _by_hand(fresh(), way) for way in WAYS})
    ledger = fresh()
    found["export"] = _exported(ledger, folder)
    found["status"] = _status(ledger)
    found["rows"] = {row.key: _stripped(row) for row in read_ledger(ledger)}
    return found


async def _run(ledger: Path | str, *, resumed: bool, own: bool = False, **options: Any) -> dict[str, Any]:
    """Run the batch again, with the same call or from its ledger.

    Args:
        ledger: The ledger.
        resumed: Run it from its ledger.
        own: Say first that the jobs of the first release, which did not record who sent them, are of this account.
        options: Options of the session.
    """
    epoch = START + 3600.0 - asyncio.get_running_loop().time()
    service = Service(seconds=0.2, latency=0.001, clock=LoopClock(epoch), epoch=epoch)
    service.accepted["id-submitted-1"] = (service.clock.monotonic(), 0.2, {"prompt": "About submitted"})
    service.models["id-submitted-1"] = job("submitted").model
    session: KlingSession = open_session(service, watch=WatchPolicy.fixed(0.05), ledger=ledger, grace=0.01, **options)
    outcomes: dict[str, Outcome] = {}
    async with session as kling:
        if own:
            await engine_of(kling).senders.add([UNRECORDED])
        budget = options.get("budget")
        before = None if budget is None else (budget.spent, budget.held)
        jobs = {key: job(key) for key in KEYS}
        async with kling.resume(name=BATCH) if resumed else kling.batch(jobs, name=BATCH) as batch:
            async for outcome in batch:
                outcomes[outcome.key] = outcome
    return {
        "paid": Counter(body["prompt"].removeprefix("About ") for body in service.paid),
        "outcomes": {key: _kind(outcome) for key, outcome in outcomes.items()},
        "budget": before,
        "states": {row.key: row.state for row in read_ledger(ledger)},
    }


def _kind(outcome: Outcome) -> tuple[object, ...]:
    error = outcome.error
    known = outcome.prediction is not None and outcome.prediction.id.startswith("id-")
    return None if error is None else type(error).__name__, known, None if error is None else error.spent


WAYS: Final[dict[str, Callable[[DoubtOptions, str], object]]] = {
    "adopt": lambda options, key: doubts.adopt(options, key, f"new-{key}", yes=True),
    "unaccepted": lambda options, key: doubts.unaccepted(options, key, yes=True),
    "give-up": lambda options, key: doubts.give_up(options, key, yes=True),
}
"""Ways in which a doubt is settled by hand."""


def _by_hand(where: Path | str, way: str) -> dict[str, Any]:
    """Settle every job by hand in one way, and return each new state or the reason for a refusal."""
    ledger = LedgerName.parse(str(where))
    found: dict[str, Any] = {}
    for key in KEYS:
        try:
            WAYS[way](DoubtOptions(ledger=ledger, name=BATCH), key)
        except KlingError as error:
            found[key] = type(error)
    rows = {row.key: row for row in read_ledger(ledger.where, batch=BATCH)}
    return {key: found.get(key, (rows[key].state, rows[key].spent, rows[key].attempt)) for key in KEYS}


def _exported(ledger: Path | str, folder: Path) -> object:
    export(ledger, folder, [Format.ERRORS, Format.RESULTS], batch=BATCH)
    errors = [json.loads(line)["key"] for line in (folder / "errors.jsonl").read_text().splitlines()]
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return sorted(errors), {line["key"]: line["status"] for line in results}


def _status(ledger: Path | str) -> object:
    read = status._read(StatusOptions(ledger=LedgerName.parse(str(ledger))))
    return [status._batch_as_json(batch) for batch in read.batches]


def _stripped(row: Any) -> object:
    return row.state, row.doubt, row.candidates, row.spent, row.cost, row.attempt, row.prediction_id


def copies(source: Path, folder: Path) -> Fresh:
    """Return a function that copies a ledger file into new folders."""

    def fresh() -> Path:
        made = folder / f"copy-{sum(1 for _ in folder.iterdir())}"
        made.mkdir(parents=True)
        return Path(shutil.copy(source, made / "run.db"))

    folder.mkdir(parents=True, exist_ok=True)
    return fresh


def into_postgres(source: Path, url: str, *, version: int = 2) -> None:
    """Make the tables of version 2, with the rows of a ledger file of version 1, and migrate them to a version."""
    from kling_async.ledger._postgres import tables  # noqa: PLC0415 -- it needs an extra

    columns = (
        "batch, key, digest, model, state, updated_at, attempt, fingerprint, token_hash, intent_at, submitted_at, "
        "prediction_id, cost, spent, refunded, failures, output, code, error, path, bytes, sha256"
    )
    marks = ", ".join(["%s"] * (columns.count(",") + 1))
    steps = "SELECT state, at, attempt, prediction_id, error FROM step WHERE batch = ? AND key = ? ORDER BY rowid"
    with psycopg.connect(url) as to, sqlite3.connect(source) as given:
        for statement in (
            *tables.MIGRATIONS[:2],
            tables._MAKE_VERSION,
            f"UPDATE kling_version SET version = {version}",
        ):
            to.execute(statement.encode())
        for row in given.execute(f"SELECT {columns} FROM job").fetchall():
            insert = (
                f"INSERT INTO kling_job(account, {columns}, slot) VALUES ('default', {marks}, "
                "%s IN ('intent', 'submitted', 'uncertain')) RETURNING id"
            )
            ((id_,),) = to.execute(insert.encode(), [*row, row[4]]).fetchall()
            (content,) = given.execute("SELECT job, files FROM content WHERE batch = ? AND key = ?", row[:2])
            to.execute("INSERT INTO kling_content VALUES (%s, %s, %s)", [id_, *content])
            for step in given.execute(steps, row[:2]).fetchall():
                to.execute(
                    "INSERT INTO kling_step(job, state, at, attempt, prediction_id, error, worker) "
                    "VALUES (%s, %s, %s, %s, %s, %s, 'h:1')",
                    [id_, *step],
                )
        for statement in tables.MIGRATIONS[2:version]:
            to.execute(statement.encode())
    given.close()
