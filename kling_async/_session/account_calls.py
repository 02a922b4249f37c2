"""What a session asks of the account besides videos: its history, its money, its catalogue. All of it is read."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from kling_async._core.catalogue import Model, find_model
from kling_async._core.prediction import Prediction
from kling_async._http.pagination import MAX_PAGE_SIZE, Paginator
from kling_async.errors import ConfigurationError
from kling_async.providers.protocol import account_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from decimal import Decimal

    from kling_async._core.account import Billing, Page, ServiceModel, ServicePrice, Usage
    from kling_async._core.job import Job
    from kling_async._core.secret import Secret

    from .engine import SessionEngine

log = logging.getLogger("kling_async")

T = TypeVar("T")

When: TypeAlias = datetime | float
"""A time: a datetime with a zone, or seconds since the epoch."""

MAX_SPAN = timedelta(days=31)
"""The longest span that usage is told of (docs: usage)."""


class ServiceCalls(ABC):
    """Calls about the account; `UnsupportedError` is raised where the provider lacks the endpoint (GPTProto: all)."""

    @property
    @abstractmethod
    def _engine(self) -> SessionEngine:
        """The parts of the open session."""

    async def predictions(
        self,
        *,
        model: str | Model | None = None,
        status: str | None = None,
        created_after: When | None = None,
        created_before: When | None = None,
        page_size: int = MAX_PAGE_SIZE,
        limit: int | None = None,
    ) -> AsyncIterator[Prediction]:
        """The account's predictions of the last 7 days, newest first, those of the web playground included.

        Each comes once, and none is lost while others arrive, end or are deleted during the reading; of those that
        arrive meanwhile some may come, out of order. Where the service says what a run was given, that is in
        `Prediction.input`. The ids that were given out are kept until the end.

        ```python
        async for prediction in kling.predictions(status="failed", limit=20):
            print(prediction.id, prediction.error)
        ```

        Args:
            model: Only of this model.
            status: Only with this word of the service: `completed`, `failed`, `processing`, ...
            created_after: Only from then on; a datetime with a zone, or seconds since the epoch.
            created_before: Only up to then.
            page_size: How many are read at once, 1 to 100; after the first page at least 20.
            limit: How many to give at most.

        Raises:
            ConfigurationError: An argument makes no sense.
            UnsupportedError: The provider has no such list.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "predictions")
        size = _page_size(page_size, limit)
        model_id, after = _model_id(model), _moment("created_after", created_after)

        before = _moment("created_before", created_before)

        async def read(page: int, size: int) -> Page[Prediction]:
            request = provider.predictions(
                page=page,
                page_size=size,
                model=model_id,
                status=status,
                created_after=after,
                created_before=before,
            )
            return _told(provider.read_predictions(await reads.send(request)), "predictions")

        paginator = Paginator(read, size=size, key=lambda prediction: prediction.id)
        async for prediction in paginator.items(limit):
            yield prediction

    async def delete(self, predictions: str | Prediction | Iterable[str | Prediction]) -> int:
        """Delete predictions with their outputs. This cannot be undone.

        It is no cancelling: nothing is known of what happens to the work and the price of one that still runs.

        Args:
            predictions: One or many, as predictions or ids. Ids that the service does not know are passed over.

        Returns:
            How many the service says it deleted. When a reply was lost, the request was sent again, and what the first
            one deleted is not counted.

        Raises:
            UnsupportedError: The provider cannot delete.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "delete")
        ids = _ids(predictions)
        deleted = 0
        for start in range(0, len(ids), MAX_PAGE_SIZE):
            reply = await reads.send(provider.delete(ids[start : start + MAX_PAGE_SIZE]))
            deleted += provider.read_deleted(reply)
        return deleted

    async def balance(self) -> Decimal:
        """USD left on the account.

        Raises:
            UnsupportedError: The provider does not tell.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "balance")
        return provider.read_balance(await reads.send(provider.balance()))

    async def models(self) -> tuple[ServiceModel, ...]:
        """The service's own catalogue, all kinds of models. `Model.from_service` makes one runnable.

        Raises:
            UnsupportedError: The provider does not tell.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "models")
        reply = await reads.send(provider.models())
        return _told(provider.read_models(reply), "models").items

    async def price(self, job: Job) -> ServicePrice:
        """What the service asks for this job, with the account's discount. `job.price()` is the catalogue's estimate.

        Images are neither uploaded nor looked at for it.

        Raises:
            UnsupportedError: The provider does not tell.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "price")
        return provider.read_price(await reads.send(provider.price(job)), job)

    async def usage(self, start: When, end: When, model: str | Model | None = None) -> Usage:
        """What was spent in a span of at most 31 days.

        Args:
            start: A datetime with a zone, or seconds since the epoch.
            end: The same.
            model: Only of this model.

        Raises:
            ConfigurationError: The times make no span, or too long a one.
            UnsupportedError: The provider does not tell.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "usage")
        since, until = _time("start", start), _time("end", end)
        if not timedelta(0) <= until - since <= MAX_SPAN:
            raise ConfigurationError(f"usage: expected an end 0 to {MAX_SPAN.days} days after the start")
        request = provider.usage(since, until, model=_model_id(model))
        return provider.read_usage(await reads.send(request))

    async def billings(
        self,
        *,
        kind: Literal["deduct", "refund"] | None = None,
        predictions: str | Prediction | Iterable[str | Prediction] = (),
        model: str | Model | None = None,
        start: When | None = None,
        end: When | None = None,
        page_size: int = MAX_PAGE_SIZE,
        limit: int | None = None,
    ) -> AsyncIterator[Billing]:
        """The lines of the account's bill, newest first: what was deducted, and what was given back.

        Args:
            kind: Only deductions or only refunds.
            predictions: Only of these, as predictions or ids.
            model: Only of this model.
            start: Only from then on; a datetime with a zone, or seconds since the epoch.
            end: Only up to then.
            page_size: How many are read at once, 1 to 100; after the first page at least 20.
            limit: How many to give at most.

        Raises:
            ConfigurationError: An argument makes no sense.
            UnsupportedError: The provider does not tell.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "billings")
        size = _page_size(page_size, limit)
        ids, model_id = _ids(predictions), _model_id(model)
        since, until = _moment("start", start), _moment("end", end)

        async def read(page: int, size: int) -> Page[Billing]:
            request = provider.billings(
                page=page, page_size=size, kind=kind, prediction_ids=ids, model=model_id, start=since, end=until
            )
            return _told(provider.read_billings(await reads.send(request)), "billings")

        paginator = Paginator(
            read, size=size, key=lambda line: line.id or (line.prediction_id, line.kind, line.created_at)
        )
        async for line in paginator.items(limit):
            yield line

    async def webhook_secret(self) -> Secret:
        """The secret that signs this account's webhooks; only its `reveal()` shows it.

        Raises:
            UnsupportedError: The provider has no webhooks.
            ApiError: The service said no.
            TransportError: The service could not be asked.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "webhook_secret")
        return provider.read_webhook_secret(await reads.send(provider.webhook_secret()))


def _told(page: Page[T], what: str) -> Page[T]:
    if page.unread:
        log.warning("%d of %d %s of a page were in no known shape and are left out", page.unread, page.size, what)
    return page


def _page_size(page_size: int, limit: int | None) -> int:
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise ConfigurationError(f"page_size: expected 1 to {MAX_PAGE_SIZE}, got {page_size!r}")
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit: expected at least 1, got {limit!r}")
    return page_size if limit is None else min(page_size, limit)


def _model_id(model: str | Model | None) -> str | None:
    """The id of a model by any of its names; what the catalogue does not know is taken for an id."""
    if model is None or isinstance(model, Model):
        return None if model is None else model.id
    row = find_model(model)
    return model if row is None else row.id


def _ids(predictions: str | Prediction | Iterable[str | Prediction]) -> list[str]:
    if isinstance(predictions, (str, Prediction)):
        predictions = [predictions]
    # Each once, in the order given.
    return list(dict.fromkeys(each.id if isinstance(each, Prediction) else each for each in predictions))


def _moment(name: str, when: When | None) -> datetime | None:
    return None if when is None else _time(name, when)


def _time(name: str, when: object) -> datetime:
    """A time in UTC.

    Raises:
        ConfigurationError: It has no zone, or is none.
    """
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ConfigurationError(f"{name}: expected a datetime with a zone, got {when.isoformat()} without one")
        return when.astimezone(UTC)
    if isinstance(when, bool) or not isinstance(when, (int, float)) or not math.isfinite(when):
        raise ConfigurationError(f"{name}: expected a datetime or seconds since the epoch, got {when!r:.40}")
    try:
        return datetime.fromtimestamp(when, UTC)
    except (OverflowError, OSError, ValueError):
        raise ConfigurationError(f"{name}: {when!r:.40} seconds since the epoch is no time") from None
