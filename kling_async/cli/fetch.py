"""`kling-async fetch`: save the videos of predictions that are already paid for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import attrs
from rich.text import Text

from kling_async._core.text import one_line
from kling_async._session.session import KlingSession
from kling_async.errors import ConfigurationError, KlingError

from .exits import Exit
from .interrupts import interruptible, took_interrupt
from .output import (
    format_size,
    has_cursor,
    make_console,
    plural,
    print_error,
    print_text,
    route_logs,
)
from .places import destination, is_store
from .reading import rows_of
from .rehearsal import clear_names
from .results import print_unsaved, unfetched

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from kling_async._core.prediction import SavedFile

    from .ledgers import LedgerName
    from .options import FetchOptions

_MAX_CONCURRENT_FETCHES: Final = 16


def fetch(options: FetchOptions) -> Exit:
    """Wait for predictions and save their videos, named by the keys that the ledger has for them."""
    console = make_console()
    destination(options.out)
    ledger = options.ledger_name
    ledger.require_real()
    exists = ledger.exists()
    if options.ledger is not None and not exists:
        raise ConfigurationError(f"there is no ledger {ledger}", advice="name the ledger of a run")
    if options.ids:
        keys = {row.prediction_id: row.key for row in rows_of(ledger) if row.prediction_id} if exists else {}
        wanted = {prediction_id: keys.get(prediction_id, prediction_id) for prediction_id in options.ids}
    elif exists:
        wanted = {prediction_id: row.key for prediction_id, row in unfetched(ledger).items()}
    else:
        raise ConfigurationError(
            f"expected ids of predictions or a ledger, got none: there is no ledger {ledger}",
            advice="give ids, or the --ledger of a run",
        )
    if not wanted:
        print_text(console, f"Nothing to fetch: {ledger} has no paid prediction without a video.")
        return Exit.WELL
    # The level limits starts, and nothing is started here.
    session = KlingSession(
        provider=options.provider,
        ledger=ledger.create() if exists else None,
        level="ultra",
        max_reply_bytes=options.max_reply_bytes,
        max_output_bytes=options.max_output_bytes,
    )
    if not is_store(options.out):
        clear_names(console, Path(options.out))
    route_logs(console, debug=options.debug)
    return interruptible(lambda: _Fetch(console, options, session, wanted, ledger if exists else None).run())


class _Fetch:
    """One run of the command."""

    def __init__(
        self,
        console: Console,
        options: FetchOptions,
        session: KlingSession,
        wanted: dict[str, str],
        ledger: LedgerName | None,
    ) -> None:
        self._console = console
        self._options = options
        self._session = session
        self._wanted = wanted
        self._ledger = ledger
        self._saved = self._failed = 0
        self._stopped: KlingError | None = None

    async def run(self) -> Exit:
        """Fetch all predictions and print how many were saved."""
        interrupted = False
        try:
            with self._spinner():
                await self._fetch_all()
        except asyncio.CancelledError:
            took_interrupt()
            interrupted = True
        if self._stopped is not None:
            print_error(self._stopped)
        print_text(self._console, Text(f"{plural(self._saved, 'video')} in {self._options.out}", "bold"))
        if interrupted:
            print_unsaved(
                self._console,
                self._wanted,
                min(len(self._session.left_running), len(self._wanted)),
                out=self._options.out,
                ledger=self._ledger,
                provider=self._options.provider,
            )
            return Exit.INTERRUPTED
        if self._stopped is not None and not self._saved:
            return Exit.NOTHING_DONE
        return Exit.SOME_FAILED if self._failed or self._stopped else Exit.WELL

    def _spinner(self) -> AbstractContextManager[object]:
        text = f"waiting for {plural(len(self._wanted), 'prediction')}"
        if has_cursor(self._console):
            return self._console.status(text)
        self._console.print(text)
        return anyio.CancelScope()

    async def _fetch_all(self) -> None:
        async with self._session, anyio.create_task_group() as tasks:
            limit = anyio.CapacityLimiter(_MAX_CONCURRENT_FETCHES)

            async def one(prediction_id: str, key: str) -> None:
                async with limit:
                    try:
                        self._print_saved(prediction_id, key, await self._fetch(prediction_id, key))
                    except KlingError as error:
                        if error.account_wide:
                            self._stopped = error
                            tasks.cancel_scope.cancel()
                        else:
                            self._print_failed(key, error)

            for prediction_id, key in tuple(self._wanted.items()):
                tasks.start_soon(one, prediction_id, key)

    async def _fetch(self, prediction_id: str, key: str) -> SavedFile:
        prediction = await self._session.wait(prediction_id, deadline=self._options.deadline)
        return await self._session.save(attrs.evolve(prediction, key=key), destination(self._options.out))

    def _print_saved(self, prediction_id: str, key: str, saved: SavedFile) -> None:
        self._saved += 1
        self._wanted.pop(prediction_id)
        file = one_line(f"{saved} ({format_size(saved.bytes)})")
        self._console.print(Text.assemble(("✓ ", "green"), one_line(key), "  ", (file, "dim")), soft_wrap=True)

    def _print_failed(self, key: str, error: KlingError) -> None:
        self._failed += 1
        message = one_line(str(error))
        self._console.print(Text.assemble(("✗ ", "red"), one_line(key), "  ", (message, "red")), soft_wrap=True)
