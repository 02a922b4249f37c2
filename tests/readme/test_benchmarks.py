"""docs/benchmarks.md has the figures of the committed results, and the scripts that make them run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.patience import PATIENCE_S

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str, root: Path = BENCHMARKS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / script), *arguments]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        # With the processes that it has started.
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_page_has_the_figures_of_the_results() -> None:
    """If this fails: `nox -s bench`, or `python benchmarks/run.py --only` to write the tables anew."""
    checked = run("run.py", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_result_is_of_a_script_that_is_there_and_of_no_quick_run() -> None:
    files = list((BENCHMARKS / "results").glob("*.json"))
    assert files
    for path in files:
        assert (BENCHMARKS / f"bench_{path.stem}.py").exists()
        assert not json.loads(path.read_text())["options"].get("quick")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The runner with two results and a page of its own."""
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    for name in ("run.py", "_page.py", "_chart.py", "_results.py"):
        (folder / name).write_text((BENCHMARKS / name).read_text())

    def figure(name: str, unit: str, *rounds: float, baseline: bool) -> dict[str, object]:
        low, median, high = rounds
        row = {"part": "Work", "name": name, "unit": unit, "median": median, "low": low, "high": high}
        return row | {"baseline": baseline}

    ratio: dict[str, object] = {"part": "Work", "name": "kling_async", "over": "by hand", "unit": "jobs/s"}
    ratio |= {"median": 0.5, "low": 0.44, "high": 0.51}
    # No ratio: bounds of a figure itself.
    bound: dict[str, object] = {"part": "Work", "name": "kling_async", "unit": "ms each"}
    bound |= {"median": 0.2345, "low": 0.1234, "high": 0.3456}
    bounds = [bound | {"at_most": 0.3}, bound | {"at_most": 0.2}]
    found = {
        "date": "2026-01-02",
        "machine": {"processor": "abacus", "cores": 2},
        "versions": {"Python": "3.11.7"},
        "notes": {"Work": "a bit of it"},
        "figures": [
            figure("kling_async", "jobs/s", 400, 400, 400, baseline=False),
            figure("by hand", "jobs/s", 790, 812.3, 900, baseline=True),
            figure("kling_async", "ms each", 0.1234, 0.2345, 0.3456, baseline=False),
        ],
        "ratios": [
            ratio | {"at_least": 0.8},
            ratio | {"at_most": 0.5},
            ratio | {"at_least": 0.1, "judged": False},
            *bounds,
        ],
    }
    (folder / "results" / "work.json").write_text(json.dumps(found))
    (folder / "results" / "other.json").write_text('{"something": "else"}')
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "benchmarks.md").write_text("Before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    return folder


WRITTEN = """Before
<!-- bench:begin -->
Measured on 2026-01-02: abacus, 2 cores; Python 3.11.7.

| aimed at | in this run | verdict |
|---|---|---|
| Work, jobs/s: kling_async at least 0.8 of by hand | 0.5 (0.44 to 0.51) | **missed** |
| Work, jobs/s: kling_async at most 0.5 of by hand | 0.5 (0.44 to 0.51) | met |
| Work, jobs/s: kling_async at least 0.1 of by hand | 0.5 (0.44 to 0.51) | not judged, the machine was busy |
| Work, ms each: kling_async at most 0.3 | 0.23 (0.12 to 0.35) | met |
| Work, ms each: kling_async at most 0.2 | 0.23 (0.12 to 0.35) | **missed** |

## Work

A bit of it

| measured | jobs/s | ms each |
|---|---|---|
| **kling_async** | 400 | 0.23 (0.12 to 0.35) |
| by hand | 812 (790 to 900), 2.03 times ours |  |
<!-- bench:end -->
after
"""


def test_check_fails_when_page_and_results_differ(elsewhere: Path) -> None:
    checked = run("run.py", "--check", root=elsewhere)
    assert checked.returncode == 1
    assert "-old\n" in checked.stdout
    assert "cpu.svg is not of these results" in checked.stdout
    assert "left out: other.json" in checked.stderr
    added = [line.removeprefix("+") for line in checked.stdout.splitlines() if line.startswith("+") and line != "+++ "]
    assert added == WRITTEN.splitlines()[2:-2]


@pytest.mark.parametrize("name", sorted(path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py")))
def test_a_script_has_the_options_of_all(name: str) -> None:
    helped = run(f"bench_{name}.py", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "--json JSON" in helped.stdout
    assert "--quick" in helped.stdout


@pytest.mark.parametrize("name", ["download", "import", "ledger", "throughput"])
def test_a_script_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    ran = run(f"bench_{name}.py", "--quick", "--json", str(path))
    assert ran.returncode == 0, ran.stderr
    found = json.loads(path.read_text())
    assert found["options"]["quick"]
    assert {figure["baseline"] for figure in found["figures"]} == {True, False}
    assert all(figure["low"] <= figure["median"] <= figure["high"] for figure in found["figures"])
    assert all(figure["median"] > 0 for figure in found["figures"])
