"""The GPTProto persona."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING

import pytest

from kling_async.emulator import faults

if TYPE_CHECKING:
    from emulator.conftest import Api, PngMaker

    from kling_async.emulator import Emulator, ManualClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def image(png: PngMaker) -> str:
    return "data:image/png;base64," + base64.b64encode(png()).decode()


async def test_prediction_from_submit_to_completion(gptproto: Api, clock: ManualClock, image: str) -> None:
    reply = await gptproto.submit(image=image, duration="5", query="?webhook=ignored")
    assert list(reply.body) == ["data", "message", "code"]
    created = reply.data
    assert re.fullmatch(r"[0-9a-f]{32}", created["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", created["createdAt"])
    assert created == {
        "id": created["id"],
        "model": "kwaivgi/kling-v2.1-i2v-pro",
        "outputs": [],
        "urls": {"get": f"{gptproto.base}/api/v3/predictions/{created['id']}/result"},
        "hasNsfwContents": [],
        "status": "created",
        "createdAt": created["createdAt"],
        "error": None,
        "executionTime": 0,
        "timings": {"inference": 0},
    }
    await clock.advance(60)
    done = (await gptproto.result(created["id"])).data
    assert (done["status"], done["error"], done["hasNsfwContents"]) == ("completed", None, [False])
    assert done["outputs"][0].startswith(f"{gptproto.base}/output/")
    assert (await gptproto.call("GET", done["outputs"][0])).body[4:8] == b"ftyp"


async def test_key_is_accepted_raw_and_as_bearer(gptproto: Api, emu: Emulator, image: str) -> None:
    for value in (gptproto.key, f"Bearer {gptproto.key}", f"bearer {gptproto.key}"):
        reply = await gptproto.submit(image=image)
        assert reply.status == 200
        reply = await gptproto.call(
            "GET", f"/api/v3/predictions/{reply.data['id']}/result", headers={"Authorization": value}
        )
        assert reply.status == 200
    for value in ("", "sk-wrong", "Bearer sk-wrong"):
        reply = await gptproto.call("GET", "/api/v3/predictions/x/result", headers={"Authorization": value})
        assert (reply.status, reply.body) == (401, {"error": {"message": "Invalid signature", "type": "401"}})


async def test_routes_of_wavespeed_only_get_404(gptproto: Api) -> None:
    for method, path in (
        ("POST", "/api/v3/media/uploads"),
        ("POST", "/api/v3/media/upload/binary"),
        ("POST", "/api/v3/predictions"),
        ("POST", "/api/v3/predictions/delete"),
        ("GET", "/api/v3/balance"),
        ("GET", "/api/v3/models"),
        ("POST", "/api/v3/model/price"),
        ("GET", "/__emulator__/account"),
        ("GET", "/api/v3/predictions/0123/result"),
    ):
        reply = await gptproto.call(method, path, json={})
        assert (reply.status, reply.body["error"]["type"]) == (404, "404"), path


async def test_failed_tasks_and_error_format(gptproto: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    emu.faults.add("submit", faults.FailTask(1200, "The content contains sensitive information."))
    prediction = (await gptproto.submit(image=image)).data
    await clock.advance(60)
    data = (await gptproto.result(prediction["id"])).data
    assert (data["status"], data["error"], data["code"]) == (
        "failed",
        "The content contains sensitive information.",
        1200,
    )
    emu.faults.add("result", faults.Status(503, "Input may not meet the guidelines. Please adjust and try again."))
    reply = await gptproto.result(prediction["id"])
    assert reply.body["error"]["type"] == "503"
    assert (await gptproto.submit(image=image, duration=15)).body["error"]["type"] == "400"
    emu.faults.add("result", faults.NullOutputs())
    prediction = (await gptproto.submit(image=image)).data
    await clock.advance(60)
    data = (await gptproto.result(prediction["id"])).data
    assert (data["outputs"], data["hasNsfwContents"]) == (None, None)


@pytest.mark.parametrize("settings", [{"balance": 0.1}])
async def test_insufficient_balance_gets_403(gptproto: Api, image: str) -> None:
    reply = await gptproto.submit(image=image)
    assert (reply.status, reply.body) == (403, {"error": {"message": "Insufficient balance", "type": "403"}})


@pytest.mark.parametrize("settings", [{"level": "bronze"}])
async def test_submit_above_limit_gets_429(gptproto: Api, image: str) -> None:
    assert [(await gptproto.submit(image=image)).status for _ in range(3)] == [200, 200, 429]
    assert (await gptproto.submit(image=image)).body == {"error": {"message": "too many requests", "type": "429"}}


async def test_end_frame_is_named_last_image(gptproto: Api, emu: Emulator, image: str) -> None:
    model = "kwaivgi/kling-v2.6-pro/image-to-video"
    await gptproto.submit(model, image=image, last_image=image, end_image="dropped")
    [record] = emu.predictions()
    assert record.inputs["last_image"] == image
    assert "end_image" not in record.inputs
    assert (await gptproto.submit("kwaivgi/kling-v2.0-i2v-master", image=image)).status == 404
