"""Commands that need no service: help, catalogue, and input that is refused before anything is sent."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from kling_async import LEVELS, MODELS, __version__
from kling_async.cli import main
from kling_async.cli.app import app
from kling_async.cli.choices import LevelChoice, ProviderChoice
from kling_async.cli.models import models
from kling_async.providers import PROVIDERS
from support.cli import Cli, jobs
from support.patience import PATIENCE_S

COMMANDS = (
    "demo",
    "run",
    "resume",
    "estimate",
    "status",
    "ledger",
    "fetch",
    "export",
    "enqueue",
    "worker",
    "models",
    "emulator",
)


@pytest.fixture(autouse=True)
def without_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WAVESPEED_API_KEY", "GPTPROTO_API_KEY", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("kling_async")
    handlers, propagate, level = log.handlers[:], log.propagate, log.level
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})


def test_help_lists_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_help_documents_exit_statuses(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "0 all went well, 1 some jobs failed, 2 bad input or usage, 3 nothing was done, 130" in result.output


@pytest.mark.parametrize("command", ["resume", "status", "ledger", "export", "gallery"])
def test_help_shows_type_of_ledger_argument(command: str) -> None:
    shown = run(command, "--help").output
    assert "<file|url>" in shown
    assert "LedgerName" not in shown


@pytest.mark.parametrize("words", ["adopt --help", "run.db unaccepted -h", "give-up KEY --help", "--name b history -h"])
def test_help_of_a_ledger_command_needs_no_ledger(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLING_LEDGER", raising=False)
    result = run("ledger", *words.split())
    assert result.exit_code == 0
    (name,) = [word for word in words.split() if word in {"adopt", "unaccepted", "give-up", "history"}]
    assert f"ledger [ledger] {name} [OPTIONS]" in result.output
    assert "Key of the job." in result.output


def test_no_option_takes_a_key() -> None:
    assert all(
        "key" not in word for command in COMMANDS for word in run(command, "--help").output.split() if word[:2] == "--"
    )


def test_help_shows_no_types_of_the_program() -> None:
    """Brackets hold one of several words, or a file: no `<bool>`, `<dir>` or `<int range>`."""
    for command in ("", *COMMANDS, "ledger adopt", "ledger unaccepted", "ledger give-up", "ledger history"):
        shown = re.findall(r"<[a-z][^<>=]*>", run(*command.split(), "--help").output)
        assert [word for word in shown if "|" not in word] == [], command


def options_of(command: str) -> set[str]:
    """Return the options that the help of a command lists."""
    return set(re.findall(r"^│[ *]+(--[a-z-]+)", run(command, "--help").output, re.MULTILINE))


def test_commands_that_run_jobs_share_their_options() -> None:
    ran, resumed, worked, enqueued = map(options_of, ("run", "resume", "worker", "enqueue"))
    session = {"--provider", "--level", "--fit", "--quiet", "--max-in-flight", "--max-uploads", "--max-saving"}
    session |= {"--deadline", "--forget-after", "--polling", "--max-reads-per-second", "--max-reply-bytes"}
    session |= {"--max-output-bytes", "--budget", "--allow-estimate", "--retry-failed", "--seen"}
    assert session < ran & resumed & worked
    batch = {"--out", "--results", "--no-results", "--gallery", "--ignore-parameter", "--audit", "--yes", "--json"}
    assert resumed >= session | batch
    assert ran > resumed
    rows = {"--prompt", "--model", "--duration", "--root", "--fit", "--name", "--seen", "--ignore-parameter"}
    assert rows | {"--provider", "--quiet", "--json"} < ran & enqueued
    # A batch is named by the same option everywhere.
    for command in COMMANDS:
        assert "--batch" not in options_of(command)


def test_level_and_provider_come_from_the_environment() -> None:
    words = ["run", "jobs.jsonl", "--out", "videos"]
    refused = CliRunner().invoke(app, words, env={"KLING_LEVEL": "goldy", "COLUMNS": "200"})
    assert (refused.exit_code, "KLING_LEVEL" in refused.stderr) == (2, True)
    jobs(Path(), {"key": "a"})
    other = CliRunner().invoke(app, words, env={"KLING_PROVIDER": "gptproto", "COLUMNS": "200"})
    assert "no API key for gptproto" in other.stderr


@pytest.mark.parametrize("command", ["resume --out videos", "status", "ledger", "export", "gallery", "worker"])
def test_missing_ledger_is_reported_with_its_variable(command: str) -> None:
    result = run(*command.split())
    assert result.exit_code == 2
    assert "no ledger given" in result.stderr
    assert "KLING_LEDGER" in result.stderr


def test_models_fits_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None, _environ={})
    monkeypatch.setattr("kling_async.cli.models.make_console", lambda: console)
    models(as_json=False)
    lines = text.getvalue().splitlines()
    for model in MODELS:
        assert any(line.split()[:1] == [model.id] for line in lines), "ids are copied, so they are not broken"
        for seconds in (5, 10):
            assert any(str(model.price(seconds)) in line for line in lines if line.split()[:1] == [model.name])
    assert max(map(len, lines)) <= 80
    sounding = lines[1 + next(place for place, line in enumerate(lines) if line.split()[:1] == ["kling-v3.0-std"])]
    assert sounding.split()[1:] == ["sound", "≈", "$0.63", "≈", "$1.26"]


def test_version() -> None:
    assert run("--version").output == f"kling-async {__version__}\n"


def test_choices_match_library() -> None:
    assert {choice.value for choice in LevelChoice} == set(LEVELS)
    assert {choice.value for choice in ProviderChoice} == set(PROVIDERS)


def test_models_prints_table_and_json() -> None:
    table = run("models").output
    assert all(model.id in table for model in MODELS)
    assert "≈ $0.25" in table
    shown = json.loads(run("models", "--json").output)
    assert [model["name"] for model in shown["models"]] == [model.name for model in MODELS]
    kling_4 = shown["models"][-1]
    assert [(rate["resolution"], rate["usd"], rate["certainty"]) for rate in kling_4["usd_per_second"]] == [
        ("720p", 0.157, "stated"),
        ("1080p", 0.235, "stated"),
        ("4k", None, "unknown"),
    ]
    assert {"keyframes", "resolution", "aspect_ratio", "dynamic_range"} <= set(kling_4["fields"])
    assert {level["name"]: level["in_flight"] for level in shown["levels"]} == {
        name: level.in_flight for name, level in LEVELS.items()
    }


def test_missing_key_is_reported_first_with_its_variable(tmp_path: Path) -> None:
    result = run("run", jobs(tmp_path, {}), "--out", "videos")
    assert result.exit_code == 2
    assert "no API key for wavespeed" in result.stderr
    assert "WAVESPEED_API_KEY" in result.stderr
    assert not (tmp_path / "videos").exists()


def test_bad_manifest_is_reported_line_by_line(tmp_path: Path) -> None:
    path = jobs(tmp_path, {"duration": 15}, {"key": "\x1b[31mred", "prompt": ""}, {"image": "../face.png"})
    result = run("run", path, "--out", "videos", "--emulator")
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "jobs.jsonl:1 duration: expected 5 or 10, got 15",
        "jobs.jsonl:2 prompt: required: 1 to 2500 characters",
        f"jobs.jsonl:3 image: '../face.png' is outside of {tmp_path.resolve()}",
        "3 problems in the list; nothing was sent.",
        "correct the lines and run it again, or leave them out with skip_invalid=True (--skip-invalid)",
    ]


def test_model_missing_at_provider_is_reported_before_run(tmp_path: Path) -> None:
    path = jobs(tmp_path, {"model": "kling-v4.0"}, {"model": "kling-v4.0"})
    result = run("run", path, "--out", "videos", "--provider", "gptproto", "--emulator")
    assert result.exit_code == 2
    assert "gptproto does not have kling-v4.0 (2 jobs)" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "jobs.jsonl"),
        ("run", "jobs.jsonl", "--out", "videos", "--level", "diamond"),
        ("run", "jobs.jsonl", "--out", "videos", "--max-in-flight", "0"),
        ("run", "jobs.jsonl", "--out", "videos", "--max-uploads", "0"),
        ("resume", "run.db", "--out", "videos", "--max-saving", "0"),
        ("demo", "missing.png"),
        ("paint",),
        ("fetch", "--out", "videos"),
        ("fetch", "abc", "--out", "videos", "--ledger", "missing.jsonl"),
        ("fetch", "abc", "--out", "videos"),
    ],
)
def test_bad_usage_exits_2_without_traceback(words: tuple[str, ...]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "Traceback" not in result.output + result.stderr


def test_demo_reports_every_unusable_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    (tmp_path / "b.png").write_bytes(b"")
    result = run("demo", "a.png", "b.png")
    assert result.exit_code == 2
    assert "a.png: expected a JPEG or PNG" in result.stderr
    assert "b.png: is empty" in result.stderr


def test_debug_prints_traceback(cli: Cli) -> None:
    assert "Traceback" not in cli("run", "missing.jsonl", "--out", "videos").stderr
    assert "Traceback" in cli("--debug", "run", "missing.jsonl", "--out", "videos").stderr


@pytest.mark.parametrize("grouped", [False, True])
def test_bug_prints_error_without_traceback(monkeypatch: pytest.MonkeyPatch, *, grouped: bool) -> None:
    def broken(*, as_json: bool) -> None:
        error = TypeError("a bug")
        raise ExceptionGroup("several", [error]) if grouped else error

    monkeypatch.setattr("kling_async.cli.models.models", broken)
    result = run("models")
    assert result.exit_code == 1
    assert "TypeError: a bug" in result.stderr
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_extra_prints_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "pip install 'kling-async[cli]'" in capsys.readouterr().err


def test_closed_pipe_prints_no_traceback(cli: Cli) -> None:
    process = cli.start("models")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(PATIENCE_S)
    with process:
        assert process.returncode in {0, 1}


@pytest.mark.parametrize(
    "words",
    [("status", "LEDGER"), ("export", "LEDGER"), ("resume", "LEDGER"), ("run", "jobs.jsonl", "--ledger", "LEDGER")],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("debug", [(), ("--debug",)], ids=["", "debug"])
@pytest.mark.promise(8)
def test_misspelt_url_of_a_database_is_not_printed(cli: Cli, words: tuple[str, ...], debug: tuple[str, ...]) -> None:
    jobs(cli.folder, {})
    url = "postgres:/user:password-of-it@db.example/jobs"
    before = sorted(cli.folder.rglob("*"))
    done = cli(*debug, *(url if word == "LEDGER" else word for word in words), WAVESPEED_API_KEY="wsk_key_of_the_test")
    assert done.returncode == 2
    assert "misspelt" in done.stdout + done.stderr
    assert "password-of-it" not in done.stdout + done.stderr
    assert sorted(cli.folder.rglob("*")) == before
