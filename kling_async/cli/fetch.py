"""`kling-async fetch`: videos of predictions that are paid for already."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import attrs
from rich.text import Text

from kling_async._session.session import KlingSession
from kling_async.errors import ConfigurationError, KlingError

from .interrupts import Exit, interruptible, took_interrupt
from .ledgers import LedgerName
from .output import clean, console, pretty, route_logs, say, show_error, size
from .places import place, plain
from .progress import counted
from .reading import rows_of
from .results import tell_unsaved, unfetched

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from kling_async._core.prediction import SavedFile

_AT_ONCE: Final = 16


@attrs.frozen(kw_only=True)
class FetchOptions:
    """What the user asked for; see the help of the command."""

    ids: Sequence[str]
    out: str = attrs.field(converter=plain)
    ledger: LedgerName | None = None
    provider: str = "wavespeed"
    deadline: float | None = None
    debug: bool = False


def fetch(options: FetchOptions) -> Exit:
    """Wait for predictions and save their videos, under the keys that the ledger has for them."""
    to = console()
    place(options.out)
    named = options.ledger or LedgerName(Path(options.out) / "run.db")
    there = named.exists()
    if options.ledger is not None and not there:
        raise ConfigurationError(f"there is no ledger {named}", advice="name the ledger of a run")
    if options.ids:
        keys = {row.prediction_id: row.key for row in rows_of(named) if row.prediction_id} if there else {}
        wanted = {prediction_id: keys.get(prediction_id, prediction_id) for prediction_id in options.ids}
    elif there:
        wanted = {prediction_id: row.key for prediction_id, row in unfetched(named).items()}
    else:
        raise ConfigurationError(
            f"which predictions? there is no ledger {named}", advice="give ids, or the --ledger of a run"
        )
    if not wanted:
        say(to, f"Nothing to fetch: {named} has no paid prediction without a video.")
        return Exit.WELL
    session = KlingSession(provider=options.provider, ledger=named.made() if there else None, level="ultra")
    route_logs(to, debug=options.debug)
    return interruptible(lambda: _Fetch(to, options, session, wanted, named if there else None).run())


class _Fetch:
    """One run of the command."""

    def __init__(
        self,
        to: Console,
        options: FetchOptions,
        session: KlingSession,
        wanted: dict[str, str],
        ledger: LedgerName | None,
    ) -> None:
        self._to = to
        self._options = options
        self._session = session
        self._wanted = wanted
        self._ledger = ledger
        self._saved = self._failed = 0
        self._stopped: KlingError | None = None

    async def run(self) -> Exit:
        """Fetch all of them."""
        interrupted = False
        try:
            with self._spinner():
                await self._all()
        except asyncio.CancelledError:
            took_interrupt()
            interrupted = True
        if self._stopped is not None:
            show_error(self._stopped)
        say(self._to, Text(f"{counted(self._saved, 'video')} in {self._options.out}", "bold"))
        if interrupted:
            running = min(len(self._session.left_running), len(self._wanted))
            self._tell_left(running)
            return Exit.INTERRUPTED
        if self._stopped is not None and not self._saved:
            return Exit.NOTHING_DONE
        return Exit.SOME_FAILED if self._failed or self._stopped else Exit.WELL

    def _tell_left(self, running: int) -> None:
        tell_unsaved(
            self._to,
            self._wanted,
            running,
            out=self._options.out,
            ledger=self._ledger,
            provider=self._options.provider,
        )

    def _spinner(self) -> AbstractContextManager[object]:
        said = f"waiting for {counted(len(self._wanted), 'prediction')}"
        if pretty(self._to):
            return self._to.status(said)
        self._to.print(said)
        return anyio.CancelScope()

    async def _all(self) -> None:
        async with self._session, anyio.create_task_group() as tasks:
            limit = anyio.CapacityLimiter(_AT_ONCE)

            async def one(prediction_id: str, key: str) -> None:
                async with limit:
                    try:
                        self._done(prediction_id, key, await self._one(prediction_id, key))
                    except KlingError as error:
                        if error.account_wide:
                            self._stopped = error
                            tasks.cancel_scope.cancel()
                        else:
                            self._broke(key, error)

            for prediction_id, key in tuple(self._wanted.items()):
                tasks.start_soon(one, prediction_id, key)

    async def _one(self, prediction_id: str, key: str) -> SavedFile:
        prediction = await self._session.wait(prediction_id, deadline=self._options.deadline)
        return await self._session.save(attrs.evolve(prediction, key=key), place(self._options.out))

    def _done(self, prediction_id: str, key: str, saved: SavedFile) -> None:
        self._saved += 1
        self._wanted.pop(prediction_id)
        self._to.print(
            Text.assemble(("✓ ", "green"), clean(key), "  ", (f"{saved} ({size(saved.bytes)})", "dim")),
            soft_wrap=True,
        )

    def _broke(self, key: str, error: KlingError) -> None:
        self._failed += 1
        self._to.print(Text.assemble(("✗ ", "red"), clean(key), "  ", (clean(str(error)), "red")), soft_wrap=True)
