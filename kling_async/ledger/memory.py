"""The ledger in memory: jobs under way, forgotten at their end."""

from __future__ import annotations

from collections import OrderedDict
from decimal import Decimal
from typing import TYPE_CHECKING

from kling_async._core.content import Content, Identity, checked_identity, content_in
from kling_async._core.states import Known, Row, State
from kling_async.errors import KeyReusedError, LedgerError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from kling_async._core.sender import Sender
    from kling_async._core.states import Entry

MAX_KNOWN_IDS = 30_000
"""Submitted ids that are kept to tell orphans from: more than an account starts while one submission is in doubt."""


class MemoryLedger:
    """A ledger in memory. It has only jobs under way: its size follows `max_in_flight`. It ends with the process."""

    durable = False

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}
        self._submitted: OrderedDict[str, Known] = OrderedDict()
        self._senders: dict[str, Sender] = {}
        self._identities: dict[str, Identity] = {}
        self._open = False

    async def open(self) -> None:
        """Open it for one session.

        Raises:
            LedgerError: Another session has it.
        """
        if self._open:
            raise LedgerError("the ledger is open in another session", advice="give every session its own")
        self._open = True

    async def claim(self, batch: str, key: str, *, content: Content, model: str, at: float) -> Row:
        """Return the row of a job that is under way, or a new one."""
        row = self._rows.get((batch, key))
        if row is None:
            row = Row(
                batch=batch,
                key=key,
                digest=content.digest,
                model=model,
                state=State.PENDING,
                updated_at=at,
                job=content.text,
                files=content.files,
                labels=content.labels,
                caller=content.caller,
                priority=content.priority,
                frames=content.frames,
            )
            self._rows[batch, key] = row
        elif row.digest != content.digest:
            raise KeyReusedError(key)
        return row

    async def identity(self, batch: str, *, ignored: tuple[str, ...] | None = None) -> Identity:
        """Return the identity of a batch; a new batch gets the newest rule, and ignores these parameters.

        Raises:
            ConfigurationError: The batch ignores other parameters.
        """
        identity = self._identities.setdefault(batch, Identity(ignored=ignored or ()))
        return checked_identity(identity, batch, ignored)

    async def ignored_parameters(self) -> list[tuple[str, ...]]:
        """Return the sets of parameters that batches ignore, each once, without the empty one."""
        return [*{identity.ignored for identity in self._identities.values() if identity.ignored}]

    async def find(self, batch: str, key: str) -> tuple[Row, Content] | None:
        """Return the row of a job that is under way, or None."""
        row = self._rows.get((batch, key))
        return None if row is None else (row, content_in(row))

    async def owner(self, prediction_id: str) -> Row | None:
        """Return None: ended jobs are forgotten."""
        del prediction_id
        return None

    async def paid_elsewhere(self, batch: str, key: str, *, digests: Collection[str], any_key: bool) -> list[Row]:
        """Return none: ended jobs are forgotten."""
        del batch, key, digests, any_key
        return []

    def unclaim(self, batch: str, key: str) -> None:
        """Remove a pending row."""
        row = self._rows.get((batch, key))
        if row is not None and row.state is State.PENDING:
            del self._rows[batch, key]

    async def record(self, entry: Entry) -> Row:
        """Record one step; an ended job is removed."""
        name = (entry.batch, entry.key)
        row = self._rows.get(name)
        if row is None:
            raise LedgerError(f"job {entry.key} was never claimed", key=entry.key)
        try:
            row = row.after(entry)
        except ValueError as error:
            raise LedgerError(str(error), key=entry.key) from None
        if row.state is State.SUBMITTED and row.prediction_id:
            self._submitted[row.prediction_id] = Known(row.fingerprint, row.model, row.sender)
            if len(self._submitted) > MAX_KNOWN_IDS:
                self._submitted.popitem(last=False)
        if not row.state.ended or row.state is State.COMPLETED:
            self._rows[name] = row
        else:
            del self._rows[name]
        return row

    def note(self, entry: Entry) -> None:
        """Remove an ended job."""
        row = self._rows.get((entry.batch, entry.key))
        if row is not None:
            self._rows.pop((entry.batch, entry.key))

    async def rows(self, states: Iterable[State]) -> list[Row]:
        """Return the rows under way in these states."""
        wanted = frozenset(states)
        return [row for row in self._rows.values() if row.state in wanted]

    async def keys(self, batch: str, states: Iterable[State]) -> list[str]:
        """Return the keys of a batch's jobs under way in these states."""
        return [row.key for row in await self.rows(states) if row.batch == batch]

    async def spent(self, batch: str | None, *, caller: str | None = None) -> Decimal:
        """Return 0: there was no earlier process."""
        del batch, caller
        return Decimal(0)

    async def uploaded(self, digest: str, now: float) -> str | None:
        """Return None: the session itself keeps the URLs of its uploads."""
        del digest, now
        return None

    def note_upload(self, digest: str, url: str, expires_at: float) -> None:
        """Do nothing: the session itself keeps the URLs of its uploads."""

    async def known(self, prediction_ids: Iterable[str]) -> dict[str, Known]:
        """Return what is known of those of the ids that this session has submitted."""
        return {id_: self._submitted[id_] for id_ in prediction_ids if id_ in self._submitted}

    async def senders(self) -> list[Sender]:
        """Return the senders of its jobs."""
        return [*self._senders.values()]

    async def put_sender(self, sender: Sender) -> None:
        """Record a sender."""
        self._senders[sender.id] = sender

    async def aclose(self) -> None:
        """Release it for another session."""
        self._open = False
