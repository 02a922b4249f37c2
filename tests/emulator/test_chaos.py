"""Random faults: their rate, their reproducibility and the routes they apply to."""

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

IMMEDIATE_KINDS = tuple(kind for kind in KINDS if kind not in {"delay", "slow_body"})
"""Kinds that end without advancing the clock."""


def fates(chaos: Chaos, route: str, count: int = 2000) -> list[tuple[str, faults.Fault] | None]:
    return [chaos.fate(route, number) for number in range(count)]


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_fate_draws_all_kinds_of_route_at_given_rate(route: str) -> None:
    chaos = Chaos(0.1, seed=3)
    met = Counter(fate[0] for fate in fates(chaos, route) if fate is not None)
    assert 140 < met.total() < 260
    assert set(met) == set(chaos.kinds_on(route))
    script = faults.Faults()
    for fate in fates(chaos, route):
        if fate is not None:
            script.add(route, fate[1])  # raises ValueError for a fault that cannot happen on the route


def test_every_kind_applies_to_a_route() -> None:
    for kind in KINDS:
        assert any(kind in Chaos(1, kinds=[kind]).kinds_on(route) for route in ROUTES), kind
    assert set(Chaos(1).kinds_on("webhook")) == {"delay", "webhook_lost", "webhook_twice"}
    assert "failed_task" in Chaos(1).kinds_on("submit")
    assert "failed_task" not in Chaos(1).kinds_on("result")


def test_fate_depends_on_seed_and_route() -> None:
    assert fates(Chaos(0.3, seed=7), "submit", 200) == fates(Chaos(0.3, seed=7), "submit", 200)
    assert fates(Chaos(0.3, seed=7), "submit", 200) != fates(Chaos(0.3, seed=8), "submit", 200)
    assert fates(Chaos(0.3, seed=7), "submit", 200) != fates(Chaos(0.3, seed=7), "list", 200)


def test_kinds_and_routes_restrict_faults() -> None:
    chaos = Chaos(1, kinds=["reset", "failed_task"], routes=["submit", "balance"])
    assert {fate and fate[0] for fate in fates(chaos, "submit", 50)} == {"reset", "failed_task"}
    assert {fate and fate[0] for fate in fates(chaos, "balance", 50)} == {"reset"}
    assert {fate and fate[0] for fate in fates(chaos, "result", 50)} == {None}


@pytest.mark.parametrize(
    "options", [{"rate": 1.1}, {"rate": -0.1}, {"rate": 1, "kinds": ["x"]}, {"rate": 1, "routes": ["x"]}]
)
def test_invalid_chaos_raises_value_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"rate|(kinds|routes): expected any of .*, got x"):
        Chaos(**options)


async def outcomes(api: Api, count: int) -> list[object]:
    """Send `count` requests and return the status, envelope code or exception name of each."""
    results: list[object] = []
    for number in range(count):
        try:
            if number % 3:
                reply = await api.call("GET", "/api/v3/balance")
            else:
                reply = await api.submit(image="data:,")
        except (aiohttp.ClientError, json.JSONDecodeError) as error:
            results.append(type(error).__name__)
        else:
            results.append(reply.status if reply.status != 200 else reply.body.get("code"))
    return results


@pytest.mark.parametrize("settings", [{"chaos": Chaos(0.3, seed=5, kinds=IMMEDIATE_KINDS)}])
async def test_same_seed_reproduces_the_same_run(api: Api, emu: Emulator) -> None:
    first = await outcomes(api, 120)
    counts = emu.chaos_counts
    assert 20 < sum(counts.values()) < 55
    assert len(set(first)) > 4
    faulty = Counter(record.route for record in emu.requests if record.faults)
    assert faulty == Counter({route: sum(n for (r, _), n in counts.items() if r == route) for route, _ in counts})
    emu.chaos = emu.chaos
    assert emu.chaos_counts == {}
    assert await outcomes(api, 120) == first
    async with Emulator(profile="tiny", clock=ManualClock(), timing=60.0, chaos=emu.chaos) as twin:
        assert await outcomes(attrs.evolve(api, emu=twin, base=twin.base_url), 120) == first
        assert twin.chaos_counts == emu.chaos_counts == counts
    emu.chaos = None
    assert set(await outcomes(api, 30)) == {200}


@pytest.mark.parametrize("settings", [{"chaos": Chaos(1, kinds=["server_error"])}])
async def test_scripted_fault_takes_precedence_over_random_one(api: Api, emu: Emulator) -> None:
    rule = emu.faults.add("balance", faults.Status(418))
    assert (await api.call("GET", "/api/v3/balance")).status == 418
    assert (await api.call("GET", "/api/v3/balance")).status in {500, 503, 504}
    assert rule.hits == 1
    assert (await api.call("GET", "/nowhere")).status == 404
    assert (await api.call("GET", "/__emulator__/account")).status == 200


@pytest.mark.parametrize("settings", [{"chaos": Chaos(1, kinds=["failed_task", "lag_404"])}])
async def test_failed_task_and_lag_404_apply_to_submits(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    ids = [(await api.submit(image=image)).data["id"] for _ in range(12)]
    emu.chaos = Chaos(0)
    lagging = [(await api.result(prediction_id)).status for prediction_id in ids].count(404)
    await clock.advance(61)
    results = [(await api.result(prediction_id)).data for prediction_id in ids]
    failed = [data["code"] for data in results if data["status"] == "failed"]
    assert lagging
    assert failed
    assert lagging + len(failed) == 12
    assert set(failed) <= {5000, 5003, 5004}
    assert emu.double_paid(asked=lagging) == ()
    assert len(emu.double_paid()) == lagging - 1


@pytest.mark.parametrize("settings", [{"chaos": Chaos(1, kinds=["odd_result"])}])
async def test_odd_result_changes_status_and_outputs(api: Api, clock: ManualClock, emu: Emulator, image: str) -> None:
    ids = [(await api.submit(image=image)).data["id"] for _ in range(12)]
    await clock.advance(60)
    assert {(await api.result(one)).data["status"] for one in ids} <= {"pending", "queued", "warming_up"}
    emu.chaos = None
    results = [(await api.result(one)).data for one in ids]
    assert {data["status"] for data in results} == {"completed"}
    assert len({str(type(data["outputs"])) + str(data.get("has_nsfw_contents", "")) for data in results}) > 2


async def test_control_api_starts_and_stops_chaos(api: Api, emu: Emulator) -> None:
    settings = {"rate": 1, "seed": 4, "kinds": ["html_502"], "routes": ["balance"]}
    reply = await api.post("/__emulator__/chaos", settings)
    assert reply.body == settings | {"by_kind": {}, "by_route": {}}
    assert (await api.call("GET", "/api/v3/balance")).status == 502
    for path in ("chaos", "account", "state"):
        body = (await api.call("GET", f"/__emulator__/{path}")).body
        chaos = body if path == "chaos" else body["chaos"]
        assert (chaos["by_kind"], chaos["by_route"]) == ({"html_502": 1}, {"balance": 1})
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
async def test_delay_and_slow_body_wait_on_emulator_clock(api: Api, clock: ManualClock, emu: Emulator) -> None:
    replies = []

    async def request() -> None:
        replies.append((await api.call("GET", "/api/v3/balance")).data)

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(request)
        await clock.advance(0.4)
        assert replies == []
        await clock.advance(20)
    assert len(replies) == 6
    assert {kind for _, kind in emu.chaos_counts} == {"delay", "slow_body"}
