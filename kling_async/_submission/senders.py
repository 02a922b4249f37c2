"""Senders of the session's account: only their jobs can be settled by its history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from kling_async._core.sender import UNRECORDED, Sender, new_sender, same_account
from kling_async.providers.protocol import key_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from kling_async._core.states import Row
    from kling_async.ledger import Ledger
    from kling_async.providers import Provider


class Senders:
    """The senders that a ledger has, and those of them that are of the session's account.

    Args:
        ledger: Has the senders.
        provider: Sends the session's requests.

    Attributes:
        own: The session's sender.
        ids: Ids of all senders of its account; `UNRECORDED` is one when earlier versions are known to have used it.
    """

    own: Sender
    ids: frozenset[str]

    def __init__(self, ledger: Ledger, provider: Provider) -> None:
        self._ledger = ledger
        self._provider = provider
        self._all: dict[str, Sender] = {}

    async def open(self) -> bool:
        """Find the session's sender in the ledger, or record it; return whether it was there.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        provider, origin, key = self._provider.name, self._provider.base_url.rstrip("/"), key_of(self._provider)
        senders = await self._ledger.senders()
        found = next((sender for sender in senders if sender.is_of(provider, origin, key)), None)
        self.own = found or new_sender(provider, origin, key)
        if found is None:
            await self._ledger.put_sender(self.own)
            senders.append(self.own)
        self._update(senders)
        return found is not None

    def include(self, row: Row) -> bool:
        """Return whether the session's account sent a job."""
        return (row.sender or UNRECORDED) in self.ids

    def exclude(self, row: Row) -> bool:
        """Return whether another account sent a job: neither the session's, nor one that was not recorded."""
        return row.sender is not None and not self.include(row)

    async def learn(self, row: Row) -> None:
        """Read the senders again if one is not known that sent a job: another process may have recorded it since.

        Processes that open a new ledger at the same time record a sender each, of the same account.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        if row.sender is not None and row.sender not in self._all:
            await self.refresh()

    async def refresh(self) -> None:
        """Read the senders again.

        Raises:
            LedgerError: The ledger cannot be read.
        """
        self._update(await self._ledger.senders())

    async def add(self, ids: Collection[str]) -> None:
        """Record that senders are of the session's account: its history shows theirs, or the user says so.

        Args:
            ids: Ids of senders.

        Raises:
            LedgerError: The ledger cannot be written.
        """
        senders = {sender.id: sender for sender in await self._ledger.senders()}
        if UNRECORDED in ids:
            senders.setdefault(UNRECORDED, Sender(UNRECORDED, "", "", "", UNRECORDED))
        for id_ in set(ids) - same_account(senders.values(), senders[self.own.id]):
            for other in same_account(senders.values(), senders[id_]):
                senders[other] = attrs.evolve(senders[other], same_as=senders[self.own.id].same_as)
                await self._ledger.put_sender(senders[other])
        self._update(senders.values())

    def describe(self, row: Row) -> str:
        """Return the account that sent a job, as a clause for error texts."""
        sender = self._all.get(row.sender or UNRECORDED)
        if sender is None or sender.id == UNRECORDED:
            return "by a version of kling_async that did not record the account"
        return f"by another account ({sender.label})"

    def _update(self, senders: Iterable[Sender]) -> None:
        self._all = {sender.id: sender for sender in senders}
        key, own = key_of(self._provider), self.own
        same = [sender for sender in self._all.values() if sender.is_of(own.provider, own.origin, key)]
        self.ids = frozenset().union(*(same_account(self._all.values(), sender) for sender in same))
