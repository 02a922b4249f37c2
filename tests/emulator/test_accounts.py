"""Account limits, charges, refunds, balance, prices and billing."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from kling_async.emulator import LEVELS, Emulator, Level, faults
from kling_async.emulator.catalogue import WAVESPEED

if TYPE_CHECKING:
    from emulator.conftest import Api

    from kling_async.emulator import ManualClock

pytestmark = pytest.mark.anyio

PRO = "kwaivgi/kling-v2.1-i2v-pro"
MASTER = "kwaivgi/kling-v2.1-i2v-master"


@pytest.mark.parametrize("settings", [{"level": Level(100, 2)}])
async def test_submit_above_concurrency_limit_gets_429(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    for _ in range(2):
        assert (await api.submit(image=image)).status == 200
    refused = await api.submit(image=image)
    assert (refused.status, refused.body) == (429, {"code": 429, "message": "You have reached your concurrency limit"})
    assert "Retry-After" not in refused.headers
    assert (emu.running, emu.peak_running, len(emu.charges())) == (2, 2, 2)
    await clock.advance(60)
    assert emu.running == 0
    assert (await api.submit(image=image)).status == 200
    assert emu.peak_running == 2


@pytest.mark.parametrize("settings", [{"level": Level(3, 100), "retry_after": True}])
async def test_rate_limit_counts_accepted_submits_only(api: Api, clock: ManualClock, image: str) -> None:
    assert (await api.submit(image=image)).status == 200
    await clock.advance(10)
    assert (await api.submit(image=image, duration=7)).status == 400
    for _ in range(2):
        assert (await api.submit(image=image)).status == 200
    refused = await api.submit(image=image)
    assert (refused.status, refused.headers["Retry-After"]) == (429, "50")
    assert refused.body["message"] == "Rate limit exceeded: 3 predictions per 1 minute"
    await clock.advance(49.9)
    assert (await api.submit(image=image)).status == 429
    await clock.advance(0.1)
    assert (await api.submit(image=image)).status == 200
    assert (await api.submit(image=image)).status == 429


@pytest.mark.parametrize("settings", [{"level": Level(100, 2), "over_limit": "queue"}])
async def test_over_limit_queue_delays_start_until_slot_is_free(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    ids = [(await api.submit(image=image)).data["id"] for _ in range(5)]
    assert (emu.running, emu.peak_running) == (2, 2)
    await clock.advance(30)
    statuses = [(await api.result(prediction_id)).data["status"] for prediction_id in ids]
    assert statuses == ["processing", "processing", "created", "created", "created"]
    await clock.advance(90)
    statuses = [(await api.result(prediction_id)).data["status"] for prediction_id in ids]
    assert statuses == ["completed"] * 4 + ["created"]
    await clock.advance(60)
    assert (await api.result(ids[4])).data["status"] == "completed"
    assert emu.running == 0


async def test_keys_mapping_sets_level_per_account() -> None:
    assert LEVELS["bronze"] == Level(2, 2)
    async with Emulator(profile="tiny", keys={"a": "bronze", "b": Level(7, 8)}, level="ultra") as emu:
        levels = {key: account.level for key, account in emu._service.accounts.items()}
        assert levels == {"a": Level(2, 2), "b": Level(7, 8)}
        assert emu.api_key == "a"
    async with Emulator(profile="tiny", keys=["wsk_1", "sk-2"], level="silver") as emu:
        assert emu._service.accounts["sk-2"].level == LEVELS["silver"]
        assert (emu.api_key, emu.gptproto_key) == ("wsk_1", "sk-2")


@pytest.mark.parametrize(
    "options",
    [
        {"level": "platinum"},
        {"keys": []},
        {"keys": "wsk_1"},
        {"clock": object(), "speed": 2},
        {"profile": "film"},
        {"over_limit": "drop"},
    ],
)
def test_invalid_options_raise_value_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(level|keys|clock, speed|profile|over_limit): expected "):
        Emulator(**{"profile": "tiny", **options})


@pytest.mark.parametrize("settings", [{"balance": 1.0}])
async def test_submit_charges_the_account(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    prediction = (await api.submit(image=image)).data
    assert (await api.call("GET", "/api/v3/balance")).data == {"balance": 0.55}
    assert emu.balance() == Decimal("0.55")
    refused = await api.submit(image=image, duration=10)
    assert refused.body == {"code": 403, "message": "Insufficient balance. Please top up your account."}
    assert refused.status == 403
    [charge] = emu.charges()
    assert (charge.prediction_id, charge.model, charge.amount) == (prediction["id"], PRO, Decimal("0.45"))
    assert (charge.key, charge.at, charge.refunded, charge.refunded_at) == (api.key, clock.now(), False, None)
    assert emu.balance(emu.gptproto_key) == 1


@pytest.mark.parametrize("settings", [{"balance": 0, "no_funds_status": 402}])
async def test_no_funds_status_sets_status_of_insufficient_balance(api: Api, image: str) -> None:
    refused = await api.submit(image=image)
    assert refused.status == refused.body["code"] == 402


async def test_failure_is_refunded_at_its_end(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    emu.faults.add("submit", faults.FailTask(5000, "Internal error"))
    await api.submit(image=image)
    await clock.advance(59)
    assert (emu.balance(), emu.charges()[0].refunded) == (Decimal("999.55"), False)
    await clock.advance(1)
    assert (emu.balance(), emu.charges()[0].refunded) == (Decimal(1000), True)
    assert emu.charges()[0].refunded_at == pytest.approx(clock.now())


@pytest.mark.parametrize(
    ("settings", "after"), [({"refund_after": 100.0}, [False, True]), ({"refund_after": None}, [False, False])]
)
async def test_refund_after_delays_or_disables_refund(
    api: Api, emu: Emulator, clock: ManualClock, image: str, after: list[bool]
) -> None:
    emu.faults.add("submit", faults.FailTask())
    await api.submit(image=image)
    refunded = []
    for seconds in (159, 2):
        await clock.advance(seconds)
        refunded.append(emu.charges()[0].refunded)
    assert refunded == after


async def test_price_routes_return_list_price(api: Api) -> None:
    async def post(path: str, **body: Any) -> Any:
        return (await api.post(path, body)).data

    assert await post("/api/v3/model/price", model_id=PRO, inputs={"duration": 10}) == {
        "model_id": PRO,
        "price": 0.9,
        "discounted_price": 0.9,
        "discount_rate": 0.0,
        "currency": "USD",
    }
    assert (await post("/api/v3/model/price", model_id=MASTER))["price"] == 1.3
    assert (await post("/api/v3/model/price", model_id=MASTER, inputs={"duration": "ten"}))["price"] == 1.3
    pricing = {"model_id": PRO, "unit_price": 0.45, "currency": "USD"}
    assert await post("/api/v3/model/pricing", model_id=PRO) == pricing
    assert (await api.post("/api/v3/model/price", {"model_id": "x"})).status == 404


@pytest.mark.parametrize("settings", [{"discount": 0.1}])
async def test_discount_reduces_price_and_charge(api: Api, emu: Emulator, image: str) -> None:
    data = (await api.post("/api/v3/model/price", {"model_id": PRO, "inputs": {"duration": 10}})).data
    assert (data["price"], data["discounted_price"], data["discount_rate"]) == (0.9, 0.81, 0.1)
    await api.submit(image=image, duration=10)
    assert emu.charges()[0].amount == Decimal("0.81")


async def test_models_lists_schemas_and_prices(api: Api) -> None:
    rows = {row["model_id"]: row for row in (await api.call("GET", "/api/v3/models")).data}
    assert set(rows) == set(WAVESPEED)
    schema = rows[PRO]["api_schema"]["api_schemas"][0]
    assert schema["api_path"] == f"/api/v3/{PRO}"
    assert schema["server"] == api.base
    assert schema["request_schema"]["required"] == ["prompt", "image"]
    properties = schema["request_schema"]["properties"]
    assert properties["duration"] == {"type": "integer", "default": 5, "enum": [5, 10]}
    assert properties["guidance_scale"] == {"type": "number", "default": 0.5, "minimum": 0.0, "maximum": 1.0}
    assert rows[PRO]["base_price"] == 0.45


async def test_billings_filters_and_pages(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    good = (await api.submit(image=image)).data["id"]
    await clock.advance(1)
    emu.faults.add("submit", faults.FailTask())
    bad = (await api.submit(image=image, duration=10)).data["id"]
    await clock.advance(100)
    found = (await api.post("/api/v3/billings/search", {"page": 1, "page_size": 10})).data
    kinds = [(item["billing_type"], item["prediction"]["uuid"], item["price"]) for item in found["items"]]
    assert kinds == [("refund", bad, 0.9), ("deduct", bad, 0.9), ("deduct", good, 0.45)]
    assert (found["total"], found["has_more"]) == (3, False)
    assert found["items"][1]["order"]["state"] == "refunded"
    assert found["items"][1]["prediction"] == {"uuid": bad, "model_uuid": PRO, "status": "failed"}
    start = str(int((clock.now() - 60) * 1000))
    for body, count in (
        ({"billing_type": "deduct"}, 2),
        ({"prediction_uuids": [good]}, 1),
        ({"model_uuid": MASTER}, 0),
        ({"start_time": start}, 1),
        ({"end_time": start}, 2),
        ({"page": 2, "page_size": 2}, 1),
    ):
        assert len((await api.post("/api/v3/billings/search", body)).data["items"]) == count, body
    oldest = (await api.post("/api/v3/billings/search", {"sort": "created_at ASC", "page_size": 1})).data
    assert oldest["items"][0]["prediction"]["uuid"] == good
    assert oldest["has_more"] is True


async def test_usage_sums_charges_without_refunds(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    await api.submit(image=image)
    await api.submit(MASTER, image=image)
    emu.faults.add("submit", faults.FailTask())
    await api.submit(image=image)
    await clock.advance(100)
    span = {"start_time": str(int(clock.now() - 3600) * 1000), "end_time": str(int(clock.now() + 1) * 1000)}
    data = (await api.post("/api/v3/user/usage_stats", span)).data
    assert data["summary"] == {"total_cost": 1.75, "total_requests": 3, "success_requests": 2}
    assert {row["model_uuid"]: row["total_cost"] for row in data["per_model_usage"]} == {PRO: 0.45, MASTER: 1.3}
    assert data["daily_usage"][0]["count"] == 2
    assert (await api.post("/api/v3/user/usage_stats", {})).status == 400
    assert (await api.post("/api/v3/user/usage_stats", span | {"start_time": "2020-01-01T00:00:00Z"})).status == 400
