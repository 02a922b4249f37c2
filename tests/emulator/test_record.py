"""The emulator's record: charges, running predictions over time, requests."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from kling_async.emulator import Level, faults

if TYPE_CHECKING:
    from emulator.conftest import Api, PngMaker

    from kling_async.emulator import Emulator, ManualClock

pytestmark = pytest.mark.anyio

PRO = "kwaivgi/kling-v2.1-i2v-pro"


async def test_charges_have_inputs_and_fingerprints(api: Api, emu: Emulator, png: PngMaker) -> None:
    first, again, other = await api.upload(png()), await api.upload(png()), await api.upload(png(shade=9))
    assert first != again
    for inputs in (
        {"image": first},
        {"image": again, "duration": 5},
        {"image": other},
        {"image": first, "prompt": "b"},
    ):
        await api.submit(**inputs)
    one, same, picture, words = emu.charges()
    assert one.inputs == {"prompt": "a cat", "image": first, "guidance_scale": 0.5, "duration": 5}
    assert (one.prompt, words.prompt) == ("a cat", "b")
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, picture.fingerprint, words.fingerprint}) == 3
    assert [record.fingerprint for record in emu.predictions()] == [charge.fingerprint for charge in emu.charges()]
    await api.submit("kwaivgi/kling-v2.1-i2v-master", image=first)
    assert emu.charges()[-1].fingerprint != one.fingerprint


async def test_double_paid_lists_surplus_charges(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    for prompt in ("a", "b", "a", "a"):
        await api.submit(image=image, prompt=prompt)
    charges = emu.charges()
    assert emu.double_paid() == (charges[2], charges[3])
    assert emu.double_paid(asked=2) == (charges[3],)
    wanted = {"a": 3, "b": 0}
    assert emu.double_paid(asked=lambda prompt: wanted[str(prompt)], by=lambda charge: charge.prompt) == (charges[1],)
    emu.faults.add("submit", faults.FailTask(5000))
    await api.submit(image=image, prompt="b")
    # It will fail and be refunded, so it does not count.
    assert len(emu.double_paid()) == 2
    await clock.advance(60)
    assert emu.charges()[4].refunded
    assert len(emu.double_paid()) == 2


@pytest.mark.parametrize("settings", [{"refund_after": None}])
async def test_double_paid_counts_failures_without_refund(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    emu.faults.add("submit", faults.FailTask(5000))
    for _ in range(2):
        await api.submit(image=image)
    await clock.advance(60)
    assert len(emu.double_paid()) == 1


@pytest.mark.parametrize("settings", [{"refund_after": 3600.0}])
async def test_double_paid_ignores_refunds_that_are_due(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    emu.faults.add("submit", faults.FailTask(5000), times=2)
    start = clock.now()
    ids = [(await api.submit(image=image)).data["id"] for _ in range(3)]
    charge = emu.charges()[0]
    assert not charge.refunded
    assert charge.refund_due == pytest.approx(start + 3660)
    assert emu.double_paid() == ()
    # Deleted before it ended, so it is not refunded.
    await api.call("DELETE", f"/api/v3/predictions/{ids[1]}")
    assert emu.charges()[1].refund_due is None
    assert len(emu.double_paid()) == 1
    await clock.advance(4000)
    assert [charge.refunded for charge in emu.charges()] == [True, False, False]
    assert emu.charges()[0].refund_due == emu.charges()[0].refunded_at


async def test_charges_are_kept_longer_than_predictions(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    await api.submit(image=image)
    await clock.advance(8 * 86400)
    assert emu.predictions() == ()
    assert emu.charges()[0].prompt == "a cat"


async def test_running_history_counts_occupied_slots(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    start = clock.now()
    assert (emu.running_history(), emu.running_at(start)) == ((), 0)
    deleted = ""
    for _ in range(3):
        deleted = (await api.submit(image=image)).data["id"]
        await clock.advance(10)
    await api.submit(image=image, headers={"Authorization": f"Bearer {emu.gptproto_key}"})
    await api.call("DELETE", f"/api/v3/predictions/{deleted}")
    await clock.advance(100)
    history = [(at - start, running) for at, running in emu.running_history()]
    assert history == [(0, 1), (10, 2), (20, 3), (30, 3), (60, 2), (70, 1), (90, 0)]
    assert [emu.running_at(start + at) for at in (-1, 0, 9.9, 25, 65, 89.9, 90, 500)] == [0, 1, 1, 3, 2, 1, 0, 0]
    assert emu.peak_running == 4  # the fourth came before the third was deleted
    assert emu.running == 0


@pytest.mark.parametrize("settings", [{"level": Level(100, 2), "over_limit": "queue"}])
async def test_running_history_excludes_queued_predictions(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    start = clock.now()
    for _ in range(5):
        await api.submit(image=image)
    assert max(running for _, running in emu.running_history()) == 2
    assert [emu.running_at(start + at) for at in (0, 61, 119, 122, 185)] == [2, 2, 2, 1, 0]


async def test_requests_record_status_and_faults(api: Api, emu: Emulator, image: str) -> None:
    emu.faults.add("submit", faults.Status(503))
    await api.submit(image=image)
    await api.submit(image=image)
    requests = [(record.method, record.route, record.status, record.faults) for record in emu.requests]
    assert requests == [
        ("POST", "upload_ticket", 200, ()),
        ("PUT", "upload_put", 200, ()),
        ("POST", "submit", 503, ("Status",)),
        ("POST", "submit", 200, ()),
    ]
    assert emu.counts["submit"] == 2
    assert sum(charge.amount for charge in emu.charges()) == Decimal("0.45")
