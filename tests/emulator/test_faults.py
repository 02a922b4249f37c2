"""Each way to go wrong, seen from a plain client."""

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
        marks=pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop"),
    ),
]
"""Transports differ between the two."""

LOST = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@pytest.mark.parametrize("anyio_backend", LOOPS)
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("kind", "created"), [(faults.Drop, 0), (faults.DropAfterReading, 0), (faults.AcceptThenDrop, 1)]
)
async def test_connections_that_end(
    *, api: Api, emu: Emulator, image: str, kind: Any, created: int, reset: Any
) -> None:
    rule = emu.faults.add("submit", kind(reset=reset))
    with pytest.raises(LOST) as caught:
        await api.submit(image=image)
    if reset:
        assert isinstance(caught.value, aiohttp.ClientOSError)
        assert caught.value.errno == errno.ECONNRESET
    assert (len(emu.predictions()), len(emu.charges()), rule.hits) == (created, created, 1)
    assert emu.requests[-1].status is None
    assert (await api.submit(image=image)).status == 200
    assert emu.requests[-1].status == 200


async def test_a_large_body_is_not_read(api: Api, emu: Emulator) -> None:
    emu.faults.add("submit", faults.Drop())
    with pytest.raises(LOST):
        await api.call("POST", "/api/v3/kwaivgi/kling-v2.1-i2v-pro", data=io.BytesIO(bytes(20_000_000)))


@pytest.mark.parametrize("accepted", [False, True])
async def test_statuses(api: Api, emu: Emulator, image: str, accepted: Any) -> None:
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


async def test_truncated_json(api: Api, emu: Emulator, image: str) -> None:
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
async def test_delay(api: Api, emu: Emulator, clock: ManualClock, image: str, accepted: Any) -> None:
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


async def test_a_delay_goes_together_with_another(api: Api, emu: Emulator, clock: ManualClock) -> None:
    emu.faults.add("balance", faults.Delay(5))
    emu.faults.add("balance", faults.Status(503))
    emu.faults.add("balance", faults.Status(504))
    replies = []

    async def ask() -> None:
        replies.append(await api.call("GET", "/api/v3/balance"))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await clock.advance(5)
    assert [reply.status for reply in replies] == [503]
    assert (await api.call("GET", "/api/v3/balance")).status == 504


@pytest.mark.parametrize("status", ["failed", "cancelled", "timeout"])
async def test_tasks_that_fail(api: Api, emu: Emulator, clock: ManualClock, image: str, status: Any) -> None:
    emu.faults.add("submit", faults.FailTask(1200, "sensitive", status, seconds=5))
    prediction = (await api.submit(image=image)).data
    await clock.advance(4)
    assert (await api.result(prediction["id"])).data["status"] == "processing"
    await clock.advance(1)
    data = (await api.result(prediction["id"])).data
    assert (data["status"], data["code"], data["error"]) == (status, 1200, "sensitive")
    assert emu.running == 0
    assert emu.predictions()[0].error == "sensitive"


async def test_a_failure_without_a_code(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
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
async def test_shapes_of_outputs(
    *, api: Api, emu: Emulator, clock: ManualClock, image: str, shape: Any, outputs: Callable[[str], object]
) -> None:
    prediction = (await api.submit(image=image)).data
    rule = emu.faults.add("result", shape)
    assert (await api.result(prediction["id"])).data["outputs"] == []
    assert rule.hits == 0
    await clock.advance(60)
    bent = (await api.result(prediction["id"])).data
    straight = (await api.result(prediction["id"])).data
    assert bent["status"] == "completed"
    assert bent["outputs"] == outputs(straight["outputs"][0])

    emu.faults.add("submit", shape)
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    data = (await api.result(prediction["id"])).data
    assert type(data["outputs"]) is type(outputs("x"))
    assert data["outputs"] != straight["outputs"]
    assert (await api.result(prediction["id"])).data == data
    [item, _] = (await api.post("/api/v3/predictions", {})).data["items"]
    assert item["outputs"] == data["outputs"]


async def test_unknown_status(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
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


async def test_reads_that_lag(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    emu.faults.add("submit", faults.StatusLag404(3))
    prediction = (await api.submit(image=image)).data
    assert (await api.result(prediction["id"])).status == 404
    await clock.advance(3)
    assert (await api.result(prediction["id"])).status == 200
    emu.faults.add("result", faults.StatusLag404())
    assert (await api.result(prediction["id"])).status == 404
    assert (await api.result(prediction["id"])).status == 200


@pytest.mark.parametrize("anyio_backend", LOOPS)
async def test_bodies_that_end_early(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    url = (await api.result(prediction["id"])).data["outputs"][0]
    whole = (await api.call("GET", url, headers={"Authorization": ""})).body
    emu.faults.add("output", faults.CutBody(1000))
    got = bytearray()

    async def take() -> None:
        async with api.http.get(url) as response:
            assert response.content_length == len(whole)
            async for piece in response.content.iter_any():
                got.extend(piece)

    with pytest.raises(aiohttp.ClientPayloadError):
        await take()
    assert bytes(got) == whole[:1000]
    async with api.http.get(url, headers={"Range": "bytes=1000-"}) as response:
        assert bytes(got) + await response.read() == whole


async def test_slow_bodies(api: Api, emu: Emulator, clock: ManualClock) -> None:
    emu.faults.add("balance", faults.SlowBody(10, pieces=4))
    replies = []

    async def ask() -> None:
        replies.append(await api.call("GET", "/api/v3/balance"))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await clock.advance(9)
        assert replies == []
        await clock.advance(1)
    assert replies[0].data == {"balance": 1000.0}


async def test_which_exchanges_are_hit(api: Api, emu: Emulator) -> None:
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


async def test_when(api: Api, emu: Emulator, image: str) -> None:
    emu.faults.add("submit", faults.Status(500), times=None, when=lambda call: "dog" in str(call.body.get("prompt")))
    assert (await api.submit(image=image, prompt="a cat")).status == 200
    assert (await api.submit(image=image, prompt="a dog")).status == 500
    assert (await api.call("POST", "/api/v3/kwaivgi/x", data=b"{")).status == 404


def test_rules_that_mean_nothing() -> None:
    script = faults.Faults()
    for route, fault in (("nowhere", faults.Drop()), ("result", faults.FailTask()), ("webhook", faults.Html502())):
        with pytest.raises(ValueError, match=r"no route|means nothing"):
            script.add(route, fault)


async def test_offline(api: Api, emu: Emulator, image: str) -> None:
    prediction = (await api.submit(image=image)).data
    url = emu.base_url
    async with emu.offline():
        with pytest.raises(aiohttp.ClientConnectorError):
            await api.submit(image=image)
    assert emu.base_url == url
    assert (await api.result(prediction["id"])).status == 200
    assert len(emu.charges()) == 1


async def test_control_from_another_process(api: Api, emu: Emulator, image: str) -> None:
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
async def test_control_refuses(api: Api, body: dict[str, Any]) -> None:
    assert (await api.post("/__emulator__/faults", body)).status == 400
