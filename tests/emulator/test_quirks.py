"""Behaviour that is inconsistent or undocumented at the vendor: each variant can be selected."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from kling_async.emulator import Level, faults
from kling_async.emulator.catalogue import WAVESPEED
from support.patience import PATIENCE_S

if TYPE_CHECKING:
    from emulator.conftest import Api

    from kling_async.emulator import Emulator, ManualClock

pytestmark = pytest.mark.anyio

PRO = "kwaivgi/kling-v2.1-i2v-pro"
UNREACHABLE_WEBHOOK = "?webhook=http%3A%2F%2F127.0.0.1%3A9%2Fhook"


@pytest.mark.parametrize(
    ("settings", "text", "header"),
    [
        ({"level": Level(1, 9)}, "Rate limit exceeded: 1 predictions per 1 minute", None),
        ({"level": Level(1, 9), "retry_after": True}, "Rate limit exceeded: 1 predictions per 1 minute", "60"),
        ({"level": Level(9, 1)}, "You have reached your concurrency limit", None),
        ({"level": Level(9, 1), "retry_after": True, "timing": 90.0}, "You have reached your concurrency limit", "90"),
    ],
)
async def test_429_texts_and_retry_after(api: Api, image: str, text: str, header: str | None) -> None:
    assert (await api.submit(image=image)).status == 200
    refused = await api.submit(image=image)
    assert (refused.status, refused.body) == (429, {"code": 429, "message": text})
    assert refused.headers.get("Retry-After") == header


@pytest.mark.parametrize("settings", [{"unknown_model_status": 400}])
async def test_unknown_model_status_can_be_400(api: Api, image: str) -> None:
    assert (await api.submit("kwaivgi/nothing", image=image)).body == {"code": 400, "message": "Model not found"}


async def test_webhook_in_the_body_is_ignored(api: Api, emu: Emulator, image: str) -> None:
    flags: dict[str, Any] = {
        "webhook_url": "https://a.example/",
        "enable_sync_mode": True,
        "enable_base64_output": True,
    }
    created = (await api.submit(image=image, **flags)).data
    assert created["status"] == "created"
    [record] = emu.predictions()
    assert record.webhook is None
    assert not set(flags) & set(record.inputs)


@pytest.mark.parametrize(
    ("settings", "listed", "shown"),
    [
        ({"input_echo": False}, False, False),
        ({"input_echo": True}, True, True),
        ({"input_echo": "list"}, True, False),
        ({"input_echo": "result"}, False, True),
    ],
)
async def test_input_echo_adds_input_to_list_and_result(api: Api, image: str, listed: Any, shown: Any) -> None:
    created = (await api.submit(image=image)).data
    assert "input" not in created
    result = (await api.result(created["id"])).data
    [item] = (await api.post("/api/v3/predictions", {})).data["items"]
    assert ("input" in item, "input" in result) == (listed, shown)
    assert all(data["input"]["duration"] == 5 for data in (item, result) if "input" in data)


@pytest.mark.parametrize("settings", [{"list_total": False}])
async def test_list_total_can_be_omitted(api: Api, image: str) -> None:
    await api.submit(image=image)
    assert set((await api.post("/api/v3/predictions", {})).data) == {"page", "items"}


async def test_envelope_faults_rewrap_data(api: Api, emu: Emulator) -> None:
    usual = await api.call("GET", "/api/v3/webhook/secret")
    emu.faults.add("webhook_secret", faults.Unwrapped())
    emu.faults.add("webhook_secret", faults.DataList())
    bare, listed = [(await api.call("GET", "/api/v3/webhook/secret")).body for _ in range(2)]
    assert bare == usual.data
    assert listed == usual.body | {"data": [usual.data]}
    emu.faults.add("models", faults.DataItems())
    assert len((await api.call("GET", "/api/v3/models")).data["items"]) == len(WAVESPEED)
    # An error has no data.
    emu.faults.add("result", faults.DataList())
    assert (await api.result("nothing")).status == 404
    for route, fault in (
        ("output", faults.DataList()),
        ("balance", faults.DataItems()),
        ("submit", faults.Enveloped()),
    ):
        with pytest.raises(ValueError, match="cannot happen on route"):
            emu.faults.add(route, fault)


async def test_data_list_applies_to_gptproto(gptproto: Api, emu: Emulator) -> None:
    emu.faults.add("submit", faults.DataList())
    [created] = (await gptproto.submit(image="data:,")).data
    assert created["hasNsfwContents"] == []


@pytest.mark.parametrize(
    ("shape", "flags"), [(faults.NullFlags(), None), (faults.Flagged(), [True]), (faults.Sparse(), "absent")]
)
async def test_shapes_of_content_flags(
    *, api: Api, emu: Emulator, clock: ManualClock, image: str, shape: Any, flags: Any
) -> None:
    emu.faults.add("submit", shape)
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    data = (await api.result(prediction["id"])).data
    assert data.get("has_nsfw_contents", "absent") == flags
    assert len(data["outputs"]) == 1
    if flags == "absent":
        assert set(data) == {"id", "status", "outputs"}


@pytest.mark.parametrize("status", ["canceled", "cancelled", "timeout"])
async def test_final_statuses_of_failed_tasks(
    api: Api, emu: Emulator, clock: ManualClock, image: str, status: Any
) -> None:
    emu.faults.add("submit", faults.FailTask(1407, "insufficient credits", status))
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    data = (await api.result(prediction["id"])).data
    assert (data["status"], data["code"]) == (status, 1407)
    assert emu.charges()[0].refunded


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ({"message": "insufficient role", "error_code": "role"}, "application/json"),
        ({"detail": "no"}, "application/json"),
        ({"error": {"message": "x", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}, "application/json"),
        ("upstream connect error", "text/plain"),
    ],
)
async def test_status_fault_sends_given_error_body(
    api: Api, emu: Emulator, image: str, body: Any, content_type: str
) -> None:
    emu.faults.add("submit", faults.Status(403, body=body))
    reply = await api.submit(image=image)
    assert (reply.status, reply.headers["Content-Type"].partition(";")[0]) == (403, content_type)
    assert (reply.body.decode() if isinstance(body, str) else reply.body) == body
    rule = {"route": "balance", "fault": "Status", "args": {"status": 403, "body": {"detail": "no"}}}
    assert (await api.post("/__emulator__/faults", rule)).status == 200
    assert (await api.call("GET", "/api/v3/balance")).body == {"detail": "no"}


async def wait_for_deliveries(emu: Emulator, count: int) -> None:
    with anyio.fail_after(PATIENCE_S):
        while len(emu.deliveries) < count:  # noqa: ASYNC110 -- the emulator has no event for it
            await anyio.sleep(0.001)


@pytest.mark.parametrize(
    ("settings", "refunded"), [({}, True), ({"webhook_refunds": False}, False)], ids=["refunded", "kept"]
)
async def test_webhook_refunds_after_last_failed_delivery(
    api: Api, emu: Emulator, clock: ManualClock, image: str, refunded: Any
) -> None:
    emu.faults.add("webhook", faults.Drop(), times=None)
    await api.submit(image=image, query=UNREACHABLE_WEBHOOK)
    for count, seconds in enumerate((60, 10, 20, 40), 1):
        assert not emu.charges()[0].refunded
        await clock.advance(seconds)
        await wait_for_deliveries(emu, count)
    assert [delivery.attempt for delivery in emu.deliveries] == [1, 2, 3, 4]
    assert emu.charges()[0].refunded is refunded
    assert emu.balance() == (Decimal(1000) if refunded else Decimal("999.55"))
    found = (await api.post("/api/v3/billings/search", {"billing_type": "refund"})).data
    assert found["total"] == int(refunded)


@pytest.mark.parametrize("settings", [{"downloads": False}])
async def test_downloads_off_accepts_pictures_of_other_hosts(api: Api, emu: Emulator, clock: ManualClock) -> None:
    prediction = (await api.submit(image="https://pictures.example/face.png")).data
    await clock.advance(60)
    data = (await api.result(prediction["id"])).data
    assert data["status"] == "completed"
    assert (await api.call("GET", data["outputs"][0])).status == 200
    missing = (await api.submit(image=f"{api.base}/media/images/none.png")).data
    await clock.advance(60)
    assert (await api.result(missing["id"])).data["code"] == 1402
    assert emu._service._session is None
