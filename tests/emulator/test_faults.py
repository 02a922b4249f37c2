"""Each kind of fault, observed by a plain HTTP client."""

from __future__ import annotations

import errno
import io
import json
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import pytest

from kling_async.emulator import faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.conftest import Api

    from kling_async.emulator import Emulator, ManualClock

pytestmark = pytest.mark.anyio

LOOPS = [
    pytest.param("asyncio", id="asyncio"),
    pytest.param(
        ("asyncio", {"use_uvloop": True}),
        id="uvloop",
        marks=pytest.mark.skipif(sys.platform == "win32", reason="no uvloop on Windows"),
    ),
]
"""Event loops whose transports differ."""

CONNECTION_ERRORS = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@pytest.mark.parametrize("anyio_backend", LOOPS)
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("kind", "created"), [(faults.Drop, 0), (faults.DropAfterReading, 0), (faults.AcceptThenDrop, 1)]
)
async def test_drop_faults_close_the_connection(
    *, api: Api, emu: Emulator, image: str, kind: Any, created: int, reset: Any
) -> None:
    rule = emu.faults.add("submit", kind(reset=reset))
    with pytest.raises(CONNECTION_ERRORS) as caught:
        await api.submit(image=image)
    if reset:
        assert isinstance(caught.value, aiohttp.ClientOSError)
        assert caught.value.errno == errno.ECONNRESET
    assert (len(emu.predictions()), len(emu.charges()), rule.hits) == (created, created, 1)
    assert emu.requests[-1].status is None
    assert (await api.submit(image=image)).status == 200
    assert emu.requests[-1].status == 200


async def test_drop_does_not_read_a_large_body(api: Api, emu: Emulator) -> None:
    emu.faults.add("submit", faults.Drop())
    with pytest.raises(CONNECTION_ERRORS):
        await api.call("POST", "/api/v3/kwaivgi/kling-v2.1-i2v-pro", data=io.BytesIO(bytes(20_000_000)))


@pytest.mark.parametrize("accepted", [False, True])
async def test_error_faults_set_status_and_body(api: Api, emu: Emulator, image: str, accepted: Any) -> None:
    emu.faults.add("submit", faults.Status(429, retry_after=7, accepted=accepted))
    emu.faults.add("submit", faults.Status(500, "out of order", accepted=accepted))
    emu.faults.add("submit", faults.Html502(accepted=accepted))
    emu.faults.add("submit", faults.EnvelopeCode(403, "insufficient role", accepted=accepted))
    first, second, third, fourth = [await api.submit(image=image) for _ in range(4)]
    assert (first.status, first.headers["Retry-After"], first.body["code"]) == (429, "7", 429)
    assert (second.status, second.body) == (500, {"code": 500, "message": "out of order"})
    assert (third.status, third.headers["Content-Type"].split(";")[0]) == (502, "text/html")
    assert third.body.startswith(b"<html>")
    assert (fourth.status, fourth.body) == (200, {"code": 403, "message": "insufficient role"})
    assert len(emu.charges()) == (4 if accepted else 0)


async def test_truncated_json_is_invalid_and_charged(api: Api, emu: Emulator, image: str) -> None:
    emu.faults.add("submit", faults.TruncatedJson())
    headers = {"Authorization": f"Bearer {api.key}"}
    async with api.http.post(
        f"{api.base}/api/v3/kwaivgi/kling-v2.1-i2v-pro", json={"prompt": "x", "image": image}, headers=headers
    ) as response:
        assert response.status == 200
        with pytest.raises(json.JSONDecodeError):
            await response.json()
    assert len(emu.charges()) == 1


@pytest.mark.parametrize("accepted", [False, True])
async def test_delay_waits_before_or_after_handling(
    api: Api, emu: Emulator, clock: ManualClock, image: str, accepted: Any
) -> None:
    emu.faults.add("submit", faults.Delay(30, accepted=accepted))
    replies = []

    async def submit() -> None:
        replies.append(await api.submit(image=image))

    async with anyio.create_task_group() as group:
        group.start_soon(submit)
        await clock.advance(29)
        assert (replies, len(emu.charges())) == ([], int(accepted))
        await clock.advance(1)
    assert replies[0].status == 200
    assert len(emu.charges()) == 1


async def test_delay_combines_with_one_other_fault(api: Api, emu: Emulator, clock: ManualClock) -> None:
    emu.faults.add("balance", faults.Delay(5))
    emu.faults.add("balance", faults.Status(503))
    emu.faults.add("balance", faults.Status(504))
    replies = []

    async def request() -> None:
        replies.append(await api.call("GET", "/api/v3/balance"))

    async with anyio.create_task_group() as group:
        group.start_soon(request)
        await clock.advance(5)
    assert [reply.status for reply in replies] == [503]
    assert (await api.call("GET", "/api/v3/balance")).status == 504


@pytest.mark.parametrize("status", ["failed", "cancelled", "timeout"])
async def test_fail_task_sets_status_code_and_end(
    api: Api, emu: Emulator, clock: ManualClock, image: str, status: Any
) -> None:
    emu.faults.add("submit", faults.FailTask(1200, "sensitive", status, seconds=5))
    prediction = (await api.submit(image=image)).data
    await clock.advance(4)
    assert (await api.result(prediction["id"])).data["status"] == "processing"
    await clock.advance(1)
    data = (await api.result(prediction["id"])).data
    assert (data["status"], data["code"], data["error"]) == (status, 1200, "sensitive")
    assert emu.running == 0
    assert emu.predictions()[0].error == "sensitive"


async def test_fail_task_without_code_omits_it(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    emu.faults.add("submit", faults.FailTask(None))
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    assert "code" not in (await api.result(prediction["id"])).data


@pytest.mark.parametrize(
    ("shape", "outputs"),
    [
        (faults.EmptyOutputs(), lambda url: []),
        (faults.NullOutputs(), lambda url: None),
        (faults.ObjectOutputs(), lambda url: [{"url": url}]),
        (faults.StringOutputs(), lambda url: url),
    ],
)
async def test_shape_applies_once_on_result_and_always_on_submit(
    *, api: Api, emu: Emulator, clock: ManualClock, image: str, shape: Any, outputs: Callable[[str], object]
) -> None:
    prediction = (await api.submit(image=image)).data
    rule = emu.faults.add("result", shape)
    assert (await api.result(prediction["id"])).data["outputs"] == []
    assert rule.hits == 0
    await clock.advance(60)
    deviating = (await api.result(prediction["id"])).data
    regular = (await api.result(prediction["id"])).data
    assert deviating["status"] == "completed"
    assert deviating["outputs"] == outputs(regular["outputs"][0])

    emu.faults.add("submit", shape)
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    data = (await api.result(prediction["id"])).data
    assert type(data["outputs"]) is type(outputs("x"))
    assert data["outputs"] != regular["outputs"]
    assert (await api.result(prediction["id"])).data == data
    [item, _] = (await api.post("/api/v3/predictions", {})).data["items"]
    assert item["outputs"] == data["outputs"]


async def test_unknown_status_replaces_status_until_the_end(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    emu.faults.add("submit", faults.UnknownStatus("warming_up"))
    prediction = (await api.submit(image=image)).data
    assert prediction["status"] == "created"
    await clock.advance(30)
    assert (await api.result(prediction["id"])).data["status"] == "warming_up"
    await clock.advance(30)
    assert (await api.result(prediction["id"])).data["status"] == "completed"
    emu.faults.add("list", faults.UnknownStatus("pending"))
    [item] = (await api.post("/api/v3/predictions", {})).data["items"]
    assert (item["status"], item["outputs"]) == ("pending", [])


async def test_status_lag_responds_404_for_a_while(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    emu.faults.add("submit", faults.StatusLag404(3))
    prediction = (await api.submit(image=image)).data
    assert (await api.result(prediction["id"])).status == 404
    await clock.advance(3)
    assert (await api.result(prediction["id"])).status == 200
    emu.faults.add("result", faults.StatusLag404())
    assert (await api.result(prediction["id"])).status == 404
    assert (await api.result(prediction["id"])).status == 200


@pytest.mark.parametrize("anyio_backend", LOOPS)
async def test_cut_body_closes_connection_after_given_bytes(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    url = (await api.result(prediction["id"])).data["outputs"][0]
    whole = (await api.call("GET", url, headers={"Authorization": ""})).body
    emu.faults.add("output", faults.CutBody(1000))
    received = bytearray()

    async def download() -> None:
        async with api.http.get(url) as response:
            assert response.content_length == len(whole)
            async for chunk in response.content.iter_any():
                received.extend(chunk)

    with pytest.raises(aiohttp.ClientPayloadError):
        await download()
    assert bytes(received) == whole[:1000]
    async with api.http.get(url, headers={"Range": "bytes=1000-"}) as response:
        assert bytes(received) + await response.read() == whole


async def test_slow_body_takes_given_seconds(api: Api, emu: Emulator, clock: ManualClock) -> None:
    emu.faults.add("balance", faults.SlowBody(10, pieces=4))
    replies = []

    async def request() -> None:
        replies.append(await api.call("GET", "/api/v3/balance"))

    async with anyio.create_task_group() as group:
        group.start_soon(request)
        await clock.advance(9)
        assert replies == []
        await clock.advance(1)
    assert replies[0].data == {"balance": 1000.0}


async def test_times_and_after_select_exchanges(api: Api, emu: Emulator) -> None:
    async def statuses(count: int) -> list[int]:
        return [(await api.call("GET", "/api/v3/balance")).status for _ in range(count)]

    emu.faults.add("balance", faults.Status(500), times=2, after=1)
    assert await statuses(4) == [200, 500, 500, 200]
    rule = emu.faults.add("*", faults.Status(503), times=None)
    assert await statuses(3) == [503] * 3
    assert rule.hits == 3
    emu.faults.clear()
    assert not emu.faults.rules
    assert await statuses(1) == [200]


async def test_when_selects_exchanges_by_body(api: Api, emu: Emulator, image: str) -> None:
    emu.faults.add("submit", faults.Status(500), times=None, when=lambda call: "dog" in str(call.body.get("prompt")))
    assert (await api.submit(image=image, prompt="a cat")).status == 200
    assert (await api.submit(image=image, prompt="a dog")).status == 500
    assert (await api.call("POST", "/api/v3/kwaivgi/x", data=b"{")).status == 404


def test_add_refuses_unknown_routes_and_inapplicable_faults() -> None:
    script = faults.Faults()
    for route, fault in (("nowhere", faults.Drop()), ("result", faults.FailTask()), ("webhook", faults.Html502())):
        with pytest.raises(ValueError, match=r"route: expected one of|cannot happen on route"):
            script.add(route, fault)


async def test_offline_refuses_connections_and_keeps_state(api: Api, emu: Emulator, image: str) -> None:
    prediction = (await api.submit(image=image)).data
    url = emu.base_url
    async with emu.offline():
        with pytest.raises(aiohttp.ClientConnectorError):
            await api.submit(image=image)
    assert emu.base_url == url
    assert (await api.result(prediction["id"])).status == 200
    assert len(emu.charges()) == 1


async def test_control_api_adds_lists_and_removes_rules(api: Api, emu: Emulator, image: str) -> None:
    async with api.http.post(
        f"{api.base}/__emulator__/faults",
        json={"route": "submit", "fault": "Status", "args": {"status": 503, "message": "soon"}, "times": None},
    ) as response:
        [rule] = await response.json()
    assert rule == {"route": "submit", "fault": "Status", "times": None, "after": 0, "hits": 0}
    assert (await api.submit(image=image)).status == 503
    async with api.http.get(f"{api.base}/__emulator__/faults") as response:
        assert (await response.json())[0]["hits"] == 1
    async with api.http.delete(f"{api.base}/__emulator__/faults") as response:
        assert await response.json() == []
    await api.submit(image=image)
    async with api.http.get(f"{api.base}/__emulator__/account") as response:
        account = await response.json()
    assert (account["balance"], account["running"], account["peak_running"]) == (999.55, 1, 1)
    assert account["requests"] == {"upload_ticket": 1, "upload_put": 1, "submit": 2}
    assert [charge["amount"] for charge in account["charges"]] == [0.45]
    assert all(not record.path.startswith("/__emulator__") for record in emu.requests)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"route": "submit", "fault": "Explode"},
        {"route": "nowhere", "fault": "Drop"},
        {"route": "submit", "fault": "Status"},
        {"route": "submit", "fault": "Status", "args": {"status": "five"}},
        {"route": "submit", "fault": "Status", "args": {"state": 5}},
        {"route": "submit", "fault": "Drop", "times": "x"},
        {"route": "submit", "fault": "Drop", "args": []},
    ],
)
async def test_control_api_refuses_invalid_rules(api: Api, body: dict[str, Any]) -> None:
    assert (await api.post("/__emulator__/faults", body)).status == 400
