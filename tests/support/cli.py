"""Run the command line in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import pytest

from kling_async.emulator.faults import Call
from support.patience import PATIENCE_S

APART_S = 0.5
"""Seconds between two presses of Ctrl-C: in quick succession, they count as one."""
EAGER = ("--polling", "eager")
"""The options of what the environment of tests says, as shown in commands for later."""
ROOT = Path(__file__).parents[2]
answers_hangups = pytest.mark.skipif(
    hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN,
    reason="under nohup, whose processes ignore a closed terminal",
)


class Cli:
    """Runner of `kling-async` in a folder of the test, without the environment's settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        foreign = ("WAVESPEED_", "GPTPROTO_", "FORCE_COLOR", "NO_COLOR", "TTY_", "COLUMNS", "LINES")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self.env |= {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "TERM": "xterm-256color"}
        # The videos of tests are made at once; by default, one that is alone is read first after half a minute.
        self.env["KLING_WATCH"] = "eager"
        # Warnings of the package, such as an unclosed socket, become errors.
        self.env["PYTHONWARNINGS"] = "error::ResourceWarning,error::RuntimeWarning"

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a command with stderr merged into stdout."""
        return self._start(words, env, subprocess.STDOUT)

    def start_apart(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a command with pipes of their own for stdout and stderr."""
        return self._start(words, env, subprocess.PIPE)

    def _start(self, words: Sequence[str], env: dict[str, str], errors: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*words),
            cwd=self.folder,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def in_terminal(
        self, *words: str, answer: str = "", presses: Sequence[str] = (), piped: Collection[str] = (), **env: str
    ) -> tuple[str, str, int]:
        """Run a command in a pseudo-terminal.

        Args:
            words: The command.
            answer: Text that is typed.
            presses: Texts upon each of which, one after another, Ctrl-C is pressed.
            piped: Streams that are no terminal: `stdin` is empty; what `stdout` and `stderr` get is returned.
            env: Further variables.

        Returns:
            What the terminal showed, what the pipe got, and the exit status.
        """
        master, slave = os.openpty()
        with tempfile.TemporaryFile() as pipe:
            process = subprocess.Popen(
                self.command(*words),
                cwd=self.folder,
                env=self.env | {"COLUMNS": "100", "LINES": "40"} | env,
                stdin=subprocess.DEVNULL if "stdin" in piped else slave,
                stdout=pipe if "stdout" in piped else slave,
                stderr=pipe if "stderr" in piped else slave,
                start_new_session=True,
            )
            os.close(slave)
            os.write(master, answer.encode())
            shown, left, seen = b"", [*presses], 0
            try:
                while piece := os.read(master, 65536):
                    shown += piece
                    if left and left[0].encode() in shown[seen:]:
                        if len(left) < len(presses):
                            time.sleep(APART_S)
                        del left[0]
                        seen = len(shown)
                        process.send_signal(signal.SIGINT)
            except OSError:
                pass  # the process has exited
            finally:
                os.close(master)
            status = process.wait(PATIENCE_S)
            pipe.seek(0)
            return shown.decode(), pipe.read().decode(), status

    @staticmethod
    def command(*words: str) -> list[str]:
        return [sys.executable, "-m", "kling_async", *words]

    @staticmethod
    def wait_for(process: subprocess.Popen[str], word: str, *, errors: bool = False) -> str:
        """Return the output, or the error output, up to the first line that contains `word`."""
        printed = ""
        lines = process.stderr if errors else process.stdout
        assert lines is not None
        for line in lines:
            printed += line
            if word in line:
                return printed
        raise AssertionError(f"{word!r} was not printed, but {printed}")

    @staticmethod
    def twice(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> None:
        """Send two signals that arrive together, as some terminals do.

        Two equal ones may merge into one, or arrive so late that they count as two presses. The process is stopped
        while they arrive, and the second is another signal with the same meaning.
        """
        other = signal.SIGTERM if number is signal.SIGINT else signal.SIGINT
        for one in (signal.SIGSTOP, number, other, signal.SIGCONT):
            process.send_signal(one)

    @classmethod
    def stop(cls, process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> str:
        """Interrupt a run twice, so that it does not drain; return the output up to the first."""
        process.send_signal(number)
        printed = cls.wait_for(process, "Draining: ")
        time.sleep(APART_S)
        process.send_signal(number)
        return printed


def jobs(folder: Path, *rows: Mapping[str, object], name: str = "jobs.jsonl") -> str:
    """Write a manifest of small jobs to the folder and return its name."""
    common = {"prompt": "Waves", "image": "https://pictures.example/face.png"}
    (folder / name).write_text("".join(json.dumps({**common, **row}) + "\n" for row in rows))
    return name


def asks_for(prompt: str) -> Callable[[Call], bool]:
    """Return a condition that is true for submissions with that prompt."""
    return lambda call: call.body.get("prompt") == prompt
