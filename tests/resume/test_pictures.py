"""PIL images that earlier versions encoded otherwise: a batch that they began is not paid for again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from kling_async import Job, KeyReusedError, WatchPolicy, read_ledger
from kling_async._core import content
from support.looks import SIZE, cut_out, encoded, ramp
from support.service import Service, open_session

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def pictures() -> list[Image.Image]:
    """Return pictures that were white, black, or showed hidden colours; and one that was right."""
    return [cut_out(), ramp("I;16", (0, 0x8000, 0xFFFF)), ramp("F", (0.0, 0.5, 1.0)), Image.new("RGB", SIZE, "blue")]


def formerly(picture: Image.Image) -> bytes:
    """Return a picture as earlier versions encoded it."""
    return encoded(picture.convert("RGB"), "PNG")


async def run(service: Service, ledger: Path, jobs: list[Job], batch: str) -> list[str]:
    """Run a batch of jobs without keys, and return their keys."""
    watch = WatchPolicy.fixed(0.05)
    # Inline: the service has no storage.
    async with (
        open_session(service, ledger=ledger, watch=watch, images="inline", seen="pay") as kling,
        kling.batch(jobs, name=batch) as outcomes,
    ):
        return sorted([outcome.key async for outcome in outcomes if outcome.ok])


async def test_batch_of_an_earlier_version_costs_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, service = tmp_path / "run.db", Service(seconds=0.01, latency=0.001)
    now = [Job(prompt="x", image=picture) for picture in pictures()]
    with monkeypatch.context() as earlier:
        earlier.setattr(content, "IDENTITY_VERSION", 2)
        keys = await run(
            service, ledger, [Job(prompt="x", image=formerly(picture)) for picture in pictures()], "spring"
        )
    assert len(service.paid) == len(keys) == 4
    assert await run(service, ledger, now, "spring") == keys
    assert len(service.paid) == 4
    # A new batch knows them by what they look like, and they are the same ones whenever it runs.
    assert await run(service, ledger, now, "summer") == await run(service, ledger, now, "summer") != keys
    assert len(service.paid) == 8
    assert {row.key for row in read_ledger(ledger, batch="spring")} == set(keys)


async def test_key_of_an_earlier_version_is_not_taken_for_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, service = tmp_path / "run.db", Service(seconds=0.01, latency=0.001)
    async with open_session(service, ledger=ledger, watch=WatchPolicy.fixed(0.05), images="inline") as kling:
        with monkeypatch.context() as earlier:
            earlier.setattr(content, "IDENTITY_VERSION", 2)
            first = await kling.generate(key="a", prompt="x", image=formerly(cut_out()))
        assert (await kling.generate(key="a", prompt="x", image=cut_out())).id == first.id
        with pytest.raises(KeyReusedError):
            await kling.generate(key="a", prompt="x", image=formerly(pictures()[-1]))
    assert len(service.paid) == 1
