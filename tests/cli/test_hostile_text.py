"""Text of a service, a file or a ledger: it is no markup, moves no cursor, and writes no lines of its own."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from anyio.to_thread import run_sync
from rich.text import Text

from kling_async import Job, State
from kling_async._core.content import content_of
from kling_async._log import log
from kling_async.cli.output import make_console, new_table, print_error, print_text, print_traceback, route_logs
from kling_async.emulator import Emulator, faults
from kling_async.errors import KlingError
from kling_async.ledger import Entry, SQLiteLedger
from support.cli import Cli

pytestmark = pytest.mark.anyio

MARKUP = "[/INST] [/b] [/docs] [bold red] [link=https://evil.example]x :warning: \\["
ESCAPES = "\x1b]0;taken\x07\x1b[2J\x9b31m\x08\x7f\u202etxt.exe\u2028"
BREAK = "\nFORGED: all is well\r\nFORGED"
TEXT = MARKUP + ESCAPES + BREAK
IMAGE = "https://pictures.example/face.png"
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]")
OWN_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\")


def check(shown: str, *, terminal: bool = False) -> None:
    """Check that hostile text is shown, and only as text."""
    assert "[/INST]" in shown
    assert "this is a bug" not in shown
    assert "]0;taken\x07" not in shown
    if terminal:
        assert "\x1b[2J" not in shown
        shown = OWN_SEQUENCE.sub("", shown).replace("\r", "")
    assert not UNSAFE.search(shown)
    assert not re.search("^ *FORGED", shown, re.MULTILINE)


async def fill(path: Path) -> None:
    """Make a ledger with a job in every state that commands describe, all of whose texts are hostile."""
    ledger = SQLiteLedger(path)
    await ledger.open()
    at = time.time()
    made = content_of(Job(prompt=TEXT, image=IMAGE), lambda image: "")
    ends = {
        "pending": (),
        "doubt": (State.INTENT, State.UNCERTAIN),
        "running": (State.INTENT, State.SUBMITTED),
        "unsaved": (State.INTENT, State.SUBMITTED, State.COMPLETED),
        "failed": (State.INTENT, State.SUBMITTED, State.FAILED),
    }
    for name, states in ends.items():
        key = f"{name} {TEXT}"
        await ledger.claim(f"batch {TEXT}", key, content=made, model="kling-v2.1-std", at=at)
        for state in states:
            await ledger.record(
                Entry(
                    batch=f"batch {TEXT}",
                    key=key,
                    state=state,
                    at=at,
                    attempt=1,
                    cost=Decimal("0.45") if state is State.INTENT else None,
                    prediction_id=f"{name}-id {TEXT}" if state is State.SUBMITTED else None,
                    error=TEXT if state in {State.FAILED, State.UNCERTAIN} else None,
                    candidates=(f"id {TEXT}",) if state is State.UNCERTAIN else None,
                )
            )
    await ledger.aclose()


COMMANDS = {
    "status": ("status", "run.db"),
    "ledger": ("ledger", "run.db"),
    "history": ("ledger", "run.db", "history", f"failed {TEXT}"),
    "unknown key": ("ledger", "run.db", "history", TEXT),
    "settled": ("ledger", "run.db", "give-up", f"doubt {TEXT}", "--yes"),
    "several batches": ("resume", "run.db", "--out", "made", "--name", TEXT),
    "debug": ("--debug", "resume", "run.db", "--out", "made", "--name", TEXT),
}


@pytest.fixture
async def cli(tmp_path: Path) -> Cli:
    await fill(tmp_path / "run.db")
    return Cli(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
async def test_commands_show_it_as_text(name: str, cli: Cli) -> None:
    done = await run_sync(lambda: cli(*COMMANDS[name], WAVESPEED_API_KEY="key"))
    check(done.stdout + done.stderr)


@pytest.mark.parametrize("name", ["status", "ledger", "history", "unknown key", "debug"])
async def test_commands_show_it_as_text_in_a_terminal(name: str, cli: Cli) -> None:
    shown, _, _ = await run_sync(lambda: cli.in_terminal(*COMMANDS[name], WAVESPEED_API_KEY="key", COLUMNS="200"))
    check(shown, terminal=True)


# ---- whatever a command prints ----


def foreign_error() -> ValueError:
    """Return an error of another library, which quotes what it was given."""
    try:
        raise ValueError(TEXT)
    except ValueError as error:
        return error


def print_table() -> None:
    table = new_table(make_console(), "name")
    table.add_row(TEXT.replace(BREAK, ""))
    make_console().print(table)


def print_record(*, debug: bool) -> None:
    route_logs(make_console(), debug=debug)
    try:
        log.error("what failed", exc_info=foreign_error())
        log.error("%s", TEXT)
    finally:
        log.handlers.clear()
        log.propagate, log.level = True, logging.NOTSET


PRINTERS: dict[str, Callable[[], None]] = {
    "text": lambda: print_text(make_console(), TEXT),
    "styled text": lambda: print_text(make_console(), Text(TEXT, "bold")),
    "table": print_table,
    "object": lambda: make_console().print(Text(TEXT.replace(BREAK, ""))),
    "error": lambda: print_error(KlingError(TEXT, advice=TEXT)),
    "error of another library": lambda: print_error(OSError(2, TEXT, TEXT)),
    "log": lambda: print_record(debug=False),
}


@pytest.mark.parametrize("name", PRINTERS)
def test_everything_printed_is_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    PRINTERS[name]()
    out, err = capsys.readouterr()
    check(out + err)


def test_tracebacks_have_lines_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Only the message of an error of another library may begin lines, as its frames do."""
    print_traceback(foreign_error())
    print_record(debug=True)
    shown = "".join(capsys.readouterr())
    assert shown.count("Traceback") == 2
    assert not UNSAFE.search(shown)


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["plain", "json"])
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
async def test_run_shows_it_as_text(options: tuple[str, ...], *, terminal: bool, debug: bool, tmp_path: Path) -> None:
    """Keys and prompts of the manifest, and why the service failed and refused a job."""
    rows = [{"key": f"{number} {TEXT}"[:120], "prompt": TEXT, "image": IMAGE} for number in range(2)]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    async with Emulator(speed=500, profile="tiny", level="gold", seed=7) as emulator:
        failed = {"id": f"id {TEXT}", "status": "failed", "error": TEXT, "code": 1405}
        emulator.faults.add("submit", faults.Status(200, body={"code": 200, "data": failed}))
        emulator.faults.add("submit", faults.Status(400, message=TEXT))
        cli = Cli(tmp_path)
        words = [
            *(("--debug",) if debug else ()),
            "run",
            "jobs.jsonl",
            "--out",
            "made",
            "--yes",
            "--no-audit",
            *options,
        ]
        env = {"WAVESPEED_API_KEY": emulator.api_key, "WAVESPEED_BASE_URL": emulator.base_url, "COLUMNS": "300"}
        if terminal:
            shown, _, _ = await run_sync(lambda: cli.in_terminal(*words, **env))
        else:
            done = await run_sync(lambda: cli(*words, **env))
            shown = done.stdout + done.stderr
    check(shown, terminal=terminal)
