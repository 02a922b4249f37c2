"""The pages of orchestrators with the real libraries, offline; `nox -s orchestrators` installs them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kling_async.testing import EmulatorThread
from support import pages

IMAGE = "https://pictures.example/lake.png"

pytestmark = [
    # Of the libraries: sockets that their servers close late, and their own deprecations.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(280),
]


@pytest.fixture
def server(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorThread]:
    """Run the emulator, for sessions of this process and of those that a library starts, in real time."""
    with EmulatorThread(profile="tiny", level="gold", speed=200, downloads=False) as emulator:
        for name, value in {**emulator.environment, "KLING_LEDGER": database, "KLING_WATCH": "eager"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DO_NOT_TRACK", "1")
        yield emulator


def names_of(page: str, *words: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    for word in words:
        exec(pages.block(f"applications/{page}.md", word), names)
    return names


def test_prefect_flow_runs_again_and_pays_once(
    server: EmulatorThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    harness = pytest.importorskip("prefect.testing.utilities").prefect_test_harness
    names = names_of("prefect", "from prefect import")
    rows = [{"key": f"order-{number}", "prompt": "Waves", "image": IMAGE} for number in range(3)]
    with harness(server_startup_timeout=120):
        first = asyncio.run(names["videos"](rows, str(tmp_path / "videos")))
        again = asyncio.run(names["videos"](rows, str(tmp_path / "videos")))
    assert first == again == [str(tmp_path / "videos" / f"order-{number}.mp4") for number in range(3)]
    assert all(Path(file).stat().st_size for file in first)
    assert len(server.charges()) == 3


def test_prefect_task_that_failed_after_paying_is_retried_without_paying(
    server: EmulatorThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    prefect = pytest.importorskip("prefect")
    harness = pytest.importorskip("prefect.testing.utilities").prefect_test_harness
    submit, calls = names_of("prefect", "from prefect import")["submit"], list[str]()

    async def fails_at_first(*given: str) -> str:
        calls.append(await submit.fn(*given))
        if len(calls) == 1:
            raise ConnectionError("the worker lost its result")
        return calls[-1]

    task = prefect.task(fails_at_first, retries=1, retry_delay_seconds=0)

    async def flow() -> object:
        return await task("order-1", "Waves", IMAGE)

    with harness(server_startup_timeout=120):
        found = asyncio.run(prefect.flow(flow)())
    assert calls == [found, found]
    assert [charge.prediction_id for charge in server.charges()] == [found]


def test_ray_data_maps_blocks_and_pays_once(server: EmulatorThread) -> None:
    ray = pytest.importorskip("ray")
    data = pytest.importorskip("ray.data")
    mapper = names_of("ray", "class KlingMapper")["KlingMapper"]
    variables = {name: value for name, value in os.environ.items() if name.startswith(("WAVESPEED", "KLING", "NO_"))}
    paths = os.pathsep.join(filter(None, (str(pages.ROOT), os.environ.get("PYTHONPATH"))))
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {**variables, "PYTHONPATH": paths}},
    )
    try:
        rows = [{"key": f"row-{number}", "prompt": "Waves", "image": IMAGE} for number in range(6)]
        for _ in range(2):
            dataset = data.from_items(rows).map_batches(
                mapper, batch_size=3, max_concurrency=2, compute=data.ActorPoolStrategy(size=1)
            )
            made = {row["key"]: row["video"] for row in dataset.take_all()}
            assert made.keys() == {row["key"] for row in rows}
            assert all(video.endswith(".mp4") for video in made.values())
    finally:
        ray.shutdown()
    assert len(server.charges()) == 6


def test_temporal_activities_are_retried_cancelled_and_resumed(server: EmulatorThread, tmp_path: Path) -> None:
    testing = pytest.importorskip("temporalio.testing")
    refusal = pytest.importorskip("temporalio.exceptions").ApplicationError
    names = names_of("temporal", "import activity", "import workflow")
    file = str(tmp_path / "order-1.mp4")

    async def run() -> None:
        ids = [await testing.ActivityEnvironment().run(names["submit"], "order-1", "Waves", IMAGE) for _ in range(2)]
        assert len(set(ids)) == 1
        with pytest.raises(refusal) as refused:
            await testing.ActivityEnvironment().run(names["submit"], "order-1", "Wind", IMAGE)
        assert (refused.value.type, refused.value.non_retryable) == ("KeyReusedError", True)

        cancelled = testing.ActivityEnvironment()
        beats: list[object] = []

        def beat(*details: object) -> None:
            beats.append(details)
            cancelled.cancel()

        cancelled.on_heartbeat = beat
        with pytest.raises(asyncio.CancelledError):
            await cancelled.run(names["save"], ids[0], file)
        assert beats
        saved = await testing.ActivityEnvironment().run(names["save"], ids[0], file)
        assert Path(saved).stat().st_size

    asyncio.run(run())
    assert len(server.charges()) == 1
