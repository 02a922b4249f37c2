from __future__ import annotations

import os

import pytest

from support.promises import PROMISES


@pytest.fixture
def anyio_backend() -> object:
    return "asyncio"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are processors: many tests wait for processes and servers of their own."""
    del config
    return (os.cpu_count() or 1) + 1


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """With `pytest -m promise`: what is promised, and the tests that hold it."""
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
