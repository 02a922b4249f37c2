"""Every promise (`support/promises.py`) has tests marked with it; `pytest -m promise` prints them.

Promise 11, about time in tests, is checked here.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import kling_async
from support.promises import PROMISES

TESTS = Path(__file__).parents[1]
PACKAGE = Path(kling_async.__file__).parent


def named(source: str) -> Iterator[tuple[str, int]]:
    """Yield the tests of a file that are marked with promises, with the numbers."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    yield from ((node.name, ast.literal_eval(number)) for number in mark.args)


@cache
def holders() -> dict[int, list[str]]:
    """Return the tests of each promise."""
    found: dict[int, list[str]] = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        for name, number in named(path.read_text()):
            found[number].append(f"{path.relative_to(TESTS)}::{name}")
    return found


@pytest.mark.parametrize("number", PROMISES, ids=lambda number: f"promise {number}")
def test_every_promise_has_tests(number: int) -> None:
    found = holders()[number]
    assert len(found) >= 2, f"{PROMISES[number]} is held by {found}"
    assert all(name.partition("::")[2].startswith("test_") for name in found), "what is no test holds nothing"


def test_marked_promises_exist() -> None:
    assert holders().keys() == PROMISES.keys()


def test_promise_search_finds_marks() -> None:
    source = "@pytest.mark.promise(3, 4)\n@other\nasync def test_a(): ...\n@pytest.mark.promise(1)\ndef test_b(): ...\n"
    assert list(named(source)) == [("test_a", 3), ("test_a", 4), ("test_b", 1)]


# ---- promise 11 ----

CLOCKS = {"time", "monotonic", "perf_counter", "monotonic_ns", "time_ns", "perf_counter_ns"}
WAITS = {"sleep", "wait_for", "timeout", "timeout_at", "move_on_after", "move_on_at", "fail_after", "fail_at"}
OWN_TIME = {
    "progress/_display.py": "of a person who looks at it",
    "_clock.py": "the clock of a session that is given none",
    "_http/timeouts.py": "of requests on the wire, as aiohttp counts it",
    "ledger/_postgres/lease.py": "of a lease, which runs on a database's clock",
    "ledger/_sqlite/writer.py": "of a moment in which the steps of a commit gather, in a thread of its own",
    "ledger/_postgres/connection.py": "of the connection to that database",
    "ledger/_postgres/notifications.py": "of another connection to it",
    "limits/shared.py": "of other processes, which have no clock of ours",
    "webhooks/receiver.py": "of a web server's connection",
    "gallery/live.py": "of a page that a person looks at",
    "integrations": "of connections, and of whoever waits at the other end",
    "cli": "of a person at a terminal",
    "testing": "of tests",
    "emulator": "of another process, with a clock of its own",
}
"""Modules that may read or wait for real time, with the reason; others use the session's clock."""


def real_time(source: str) -> Iterator[str]:
    """Yield expressions that read or wait for real time."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text in {*(f"time.{name}" for name in CLOCKS | {"sleep"})}:
                yield text
            if text in {*(f"{module}.{name}" for module in ("asyncio", "anyio") for name in WAITS | {"current_time"})}:
                yield text
            if text in {"datetime.now", "datetime.utcnow"} or (node.attr == "time" and "loop" in text.lower()):
                yield text
        elif isinstance(node, ast.ImportFrom) and node.module in {"time", "asyncio", "anyio"} and not node.level:
            yield from (name.name for name in node.names if name.name in CLOCKS | WAITS)


@pytest.mark.promise(11)
def test_package_reads_time_from_given_clock() -> None:
    found = {
        str(path.relative_to(PACKAGE)): told
        for path in sorted(PACKAGE.rglob("*.py"))
        if not any(path.relative_to(PACKAGE).is_relative_to(place) for place in OWN_TIME)
        and (told := sorted(set(real_time(path.read_text()))))
    }
    assert not found


@pytest.mark.promise(11)
def test_core_and_virtual_tests_use_no_real_clock() -> None:
    """Their waits run on the loop's virtual time."""
    asked = {
        path.name: told
        for folder in ("core", "virtual")
        for path in sorted((TESTS / folder).rglob("*.py"))
        if (told := [text for text in real_time(path.read_text()) if text.partition(".")[0] == "time"])
    }
    assert not asked
    assert "virtual.new_event_loop" in (TESTS / "virtual" / "conftest.py").read_text()


def test_virtual_loops_are_made_in_one_place() -> None:
    """A loop of looptime alone gives its threads 300 virtual seconds to end, which pass at once."""
    made = [path.name for path in sorted(TESTS.rglob("*.py")) if "import looptime" in path.read_text().splitlines()]
    assert made == ["virtual.py"]


@pytest.mark.promise(11)
def test_no_test_asserts_elapsed_real_time() -> None:
    asserted = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert) and any(text.startswith("time.") for text in real_time(ast.unparse(node)))
    ]
    assert not asserted


REAL = {path for path in TESTS.rglob("*.py") if path.relative_to(TESTS).parts[0] not in {"core", "virtual", "testing"}}
"""Tests in real time; in virtual time a bound is part of the tested behaviour."""


def bounds(source: str) -> Iterator[int]:
    """Yield lines where a wait is bounded by a literal number of seconds."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            seconds: list[ast.expr] = []
            if name == "anyio.fail_after":
                seconds = node.args
            elif name.startswith("subprocess.") or name.endswith((".communicate", ".wait")):
                seconds = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
            yield from (node.lineno for one in seconds if isinstance(one, ast.Constant))


@pytest.mark.promise(11)
def test_real_time_waits_are_bounded_by_patience() -> None:
    """Waits for events use `PATIENCE_S`, which is long enough for a slow machine."""
    found = [f"{path.relative_to(TESTS)}:{line}" for path in sorted(REAL) for line in sorted(bounds(path.read_text()))]
    assert not found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("with anyio.fail_after(5): pass", [1]),
        ("with anyio.fail_after(PATIENCE_S): pass", []),
        ("process.communicate(timeout=20)", [1]),
        ("subprocess.run(words, timeout=50, check=True)", [1]),
        ("with anyio.fail_after(2 * PATIENCE_S): pass", []),
        ("with anyio.move_on_after(0.3): pass", []),
        ("pytest.mark.timeout(300)", []),
    ],
)
def test_bound_search_finds_literals(source: str, lines: list[int]) -> None:
    assert list(bounds(source)) == lines


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("assert time.monotonic() - begun < 20", ["time.monotonic"]),
        ("await anyio.sleep(1)", ["anyio.sleep"]),
        ("from time import perf_counter", ["perf_counter"]),
        ("asyncio.get_running_loop().time()", ["asyncio.get_running_loop().time"]),
        ("await clock.sleep(1)", []),
        ("service.clock.monotonic() - began", []),
    ],
)
def test_real_time_search_finds_calls(source: str, found: list[str]) -> None:
    assert list(real_time(source)) == found
