from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest
from hypothesis import HealthCheck, settings

from support.promises import PROMISES

ROOT = Path(__file__).parents[1]
FOUND = pytest.StashKey[frozenset[str]]()
# A number repeats what tests draw at random; `random` draws anew in every run, which looks for what no run has met yet.
SEED = os.environ.get("KLING_TEST_SEED", "0")
# Deadlines and slowness would measure the machine.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=SEED != "random"
)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Restore SIGINT: jobs in the background of a shell inherit that it is ignored, and would pass it on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[FOUND] = in_the_checkout()


def in_the_checkout() -> frozenset[str]:
    """Return the names at the top of the checkout, without the caches of tools."""
    names = (path.name for path in ROOT.iterdir())
    return frozenset(name for name in names if not name.startswith(".") and name != "__pycache__")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a test left a file at the top of the checkout: tests write to `tmp_path`."""
    before = session.config.stash[FOUND]
    left = sorted(in_the_checkout() - before)
    if left and not hasattr(session.config, "workerinput"):
        session.config.get_terminal_writer().line(f"\nleft in the checkout by a test: {', '.join(left)}", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


class Seeded(random.Random):
    """Generators that a session makes for its pauses, which draw the same in every run of a test."""

    def __init__(self, seed: float | str | bytes | bytearray | None = None) -> None:
        super().__init__(SEED if seed is None else seed)


@pytest.fixture(autouse=True)
def same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    if SEED != "random":
        random.seed(SEED)
        monkeypatch.setattr(random, "Random", Seeded)


@pytest.fixture(autouse=True)
def unmeasured_repeats(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pause coverage, which takes as long again, for tests of the mark `repeats`."""
    measuring = coverage.Coverage.current()
    if measuring is None or request.node.get_closest_marker("repeats") is None:
        yield
        return
    monkeypatch.delenv("COVERAGE_PROCESS_START")
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return one worker more than there are processors, since many tests wait for other processes."""
    del config
    return (os.cpu_count() or 1) + 1


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Print each promise and its tests for `pytest -m promise`."""
    if "promise" not in config.option.markexpr:
        return []
    held: dict[int, dict[str, int]] = {number: {} for number in PROMISES}
    for item in items:
        for mark in item.iter_markers("promise"):
            for number in mark.args:
                name = item.nodeid.partition("[")[0]
                tests = held.setdefault(number, {})
                tests[name] = tests.get(name, 0) + 1
    lines: list[str] = []
    for number, tests in held.items():
        lines.append(f"{number}. {PROMISES.get(number, 'is no promise')}")
        lines += [f"     {name}" + (f" ({count} cases)" if count > 1 else "") for name, count in sorted(tests.items())]
    return lines


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Start a PostgreSQL server, and yield its URL."""
    from support import postgres  # noqa: PLC0415 -- most tests need none

    with postgres.server() as url:
        yield url


@pytest.fixture
def database(postgres_server: str) -> Iterator[str]:
    """Create a database, and yield its URL."""
    from support import postgres  # noqa: PLC0415 -- most tests need none

    with postgres.database(postgres_server) as url:
        yield url
