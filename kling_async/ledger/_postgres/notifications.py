"""Notifications between the processes of an account: that rows have changed, and what webhooks have reported."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from contextlib import aclosing
from hashlib import sha256
from typing import TYPE_CHECKING, TypeAlias

import psycopg

from kling_async._core.prediction import Prediction, Status
from kling_async._log import log

from .connection import Address, Connection, Database, fetch

if TYPE_CHECKING:
    from collections.abc import Callable

Update: TypeAlias = "tuple[Prediction, str | None]"
"""A prediction as a webhook reported it, and the digest of the token in the webhook's URL."""

MAX_PAYLOAD_BYTES = 7_999
"""Length of a notification that PostgreSQL takes."""
MAX_UPDATES = 10_000
"""Webhook updates of other processes that are kept until they are taken."""


def channel_of(account: str) -> str:
    """Return the name of the channel of an account."""
    return f"kling_{sha256(account.encode()).hexdigest()[:16]}"


async def notify(connection: Connection, account: str, payload: str = "") -> None:
    """Notify the account's processes when the transaction commits.

    Args:
        connection: The connection.
        account: Name of the account.
        payload: Webhook update made by `encode`; empty only says that rows have changed.
    """
    await fetch(connection, "SELECT pg_notify(%s, %s)", [channel_of(account), payload])


def encode(worker_id: str, prediction: Prediction, token_hash: str | None) -> str | None:
    """Return a webhook update as a payload; None when it is too long, and others poll for it instead."""
    payload = json.dumps(
        {
            "by": worker_id,
            "token": token_hash,
            "id": prediction.id,
            "model": prediction.model,
            "status": prediction.status.value,
            "raw_status": prediction.raw_status,
            "outputs": prediction.outputs,
            "error": prediction.error,
            "code": prediction.code,
        }
    )
    return payload if len(payload) <= MAX_PAYLOAD_BYTES else None


def decode(payload: str, *, worker_id: str) -> Update | None:
    """Return the webhook update of another process; None when the payload has none, or it is this worker's own."""
    if not payload:
        return None
    try:
        fields = json.loads(payload)
        by, token = fields.pop("by"), fields.pop("token")
        prediction = Prediction(**{**fields, "status": Status(fields["status"]), "outputs": tuple(fields["outputs"])})
    except (LookupError, TypeError, ValueError):
        # Of a later version, or of another program.
        return None
    return None if by == worker_id else (prediction, token)


class Listener:
    """Listens to the notifications of an account, on a connection of its own.

    Args:
        address: Address of the database.
        account: Name of the account.
        poll: Seconds that a wait takes at most: a notification may get lost.
        worker_id: Returns the id of this worker.

    Attributes:
        news: Event set at the next notification that rows have changed; then there is another one.
    """

    def __init__(self, address: Address, account: str, *, poll: float, worker_id: Callable[[], str]) -> None:
        self.news = asyncio.Event()
        self._address = address
        self._account = account
        self._poll = poll
        self._worker_id = worker_id
        self._database = Database(address, name="kling_async news", answer_within=10.0)
        self._updates: deque[Update] = deque(maxlen=MAX_UPDATES)
        self._updated = asyncio.Event()

    async def run(self) -> None:
        """Listen until this is cancelled."""
        while True:
            try:
                connection = await self._database.connect()
                await fetch(connection, f"LISTEN {channel_of(self._account)}")
                self._wake()
                async with aclosing(connection.notifies()) as notifications:
                    async for notification in notifications:
                        update = decode(notification.payload, worker_id=self._worker_id())
                        if update is None:
                            self._wake()
                        else:
                            self._updates.append(update)
                            self._updated.set()
            except (psycopg.Error, OSError) as trouble:
                log.info("news of the ledger %s: %s", self._address, self._address.redact(trouble))
            finally:
                await self._database.aclose()
            await asyncio.sleep(self._poll)

    async def wait(self, event: asyncio.Event) -> None:
        """Wait for an event, at most `poll` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._poll):
                await event.wait()

    async def updates(self) -> list[Update]:
        """Return the webhook updates since the last call; waits for some, at most `poll` seconds."""
        await self.wait(self._updated)
        updates = list(self._updates)
        self._updates.clear()
        self._updated.clear()
        return updates

    def _wake(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()
