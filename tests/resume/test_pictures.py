"""PIL images that earlier versions encoded otherwise: a batch that they began is not paid for again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from kling_async import Job, KeyReusedError, KlingSession, WatchPolicy, read_ledger
from kling_async._core import content
from kling_async._session.keys import read_content
from kling_async.emulator import Emulator
from support import first_release, former_pictures
from support.looks import SIZE, cut_out, encoded, ramp
from support.service import Service, open_session

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


@pytest.mark.parametrize("rule", former_pictures.LEDGERS)
async def test_pictures_have_the_digests_of_earlier_versions(rule: int) -> None:
    assert first_release.pillow_encodes_as_then(), "these versions knew a picture by the bytes that Pillow encodes"
    rows = read_ledger(former_pictures.LEDGERS[rule])
    known = {json.loads(row.job or "")["prompt"]: row.digest for row in rows}
    found = [await read_content(job, identity=content.Identity(rule)) for job in await former_pictures.jobs()]
    assert {json.loads(each.text)["prompt"]: each.digest for each in found} == known


@pytest.mark.parametrize("rule", former_pictures.LEDGERS)
@pytest.mark.parametrize("batch", [former_pictures.BATCH, "summer"])
async def test_pictures_of_earlier_versions_are_not_paid_for_again(rule: int, batch: str, tmp_path: Path) -> None:
    """Neither by the same call, nor in another batch, which is told that they are paid for."""
    path = Path(shutil.copy(former_pictures.LEDGERS[rule], tmp_path / "run.db"))
    known = {row.prediction_id for row in read_ledger(path)}
    async with (
        Emulator(profile="tiny", timing=0.01, downloads=False, level="gold") as emulator,
        KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            clock=emulator.clock,
            ledger=path,
            level="gold",
            seen="reuse",
        ) as kling,
        kling.batch(await former_pictures.jobs(), name=batch) as given,
    ):
        outcomes = [outcome async for outcome in given]
        assert emulator.charges() == ()
    assert {outcome.prediction.id for outcome in outcomes if outcome.prediction is not None} == known


@pytest.mark.parametrize("rule", [1, 2, 3])
async def test_key_of_a_picture_with_the_same_hidden_colours_is_reused_only_where_they_were_sent(
    rule: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, service = tmp_path / "run.db", Service(seconds=0.01, latency=0.001)
    clear = cut_out()
    clear.putalpha(0)
    assert formerly(clear) == formerly(cut_out())
    monkeypatch.setattr(content, "IDENTITY_VERSION", rule)
    async with open_session(service, ledger=ledger, watch=WatchPolicy.fixed(0.05), images="inline") as kling:
        first = await kling.generate(key="a", prompt="x", image=cut_out())
        if rule < 3:
            assert (await kling.generate(key="a", prompt="x", image=clear)).id == first.id
        else:
            with pytest.raises(KeyReusedError):
                await kling.generate(key="a", prompt="x", image=clear)
    assert len(service.paid) == 1
