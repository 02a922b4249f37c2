"""The engine of a session: build, open and close its parts."""

from __future__ import annotations

import asyncio
import random
import sys
from functools import cached_property
from typing import TYPE_CHECKING

import anyio
import attrs

from kling_async._budget.reservations import Reservations
from kling_async._core.answers import Kind
from kling_async._core.prediction import Prediction
from kling_async._core.read_rate import default_ceiling
from kling_async._core.states import State
from kling_async._core.statistics import SessionStatistics
from kling_async._http.reads import ServiceReads
from kling_async._images.uploads import Images
from kling_async._observers import Observers
from kling_async._submission.claims import Claims
from kling_async._submission.doubts import Doubts
from kling_async._submission.drain import Drain
from kling_async._submission.history import History
from kling_async._submission.running import RunningPredictions
from kling_async._submission.senders import Senders
from kling_async._submission.service_time import ServiceTime
from kling_async._submission.submitter import Submitter
from kling_async._submission.unknown import UnknownPredictions
from kling_async._tasks import CriticalTasks
from kling_async._turns import Turns, download_turns
from kling_async._watching.watcher import Watcher
from kling_async.errors import LedgerError, SessionClosedError, Spent
from kling_async.ledger import SharedLedger, ledger_identity, open_ledger
from kling_async.limits import Callers, Gate, Slots, StartsPerWindow

from .job_runner import JobRunner
from .keys import ContentReader
from .options import WINDOW_SLACK_S, seen_of
from .seen import SeenJobs
from .takeover import Takeover
from .videos import Frames

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from kling_async._core.budget import Budget
    from kling_async._core.seen import Seen
    from kling_async._core.statistics import Concurrency
    from kling_async._core.transport import Transport
    from kling_async._loops import LoopBinding
    from kling_async.storage._saver import Saver

    from .options import SessionOptions


class SessionEngine:
    """The parts of an open session, shared by all of its views.

    Args:
        options: The session's options.
        transport: Sends requests.
        loop: The event loop that the session is opened in.

    Attributes:
        loop: The event loop that the session was opened in.
        runner: Runs jobs.
        takeover: Takes over jobs that other processes left.
        watcher: Polls predictions.
        ledger: Records intents, paid ids and results.
        callers: Weights and limits of the callers.
        senders: The senders of the session's account.
        no_drain: The drain of all jobs outside of batches: nobody drains it, and one of its own costs memory.
        left_running: After closing: the predictions that still ran.
        full_windows: Number of batches whose input waits until an outcome is consumed.
    """

    def __init__(self, options: SessionOptions, transport: Transport, loop: LoopBinding) -> None:
        self.loop = loop
        self._options = options
        self._transport = transport
        self.provider = provider = options.provider
        self.clock = clock = options.clock
        self.observe = observe = Observers(options.observers)
        self.ledger = ledger = open_ledger(options.ledger)
        shared = ledger if isinstance(ledger, SharedLedger) else None
        self.no_drain = Drain()
        self.full_windows = 0
        self.left_running: tuple[Prediction, ...] = ()
        self._opened = False
        self._closing = False
        self._entering = anyio.Lock()
        self._critical = critical = CriticalTasks()
        rng = random.Random()  # noqa: S311 -- jitter

        self.level = attrs.evolve(
            options.level,
            in_flight=options.max_in_flight,
            # A custom rate limiter counts the starts itself.
            starts=options.level.starts if options.rate_limiter is None else sys.maxsize,
            per=options.level.per + WINDOW_SLACK_S,
        )
        self.callers = Callers(options.callers)
        self.slots = Slots(options.max_in_flight, adaptive=options.adaptive, callers=self.callers)
        limiter = options.rate_limiter or StartsPerWindow(self.level.starts, self.level.per, clock=clock)
        self.gate = Gate(limiter, self.slots, clock)

        self._saving = download_turns(options.max_saving, clock)
        self.reads = ServiceReads(transport, clock, rng.random, provider)
        self.images = Images(
            transport,
            provider,
            clock,
            limit=options.max_uploads,
            inline=options.images == "inline",
            fit=options.fit,
            background=options.background,
            verify=options.verify,
            memory=ledger,
        )
        self.contents = ContentReader(ledger, options.ignored_parameters)
        self.money = Reservations(
            provider=provider,
            clock=clock,
            reads=self.reads,
            ledger=ledger,
            ledger_identity=ledger_identity(ledger),
            budget=options.budget,
            callers=self.callers,
        )
        self.watcher = Watcher(
            transport=transport,
            provider=provider,
            clock=clock,
            policy=options.watch,
            ceiling=default_ceiling(options.max_in_flight)
            if options.max_reads_per_second is None
            else options.max_reads_per_second,
            rng=rng,
            observe=observe,
            forget_after=options.forget_after,
        )
        self._running = RunningPredictions(watcher=self.watcher, slots=self.slots, ledger=ledger, clock=clock)
        self._claims = Claims(ledger=ledger, money=self.money, clock=clock, observe=observe)
        self.senders = senders = Senders(ledger, provider)
        times = ServiceTime(clock)
        self._submitter = Submitter(
            transport=transport,
            provider=provider,
            ledger=ledger,
            shared=shared,
            senders=senders,
            times=times,
            gate=self.gate,
            slots=self.slots,
            turns=Turns(self.slots.unanswered, clock),
            window=self.slots.doubts,
            clock=clock,
            observe=observe,
        )
        history = History(provider, self.reads, clock, rng)
        self._unknown = unknown = UnknownPredictions(ledger, history)
        doubts = Doubts(
            ledger=ledger,
            senders=senders,
            times=times,
            history=history,
            critical=critical,
            money=self.money,
            running=self._running,
            claims=self._claims,
            clock=clock,
            on_uncertain=options.on_uncertain,
            grace=options.grace,
            sole_user=options.sole_user,
        )
        self.runner = JobRunner(
            provider=provider,
            ledger=ledger,
            shared=shared,
            senders=senders,
            unknown=unknown,
            level=self.level,
            clock=clock,
            rng=rng,
            observe=observe,
            claims=self._claims,
            contents=self.contents,
            seen=SeenJobs(ledger=ledger, clock=clock, reads=self.reads, provider=provider.name),
            images=self.images,
            frames=Frames(
                transport=transport,
                ledger=ledger,
                clock=clock,
                turns=self._saving,
                reads=self.reads,
                max_bytes=options.max_output_bytes,
            ),
            money=self.money,
            slots=self.slots,
            gate=self.gate,
            submitter=self._submitter,
            critical=critical,
            doubts=doubts,
            running=self._running,
            watcher=self.watcher,
            reads=self.reads,
            retry_failed=options.retry_failed,
            webhook_url=options.webhook_url,
        )
        self.takeover = Takeover(
            ledger=ledger,
            shared=shared,
            senders=senders,
            clock=clock,
            submitter=self._submitter,
            doubts=doubts,
            running=self._running,
            watcher=self.watcher,
        )
        self._watching = asyncio.create_task(self.watcher.run(), name="kling-watcher")
        self._sharing: asyncio.Task[None] | None = None

    @cached_property
    def saver(self) -> Saver:
        """Saves videos.

        Raises:
            SessionClosedError: The session is being closed, and none has been made.
        """
        if self._closing:
            raise SessionClosedError("the session was closed before the output was saved", spent=Spent.YES)
        # Imported here: many sessions save nothing.
        from kling_async.storage._saver import Saver  # noqa: PLC0415 -- see above

        return Saver(
            transport=self._transport,
            ledger=self.ledger,
            clock=self.clock,
            observe=self.observe,
            turns=self._saving,
            max_bytes=self._options.max_output_bytes,
        )

    def seen(self, seen: Seen | None) -> Seen:
        """Return what to do with jobs that another batch of the ledger has paid for.

        Args:
            seen: The setting of a batch or worker; None for the session's.

        Raises:
            ConfigurationError: There is no such setting, or the ledger is in memory.
        """
        return seen_of(self._options.seen if seen is None else seen, self.ledger)

    async def open(self) -> None:
        """Open the ledger, and take over its running and uncertain jobs.

        Raises:
            LedgerError: The ledger cannot be used.
            ConfigurationError: The setting `seen` is unknown, or needs a ledger on disk.
        """
        self.seen(None)
        await self.ledger.open()
        self._opened = True
        used = await self.senders.open()
        self._unknown.open(used=used and self.ledger.durable)
        await self.takeover.take_over()
        await self.money.recall(None, claimed=self._claims)
        self._sharing = asyncio.create_task(self.takeover.share(), name="kling-sharing")

    async def enter(self, batch: str, budget: Budget | None) -> None:
        """Count in a batch's budget what the ledger has of the batch.

        Args:
            batch: Name of the batch.
            budget: Its budget; None without one.

        Raises:
            LedgerError: The ledger cannot be used.
        """
        async with self._entering:
            await self.money.recall(batch, budget, claimed=self._claims)

    async def require(self, batch: str) -> None:
        """Raise unless the ledger has jobs of a batch.

        Args:
            batch: Name of the batch.

        Raises:
            LedgerError: It has none.
        """
        if not await self.ledger.keys(batch, State):
            raise LedgerError(
                f"the ledger has no job of a batch named {batch!r}",
                advice="use the name that the batch was run under; kling-async status lists the names",
            )

    async def find(
        self, prediction: Prediction | str, kind: Kind = Kind.CALL, *, within: float | None = None
    ) -> Prediction:
        """Return a prediction: as given if it has ended, as last read if it is watched, else read from the service.

        Args:
            prediction: The prediction or its id.
            kind: `Kind.STATUS` for one that is known to have been accepted.
            within: Seconds for the read. Default: those of the kind.

        Raises:
            ApiError: The service refused.
            TransportError: There was no reply.
        """
        if isinstance(prediction, Prediction) and prediction.status.ended:
            return prediction
        key = prediction.key if isinstance(prediction, Prediction) else None
        prediction_id = prediction.id if isinstance(prediction, Prediction) else prediction
        watched = self.watcher.seen(prediction_id)
        if watched is not None:
            return watched
        found = await self.reads.prediction(prediction_id, kind, within=within)
        return found if key is None else attrs.evolve(found, key=key)

    async def follow(self, prediction: Prediction | str) -> AsyncIterator[Prediction]:
        """Yield a prediction as it is now, and again at each change of status."""
        async for change in self.watcher.follow(await self.find(prediction)):
            yield change

    def statistics(self) -> SessionStatistics:
        """Return counts of running and waiting jobs, of polls, and the USD spent."""
        watch = self.watcher.statistics()
        return SessionStatistics(
            running=watch.watched,
            slots=self.slots.total,
            waiting_for_window=self.full_windows,
            waiting_for_slot=self.slots.waiting,
            waiting_for_rate=self.gate.waiting_for_rate,
            waiting_for_pause=self.gate.waiting_for_pause,
            pause_left=self.gate.pause_left,
            refusals={limit.value: count for limit, count in self.gate.refusals.items()},
            uploads=self.images.turns.statistics(),
            submits=self._submitter.statistics(),
            downloads=self._saving.statistics(),
            connections=self._connections(),
            watch=watch,
            spent=self._running.spent,
        )

    def _connections(self) -> Concurrency | None:
        from kling_async._http.transport import AiohttpTransport  # noqa: PLC0415 -- own transports need no aiohttp

        return self._transport.statistics() if isinstance(self._transport, AiohttpTransport) else None

    async def close(self) -> None:
        """Finish paid requests in flight, and cancel everything else. What still runs is in `left_running` then."""
        self._closing = True
        if self._sharing is not None:
            self._sharing.cancel()
            await asyncio.gather(self._sharing, return_exceptions=True)
        self.slots.close()
        if "saver" in self.__dict__:
            self.saver.close()
        await self._critical.join()
        await self._submitter.record_again()
        self.left_running = self.watcher.close()
        self._watching.cancel()
        await asyncio.wait([self._watching])
        try:
            # A ledger that was not opened here may belong to another session.
            if self._opened:
                await self.ledger.aclose()
        finally:
            if self._options.transport is None:
                await self._transport.aclose()
