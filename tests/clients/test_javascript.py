"""The vendor's JavaScript client, installed with npm, against the emulator; Node is a test dependency."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from kling_async.emulator import faults
from support.node import NODE, npm_install
from support.patience import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

    from kling_async.emulator import Emulator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

PACKAGE = "wavespeed@0.3.2"
PRO = "kwaivgi/kling-v2.1-i2v-pro"

SCRIPT = """
const { Client } = require("wavespeed");
const { key, base, call, args } = JSON.parse(process.argv[2]);
const client = new Client(key, { baseUrl: base, retryInterval: 0.01 });
console.log = () => {};
console.error = () => {};
client[call](...args).then(
  (value) => process.stdout.write(JSON.stringify({ value, error: value?.detail?.error?.name })),
  (error) => process.stdout.write(JSON.stringify({ error: error.name, message: error.message, task: error.taskId })),
);
"""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the installed client and a script that calls it."""
    path = tmp_path_factory.mktemp("javascript")
    npm_install(PACKAGE, path)
    (path / "call.js").write_text(SCRIPT)
    return path


Call = Callable[..., Awaitable[Any]]


@pytest.fixture
def call(folder: Path, emu: Emulator) -> Call:
    """Function that calls a method of the client in a process of its own and returns its result as JSON."""

    async def run(method: str, *args: object) -> Any:
        request = json.dumps({"key": emu.api_key, "base": emu.base_url, "call": method, "args": args})
        with anyio.fail_after(PATIENCE_S):
            process = await anyio.run_process([str(NODE), "call.js", request], cwd=folder, check=False)
        assert process.returncode == 0, process.stderr.decode()
        return json.loads(process.stdout)

    return run


OPTIONS = {"pollInterval": 0.02}


async def test_upload_and_run(call: Call, emu: Emulator, picture: Path) -> None:
    url = (await call("upload", str(picture)))["value"]
    assert url.startswith(f"{emu.base_url}/media/images/")
    result = await call("run", PRO, {"prompt": "she turns", "image": url, "duration": 10}, OPTIONS)
    [output] = result["value"]["outputs"]
    assert output.startswith(f"{emu.base_url}/output/")
    [charge] = emu.charges()
    assert (charge.prompt, charge.amount) == ("she turns", Decimal("0.90"))
    assert emu.leaks == ()


async def test_failed_task_raises_or_is_returned(call: Call, emu: Emulator) -> None:
    emu.faults.add("submit", faults.FailTask(1200, "sensitive", seconds=0.1), times=2)
    inputs = {"prompt": "p", "image": "https://pictures.example/face.png"}
    result = await call("run", PRO, inputs, OPTIONS)
    assert "sensitive" in result["message"]
    result = await call("runNoThrow", PRO, inputs, OPTIONS)
    assert (result["value"]["outputs"], result["value"]["detail"]["status"]) == (None, "failed")
    assert result["value"]["detail"]["taskId"] == emu.charges()[1].prediction_id
    assert all(charge.refunded for charge in emu.charges())


@pytest.mark.parametrize("fault", [faults.AcceptThenDrop(), faults.Status(500, accepted=True)], ids=["lost", "500"])
async def test_lost_submission_is_not_sent_again(call: Call, emu: Emulator, fault: Any) -> None:
    emu.faults.add("submit", fault)
    result = await call("run", PRO, {"prompt": "p", "image": "https://pictures.example/face.png"}, OPTIONS)
    assert result["error"] == "WavespeedSubmissionException", result
    assert (emu.counts["submit"], len(emu.charges())) == (1, 1)


async def test_reads_are_retried(call: Call, emu: Emulator) -> None:
    for fault in (faults.Status(429), faults.Html502(), faults.Drop(), faults.Status(503)):
        emu.faults.add("result", fault)
    result = await call("run", PRO, {"prompt": "p", "image": "https://pictures.example/face.png"}, OPTIONS)
    assert len(result["value"]["outputs"]) == 1
    assert all(rule.hits == 1 for rule in emu.faults.rules)


async def test_upload_of_text_file_is_refused(call: Call, tmp_path: Path) -> None:
    path = anyio.Path(tmp_path / "notes.txt")
    await path.write_text("no picture")
    result = await call("upload", str(path))
    assert result["message"].endswith("Upload failed: invalid file type")
