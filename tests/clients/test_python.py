"""The vendor's Python client, from the package index, against the emulator."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
import wavespeed  # type: ignore[import-untyped]  # ships no types

from kling_async.emulator import faults
from support.patience import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from kling_async.emulator import Emulator

pytestmark = pytest.mark.anyio

PRO = "kwaivgi/kling-v2.1-i2v-pro"
POLL_INTERVAL_S = 0.02


@pytest.fixture
def client(emu: Emulator) -> Any:
    return wavespeed.Client(api_key=emu.api_key, base_url=emu.base_url, retry_interval=0.01)


async def in_thread(work: Callable[[], Any]) -> Any:
    """Run blocking client code in a thread, since the emulator runs in this event loop."""
    return await anyio.to_thread.run_sync(work)


async def test_upload_run_and_fetch(client: Any, emu: Emulator, picture: Path) -> None:
    url = await in_thread(lambda: client.upload(str(picture)))
    inputs = {"prompt": "she turns", "image": url, "duration": 10}
    result = await in_thread(lambda: client.run(PRO, inputs, poll_interval=POLL_INTERVAL_S))
    [output] = result["outputs"]
    assert output.startswith(f"{emu.base_url}/output/")
    [charge] = emu.charges()
    assert (charge.prompt, charge.amount, charge.refunded) == ("she turns", Decimal("0.90"), False)
    assert emu.counts["submit"] == 1
    assert emu.leaks == ()


async def test_upload_accepts_a_stream(client: Any, emu: Emulator, picture: Path) -> None:
    stream = io.BytesIO(picture.read_bytes())
    stream.name = "folder/face.png"
    url = await in_thread(lambda: client.upload(stream))
    assert re.fullmatch(re.escape(emu.base_url) + r"/media/images/\w+\.png", url)
    with pytest.raises(RuntimeError, match="Upload failed: invalid file type"):
        await in_thread(lambda: client.upload(io.BytesIO(b"%PDF")))


async def test_failed_task_raises_or_is_returned(client: Any, emu: Emulator, picture: Path) -> None:
    url = await in_thread(lambda: client.upload(str(picture)))
    emu.faults.add("submit", faults.FailTask(1200, "The content contains sensitive information.", seconds=0.1))
    emu.faults.add("submit", faults.FailTask(None, "late", "timeout", seconds=0.1))
    with pytest.raises(RuntimeError, match=r"Prediction failed \(task_id: \w+\): The content contains sensitive"):
        await in_thread(lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=POLL_INTERVAL_S))
    result = await in_thread(
        lambda: client.run_no_throw(PRO, {"prompt": "p", "image": url}, poll_interval=POLL_INTERVAL_S)
    )
    assert (result["status"], result["outputs"]) == ("failed", None)
    assert result["task_id"] == emu.charges()[1].prediction_id
    assert "timeout" in result["error"]
    assert all(charge.refunded for charge in emu.charges())
    assert emu.double_paid() == ()


async def test_max_retries_resubmits_upstream_failure(client: Any, emu: Emulator, picture: Path) -> None:
    url = await in_thread(lambda: client.upload(str(picture)))
    emu.faults.add("submit", faults.FailTask(5000, "upstream said HTTP 503", seconds=0.05))
    inputs = {"prompt": "p", "image": url}
    result = await in_thread(lambda: client.run(PRO, inputs, poll_interval=POLL_INTERVAL_S, max_retries=1))
    assert len(result["outputs"]) == 1
    assert [charge.refunded for charge in emu.charges()] == [True, False]
    assert emu.double_paid() == ()


@pytest.mark.parametrize(
    ("fault", "charged"),
    [
        (faults.AcceptThenDrop(), 1),
        (faults.Drop(reset=True), 0),
        (faults.Status(500, accepted=True), 1),
        (faults.Status(429), 0),
        (faults.Html502(), 0),
    ],
    ids=["lost response", "reset", "500 after accepting", "429", "html"],
)
async def test_failed_submission_is_not_sent_again(
    client: Any, emu: Emulator, picture: Path, fault: Any, charged: int
) -> None:
    url = await in_thread(lambda: client.upload(str(picture)))
    emu.faults.add("submit", fault)
    with pytest.raises(RuntimeError, match=r"did not return a response|Failed to submit prediction: HTTP"):
        await in_thread(
            lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=POLL_INTERVAL_S, max_retries=3)
        )
    assert (emu.counts["submit"], len(emu.charges())) == (1, charged)


async def test_reads_are_retried(client: Any, emu: Emulator, picture: Path) -> None:
    url = await in_thread(lambda: client.upload(str(picture)))
    for fault in (faults.Status(429), faults.Html502(), faults.Drop(), faults.Status(503), faults.Drop(reset=True)):
        emu.faults.add("result", fault)
    result = await in_thread(lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=POLL_INTERVAL_S))
    assert len(result["outputs"]) == 1
    assert all(rule.hits == 1 for rule in emu.faults.rules)


async def test_timed_out_prediction_can_be_fetched_later(client: Any, emu: Emulator, picture: Path) -> None:
    url = await in_thread(lambda: client.upload(str(picture)))
    with pytest.raises(TimeoutError, match=r"timed out after 0\.1 seconds") as caught:
        await in_thread(
            lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=POLL_INTERVAL_S, timeout=0.1)
        )
    match = re.search(r"task_id: (\w+)", str(caught.value))
    assert match is not None
    with anyio.fail_after(PATIENCE_S):
        while (data := (await in_thread(lambda: client.get_result(match[1])))["data"])["status"] != "completed":  # noqa: ASYNC110 -- the client has no event
            await anyio.sleep(POLL_INTERVAL_S)
    assert len(data["outputs"]) == 1
    assert len(emu.charges()) == 1


async def test_sync_mode_is_ignored_for_these_models(client: Any, emu: Emulator, picture: Path) -> None:
    url = await in_thread(lambda: client.upload(str(picture)))
    with pytest.raises(RuntimeError, match=r"Prediction failed \(task_id: \w{32}\)"):
        await in_thread(lambda: client.run(PRO, {"prompt": "p", "image": url}, enable_sync_mode=True))
    assert "enable_sync_mode" not in emu.charges()[0].inputs


async def test_wrong_key_raises(emu: Emulator) -> None:
    client = wavespeed.Client(api_key="wsk_wrong", base_url=emu.base_url)
    with pytest.raises(RuntimeError, match="HTTP 401"):
        await in_thread(lambda: client.run(PRO, {"prompt": "p"}))
