"""Faults by the dice: as many as asked for, the same for the same seed, and none without sense."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import attrs
import pytest

from kling_async.emulator import KINDS, Chaos, Emulator, ManualClock, faults
from kling_async.emulator.faults import ROUTES

if TYPE_CHECKING:
    from emulator.conftest import Api

pytestmark = pytest.mark.anyio

QUICK = tuple(kind for kind in KINDS if kind not in {"delay", "slow_body"})
"""Those that end without the clock being moved."""


def fates(chaos: Chaos, route: str, count: int = 2000) -> list[tuple[str, faults.Fault] | None]:
    return [chaos.fate(route, number) for number in range(count)]


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_the_share_and_the_kinds_of_every_route(route: str) -> None:
    chaos = Chaos(0.1, seed=3)
    met = Counter(fate[0] for fate in fates(chaos, route) if fate is not None)
    assert 140 < met.total() < 260
    assert set(met) == set(chaos.kinds_on(route))
    script = faults.Faults()
    for fate in fates(chaos, route):
        if fate is not None:
            script.add(route, fate[1])  # it refuses what makes no sense there


def test_every_kind_has_its_place() -> None:
    for kind in KINDS:
        assert any(kind in Chaos(1, kinds=[kind]).kinds_on(route) for route in ROUTES), kind
    assert set(Chaos(1).kinds_on("webhook")) == {"delay", "webhook_lost", "webhook_twice"}
    assert "failed_task" in Chaos(1).kinds_on("submit")
    assert "failed_task" not in Chaos(1).kinds_on("result")


def test_the_seed_decides() -> None:
    assert fates(Chaos(0.3, seed=7), "submit", 200) == fates(Chaos(0.3, seed=7), "submit", 200)
    assert fates(Chaos(0.3, seed=7), "submit", 200) != fates(Chaos(0.3, seed=8), "submit", 200)
    assert fates(Chaos(0.3, seed=7), "submit", 200) != fates(Chaos(0.3, seed=7), "list", 200)


def test_some_kinds_and_some_routes() -> None:
    chaos = Chaos(1, kinds=["reset", "failed_task"], routes=["submit", "balance"])
    assert {fate and fate[0] for fate in fates(chaos, "submit", 50)} == {"reset", "failed_task"}
    assert {fate and fate[0] for fate in fates(chaos, "balance", 50)} == {"reset"}
    assert {fate and fate[0] for fate in fates(chaos, "result", 50)} == {None}


@pytest.mark.parametrize(
    "options", [{"rate": 1.1}, {"rate": -0.1}, {"rate": 1, "kinds": ["x"]}, {"rate": 1, "routes": ["x"]}]
)
def test_chaos_that_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rate|no kinds x|no routes x"):
        Chaos(**options)


async def outcomes(api: Api, count: int) -> list[object]:
    """What a client sees of so many requests."""
    seen: list[object] = []
    for number in range(count):
        try:
            if number % 3:
                reply = await api.call("GET", "/api/v3/balance")
            else:
                reply = await api.submit(image="data:,")
        except (aiohttp.ClientError, json.JSONDecodeError) as error:
            seen.append(type(error).__name__)
        else:
            seen.append(reply.status if reply.status != 200 else reply.body.get("code"))
    return seen


@pytest.mark.parametrize("settings", [{"chaos": Chaos(0.3, seed=5, kinds=QUICK)}])
async def test_a_run_can_be_had_again(api: Api, emu: Emulator) -> None:
    first = await outcomes(api, 120)
    counts = emu.chaos_counts
    assert 20 < sum(counts.values()) < 55
    assert len(set(first)) > 4
    struck = Counter(record.route for record in emu.requests if record.faults)
    assert struck == Counter({route: sum(n for (r, _), n in counts.items() if r == route) for route, _ in counts})
    emu.chaos = emu.chaos
    assert emu.chaos_counts == {}
    assert await outcomes(api, 120) == first
    async with Emulator(profile="tiny", clock=ManualClock(), timing=60.0, chaos=emu.chaos) as twin:
        assert await outcomes(attrs.evolve(api, emu=twin, base=twin.base_url), 120) == first
        assert twin.chaos_counts == emu.chaos_counts == counts
    emu.chaos = None
    assert set(await outcomes(api, 30)) == {200}


@pytest.mark.parametrize("settings", [{"chaos": Chaos(1, kinds=["server_error"])}])
async def test_what_is_scripted_goes_first(api: Api, emu: Emulator) -> None:
    rule = emu.faults.add("balance", faults.Status(418))
    assert (await api.call("GET", "/api/v3/balance")).status == 418
    assert (await api.call("GET", "/api/v3/balance")).status in {500, 503, 504}
    assert rule.hits == 1
    assert (await api.call("GET", "/nowhere")).status == 404
    assert (await api.call("GET", "/__emulator__/account")).status == 200


@pytest.mark.parametrize("settings", [{"chaos": Chaos(1, kinds=["failed_task", "lag_404"])}])
async def test_tasks_that_fail_and_reads_that_lag(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    ids = [(await api.submit(image=image)).data["id"] for _ in range(12)]
    emu.chaos = Chaos(0)
    lagging = [(await api.result(prediction_id)).status for prediction_id in ids].count(404)
    await clock.advance(61)
    seen = [(await api.result(prediction_id)).data for prediction_id in ids]
    failed = [data["code"] for data in seen if data["status"] == "failed"]
    assert lagging
    assert failed
    assert lagging + len(failed) == 12
    assert set(failed) <= {5000, 5003, 5004}
    assert emu.double_paid(asked=lagging) == ()
    assert len(emu.double_paid()) == lagging - 1


@pytest.mark.parametrize("settings", [{"chaos": Chaos(1, kinds=["odd_result"])}])
async def test_results_that_are_odd(api: Api, clock: ManualClock, emu: Emulator, image: str) -> None:
    ids = [(await api.submit(image=image)).data["id"] for _ in range(12)]
    await clock.advance(60)
    assert {(await api.result(one)).data["status"] for one in ids} <= {"pending", "queued", "warming_up"}
    emu.chaos = None
    bent = [(await api.result(one)).data for one in ids]
    assert {data["status"] for data in bent} == {"completed"}
    assert len({str(type(data["outputs"])) + str(data.get("has_nsfw_contents", "")) for data in bent}) > 2


async def test_chaos_by_control(api: Api, emu: Emulator) -> None:
    asked = {"rate": 1, "seed": 4, "kinds": ["html_502"], "routes": ["balance"]}
    reply = await api.post("/__emulator__/chaos", asked)
    assert reply.body == asked | {"by_kind": {}, "by_route": {}}
    assert (await api.call("GET", "/api/v3/balance")).status == 502
    for path in ("chaos", "account", "state"):
        body = (await api.call("GET", f"/__emulator__/{path}")).body
        told = body if path == "chaos" else body["chaos"]
        assert (told["by_kind"], told["by_route"]) == ({"html_502": 1}, {"balance": 1})
    assert emu.chaos == Chaos(1, 4, ("html_502",), ("balance",))
    assert (await api.post("/__emulator__/chaos", {"rate": 0})).body is None
    assert emu.chaos_counts == {}
    assert (await api.call("GET", "/api/v3/balance")).status == 200
    for body in (
        {},
        {"rate": 2},
        {"rate": True},
        {"rate": 1, "kinds": "drop"},
        {"rate": 1, "kinds": ["x"]},
        {"rate": 1, "seed": "x"},
    ):
        assert (await api.post("/__emulator__/chaos", body)).status == 400


@pytest.mark.parametrize("settings", [{"chaos": Chaos(1, seed=2, kinds=["delay", "slow_body"])}])
async def test_what_takes_longer(api: Api, clock: ManualClock, emu: Emulator) -> None:
    replies = []

    async def ask() -> None:
        replies.append((await api.call("GET", "/api/v3/balance")).data)

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(ask)
        await clock.advance(0.4)
        assert replies == []
        await clock.advance(20)
    assert len(replies) == 6
    assert {kind for _, kind in emu.chaos_counts} == {"delay", "slow_body"}
