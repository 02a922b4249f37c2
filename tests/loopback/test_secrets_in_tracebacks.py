"""No exception shows the API key, the proxy's password or the webhook secret, wherever a method is stopped."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from kling_async import (
    ConfigurationError,
    ConnectFailedError,
    Job,
    KlingError,
    KlingSession,
    Prediction,
    PredictionFailedError,
    Timeouts,
)
from kling_async.emulator import Emulator, ScaledClock, faults
from kling_async.webhooks import Delivery
from support import leaps
from support.leaks import error_of, leaks, shows, stopped_at
from support.pictures import png

pytestmark = [pytest.mark.anyio, pytest.mark.promise(8)]

KEY = "wsk_key_of_this_test"
PASSWORD = "password-of-the-proxy"
IMAGE = "https://pictures.example/face.png"
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.fixture
def anyio_backend() -> object:
    return leaps.BACKEND


@attrs.frozen
class Given:
    """A session, and arguments of its methods.

    Attributes:
        kling: An open session.
        ended: A completed prediction.
        folder: An empty folder.
    """

    kling: KlingSession
    ended: Prediction
    folder: Path

    @property
    def delivery(self) -> Delivery:
        """A webhook about a prediction that the ledger does not have."""
        unknown = attrs.evolve(self.ended, id="unknown")
        return Delivery(prediction=unknown, token_hash="digest-of-a-token", webhook_id="msg_1", sent_at=1)


@attrs.frozen
class Site:
    """An emulator, behind a proxy with a password.

    Attributes:
        emulator: The emulator. It serves requests for proxies too.
        ended: A completed prediction.
        ledger: A ledger file with a running job in a batch named "earlier".
        secrets: What no exception may show.
    """

    emulator: Emulator
    ended: Prediction
    ledger: Path
    secrets: tuple[str, ...]

    def session(self, **options: Any) -> KlingSession:
        proxy = self.emulator.base_url.replace("://", f"://user:{PASSWORD}@")
        return session(self.emulator, proxy=proxy, **options)

    @asynccontextmanager
    async def given(self, folder: Path) -> AsyncIterator[Given]:
        folder.mkdir()
        ledger = folder / "run.db"
        shutil.copy(self.ledger, ledger)
        async with self.session(ledger=ledger) as kling:
            yield Given(kling, self.ended, folder)


def job(**fields: Any) -> Job:
    return Job(**{"model": "kling-v2.1-pro", "prompt": "She turns", "image": IMAGE, **fields})


def session(emulator: Emulator, **options: Any) -> KlingSession:
    return KlingSession(KEY, base_url=emulator.base_url, clock=emulator.clock, level="gold", **options)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Site]:
    async with Emulator(keys=[KEY], speed=500, profile="tiny", seed=7, downloads=False) as emulator:
        async with session(emulator, ledger=folder / "earlier.db") as kling:
            ended = await kling.generate(job())
            secret = await kling.webhook_secret()
            async with kling.batch({"one": job(prompt="He turns")}, name="earlier"):
                await leaps.until(lambda: kling.running)
        yield Site(emulator, ended, folder / "earlier.db", (KEY, PASSWORD, secret.reveal()))


async def read_all(stream: Any) -> None:
    async for _ in stream:
        pass


async def run_batch(given: Given) -> None:
    async with given.kling.batch({"two": job(image=png())}, save_to=given.folder, name="batch") as batch:
        async for outcome in batch:
            if outcome.error is not None:
                raise outcome.error


async def resume_batch(given: Given) -> None:
    async with given.kling.resume(name="earlier", save_to=given.folder) as batch:
        await read_all(batch)


async def close_session(given: Given) -> None:
    await given.kling.submit(job())
    await given.kling.aclose()


CALLS: dict[str, Callable[[Given], Any]] = {
    "aclose": close_session,
    "balance": lambda given: given.kling.balance(),
    "batch": run_batch,
    "billings": lambda given: read_all(given.kling.billings()),
    "delete": lambda given: given.kling.delete("no-such-prediction"),
    "deliver": lambda given: given.kling.deliver(given.delivery),
    "follow": lambda given: read_all(given.kling.follow(given.ended.id)),
    "generate": lambda given: given.kling.generate(job(image=png())),
    "get": lambda given: given.kling.get(given.ended.id),
    "models": lambda given: given.kling.models(),
    "predictions": lambda given: read_all(given.kling.predictions()),
    "price": lambda given: given.kling.price(job()),
    "resume": resume_batch,
    "save": lambda given: given.kling.save(given.ended.id, given.folder),
    "submit": lambda given: given.kling.submit(job(image=png())),
    "upload": lambda given: given.kling.upload(png()),
    "usage": lambda given: given.kling.usage(YESTERDAY, datetime.now(UTC)),
    "wait": lambda given: given.kling.wait(given.ended.id),
    "webhook_receiver": lambda given: given.kling.webhook_receiver(),
    "webhook_secret": lambda given: given.kling.webhook_secret(),
}
"""A call of each method of a session that waits."""


def test_every_method_is_called() -> None:
    methods = inspect.getmembers(KlingSession, inspect.isfunction)
    waiting = {name for name, each in methods if inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)}
    assert set(CALLS) == {name for name in waiting if not name.startswith("_")} | {"batch", "resume"}


@pytest.mark.parametrize("interrupted", [False, True], ids=["cancelled", "interrupted"])
@pytest.mark.parametrize("name", CALLS)
async def test_no_await_shows_a_secret(name: str, interrupted: bool, tmp_path: Path) -> None:  # noqa: FBT001 -- parametrized
    async with serving(tmp_path) as site:
        for number in range(1, 1000):
            async with site.given(tmp_path / str(number)) as given:
                interrupt = KeyboardInterrupt() if interrupted else None
                error = await error_of(stopped_at(number, CALLS[name](given), interrupt))
            if error is None:
                break
            assert isinstance(error, KeyboardInterrupt if interrupted else asyncio.CancelledError)
            assert not leaks(error, site.secrets), f"stopped at await {number}"
        assert number > 1


TROUBLES: dict[str, faults.Fault] = {
    "refused": faults.Status(401, message=f"Invalid token: Bearer {KEY}"),
    "refused in HTML": faults.Status(403, body=f"<p>The key {KEY} is not known</p>"),
    "failing": faults.Status(500, message=f"Cannot authenticate {KEY}"),
    "refused by code": faults.EnvelopeCode(400, message=f"Invalid token: Bearer {KEY}"),
    "something else": faults.Status(200, body={"code": 200, "data": {"id": None, "upload": {}, "headers": [KEY]}}),
    "cut off": faults.CutBody(10),
    "dropped": faults.Drop(),
}
WITHOUT_REQUEST = {"deliver", "resume", "aclose"}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_no_error_shows_a_secret(trouble: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as site:
        site.emulator.faults.add("*", TROUBLES[trouble], times=None)
        for name in sorted(CALLS.keys() - WITHOUT_REQUEST):
            (tmp_path / name).mkdir()
            async with site.session() as kling:
                error = await error_of(CALLS[name](Given(kling, site.ended, tmp_path / name)))
            assert isinstance(error, KlingError), name
            assert not leaks(error, site.secrets), name
            assert not shows(pickle.dumps(error), site.secrets), name


async def test_failed_prediction_does_not_show_the_key_that_it_quotes(tmp_path: Path) -> None:
    async with serving(tmp_path) as site, site.session(images="inline") as kling:
        site.emulator.faults.add("submit", faults.FailTask(message=f"Cannot read with key {KEY}", seconds=1))
        error = await error_of(kling.generate(job()))
        assert isinstance(error, PredictionFailedError)
        assert error.prediction is not None
        assert error.prediction.raw["error"] == "Cannot read with key ***"
        assert not leaks(error, site.secrets)
        assert not shows(pickle.dumps(error), site.secrets)


async def test_timeouts_and_groups_show_no_secret(tmp_path: Path) -> None:
    async def late(kling: KlingSession) -> None:
        async with asyncio.timeout(60):
            await kling.balance()

    async def beside_a_failure(kling: KlingSession, asked: Callable[[], bool]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(late(kling))
            await leaps.until(asked)
            raise ValueError

    async with serving(tmp_path) as site, site.session(timeouts=Timeouts(read=3600)) as kling:
        rule = site.emulator.faults.add("balance", faults.Delay(10**9), times=None)
        waiting = asyncio.create_task(error_of(late(kling)))
        await leaps.until(lambda: rule.hits == 1)
        leaps.leap(60)
        timeout = await waiting
        assert isinstance(timeout, TimeoutError)
        group = await error_of(beside_a_failure(kling, lambda: rule.hits == 2))
        assert isinstance(group, ExceptionGroup)
        for error in (timeout, group):
            assert not leaks(error, site.secrets)


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://user:{PASSWORD}@127.0.0.1:1",
        f"http:/user:{PASSWORD}@127.0.0.1:1",
        f"user:{PASSWORD}@127.0.0.1:1",
        f"socks5://user:{PASSWORD}@127.0.0.1:1",
        f"http://user:{PASSWORD}@[::1",
    ],
    ids=["out of order", "misspelt", "without a scheme", "of another kind", "no URL"],
)
async def test_error_of_a_proxy_does_not_show_its_password(proxy: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    clock = ScaledClock(1000)

    async def asked() -> None:
        async with KlingSession(KEY, base_url="http://127.0.0.1:1", proxy=secrets.pop(), clock=clock) as kling:
            await kling.balance()

    secrets = [proxy]
    error = await error_of(asked())
    assert isinstance(error, ConnectFailedError | ConfigurationError)
    assert not leaks(error, [PASSWORD])
    assert PASSWORD not in caplog.text
