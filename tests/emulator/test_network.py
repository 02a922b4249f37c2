"""Lines between clients and the emulator: latency by route, and bandwidth, on the emulator's clock."""

from __future__ import annotations

import asyncio
import io
import math
import random
import re
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest

from kling_async.emulator import NETWORKS, Bandwidth, Emulator, ManualClock, Network
from kling_async.emulator.faults import ROUTES
from kling_async.emulator.network import Line

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from emulator.conftest import Api, PngMaker

pytestmark = pytest.mark.anyio

KILOBYTE = 1000
"""Unit of the sizes and rates, so small that no thread takes part in sending."""


async def seconds_of(clock: ManualClock, work: Awaitable[Any], step: float = 0.05) -> float:
    """Return how many seconds of the clock some requests take, to a step."""
    began = clock.monotonic()
    task = asyncio.ensure_future(work)
    while True:
        await clock.advance(0)
        if task.done():
            await task
            return clock.monotonic() - began
        await clock.advance(step)


async def put(api: Api, content: bytes) -> None:
    ticket = await api.ticket(content)
    upload = ticket["upload"]
    async with api.http.put(upload["url"], data=content, headers=upload["headers"]) as response:
        assert response.status == 200


@pytest.mark.parametrize("settings", [{"network": Network({"balance": 0.5, "*": 2.0})}])
async def test_latency_is_that_of_the_route(api: Api, clock: ManualClock) -> None:
    assert await seconds_of(clock, api.call("GET", "/api/v3/balance")) == pytest.approx(0.5, abs=0.06)
    assert await seconds_of(clock, api.call("GET", "/api/v3/models")) == pytest.approx(2.0, abs=0.06)


@pytest.mark.parametrize("settings", [{"network": Network({"submit": 10.0})}])
async def test_half_of_the_latency_is_over_when_a_request_arrives(api: Api, clock: ManualClock) -> None:
    began = clock.now()
    await seconds_of(clock, api.submit())
    [record] = api.emu.requests
    assert record.route == "submit"
    assert record.at - began == pytest.approx(5.0, abs=0.06)
    assert [charge.at - began for charge in api.emu.charges()] == [pytest.approx(5.0, abs=0.06)]


@pytest.mark.parametrize(
    ("settings", "count", "seconds"),
    [
        ({"network": Network(bandwidth=Bandwidth(up=100 * KILOBYTE))}, 1, 4.0),
        ({"network": Network(bandwidth=Bandwidth(up=100 * KILOBYTE))}, 3, 12.0),
        ({"network": Network(bandwidth=Bandwidth(up_each=100 * KILOBYTE))}, 1, 4.0),
        ({"network": Network(bandwidth=Bandwidth(up_each=100 * KILOBYTE))}, 3, 4.0),
        ({"network": Network(bandwidth=Bandwidth(up=200 * KILOBYTE, up_each=100 * KILOBYTE))}, 3, 6.0),
        ({"network": Network(bandwidth=100 * KILOBYTE)}, 1, 4.0),
        ({"network": Network(bandwidth=Bandwidth(down=KILOBYTE))}, 1, 0.6),
    ],
)
async def test_uploads_take_the_time_of_their_bytes(api: Api, clock: ManualClock, count: int, seconds: float) -> None:
    content = bytes(400 * KILOBYTE)
    taken = await seconds_of(clock, asyncio.gather(*(put(api, content + bytes([one])) for one in range(count))))
    assert taken == pytest.approx(seconds, abs=0.5)


@pytest.mark.parametrize("settings", [{"network": Network(bandwidth=Bandwidth(up=100 * KILOBYTE))}])
async def test_uploads_share_the_line(api: Api, clock: ManualClock) -> None:
    """A short one is not kept waiting behind a long one, and the sender is held up by the line, not by the reply."""

    async def long() -> None:
        await put(api, bytes(900 * KILOBYTE))

    running = asyncio.ensure_future(long())
    await clock.advance(3)
    assert await seconds_of(clock, put(api, bytes(50 * KILOBYTE))) < 3
    assert not running.done()
    await seconds_of(clock, running)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"network": Network(bandwidth=Bandwidth(down=100 * KILOBYTE))}, 6.0),
        ({"network": Network(bandwidth=Bandwidth(down_each=100 * KILOBYTE))}, 2.0),
        ({"network": Network(bandwidth=Bandwidth(up=100 * KILOBYTE))}, 0.0),
    ],
)
async def test_downloads_take_the_time_of_their_bytes(api: Api, clock: ManualClock, seconds: float) -> None:
    file = bytes(range(256)) * (200 * KILOBYTE // 256)
    path = api.emu._service.media.new_path("image", "a.png", clock.now())
    api.emu._service.media.put(path, file, "image/png", clock.now())
    received: list[bytes] = []

    async def get() -> None:
        async with api.http.get(api.base + path) as response:
            assert response.headers["ETag"]
            assert response.content_length == len(file)
            received.append(await response.read())

    assert await seconds_of(clock, asyncio.gather(get(), get(), get())) == pytest.approx(seconds, abs=0.5)
    assert received == [file] * 3


@pytest.mark.parametrize("settings", [{"network": Network(bandwidth=Bandwidth(up=100 * KILOBYTE))}])
async def test_forms_take_the_time_of_their_bytes(api: Api, clock: ManualClock, png: PngMaker) -> None:
    form = aiohttp.FormData()
    content = png() + bytes(200 * KILOBYTE)
    form.add_field("file", io.BytesIO(content), filename="a.png", content_type="image/png")
    work = api.call("POST", "/api/v3/media/upload/binary", data=form)
    assert await seconds_of(clock, work) == pytest.approx(len(content) / (100 * KILOBYTE), abs=0.3)


@pytest.mark.parametrize("settings", [{"network": Network(bandwidth=100_000 * KILOBYTE), "max_upload_bytes": KILOBYTE}])
async def test_body_that_is_too_large_is_refused(api: Api, clock: ManualClock) -> None:
    async def too_large() -> None:
        ticket = await api.ticket(bytes(KILOBYTE))
        async with api.http.put(ticket["upload"]["url"], data=io.BytesIO(bytes(40_000 * KILOBYTE))) as response:
            assert response.status == 413

    await seconds_of(clock, too_large(), step=1.0)


def test_jitter_varies_latencies_evenly() -> None:
    line = Line(Network({"submit": 2.0}, jitter=0.25), ManualClock(), random.Random(1))
    drawn = [line.latency("submit") for _ in range(2000)]
    assert min(drawn) == pytest.approx(1.5, abs=0.01)
    assert max(drawn) == pytest.approx(2.5, abs=0.01)
    assert sum(drawn) / len(drawn) == pytest.approx(2.0, abs=0.03)
    assert line.latency("result") == 0


async def test_same_seed_gives_same_latencies() -> None:
    def drawn(seed: int | None) -> list[float]:
        line = Emulator(profile="tiny", network="wan", seed=seed)._service.line
        assert line is not None
        return [line.latency("submit") for _ in range(5)]

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("name", sorted(NETWORKS))
async def test_named_lines_are_complete(name: Any) -> None:
    network = Emulator(profile="tiny", network=name).network
    assert network is NETWORKS[name]
    assert set(network.latency) <= ROUTES | {"*"}
    assert network.latency["submit"] == 0.5


async def test_emulator_without_a_line_has_none() -> None:
    assert Emulator(profile="tiny").network is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: Emulator(profile="tiny", network=cast("Any", "moon")),
            "network: expected a Network or one of wan, thin, got 'moon'",
        ),
        (lambda: Network({"submits": 1.0}), "latency: expected any of"),
        (lambda: Network({"webhook": 1.0}), "got webhook"),
        (lambda: Network(-1.0), "expected seconds of 0 or more"),
        (lambda: Network(math.inf), "expected seconds of 0 or more"),
        (lambda: Network(jitter=2.0), "jitter"),
        (lambda: Network(bandwidth=0.0), "up"),
        (lambda: Bandwidth(down_each=-1.0), "down_each"),
    ],
)
def test_invalid_lines_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()
