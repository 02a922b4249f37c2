"""Fenced blocks of README.md and the pages under docs/, and a runner for whole pages.

Python blocks of a page share one namespace and run in order, in scaled time; lines of a console block run as processes.
A block with a title is written to that file before the page runs; a console line must run it, or a block import it.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from anyio.to_thread import run_sync
from sybil import Document, Region
from sybil.example import Example
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from support.cli import Cli
from support.media import video
from support.patience import PATIENCE_S
from support.pictures import png
from support.pytests import run_pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
RUN = {"python", "console"}
LANGUAGES = RUN | {"json", "text", "yaml"}
PICTURES = ("anna", "lake", "wind")
"""Files in the folder photos/ of a page."""

_INFO = re.compile(r"(?P<language>[\w-]*)(?P<info>[^\n]*)$\n", re.MULTILINE)
_REASON = re.compile(r"<!-- not run: (?P<reason>\S[^\n]*) -->\n+\Z")
_TEST_COMMAND = re.compile(r"<!-- test-command -->\n\Z")
"""The one block that `.ci/run` runs verbatim."""
_INCLUDED = re.compile(r'--8<-- "kling_async/examples/[\w./]+"')
"""A block whose text is that of an example."""
_TITLE = re.compile(r'title="([^"]+)"')
_ID = re.compile(r"[0-9a-f]{32}")


@attrs.frozen
class Block:
    """Fenced block of a page; `reason` says why it is not run, None for a block that is run."""

    path: Path
    line: int
    language: str
    title: str | None
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    return [README, *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """Return all fenced blocks of a page, in order."""

    def parse(document: Document) -> Iterable[Region]:
        for region in RawFencedCodeBlockLexer(_INFO)(document):
            yield Region(region.start, region.end, region.lexemes, lambda _: None)

    document = Document.parse(str(page), parse)
    return [_block(page, document.text, example) for example in document.examples()]


def _block(page: Path, text: str, example: Example) -> Block:
    before = text[: example.region.start]
    given = _REASON.search(before)
    reason = given["reason"] if given else "typed by .ci/run" if _TEST_COMMAND.search(before) else None
    title = _TITLE.search(example.parsed["info"])
    source = str(example.parsed["source"])
    if reason is None and _INCLUDED.fullmatch(source.strip()):
        reason = "run by tests/examples"
    return Block(page, example.line, example.parsed["language"], title[1] if title else None, source, reason)


def block(page: str, word: str, language: str = "python") -> str:
    """Return the text of the one block of docs/PAGE with this word in it."""
    (found,) = [one.text for one in blocks(DOCS / page) if one.language == language and word in one.text]
    return found


def commands(text: str) -> list[list[str]]:
    """Return the words of every command of a console block, without prompts and comments."""
    lines = text.splitlines()
    assert all(line.startswith("$ ") for line in lines), "a console block has one command a line, each with its prompt"
    return [
        words
        for line in lines
        for part in line.removeprefix("$ ").split(" && ")
        if (words := shlex.split(part, comments=True))
    ]


def check_install(words: list[str]) -> None:
    """Check a pip command: it installs from the checkout, with existing extras."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[:4] == ["python", "-m", "pip", "install"], words
    for word in words[4:]:
        named = re.fullmatch(r"\.(?:\[([a-z,]+)\])?", word)
        assert named, f"{word} is not in the checkout"
        assert set((named[1] or "").split(",")) - {""} <= set(extras), word


SERVERS = {"emulator": "Ctrl-C ends it", "worker": "Ctrl-C or SIGTERM", "studio": "Open http", "uvicorn": "running on"}
"""Commands that run until interrupted, with a word of the line that they print when ready."""


def _name(words: list[str]) -> str:
    """Return the subcommand of `kling-async`, or the last part of a module's name."""
    if words[0] == "kling-async":
        return words[1]
    return words[2].rpartition(".")[2] if words[:2] == ["python", "-m"] else words[0]


def _added(name: str) -> list[str]:
    """Options for free ports, for shorter waits, and for payments without a terminal to ask."""
    if name == "emulator":
        return ["--port", "0", "--gptproto-port", "0"]
    if name in {"studio", "uvicorn"}:
        return ["--port", "0"]
    if name in {"run", "resume"}:
        return ["--yes"]
    return ["--quick"] if name == "demo" else []


@attrs.define
class PageRun:
    """Run of one page in its own folder.

    Attributes:
        folder: The working directory, with face.png, clips/ and photos/.
        environment: Environment of the processes.
        prediction_id: Returns the id that stands for every id in a command.
        ran: Executed blocks, in order.
        printed: Their whole output.
    """

    folder: Path
    environment: Mapping[str, str]
    prediction_id: Callable[[], str]
    ran: list[Block] = attrs.Factory(list)
    printed: list[str] = attrs.Factory(list)
    _names: dict[str, Any] = attrs.Factory(lambda: {"__name__": "page"})
    _servers: list[tuple[list[str], subprocess.Popen[str]]] = attrs.Factory(list)

    def __attrs_post_init__(self) -> None:
        (self.folder / "face.png").write_bytes(png())
        (self.folder / "clips").mkdir()
        for kind in ("mp4", "mov"):
            (self.folder / "clips" / f"walk.{kind}").write_bytes(video(kind))
        (self.folder / "photos").mkdir()
        for number, name in enumerate(PICTURES):
            (self.folder / "photos" / f"{name}.png").write_bytes(png(colour=(50 * number, 80, 120)))

    async def __call__(self, page: list[Block]) -> None:
        """Run every runnable block of the page.

        Raises:
            AssertionError: The output differs from the page, or a command failed.
        """
        programs = set()
        for one in page:
            if one.title:
                (self.folder / one.title).write_text(one.text)
                imported = any(f"from {Path(one.title).stem} import" in other.text for other in page)
                programs |= {one.title} if one.language == "python" and not imported else set()
        try:
            for one in page:
                if one.reason is None:
                    await self._run(one, programs)
        finally:
            await run_sync(self._stop)
        assert not programs, f"no line runs {programs}"

    async def _run(self, one: Block, programs: set[str]) -> None:
        try:
            if one.language == "text":
                assert one.text.strip() == self.printed[-1].strip()
            elif one.language == "python":
                await self._python(one)
                self.ran.append(one)
            elif one.language == "console":
                for words in commands(one.text):
                    self.printed.append(await run_sync(partial(self._command, words)))
                    programs -= {*words, *(f"{word.partition(':')[0]}.py" for word in words)}
                self.ran.append(one)
        except BaseException as error:
            error.add_note(f"in {one}")
            raise

    async def _python(self, one: Block) -> None:
        if one.title:  # a program, run by its console line
            compile(one.text, one.title, "exec")
            return
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            code = compile(one.text, str(one), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, self._names)
            if inspect.isawaitable(result):
                await result
        self.printed.append(printed.getvalue())

    def _command(self, words: list[str]) -> str:
        words = [self.prediction_id() if _ID.fullmatch(word) else word for word in words]
        if words[0] == "export":
            assert {word.partition("=")[0] for word in words[1:]} <= set(self.environment), words
            return ""
        if words[:3] == ["python", "-m", "pip"]:
            check_install(words)
            return ""
        if words[:3] == ["python", "-m", "pytest"]:
            done = run_pytest(self.folder, *words[3:])
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout
        name = _name(words)
        process = self._start([*words, *_added(name)])
        if name in SERVERS:
            self._servers.append((words, process))
            return Cli.wait_for(process, SERVERS[name])
        printed, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, f"{shlex.join(words)}: {printed}"
        assert "Traceback" not in printed, printed
        return printed

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        assert words[0] in {"kling-async", "python"}, f"no way to run {words}"
        start = [sys.executable, "-m", "kling_async"] if words[0] == "kling-async" else [sys.executable]
        return subprocess.Popen(
            [*start, *words[1:]],
            cwd=self.folder,
            env=Cli(self.folder).env | dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _stop(self) -> None:
        """Interrupt commands that still run."""
        failed = []
        for words, process in self._servers:
            process.send_signal(signal.SIGINT)
            try:
                printed, _ = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                printed, _ = process.communicate()
            if process.returncode or "Traceback" in printed:
                failed.append(f"{shlex.join(words)}: {process.returncode} {printed}")
        self._servers.clear()
        assert not failed, failed
