"""The vendor's Python client, as it comes from the package index."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest
import wavespeed  # type: ignore[import-untyped]  # it has no types

from kling_async.emulator import faults

if TYPE_CHECKING:
    from pathlib import Path

    from kling_async.emulator import Emulator

pytestmark = pytest.mark.anyio

PRO = "kwaivgi/kling-v2.1-i2v-pro"
ASK = 0.02


@pytest.fixture
def client(emu: Emulator) -> Any:
    return wavespeed.Client(api_key=emu.api_key, base_url=emu.base_url, retry_interval=0.01)


async def beside(work: Callable[[], Any]) -> Any:
    """It blocks; the emulator runs in this event loop."""
    return await anyio.to_thread.run_sync(work)


async def test_upload_run_and_fetch(client: Any, emu: Emulator, picture: Path) -> None:
    url = await beside(lambda: client.upload(str(picture)))
    inputs = {"prompt": "she turns", "image": url, "duration": 10}
    result = await beside(lambda: client.run(PRO, inputs, poll_interval=ASK))
    [output] = result["outputs"]
    assert output.startswith(f"{emu.base_url}/output/")
    [charge] = emu.charges()
    assert (charge.prompt, charge.amount, charge.refunded) == ("she turns", Decimal("0.90"), False)
    assert emu.counts["submit"] == 1
    assert emu.leaks == ()


async def test_upload_of_a_stream(client: Any, emu: Emulator, picture: Path) -> None:
    stream = io.BytesIO(picture.read_bytes())
    stream.name = "folder/face.png"
    url = await beside(lambda: client.upload(stream))
    assert re.fullmatch(re.escape(emu.base_url) + r"/media/images/\w+\.png", url)
    with pytest.raises(RuntimeError, match="Upload failed: invalid file type"):
        await beside(lambda: client.upload(io.BytesIO(b"%PDF")))


async def test_a_task_that_fails(client: Any, emu: Emulator, picture: Path) -> None:
    url = await beside(lambda: client.upload(str(picture)))
    emu.faults.add("submit", faults.FailTask(1200, "The content contains sensitive information.", seconds=0.1))
    emu.faults.add("submit", faults.FailTask(None, "late", "timeout", seconds=0.1))
    with pytest.raises(RuntimeError, match=r"Prediction failed \(task_id: \w+\): The content contains sensitive"):
        await beside(lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=ASK))
    told = await beside(lambda: client.run_no_throw(PRO, {"prompt": "p", "image": url}, poll_interval=ASK))
    assert (told["status"], told["outputs"]) == ("failed", None)
    assert told["task_id"] == emu.charges()[1].prediction_id
    assert "timeout" in told["error"]
    assert all(charge.refunded for charge in emu.charges())
    assert emu.double_paid() == ()


async def test_a_failure_of_their_upstream_is_run_again_if_asked(client: Any, emu: Emulator, picture: Path) -> None:
    url = await beside(lambda: client.upload(str(picture)))
    emu.faults.add("submit", faults.FailTask(5000, "upstream said HTTP 503", seconds=0.05))
    inputs = {"prompt": "p", "image": url}
    result = await beside(lambda: client.run(PRO, inputs, poll_interval=ASK, max_retries=1))
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
    ids=["lost answer", "reset", "500 after all", "429", "html"],
)
async def test_a_submission_is_never_sent_twice(
    client: Any, emu: Emulator, picture: Path, fault: Any, charged: int
) -> None:
    url = await beside(lambda: client.upload(str(picture)))
    emu.faults.add("submit", fault)
    with pytest.raises(RuntimeError, match=r"did not return a response|Failed to submit prediction: HTTP"):
        await beside(lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=ASK, max_retries=3))
    assert (emu.counts["submit"], len(emu.charges())) == (1, charged)


async def test_reads_are_tried_again(client: Any, emu: Emulator, picture: Path) -> None:
    url = await beside(lambda: client.upload(str(picture)))
    for fault in (faults.Status(429), faults.Html502(), faults.Drop(), faults.Status(503), faults.Drop(reset=True)):
        emu.faults.add("result", fault)
    result = await beside(lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=ASK))
    assert len(result["outputs"]) == 1
    assert all(rule.hits == 1 for rule in emu.faults.rules)


async def test_a_wait_that_times_out_and_is_taken_up_again(client: Any, emu: Emulator, picture: Path) -> None:
    url = await beside(lambda: client.upload(str(picture)))
    with pytest.raises(TimeoutError, match=r"timed out after 0\.1 seconds") as caught:
        await beside(lambda: client.run(PRO, {"prompt": "p", "image": url}, poll_interval=ASK, timeout=0.1))
    found = re.search(r"task_id: (\w+)", str(caught.value))
    assert found is not None
    with anyio.fail_after(10):
        while (data := (await beside(lambda: client.get_result(found[1])))["data"])["status"] != "completed":  # noqa: ASYNC110 - as its users do
            await anyio.sleep(ASK)
    assert len(data["outputs"]) == 1
    assert len(emu.charges()) == 1


async def test_sync_mode_is_dropped_for_these_models(client: Any, emu: Emulator, picture: Path) -> None:
    url = await beside(lambda: client.upload(str(picture)))
    with pytest.raises(RuntimeError, match=r"Prediction failed \(task_id: \w{32}\)"):
        await beside(lambda: client.run(PRO, {"prompt": "p", "image": url}, enable_sync_mode=True))
    assert "enable_sync_mode" not in emu.charges()[0].inputs


async def test_a_key_that_is_wrong(emu: Emulator) -> None:
    client = wavespeed.Client(api_key="wsk_wrong", base_url=emu.base_url)
    with pytest.raises(RuntimeError, match="HTTP 401"):
        await beside(lambda: client.run(PRO, {"prompt": "p"}))
