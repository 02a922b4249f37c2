"""Several ledgers as one: batches that have a ledger of their own, and the session's for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async._core.errors import ConfigurationError
from kling_async._core.states import State
from kling_async.ledger import SharedLedger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from decimal import Decimal

    from kling_async._core.budget import Cap
    from kling_async._core.catalogue import Level
    from kling_async._core.content import Content
    from kling_async._core.prediction import Prediction
    from kling_async._core.states import Entry, Row
    from kling_async.ledger import Ledger


class Ledgers:
    """The ledgers of a session: what is asked about a job goes to its batch's.

    Args:
        default: The session's ledger.
    """

    def __init__(self, default: Ledger) -> None:
        self._default = default
        self._open = False
        self._of: dict[str, Ledger] = {}
        # Looking at a protocol's every method takes longer than most of what is asked of a ledger.
        self._shared: dict[Ledger, SharedLedger | None] = {}
        self._which: dict[Ledger, object] = {}

    @property
    def durable(self) -> bool:
        """Whether the session's survives the process."""
        return self._default.durable

    @property
    def all(self) -> list[Ledger]:
        """Every ledger, once."""
        return list(dict.fromkeys([self._default, *self._of.values()]))

    def of(self, batch: str) -> Ledger:
        """The ledger of a batch."""
        return self._of.get(batch, self._default)

    def which(self, batch: str) -> object:
        """What is the same for every session whose ledger of the batch has the same rows."""
        ledger = self.of(batch)
        if ledger not in self._which:
            self._which[ledger] = identity(ledger)
        return self._which[ledger]

    async def open(self) -> None:
        """Make the session's ledger ready."""
        await self._default.open()
        self._open = True

    async def attach(self, batch: str, ledger: Ledger) -> bool:
        """Give a batch a ledger of its own, opened; a file that is open already is used as it is. One at a time.

        Returns:
            Whether it was not this batch's before.

        Raises:
            ConfigurationError: The batch has another one.
            LedgerError: It cannot be used.
        """
        same = next((there for there in self.all if identity(there) == identity(ledger)), None)
        if same is not None and self.of(batch) is same:
            return False
        # Steps of what is under way must not go to another ledger than their intents.
        if batch in self._of or await self._default.keys(batch, State):
            raise ConfigurationError(f"ledger: the batch {batch!r} has another ledger in this session already")
        if same is None:
            await ledger.open()
        self._of[batch] = same or ledger
        return True

    async def aclose(self) -> None:
        """Close all of them, but what was never opened here: another session may have it."""
        if not self._open:
            return
        failures: list[Exception] = []
        for ledger in self.all:
            try:
                await ledger.aclose()
            except Exception as error:  # noqa: BLE001 -- the others are closed all the same
                failures.append(error)
        if failures:
            raise failures[0]

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """The row of a job, made when it is new."""
        return await self.of(batch).claim(batch, key, content=content, model=model, at=at)

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """The row of a job with its content, or None."""
        return await self.of(batch).find(batch, key)

    def unclaim(self, batch: str, key: str) -> None:
        """The job is not going to be submitted now."""
        self.of(batch).unclaim(batch, key)

    async def record(self, entry: Entry) -> Row:
        """Write one step down."""
        return await self.of(entry.batch).record(entry)

    def note(self, entry: Entry) -> None:
        """Write one step down soon."""
        self.of(entry.batch).note(entry)

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """The keys of a batch's jobs in these states."""
        return await self.of(batch).keys(batch, states)

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """The rows in these states: of the session's ledger all, of a batch's own those of the batch."""
        wanted = list(states)
        found: list[Row] = []
        for ledger in self.all:
            rows = await ledger.rows(wanted)
            found += [row for row in rows if self.of(row.batch) is ledger]
        return found

    async def strangers(self, states: Iterable[State]) -> list[Row]:
        """The rows in these states of batches that the session does not run, in the ledgers of those that it does."""
        wanted = list(states)
        found: list[Row] = []
        for ledger in self.all:
            rows = await ledger.rows(wanted)
            found += [row for row in rows if self.of(row.batch) is not ledger]
        return found

    async def left(self, states: Iterable[State], batch: str | None) -> list[Row]:
        """The rows in these states, of a batch or of all, that an earlier process left: in a ledger of our own, all."""
        shared = self.shared(batch)
        if shared is not None:
            return await shared.left(states, batch)
        ledger = self._default if batch is None else self.of(batch)
        return [row for row in await ledger.rows(states) if batch in {None, row.batch}]

    def tell(self, prediction: Prediction, token_hash: str | None) -> None:
        """Let the sessions of other processes know what a webhook told this one."""
        for batch in (None, *self._of):
            ledger = self.shared(batch)
            if ledger is not None:
                ledger.tell(prediction, token_hash)

    def shared(self, batch: str | None) -> SharedLedger | None:
        """The ledger of a batch, or the session's, when several processes may write it."""
        ledger = self._default if batch is None else self.of(batch)
        if ledger not in self._shared:
            self._shared[ledger] = ledger if isinstance(ledger, SharedLedger) else None
        return self._shared[ledger]

    async def admit(
        self, batch: str, key: str, level: Level, price: Decimal | None = None, caps: Sequence[Cap] = ()
    ) -> None:
        """Return when the account has a slot and the money for the job, where several processes share it."""
        shared = self.shared(batch)
        if shared is not None:
            await shared.admit(batch, key, level, price, caps)

    def fence(self, batch: str, key: str) -> None:
        """Make sure that a job is still in this process's hand, where several share it."""
        shared = self.shared(batch)
        if shared is not None:
            shared.fence(batch, key)

    async def spent(self, batch: str | None) -> Decimal:
        """USD that a batch, or everything, has cost so far."""
        if batch is not None:
            return await self.of(batch).spent(batch)
        own = [await ledger.spent(name) for name, ledger in self._of.items() if ledger is not self._default]
        return sum(own, await self._default.spent(None))

    async def owner(self, prediction_id: str) -> Row | None:
        """The row of the job that the prediction is of, or None."""
        for ledger in self.all:
            row = await ledger.owner(prediction_id)
            if row is not None:
                return row
        return None

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, tuple[str | None, str]]:
        """Those of the ids that any of them has."""
        ids = list(prediction_ids)
        known: dict[str, tuple[str | None, str]] = {}
        for ledger in self.all:
            known |= await ledger.known(ids)
        return known

    async def uploaded(self, digest: str, now: float) -> str | None:
        """The URL of an image that is still there, or None."""
        for ledger in self.all:
            url = await ledger.uploaded(digest, now)
            if url is not None:
                return url
        return None

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """An image was uploaded; each of them may be resumed without the others."""
        for ledger in self.all:
            ledger.note_upload(digest, url, expires_at)


def identity(ledger: Ledger) -> object:
    """What is the same for ledgers that have the same rows."""
    if not ledger.durable:
        return ledger
    from kling_async.ledger.sqlite import SQLiteLedger  # noqa: PLC0415 -- many sessions have no file

    return ledger.path.absolute().resolve() if isinstance(ledger, SQLiteLedger) else ledger
