"""Every answer on every route, once and for a while: no paid job fails that the service has made.

Each case has a service and a session of its own; all cases of a route share one clock, and so run at the same time.
With `KLING_MATRIX=all` in the environment all codes are tried, and it is printed how long they held up their jobs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import anyio
import attrs
import pytest

from kling_async import ApiError, KlingError, KlingSession, Spent
from kling_async.emulator import Emulator, Fault, ManualClock, faults
from support.manual import running
from support.patience import PATIENCE_S
from support.pictures import png

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

WHILE_S = 45.0
"""Seconds for which an answer goes on: longer than single calls try, shorter than uploads and jobs do."""
PAGE = "<html><h1>Please sign in</h1></html>"
UNOFFICIAL = {419, 420, 430, 440, 444, 449, 450, 460, 463, *range(494, 500), 509, *range(520, 528), 529, 530, 561, 599}
"""Statuses of proxies and gateways, which no standard has."""
EXISTING = sorted({status.value for status in HTTPStatus if status >= 300} | UNOFFICIAL)
ALL = os.environ.get("KLING_MATRIX") == "all"
CODES = EXISTING if ALL else [302, 307, 400, 401, 403, 404, 407, 412, 429, 499, 500, 503, 524]
ANSWERS: dict[str, Fault] = {
    **{f"{code}": faults.Status(code) for code in CODES},
    **{f"{code} html": faults.Status(code, body=PAGE) for code in CODES},
    "200 html": faults.Status(200, body=PAGE),
    "204 empty": faults.Status(204, body=""),
    "envelope 500": faults.EnvelopeCode(500),
    "envelope 404": faults.EnvelopeCode(404),
    "truncated": faults.TruncatedJson(),
    "cut": faults.CutBody(after_bytes=10),
    "slow": faults.SlowBody(20.0),
    "late": faults.Delay(20.0),
    "drop": faults.Drop(),
    "drop, reset": faults.Drop(reset=True),
    "drop after reading": faults.DropAfterReading(),
    "drop after handling": faults.AcceptThenDrop(),
}
ROUTES = ("submit", "result", "list", "balance", "upload_ticket", "upload_put", "output")
Duration = Literal["once", "while"]


@attrs.define
class Case:
    """An answer on a route.

    Attributes:
        name: name of the answer.
        answer: fault of the service.
        folder: empty folder.
        took: seconds from the first request to the end.
        error: error at the end.
        charged: number of charges of the service.
        video: whether the video was saved.
    """

    name: str
    answer: Fault
    folder: Path
    took: float = 0.0
    error: KlingError | None = None
    charged: int = 0
    video: bool = False

    async def run(self, route: str, duration: Duration, clock: ManualClock) -> None:
        emulator = Emulator(level="gold", profile="tiny", timing=30.0, input_echo=True, clock=clock)
        async with emulator:
            async with KlingSession(
                emulator.api_key, base_url=emulator.base_url, clock=clock, level="gold", ledger=self.folder / "run.db"
            ) as kling:
                began = clock.monotonic()
                if route == "list":
                    # The list is read to settle a doubt.
                    emulator.faults.add("submit", faults.AcceptThenDrop())
                until = began + WHILE_S
                if duration == "once":
                    emulator.faults.add(route, self.answer)
                else:
                    # Of the outputs and results, from the first request on.
                    first: list[float] = []

                    def lasts(_: object) -> bool:
                        first.append(clock.monotonic())
                        return clock.monotonic() <= max(until, first[0] + WHILE_S)

                    emulator.faults.add(route, self.answer, times=None, when=lasts)
                try:
                    if route == "balance":
                        await kling.balance()
                    else:
                        prediction = await kling.generate(prompt=self.name, image=png(), key="k")
                        await kling.save(prediction, self.folder / "video.mp4")
                except KlingError as error:
                    self.error = error
                self.took = clock.monotonic() - began
            self.charged = len(emulator.charges())
            self.video = (self.folder / "video.mp4").exists()

    def check(self, route: str, duration: Duration) -> str:
        """Return what is wrong with the end of the job; nothing if it is right."""
        made = self.error is None and self.charged == 1 and self.video
        unspent = self.error is not None and self.charged == 0 and self.error.spent is Spent.NO
        if route == "balance":
            right = self.charged == 0 and (self.error is None if duration == "once" else self.took < 60)
        elif route in {"result", "output", "list"}:
            right = made
        elif route == "submit":
            # A refusal in the service's own form is final; a page is a gateway's, before the service.
            right = made or (unspent and isinstance(self.error, ApiError) and "html" not in self.name)
        elif route == "upload_ticket":
            # A refusal of the service itself, said again and again, is final; a page is a gateway's.
            refused = duration == "while" and isinstance(self.error, ApiError) and "html" not in self.name
            right = made or (unspent and refused)
        else:
            # No answer of its storage is final.
            right = made
        return "" if right else f"{self.name}: charged {self.charged}, video {self.video}, {self.error!r}"


def cases(route: str, folder: Callable[[str], Path]) -> list[Case]:
    answers = dict(ANSWERS)
    if route == "submit":
        # Accepted all the same, where an answer leaves that open.
        answers |= {
            f"{name}, accepted": attrs.evolve(answer, accepted=True)
            for name, answer in ANSWERS.items()
            if isinstance(answer, faults.Status) and answer.status >= 500
        }
    if route == "output":
        # They are no JSON.
        del answers["truncated"]
    return [Case(name, answer, folder(name)) for name, answer in answers.items()]


@pytest.mark.promise(6)
@pytest.mark.parametrize("duration", ["once", "while"])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.repeats
async def test_no_answer_fails_a_job_that_the_service_has_made(
    route: str, duration: Duration, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clock = ManualClock()
    all_cases = cases(route, lambda name: tmp_path_factory.mktemp("case"))
    with anyio.fail_after(PATIENCE_S * 10):
        async with running(clock), anyio.create_task_group() as tasks:
            for case in all_cases:
                tasks.start_soon(case.run, route, duration, clock)
    if ALL:
        took = sorted(case.took for case in all_cases)
        failed = [case.name for case in all_cases if case.error]
        print(
            f"\n{route}, {duration}: {len(all_cases)} answers; {sum(case.video for case in all_cases)} videos,"
            f" {len(failed)} refused, none paid for; seconds: median {took[len(took) // 2]:.0f}, worst {took[-1]:.0f}\n"
            f"    refused: {', '.join(failed)}"
        )
    wrong = [text for case in all_cases if (text := case.check(route, duration))]
    assert not wrong, "\n".join(wrong)
