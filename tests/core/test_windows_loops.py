"""The default event loop of Windows, which psycopg cannot use: the commands set another one, and the ledger says so."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import pytest

from kling_async import LedgerError
from kling_async.cli.ledgers import LedgerName
from kling_async.ledger.postgres import PostgresLedger

URL = "postgresql://me:secret@127.0.0.1:9/none"


class ProactorEventLoop(asyncio.SelectorEventLoop):
    """Stands for the class of this name, which exists on Windows alone."""


class SelectorPolicy(asyncio.DefaultEventLoopPolicy):
    """Stands for `WindowsSelectorEventLoopPolicy`."""


@pytest.fixture
def policy() -> Iterator[None]:
    before = asyncio.get_event_loop_policy()
    yield
    asyncio.set_event_loop_policy(before)


async def opened() -> None:
    await PostgresLedger(URL).open()


def test_ledger_refuses_the_loop_at_once() -> None:
    with (
        asyncio.Runner(loop_factory=ProactorEventLoop) as runner,
        pytest.raises(LedgerError, match="ProactorEventLoop, the default of Windows; nothing was sent") as caught,
    ):
        runner.run(opened())
    assert "asyncio.SelectorEventLoop" in caught.value.advice
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize(("platform", "given", "is_set"), [("win32", URL, True), ("win32", "run.db", False)])
def test_commands_set_a_loop_for_databases_on_windows(
    platform: str, given: str, *, is_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio, "WindowsSelectorEventLoopPolicy", SelectorPolicy, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", platform)
        LedgerName.parse(given)
    assert isinstance(asyncio.get_event_loop_policy(), SelectorPolicy) is is_set


@pytest.mark.usefixtures("policy")
def test_commands_leave_the_loop_elsewhere() -> None:
    before = asyncio.get_event_loop_policy()
    LedgerName.parse(URL)
    assert asyncio.get_event_loop_policy() is before
