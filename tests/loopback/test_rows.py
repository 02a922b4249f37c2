"""Every row of the catalogue at the emulator: what is sent is taken, and what is priced is charged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kling_async import (
    MODELS,
    Budget,
    Job,
    KlingSession,
    Model,
    PriceUnknownError,
    ProtocolError,
    RequestRejectedError,
)
from kling_async._session.session import engine_of
from kling_async.emulator import Emulator, faults
from kling_async.limits.refusal import Limit
from kling_async.manifest import read_manifest

pytestmark = pytest.mark.anyio

IMAGE = "https://pictures.example/face.png"
LAST = "https://pictures.example/last.png"
VIDEO = "https://videos.example/clip.mp4"
PROVIDERS = ("wavespeed", "gptproto")


def service(**options: Any) -> Emulator:
    settings: dict[str, Any] = {"speed": 1000, "profile": "tiny", "level": "ultra", "downloads": False, "balance": 1e6}
    return Emulator(**{**settings, **options})


def session(emulator: Emulator, provider: str = "wavespeed", **options: Any) -> KlingSession:
    own = provider == "gptproto"
    return KlingSession(
        emulator.gptproto_key if own else emulator.api_key,
        provider=provider,
        base_url=emulator.gptproto_url if own else emulator.base_url,
        clock=emulator.clock,
        level="ultra",
        **options,
    )


def fields_of(row: Model) -> dict[str, Any]:
    """Return the fewest fields of a job."""
    fields: dict[str, Any] = {"model": row.name, "prompt": "She turns"}
    fields |= {"image": IMAGE} if row.image else {"images": [IMAGE, LAST]}
    return fields | ({"end_image": LAST} if row.end_image is not None and row.end_image.required else {})


def variants(row: Model) -> Iterator[dict[str, Any]]:
    """Yield jobs of a row at all lengths, resolutions, and with and without sound."""
    described = row.input("resolution")
    for seconds in row.durations:
        for resolution in (None, *(() if described is None else described.choices)):
            for sound in (False, None, True) if row.sound else (None,):
                given = {"duration": seconds, "resolution": resolution, "sound": sound}
                yield fields_of(row) | {name: value for name, value in given.items() if value is not None}


OFFERED = [(row, provider) for row in MODELS for provider in PROVIDERS if provider in row.providers]


@pytest.mark.parametrize(("row", "provider"), OFFERED, ids=[f"{row.name}-{provider}" for row, provider in OFFERED])
async def test_estimate_of_a_manifest_equals_the_charges(row: Model, provider: str, tmp_path: Path) -> None:
    """To the cent, with and without sound, at all lengths and resolutions; by the list, else by the service."""
    manifest = tmp_path / "jobs.jsonl"
    manifest.write_text("".join(json.dumps(each) + "\n" for each in variants(row)))
    async with service() as emulator, session(emulator, provider) as kling:
        prices: list[Decimal | None] = []
        jobs = [job for _, job in read_manifest(manifest)]
        for number, job in enumerate(jobs):
            asked, listed = await service_price(kling, job), job.price(provider).usd
            await kling.submit(job, key=str(number))
            charge = emulator.charges()[-1]
            assert (charge.model, len(emulator.charges())) == (row.id, number + 1)
            for usd in (asked, listed):
                assert usd is None or round(charge.amount, 2) == round(usd, 2)
            # GPTProto's list does not say what sound costs, nor, where it is per run, what other lengths do.
            loud = job.sound or (job.sound is None and row.at_provider(provider).sound_by_default)
            assert asked is not None or (provider == "gptproto" and (loud or job.duration != row.default_duration))
            prices.append(asked)
        charged = sum((charge.amount for charge in emulator.charges()), Decimal(0))
        known = [usd for usd in prices if usd is not None]
        assert known
        if len(known) == len(prices):
            assert round(charged, 2) == round(sum(known, Decimal(0)), 2)
        listed = read_manifest(manifest).price(provider).usd
        assert (listed is None) == (provider == "gptproto" or any(job.price().usd is None for job in jobs))
        assert listed is None or round(charged, 2) == round(listed, 2)


async def service_price(kling: KlingSession, job: Job) -> Decimal | None:
    """Return the service's price; None if it does not tell it."""
    try:
        return (await kling.price(job)).discounted
    except ProtocolError:
        return None


@pytest.mark.parametrize("row", [row for row in MODELS if "wavespeed" in row.providers], ids=lambda row: row.name)
async def test_everything_that_a_row_allows_is_taken_and_kept(row: Model) -> None:
    fields = fields_of(row)
    fields |= {"negative_prompt": "blur"} if row.negative_prompt else {}
    fields |= {"guidance_scale": 0.3} if row.scale else {}
    fields |= {"end_image": LAST} if row.end_image else {}
    fields |= {"sound": True} if row.sound else {}
    fields |= {"shot_type": "intelligence"} if row.shot_types else {}
    fields |= {"element_list": [{"element_id": 1}]} if row.elements else {}
    fields |= {"voice_list": ["v"]} if row.voices else {}
    for field in row.inputs:
        if field.name == "keyframes":
            fields["keyframes"] = [f"https://pictures.example/{number}.png" for number in range(8)]
        elif field.choices:
            fields[field.name] = field.choices[-1]
    async with service() as emulator, session(emulator) as kling:
        job = Job(**fields)
        await kling.generate(job)
        [charge] = emulator.charges()
        sent = job.inputs(IMAGE if row.image else "", LAST if row.end_image else None)
        # Of the two names of a last frame the service has one, and drops the other.
        dropped = {"end_image"} if row.end_image and row.end_image.also else set()
        assert {name: charge.inputs.get(name) for name in sent if name not in dropped} == {
            name: value for name, value in sent.items() if name not in dropped
        }


# ---- prices are asked once ----


async def test_service_is_asked_once_for_each_kind() -> None:
    async with service(discount=0.1) as emulator, session(emulator, budget=Budget(100)) as kling:
        for _ in range(2):
            for fields in ({}, {"sound": True}, {"resolution": "1080p"}, {"resolution": "4k"}, {"duration": 10}):
                model = "kling-v3.0-std" if "sound" in fields else "kling-v4.0"
                job = Job(model=model, prompt="x", image=IMAGE, **fields)
                await kling.price(job)
                await kling.submit(job)
        assert emulator.counts["price"] == 5


async def test_budget_counts_what_the_service_asks_for_a_reported_price() -> None:
    """Sound on 3.0 is 1.5 times the price by resellers: where money depends on it, the service is asked."""
    budget = Budget("0.60")
    async with service(discount=0.1) as emulator, session(emulator, budget=budget) as kling:
        await kling.submit(model="kling-v3.0-std", prompt="x", image=IMAGE, sound=True)
        assert budget.spent == emulator.charges()[0].amount == Decimal("0.567")
        assert emulator.counts["price"] == 1


@pytest.mark.parametrize("order", [(False, None), (None, False)], ids=["silent first", "silent last"])
async def test_budget_tells_silence_from_nothing_said_where_sound_is_the_default(
    order: tuple[bool | None, ...],
) -> None:
    budget = Budget(10)
    async with service() as emulator, session(emulator, "gptproto", budget=budget) as kling:
        for sound in order:
            fields: dict[str, Any] = {} if sound is None else {"sound": sound}
            job = Job(model="kling-v3.0-std", prompt="x", image=IMAGE, **fields)
            if sound is None:
                with pytest.raises(PriceUnknownError, match="pass sound=False"):
                    await kling.submit(job)
            else:
                await kling.submit(job)
        assert budget.spent == sum(charge.amount for charge in emulator.charges()) == Decimal("0.42")


async def test_gptproto_budget_reads_the_public_list_without_the_key() -> None:
    budget = Budget(10)
    async with service() as emulator, session(emulator, "gptproto", budget=budget) as kling:
        for prompt in ("a", "b"):
            await kling.submit(model="kling-v2.1-pro", prompt=prompt, image=IMAGE)
        assert budget.spent == sum(charge.amount for charge in emulator.charges()) == Decimal("0.90")
        assert emulator.counts["price_list"] == 1
        assert emulator.leaks == ()
        with pytest.raises(PriceUnknownError, match="with sound: pass sound=False"):
            await kling.submit(model="kling-v3.0-std", prompt="c", image=IMAGE)
        assert len(emulator.charges()) == 2


async def test_public_list_is_downloaded_once_whatever_it_tells() -> None:
    async with service() as emulator, session(emulator, "gptproto", budget=Budget(10)) as kling:
        # The first answer is a failure of the service, which is no list.
        emulator.faults.add("price_list", faults.EnvelopeCode(500))
        with pytest.raises(PriceUnknownError, match="with sound: pass sound=False"):
            await kling.submit(model="kling-v3.0-std", prompt="a", image=IMAGE)
        for seconds in (5, 10):
            await kling.submit(model="kling-v2.1-pro", prompt="b", image=IMAGE, duration=seconds)
        assert emulator.counts["price_list"] == 2
        assert sum(charge.amount for charge in emulator.charges()) == Decimal("1.35")


# ---- warnings ----


@pytest.mark.parametrize(
    ("provider", "fields", "said"),
    [
        ("gptproto", {"model": "kling-v3.0-std"}, "makes sound by default at gptproto"),
        ("wavespeed", {"model": "kling-v2.6-pro", "sound": True, "end_image": LAST}, "together with sound"),
        ("wavespeed", {"model": "kling-v2.6-std", "prompt": ""}, "require a prompt, its page does not"),
    ],
)
async def test_cautions_are_logged_once_before_money_is_spent(
    provider: str, fields: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="kling_async")
    async with service() as emulator, session(emulator, provider) as kling:
        emulator.faults.add("submit", faults.Status(400, "no"))
        job = Job(**{"prompt": "x", "image": IMAGE, **fields})
        with pytest.raises(RequestRejectedError):
            await kling.submit(job, key="a")
        assert emulator.charges() == ()
        assert any(said in record.getMessage() for record in caplog.records)
        await kling.submit(job, key="b")
        assert [said in record.getMessage() for record in caplog.records].count(True) == 1


# ---- doubts ----


async def test_lost_reply_of_2_6_pro_is_adopted_though_the_echo_drops_a_name(tmp_path: Path) -> None:
    """The service keeps one of the two names of the last frame, and echoes the input that it has kept."""
    fields: dict[str, Any] = {"model": "kling-v2.6-pro", "prompt": "x", "image": IMAGE}
    async with service(input_echo=True) as emulator:
        async with session(emulator, ledger=tmp_path / "run.db", grace=0.1) as kling:
            emulator.faults.add("submit", faults.AcceptThenDrop(), times=2)
            # Told apart by their last frames alone.
            jobs = {"a": Job(**fields, end_image=LAST), "b": Job(**fields, end_image=IMAGE)}
            async with kling.batch(jobs) as batch:
                outcomes = {outcome.key: outcome async for outcome in batch}
        frames = {charge.prediction_id: charge.inputs["last_image"] for charge in emulator.charges()}
        assert len(frames) == 2
        assert {
            key: frames[outcome.prediction.id if outcome.prediction else ""] for key, outcome in outcomes.items()
        } == {
            "a": LAST,
            "b": IMAGE,
        }


# ---- any model of the service ----


@pytest.mark.parametrize(
    ("model", "fields", "suffix", "usd"),
    [
        (
            "kwaivgi/kling-v4.0/text-to-video",
            {"prompt": "A lake", "duration": 10, "resolution": "1080p"},
            ".mp4",
            "2.35",
        ),
        (
            "kwaivgi/kling-v4.0/video-extend",
            {"prompt": "On", "extra": {"video": VIDEO}, "duration": 3},
            ".mp4",
            "0.471",
        ),
        ("wavespeed-ai/flux-dev", {"prompt": "A cat", "extra": {"num_images": 1}}, ".png", "0.012"),
    ],
)
async def test_any_model_runs_by_its_schema(
    model: str, fields: dict[str, Any], suffix: str, usd: str, tmp_path: Path
) -> None:
    async with service() as emulator, session(emulator, ledger=tmp_path / "run.db", budget=5) as kling:
        rows = {entry.id: Model.from_service(entry) for entry in await kling.models()}
        job = Job(model=rows[model], **fields)
        assert (job.image, job.price().usd) == (None, Decimal(usd))
        async with kling.batch([job], save_to=tmp_path / "out") as batch:
            [outcome] = [outcome async for outcome in batch]
        assert outcome.ok
        assert outcome.saved is not None
        assert outcome.saved.path is not None
        assert outcome.saved.path.suffix == suffix
        assert emulator.charges()[0].amount == outcome.cost == Decimal(usd)
        # Again from the ledger alone, for nothing.
        async with kling.resume(save_to=tmp_path / "out") as batch:
            assert [again.ok async for again in batch] == [True]
        assert len(emulator.charges()) == 1


async def test_input_of_another_kind_is_refused_before_anything_is_sent() -> None:
    async with service() as emulator, session(emulator) as kling:
        entries = {entry.id: entry for entry in await kling.models()}
        row = Model.from_service(entries["kwaivgi/kling-v4.0/video-extend"])
        for fields, problem in (
            ({}, r"extra\.video: required by"),
            ({"extra": {"video": VIDEO}, "image": IMAGE}, "image: not supported by"),
            ({"extra": {"video": 5}}, r"extra\.video: expected string, got int"),
        ):
            with pytest.raises(ValueError, match=problem):
                Job(model=row, prompt="x", **fields)
        assert emulator.counts.get("submit", 0) == 0


# ---- GPTProto's 429 ----


async def test_disagreement_429_of_gptproto_is_not_about_the_account() -> None:
    """Its 429 may also mean that its supplier failed or that it has none: the session waits, and learns no limit."""
    async with service(timing=1e6) as emulator, session(emulator, "gptproto") as kling:
        await kling.submit(model="kling-v2.1-pro", prompt="runs", image=IMAGE)
        emulator.faults.add("submit", faults.Status(429, "upstream error: too many concurrent requests"), times=2)
        before = engine_of(kling).slots.total
        await kling.submit(model="kling-v2.1-pro", prompt="x", image=IMAGE)
        assert len(emulator.charges()) == 2
        assert set(engine_of(kling).gate.refusals) == {Limit.ELSEWHERE}
        assert engine_of(kling).slots.total == before
