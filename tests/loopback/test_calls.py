"""Account calls of a session over real sockets, checked against the emulator's records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import anyio
import pytest

from kling_async import (
    Certainty,
    InvalidJobError,
    Job,
    KlingError,
    KlingSession,
    Model,
    NotFoundError,
    PredictionFailedError,
    ServerError,
    Status,
    UnsupportedError,
)
from kling_async.emulator import Emulator, faults
from support.pictures import jpeg, png

pytestmark = pytest.mark.anyio

IMAGE = "https://pictures.example/face.png"
MODEL = "kling-v2.1-pro"


def service(**options: Any) -> Emulator:
    return Emulator(**{"speed": 200, "profile": "tiny", "level": "gold", "seed": 7, **options})


def session(emulator: Emulator, **options: Any) -> KlingSession:
    return KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock, level="gold", **options)


def inline_job(**fields: Any) -> Job:
    """Return a job with its image inline, so that nothing is uploaded."""
    return Job(**{"model": MODEL, "prompt": "She turns", "image": png(), **fields})


async def submitted(kling: KlingSession, count: int, **fields: Any) -> list[str]:
    ids = []
    for number in range(count):
        prediction = await kling.submit(inline_job(prompt=f"shot {number}", **fields))
        ids.append(prediction.id)
    return ids


# ---- the list ----


@pytest.mark.parametrize("echo", [True, False])
async def test_list_reads_all_pages_newest_first(echo: bool) -> None:  # noqa: FBT001 -- parametrized
    async with service(input_echo=echo) as emulator, session(emulator, images="inline") as kling:
        ids = await submitted(kling, 45)
        found = [prediction async for prediction in kling.predictions(page_size=20)]
        assert [prediction.id for prediction in found] == ids[::-1]
        for prediction in found:
            assert prediction.raw["id"] == prediction.id
            if echo:
                assert prediction.input is not None
                assert str(prediction.input["prompt"]).startswith("shot ")
            else:
                assert prediction.input is None
        assert [prediction.id async for prediction in kling.predictions(limit=3)] == ids[:-4:-1]


async def test_list_is_filtered_by_service() -> None:
    async with service() as emulator, session(emulator, images="inline") as kling:
        (first,) = await submitted(kling, 1)
        emulator.faults.add("submit", faults.FailTask(code=1405, seconds=1))
        with pytest.raises(PredictionFailedError):
            await kling.generate(inline_job(prompt="fails"))
        await kling.wait(first)
        since = emulator.clock.now()
        await emulator.clock.sleep(2)
        (other,) = await submitted(kling, 1, model="kling-v2.1-master")

        async def listed(**filters: Any) -> list[str]:
            return [prediction.id async for prediction in kling.predictions(**filters)]

        assert len(await listed()) == 3
        assert await listed(model="kling-v2.1-master") == [other]
        assert await listed(model="kwaivgi/kling-v2.1-i2v-master", status="completed") == []
        assert await listed(status="completed") == [first]
        (failed,) = [prediction async for prediction in kling.predictions(status="failed")]
        assert (failed.status, failed.code) == (Status.FAILED, 1405)
        assert await listed(created_after=since) == [other]
        assert await listed(created_after=datetime.fromtimestamp(since, UTC)) == [other]
        assert set(await listed(created_before=since)) == {first, failed.id}


async def test_list_yields_each_prediction_once_during_changes() -> None:
    async with service() as emulator, session(emulator, images="inline") as kling:
        ids = await submitted(kling, 60)
        seen: list[str] = []
        gone: set[str] = set()
        arrivals: list[str] = []
        async for prediction in kling.predictions(page_size=20):
            seen.append(prediction.id)
            if len(seen) in {5, 25, 45}:
                arrivals += await submitted(kling, 7)
            if len(seen) in {15, 30}:
                # Deleted from the part already read, so the rest of the list moves up.
                doomed = seen[:12]
                assert await kling.delete(set(doomed) - gone) == len(set(doomed) - gone)
                gone |= set(doomed)
        assert len(seen) == len(set(seen)), "nothing twice"
        assert set(ids) <= set(seen), "nothing lost"
        assert set(seen) <= set(ids) | set(arrivals)


async def test_delete_removes_predictions() -> None:
    async with service() as emulator, session(emulator, images="inline") as kling:
        prediction = await kling.generate(inline_job())
        other = await kling.generate(inline_job(prompt="other"))
        assert await kling.delete([prediction, other.id, "0" * 32]) == 2
        assert await kling.delete(prediction) == 0
        with pytest.raises(NotFoundError):
            await kling.get(prediction.id)
        assert [found async for found in kling.predictions()] == []


# ---- money ----


async def test_balance_decreases_by_charge() -> None:
    async with service(balance=10) as emulator, session(emulator, images="inline") as kling:
        assert await kling.balance() == Decimal(10)
        await kling.submit(inline_job(duration=10))
        assert await kling.balance() == Decimal("9.1")
        assert emulator.balance() == Decimal("9.1")


async def test_price_includes_service_discount() -> None:
    job = inline_job(duration=10)
    async with service(discount=0.1) as emulator, session(emulator, images="inline") as kling:
        price = await kling.price(job)
        assert (price.price, price.discounted, price.currency) == (Decimal("0.9"), Decimal("0.81"), "USD")
        assert price.model == job.model
        assert price.raw["discount_rate"] == 0.1
        assert job.price().usd == Decimal("0.90"), "the estimate knows of no discount"
        await kling.submit(job)
        assert [charge.amount for charge in emulator.charges()] == [price.discounted]
        for other in (
            Job(model="kling-v3.0-std", prompt="x", image=IMAGE, duration=7),
            Job(
                model="kling-v3.0-pro",
                multi_prompt=[{"prompt": "x", "duration": 6}, {"prompt": "y", "duration": 3}],
                image=IMAGE,
            ),
            Job(model="kling-v2.6-pro", prompt="x", image=IMAGE, sound=True),
        ):
            asked = await kling.price(other)
            assert asked.price == other.price().usd, other.model
        assert "upload_ticket" not in emulator.counts


async def test_bill_lists_deductions_and_refunds() -> None:
    async with service(refund_after=0) as emulator, session(emulator, images="inline") as kling:
        good = await kling.generate(inline_job())
        emulator.faults.add("submit", faults.FailTask(code=5000, seconds=1))
        with pytest.raises(PredictionFailedError) as caught:
            await kling.generate(inline_job(duration=10))
        bad = caught.value.prediction_id
        assert bad is not None
        lines = [line async for line in kling.billings()]
        assert sorted((line.kind, line.prediction_id, line.price) for line in lines) == sorted(
            [("deduct", good.id, Decimal("0.45")), ("deduct", bad, Decimal("0.9")), ("refund", bad, Decimal("0.9"))]
        )
        assert all(line.model == "kwaivgi/kling-v2.1-i2v-pro" for line in lines)
        for line in lines:
            assert line.created_at is not None
            assert abs(line.created_at.timestamp() - emulator.clock.now()) < 3600
            assert line.raw["uuid"] == line.id

        async def billed(**filters: Any) -> list[tuple[str, str | None]]:
            return [(line.kind, line.prediction_id) async for line in kling.billings(**filters)]

        assert await billed(kind="refund") == [("refund", bad)]
        assert await billed(predictions=good) == [("deduct", good.id)]
        assert await billed(predictions=[bad], kind="deduct") == [("deduct", bad)]
        assert await billed(model="kling-v2.1-master") == []
        assert await billed(end=emulator.clock.now() - 86_400) == []
        assert len(await billed(start=emulator.clock.now() - 86_400, limit=2)) == 2


async def test_bill_reads_all_pages() -> None:
    async with service() as emulator, session(emulator, images="inline") as kling:
        ids = await submitted(kling, 45)
        lines = [line.prediction_id async for line in kling.billings(page_size=20, kind="deduct")]
        assert sorted(map(str, lines)) == sorted(ids)


async def test_usage_sums_by_model_and_day() -> None:
    async with service() as emulator, session(emulator, images="inline") as kling:
        await kling.generate(inline_job())
        await kling.generate(inline_job(model="kling-v2.1-master"))
        now = datetime.fromtimestamp(emulator.clock.now(), UTC)
        usage = await kling.usage(now - timedelta(days=1), now.timestamp() + 60)
        assert (usage.cost, usage.requests, usage.succeeded) == (Decimal("1.75"), 2, 2)
        assert {used.model: (used.cost, used.count) for used in usage.models} == {
            "kwaivgi/kling-v2.1-i2v-pro": (Decimal("0.45"), 1),
            "kwaivgi/kling-v2.1-i2v-master": (Decimal("1.3"), 1),
        }
        assert sum(day.cost for day in usage.days) == Decimal("1.75")
        assert all(day.day is not None for day in usage.days)
        only = await kling.usage(now - timedelta(days=31), now, model="kling-v2.1-master")
        assert [used.model for used in only.models] in ([], ["kwaivgi/kling-v2.1-i2v-master"])


# ---- catalogue ----


async def test_models_lists_catalogue_and_schema() -> None:
    async with service(downloads=False) as emulator, session(emulator, images="inline") as kling:
        entries = {entry.id: entry for entry in await kling.models()}
        entry = entries["kwaivgi/kling-v2.1-i2v-pro"]
        assert (entry.type, entry.base_price, entry.raw["model_id"]) == ("image-to-video", Decimal("0.45"), entry.id)
        for found in entries.values():
            row = Model.from_service(found)
            fields: dict[str, Any] = (
                {"end_image": png()} if row.end_image is not None and row.end_image.required else {}
            )
            fields |= {} if row.image else {"image": None}
            fields |= {"duration": row.durations[0]} if row.durations else {}
            extra: dict[str, Any] = {"video": IMAGE} if row.input("video") else {}
            extra |= {"images": [IMAGE]} if row.input("images") else {}
            job = inline_job(model=row, extra=extra, **fields)
            await kling.submit(job)
            charge = emulator.charges()[-1]
            assert charge.model == found.id
            assert job.price().certainty is Certainty.INFERRED
            assert charge.amount == job.price().usd, found.id
        with pytest.raises(
            InvalidJobError, match=r"extra\.seed: not supported by .*: the service would ignore it and charge"
        ):
            inline_job(model=Model.from_service(entry), extra={"seed": 1})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("kling-v1.6-pro", {"end_image": jpeg(), "guidance_scale": 0.3}),
        ("kling-v2.0-master", {"end_image": jpeg(), "negative_prompt": "blur"}),
        ("kling-v2.5-turbo-pro", {"end_image": jpeg(), "guidance_scale": 0.3}),
        ("kling-v2.6-std", {"prompt": None, "negative_prompt": "blur"}),
        ("kling-v2.6-pro", {"end_image": jpeg(), "guidance_scale": 0.3, "sound": True, "voice_list": ["a"]}),
        (
            "kling-v3.0-4k",
            {"end_image": jpeg(), "guidance_scale": 0.3, "sound": True, "element_list": [{"element_id": 1}]},
        ),
        ("kling-v3.0-std", {"prompt": None, "multi_prompt": ["a", "b"], "shot_type": "intelligence", "duration": 9}),
        ("kling-v3-turbo-pro", {"prompt": None, "multi_prompt": [{"prompt": "a", "duration": 3}]}),
    ],
)
async def test_service_keeps_every_sent_field(name: str, fields: dict[str, Any]) -> None:
    job = inline_job(model=name, **fields)
    async with service() as emulator, session(emulator, images="inline") as kling:
        await kling.submit(job)
        (record,) = emulator.predictions()
        (charge,) = emulator.charges()
    sent = job.inputs("", None if job.end_image is None else "")
    # The last frame of 2.6 pro is sent under two names, of which the service has one.
    frame = job.row.end_image
    either = {frame.field, frame.also} if frame is not None and frame.also else set()
    assert set(sent) - either <= set(record.inputs), "nothing was dropped silently"
    assert not either or either & set(record.inputs)
    for field in set(sent) - {"image", "end_image", "last_image"}:
        assert record.inputs[field] == sent[field], field
    if job.price().usd is not None:
        assert charge.amount == job.price().usd


# ---- webhook secret ----


async def test_webhook_secret_is_hidden_in_repr() -> None:
    async with service() as emulator, session(emulator) as kling:
        secret = await kling.webhook_secret()
        assert secret.reveal() == emulator.webhook_secret()
        assert emulator.webhook_secret() not in repr(secret)


# ---- errors and refusals ----


async def test_reads_are_retried_and_errors_carry_response() -> None:
    async with service() as emulator, session(emulator) as kling:
        emulator.faults.add("balance", faults.Status(503), times=2)
        assert await kling.balance() == Decimal(1000)
        emulator.faults.add("models", faults.EnvelopeCode(500, "out of order"), times=None)
        with pytest.raises(ServerError) as caught:
            await kling.models()
        assert caught.value.raw == {"code": 500, "message": "out of order"}
        emulator.faults.add("list", faults.TruncatedJson(), times=None)
        with pytest.raises(KlingError, match="not JSON"):
            async for _ in kling.predictions():
                pass


async def test_gptproto_refuses_account_calls_before_sending() -> None:
    async with service() as emulator:
        kling = KlingSession(
            emulator.gptproto_key, provider="gptproto", base_url=emulator.gptproto_url, clock=emulator.clock
        )
        async with kling:
            now = emulator.clock.now()

            async def first(items: Any) -> Any:
                return await anext(items)

            for call in (
                lambda: first(kling.predictions()),
                lambda: kling.delete("a"),
                kling.balance,
                kling.models,
                lambda: kling.usage(now, now),
                lambda: first(kling.billings()),
                kling.webhook_secret,
                lambda: kling.upload(png()),
            ):
                with pytest.raises(UnsupportedError, match="gptproto"):
                    await call()
        assert emulator.requests == ()


# ---- uploads without tickets ----


@pytest.mark.parametrize("status", [404, 405])
async def test_upload_without_tickets_falls_back_for_session(status: int) -> None:
    async with service(downloads=True) as emulator, session(emulator) as kling:
        emulator.faults.add("upload_ticket", faults.Status(status), times=None)
        prediction = await kling.generate(model=MODEL, prompt="x", image=png())
        assert prediction.status is Status.COMPLETED
        await kling.upload(jpeg())
        await kling.upload(png())
        assert emulator.counts["upload_ticket"] == 1, "asked once"
        assert emulator.counts["upload_binary"] == 2, "each content once"
        assert "upload_put" not in emulator.counts
        assert not emulator.leaks


async def test_large_image_uploads_in_one_request() -> None:
    noise = png() + bytes(3 * 2**20)
    async with service() as emulator, session(emulator) as kling:
        emulator.faults.add("upload_ticket", faults.Status(404), times=None)
        url = await kling.upload(noise)
        assert url.startswith(emulator.base_url + "/media/")


async def test_upload_refused_in_envelope_raises() -> None:
    async with service() as emulator, session(emulator) as kling:
        emulator.faults.add("upload_ticket", faults.Status(404), times=None)
        emulator.faults.add("upload_binary", faults.EnvelopeCode(500, "Upload failed: invalid file type"), times=None)
        with pytest.raises(ServerError, match="invalid file type") as caught:
            await kling.upload(png())
        assert caught.value.code == 500
        emulator.faults.clear()
        emulator.faults.add("upload_ticket", faults.Status(404), times=None)
        await kling.upload(png())
        assert emulator.counts["upload_ticket"] == 2, "asked again, since the form did not work either"


async def test_concurrent_uploads_of_one_image_share_fallback() -> None:
    async with service() as emulator, session(emulator) as kling:
        emulator.faults.add("upload_ticket", faults.Status(405), times=None)
        urls: set[str] = set()

        async def upload() -> None:
            urls.add(await kling.upload(png()))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(upload)
        assert len(urls) == 1
        assert emulator.counts["upload_binary"] == 1
