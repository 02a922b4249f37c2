"""Several submissions in doubt, resumed by a session with one slot."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from kling_async import KlingSession, Prediction, SubmissionUncertainError
from kling_async.emulator import Emulator, faults
from kling_async.ledger import Entry, SQLiteLedger, State
from support.pictures import png

pytestmark = pytest.mark.anyio


async def test_doubt_settled_with_another_while_waiting_for_slot_is_adopted(tmp_path: Path) -> None:
    ledger, keys = tmp_path / "l.db", ("a", "b", "c")
    async with Emulator(level="ultra", profile="tiny", speed=200, input_echo=True) as emulator:
        emulator.faults.add("submit", faults.AcceptThenDrop(), times=len(keys))

        def session(**options: object) -> KlingSession:
            return KlingSession(
                emulator.api_key,
                base_url=emulator.base_url,
                clock=emulator.clock,
                ledger=ledger,
                level="gold",
                **options,  # type: ignore[arg-type]  # passed on
            )

        async with session(on_uncertain="hold") as kling:
            for key in keys:
                with pytest.raises(SubmissionUncertainError):
                    await kling.submit(prompt=f"number {key}", image=png(), key=key)
        made: dict[str, Prediction] = {}
        async with session(max_in_flight=1) as kling, anyio.create_task_group() as group:

            async def one(key: str) -> None:
                made[key] = await kling.generate(prompt=f"number {key}", image=png(), key=key)

            for key in keys:
                group.start_soon(one, key)
        asked = {record.id: record.inputs["prompt"] for record in emulator.predictions()}
        assert {key: asked[prediction.id] for key, prediction in made.items()} == {key: f"number {key}" for key in keys}
        assert len(emulator.charges()) == len(keys)


async def test_prediction_of_abandoned_job_is_not_counted_as_that_of_another(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    async with Emulator(level="ultra", profile="tiny", speed=200, input_echo=False) as emulator:

        def session(**options: object) -> KlingSession:
            return KlingSession(
                emulator.api_key,
                base_url=emulator.base_url,
                clock=emulator.clock,
                ledger=path,
                **options,  # type: ignore[arg-type]  # passed on
            )

        emulator.faults.add("submit", faults.AcceptThenDrop())
        async with session(on_uncertain="hold") as kling:
            with pytest.raises(SubmissionUncertainError):
                await kling.submit(prompt="given up", image=png(), key="a")
        ledger = SQLiteLedger(path)
        await ledger.open()
        await ledger.record(Entry(batch="", key="a", state=State.ABANDONED, at=emulator.clock.now()))
        await ledger.aclose()
        emulator.faults.add("submit", faults.Drop())
        async with session(sole_user=True) as kling:
            with pytest.raises(SubmissionUncertainError) as caught:
                await kling.submit(prompt="b", image=png(), key="b")
        assert caught.value.candidates == tuple(record.id for record in emulator.predictions())
        assert len(emulator.charges()) == 1
