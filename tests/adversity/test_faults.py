"""Each kind of fault over real sockets: the error, the retries and the charges."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from kling_async import (
    ConnectFailedError,
    InsufficientBalanceError,
    Job,
    KlingSession,
    ModerationError,
    NoOutputError,
    PredictionFailedError,
    PredictionTimeoutError,
    Spent,
    StorageError,
    SubmissionUncertainError,
    Timeouts,
    read_ledger,
)
from kling_async.emulator import Emulator, Fault, ManualClock, faults
from kling_async.ledger import State
from support import leaps
from support.manual import running
from support.pictures import png

pytestmark = pytest.mark.anyio


def session(emulator: Emulator, **options: object) -> KlingSession:
    return KlingSession(
        emulator.api_key,
        base_url=emulator.base_url,
        clock=emulator.clock,
        level="gold",
        **options,  # type: ignore[arg-type]  # typed at the call
    )


UNCERTAIN = [
    (faults.AcceptThenDrop(), 1),
    (faults.AcceptThenDrop(reset=True), 1),
    (faults.DropAfterReading(), 0),
    (faults.Drop(), 0),
    (faults.TruncatedJson(), 1),
    (faults.Status(500), 0),
    (faults.Status(500, accepted=True), 1),
    (faults.Status(503), 0),
    (faults.Html502(), 0),
    (faults.Html502(accepted=True), 1),
    (faults.EnvelopeCode(500, accepted=True), 1),
]


@pytest.mark.parametrize(("fault", "charged"), UNCERTAIN, ids=str)
@pytest.mark.promise(1)
async def test_uncertain_submit_is_sent_once_and_held(fault: Fault, charged: int, tmp_path: Path) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        emulator.faults.add("submit", fault)
        async with session(emulator, ledger=tmp_path / "run.db", on_uncertain="hold") as kling:
            url = await kling.upload(png())
            with pytest.raises(SubmissionUncertainError) as caught:
                await kling.generate(prompt="x", image=url, key="mine")
            assert len(emulator.charges()) == charged
            assert emulator.counts["submit"] == 1
            assert caught.value.spent is Spent.UNKNOWN
            # The session remains usable.
            assert (await kling.generate(prompt="x", image=url, key="other")).output
    states = {row.key: row.state for row in read_ledger(tmp_path / "run.db")}
    assert states == {"mine": State.UNCERTAIN, "other": State.COMPLETED}


@pytest.mark.parametrize(("fault", "charged"), UNCERTAIN, ids=str)
async def test_input_echo_resolves_doubt_with_one_charge(fault: Fault, charged: int) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny", input_echo=True) as emulator:
        emulator.faults.add("submit", fault)
        async with session(emulator) as kling:
            assert (await kling.generate(prompt="x", image=png())).output
        assert len(emulator.charges()) == 1
        assert emulator.counts["submit"] == 2 - charged


@pytest.mark.parametrize("anyio_backend", [pytest.param(leaps.BACKEND, id="leaping")])
@pytest.mark.promise(7)
async def test_submit_timeout_is_uncertain() -> None:
    async with Emulator(level="gold", profile="tiny", clock=ManualClock()) as emulator:
        emulator.faults.add("submit", faults.Delay(1.0, accepted=True))

        async def wait_in_vain() -> None:
            await leaps.until(emulator.charges)
            leaps.leap(Timeouts().connect + Timeouts().submit + 1)

        async with session(emulator, on_uncertain="hold") as kling, anyio.create_task_group() as tasks:
            tasks.start_soon(wait_in_vain)
            with pytest.raises(SubmissionUncertainError):
                await kling.generate(prompt="x", image=f"{emulator.base_url}/x.png")
        assert len(emulator.charges()) == 1


@pytest.mark.parametrize("fault", [faults.Status(429), faults.Status(429, retry_after=20), faults.EnvelopeCode(429)])
async def test_429_is_retried_with_one_charge(fault: Fault) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        emulator.faults.add("submit", fault, times=2)
        async with session(emulator) as kling:
            assert (await kling.generate(prompt="x", image=png())).output
        assert len(emulator.charges()) == 1
        assert emulator.counts["submit"] == 3


async def test_refused_connection_costs_nothing() -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator, session(emulator) as kling:
        url = await kling.upload(png())
        async with emulator.offline():
            with pytest.raises(ConnectFailedError, match="nothing was spent"):
                await kling.generate(prompt="x", image=url)
        assert emulator.charges() == ()
        assert (await kling.generate(prompt="x", image=url)).output


READ_FAULTS = [
    faults.Drop(),
    faults.Drop(reset=True),
    faults.DropAfterReading(),
    faults.Status(429),
    faults.Status(500),
    faults.Status(503),
    faults.Html502(),
    faults.TruncatedJson(),
    faults.EnvelopeCode(500),
    faults.SlowBody(0.5),
    faults.NullOutputs(),
    faults.ObjectOutputs(),
    faults.StringOutputs(),
]


@pytest.mark.parametrize("fault", READ_FAULTS, ids=str)
async def test_read_faults_do_not_fail_a_paid_job(fault: Fault) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        emulator.faults.add("result", fault, times=4)
        async with session(emulator) as kling:
            if isinstance(fault, faults.NullOutputs):
                with pytest.raises(NoOutputError) as caught:
                    await kling.generate(prompt="x", image=png())
                assert caught.value.prediction_id == emulator.charges()[0].prediction_id
            else:
                assert (await kling.generate(prompt="x", image=png())).output
        assert len(emulator.charges()) == 1


@pytest.mark.parametrize("code", [1200, 1402, 1403, 1405, 5000, 5003, 5004])
async def test_failed_task_raises_error_with_code_and_advice(code: int) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        emulator.faults.add("submit", faults.FailTask(code, "the reason"))
        async with session(emulator) as kling:
            with pytest.raises(PredictionFailedError, match="the reason") as caught:
                await kling.generate(prompt="x", image=png())
    assert caught.value.code == code
    assert caught.value.advice


@pytest.mark.parametrize("word", ["cancelled", "timeout"])
async def test_cancelled_and_timeout_are_failures(word: str) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        emulator.faults.add("submit", faults.FailTask(None, "", status=word))  # type: ignore[arg-type]  # a valid literal
        async with session(emulator) as kling:
            with pytest.raises(PredictionFailedError, match=word):
                await kling.generate(prompt="x", image=png())


@pytest.mark.promise(6)
async def test_insufficient_balance_stops_the_batch() -> None:
    async with Emulator(level="gold", speed=200, profile="tiny", balance=1.0) as emulator, session(emulator) as kling:
        jobs = (Job(model="kling-v2.1-pro", prompt=f"number {number}", image=png()) for number in range(20))
        async with kling.batch(jobs, window=4) as batch:
            outcomes = [outcome async for outcome in batch]
        assert isinstance(batch.stopped, InsufficientBalanceError)
        assert sum(outcome.ok for outcome in outcomes) == 2
        assert len(outcomes) == 20
        assert emulator.counts["submit"] < 8


async def test_gptproto_content_policy_503_is_not_uncertain() -> None:
    text = "Input may not meet the guidelines. Please adjust and try again."
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        emulator.faults.add("submit", faults.Status(503, text))
        async with KlingSession(
            emulator.gptproto_key,
            provider="gptproto",
            base_url=emulator.gptproto_url,
            clock=emulator.clock,
            images="inline",
        ) as kling:
            with pytest.raises(ModerationError) as caught:
                await kling.generate(model="kling-v2.1-pro", prompt="x", image=png())
        assert emulator.counts["submit"] == 1
    assert caught.value.spent is Spent.NO


@pytest.mark.parametrize(
    "fault", [faults.CutBody(100), faults.Status(500), faults.Status(429), faults.Drop(), faults.SlowBody(0.3)], ids=str
)
async def test_download_is_retried_after_faults(fault: Fault, tmp_path: Path) -> None:
    async with Emulator(level="gold", speed=200, profile="tiny") as emulator, session(emulator) as kling:
        prediction = await kling.generate(prompt="x", image=png())
        emulator.faults.add("output", fault, times=2)
        saved = await kling.save(prediction, tmp_path)
        assert emulator.counts["output"] >= 1
    assert saved.path.read_bytes()[4:8] == b"ftyp"
    assert [path.name for path in tmp_path.iterdir()] == [saved.path.name]


async def test_failed_download_leaves_no_file_and_reports_spent(tmp_path: Path) -> None:
    async with Emulator(level="gold", speed=500, profile="tiny") as emulator, session(emulator) as kling:
        emulator.faults.add("output", faults.CutBody(10), times=None)
        async with kling.batch([Job(prompt="x", image=png())], save_to=tmp_path) as batch:
            outcomes = [outcome async for outcome in batch]
        error = outcomes[0].error
        assert isinstance(error, StorageError)
        assert error.spent is Spent.YES
        assert error.prediction_id
        assert list(tmp_path.iterdir()) == []
        emulator.faults.clear()
        assert (await kling.save(error.prediction_id, tmp_path)).bytes > 100


async def test_expired_output_raises_storage_error(tmp_path: Path) -> None:
    clock = ManualClock()
    async with (
        Emulator(level="gold", profile="tiny", clock=clock) as emulator,
        KlingSession(emulator.api_key, base_url=emulator.base_url, level="gold", clock=clock) as kling,
    ):
        submitted = await kling.submit(prompt="x", image=png())
        await clock.advance(600)
        done = await kling.get(submitted.id)
        assert done.output
        await clock.advance(8 * 86400)
        async with running(clock):
            with pytest.raises(StorageError, match="7 days"):
                await kling.save(done, tmp_path)


@pytest.mark.promise(7)
async def test_prediction_can_be_awaited_after_deadline() -> None:
    async with Emulator(level="gold", speed=500, profile="tiny") as emulator:
        emulator.faults.add("result", faults.UnknownStatus("warming_up"), times=20)
        async with session(emulator, deadline=60) as kling:
            with pytest.raises(PredictionTimeoutError) as caught:
                await kling.generate(prompt="x", image=png())
            assert caught.value.prediction_id
            assert (await kling.wait(caught.value.prediction_id, deadline=1800)).output


@pytest.mark.promise(8)
async def test_key_never_reaches_outputs_storage_logs_or_errors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    key = "wsk_very_secret_key_1234567890"
    async with Emulator(level="gold", speed=500, profile="tiny", keys=[key]) as emulator:
        emulator.faults.add("submit", faults.Status(500, f"the key {key} is odd"))
        emulator.faults.add("submit", faults.Status(403, f"the key {key} is odd"), after=1)
        async with KlingSession(
            key, base_url=emulator.base_url, clock=emulator.clock, level="gold", on_uncertain="hold"
        ) as kling:
            texts = []
            for _ in range(2):
                with pytest.raises(Exception, match="is odd") as caught:
                    await kling.generate(prompt="x", image=png())
                error: BaseException | None = caught.value
                while error is not None:
                    texts += [str(error), repr(error), repr(vars(error))]
                    error = error.__cause__ or error.__context__
            prediction = await kling.generate(prompt="x", image=png())
            await kling.save(prediction, tmp_path)
            texts += [repr(kling), repr(kling.provider), repr(prediction), repr(vars(kling))]
        assert emulator.leaks == ()
    assert key not in "".join(texts)
    assert key not in caplog.text
