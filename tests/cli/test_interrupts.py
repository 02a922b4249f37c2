from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

from support.cli import Cli, answers_hangups
from support.patience import PATIENCE_S

UNENDING_S = 3600.0
APART_S = 0.5
"""Seconds between the effect of a press and the next one, which is then another press."""
SCRIPT = textwrap.dedent(
    """
    import asyncio
    from kling_async.cli.exits import Exit
    from kling_async.cli.interrupts import interruptible, took_interrupt

    async def work():
        print("working", flush=True)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            took_interrupt()
        print("closing", flush=True)
        await asyncio.sleep({closing})
        print("closed", flush=True)
        return Exit.INTERRUPTED

    raise SystemExit(interruptible(work))
    """
)

DRAINING = textwrap.dedent(
    """
    import asyncio
    from kling_async.cli.exits import Exit
    from kling_async.cli.interrupts import drains, interruptible, took_interrupt

    async def work():
        empty = asyncio.Event()

        def drain():
            print("draining", flush=True)
            asyncio.get_running_loop().call_later({closing}, empty.set)

        try:
            with drains(drain):
                print("working", flush=True)
                await empty.wait()
            print("empty", flush=True)
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            took_interrupt()
        print("closed", flush=True)
        return Exit.INTERRUPTED

    raise SystemExit(interruptible(work))
    """
)


def start(cli: Cli, closing: float, script: str = SCRIPT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script.replace("{closing}", str(closing))],
        env=cli.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=answers_hangups)])
def test_repeated_signals_do_not_cut_closing_short(cli: Cli, number: signal.Signals) -> None:
    with start(cli, 1.0) as process:
        cli.wait_for(process, "working")
        process.send_signal(number)
        cli.wait_for(process, "closing")
        cli.twice(process, number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == ("closed\n", 130)
    assert "Traceback" not in err


def test_third_ctrl_c_exits_at_once(cli: Cli) -> None:
    with start(cli, UNENDING_S) as process:
        cli.wait_for(process, "working")
        process.send_signal(signal.SIGINT)
        cli.wait_for(process, "closing")
        time.sleep(APART_S)
        process.send_signal(signal.SIGINT)
        said = cli.wait_for(process, "Closing", errors=True)
        time.sleep(APART_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, process.returncode) == ("", 130)
    assert said + err == "\nClosing: sent jobs are being recorded. Ctrl-C again gives that up.\nGiven up.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_drains_and_second_cancels(cli: Cli, number: signal.Signals) -> None:
    with start(cli, UNENDING_S, DRAINING) as process:
        cli.wait_for(process, "working")
        cli.twice(process, number)
        cli.wait_for(process, "draining")
        time.sleep(APART_S)
        assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, err, process.returncode) == ("closed\n", "", 130)


def test_signal_after_drain_cancels(cli: Cli) -> None:
    with start(cli, 0.0, DRAINING) as process:
        cli.wait_for(process, "working")
        process.send_signal(signal.SIGINT)
        cli.wait_for(process, "empty")
        time.sleep(APART_S)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, err, process.returncode) == ("closed\n", "", 130)


@answers_hangups
def test_sighup_cancels_without_drain(cli: Cli) -> None:
    with start(cli, UNENDING_S, DRAINING) as process:
        cli.wait_for(process, "working")
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (out, err, process.returncode) == ("closed\n", "", 130)
