"""Predictions that the account has and the ledger does not know: a restored backup would pay for them again."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import anyio

from kling_async._core.reconciliation import echoed_fingerprints
from kling_async._core.states import MAYBE_ACCEPTED
from kling_async._log import log
from kling_async.errors import ApiError, TransportError, UnknownPredictionError, UnsupportedError

if TYPE_CHECKING:
    from kling_async.ledger import Ledger

    from .history import History

MAX_READ = 500
"""Newest predictions of the account that are looked at."""


class UnknownPredictions:
    """Compares the jobs that a session is about to send with what its account has and its ledger lacks.

    The history is read once, before the first new job of a batch is sent, and only if the account has written the
    ledger before: a new ledger lacks nothing.

    Args:
        ledger: The session's ledger.
        history: Reads the account's history.
    """

    def __init__(self, ledger: Ledger, history: History) -> None:
        self._ledger = ledger
        self._history = history
        self._lock = anyio.Lock()
        self._due = False
        # Ids by the fingerprints of the input that the service echoes.
        self._inputs: dict[str, str] = {}

    def open(self, *, used: bool) -> None:
        """Decide whether the history has to be read.

        Args:
            used: True if the account has sent jobs of this ledger before.
        """
        self._due = used

    async def check(self, sent: str, key: str) -> None:
        """Return if no unknown prediction has the input of a job.

        Args:
            sent: Fingerprint of the request that is about to be sent.
            key: Key of the job.

        Raises:
            UnknownPredictionError: One has: the ledger is an older copy, or another program has made it.
            LedgerError: The ledger cannot be read.
        """
        if self._due:
            async with self._lock:
                if self._due:
                    await self._read()
                    self._due = False
        if sent in self._inputs:
            raise UnknownPredictionError(
                f"prediction {self._inputs[sent]} of this account has the input of this job, and the ledger does not "
                "know it: the ledger may be an older copy, whose later jobs would be paid for again",
                key=key,
                prediction_id=self._inputs[sent],
            )

    async def _read(self) -> None:
        """Read the newest predictions, and keep those that the ledger does not know."""
        try:
            newest = await self._history.newest(MAX_READ)
        except UnsupportedError:
            return
        except (ApiError, TransportError) as trouble:
            log.warning("the account's history could not be compared with the ledger: %s", trouble.message)
            return
        # Before the ids: what other workers have sent is then in doubt, or its id is known.
        doubts = {row.fingerprint or "" for row in await self._ledger.rows(MAYBE_ACCEPTED)}
        known = await self._ledger.known([prediction.id for prediction in newest])
        for prediction in newest:
            if prediction.id not in known and prediction.input is not None:
                for each in echoed_fingerprints(prediction.input):
                    self._inputs.setdefault(each, prediction.id)
        # They may be the predictions of jobs in doubt, which are settled apart.
        of_doubts = {self._inputs[of_doubt] for of_doubt in doubts & self._inputs.keys()}
        self._inputs = {each: id_ for each, id_ in self._inputs.items() if id_ not in of_doubts}
        later = sum(1 for _ in itertools.takewhile(lambda prediction: prediction.id not in known, newest))
        if later > len(doubts):
            log.warning(
                "the account has %d predictions that are newer than all of this ledger's: others use the key, or the "
                "ledger is an older copy, whose later jobs are paid for again",
                later,
            )
