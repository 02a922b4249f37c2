"""Calls of a session about its account: history, balance, prices, bill and models. None of them costs money."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from kling_async._core.catalogue import Model, find_model
from kling_async._core.prediction import Prediction
from kling_async._http.pagination import MAX_PAGE_SIZE, Paginator
from kling_async._log import log
from kling_async.errors import ConfigurationError
from kling_async.providers.protocol import account_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from decimal import Decimal

    from kling_async._core.account import Billing, Page, ServiceModel, ServicePrice, Usage
    from kling_async._core.job import Job
    from kling_async._core.secret import Secret

    from .engine import SessionEngine

T = TypeVar("T")

When: TypeAlias = datetime | float
"""A time: a timezone-aware datetime, or seconds since the epoch."""

MAX_USAGE_SPAN = timedelta(days=31)
"""Longest span of one usage report (docs: usage)."""


class ServiceCalls(ABC):
    """Calls about the account. Each raises `UnsupportedError` if the provider lacks the endpoint (GPTProto: all)."""

    @property
    @abstractmethod
    def _engine(self) -> SessionEngine:
        """Return the engine of the open session."""

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
        """Yield the account's predictions of the last 7 days, newest first, including those of the web playground.

        Each is yielded once, and none is missed, even if the list changes meanwhile; predictions created during the
        iteration may be yielded too, out of order. `Prediction.input` has the inputs if the service reports them. The
        ids of all yielded predictions stay in memory until the iteration ends.

        ```python
        async for prediction in kling.predictions(status="failed", limit=20):
            print(prediction.id, prediction.error)
        ```

        Args:
            model: Only predictions of this model, by id or short name.
            status: Only predictions with this status of the service: `completed`, `failed`, `processing`, ...
            created_after: Only predictions created then or later: a timezone-aware datetime, or seconds since the
                epoch.
            created_before: Only predictions created then or earlier.
            page_size: Predictions per request, 1 to 100. Pages after the first have at least 20.
            limit: Greatest number of predictions to yield; None yields all.

        Raises:
            ConfigurationError: An argument is out of range.
            UnsupportedError: The provider has no such list.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "predictions")
        size = _page_size(page_size, limit)
        model_id = _model_id(model)
        after, before = _optional_utc("created_after", created_after), _optional_utc("created_before", created_before)

        async def read(page: int, size: int) -> Page[Prediction]:
            request = provider.predictions(
                page=page,
                page_size=size,
                model=model_id,
                status=status,
                created_after=after,
                created_before=before,
            )
            return _with_warning(await reads.read(request, provider.read_predictions), "predictions")

        paginator = Paginator(read, size=size, key=lambda prediction: prediction.id)
        async for prediction in paginator.items(limit):
            yield prediction

    async def delete(self, predictions: str | Prediction | Iterable[str | Prediction]) -> int:
        """Delete predictions and their outputs at the service. This cannot be undone.

        Deleting is not cancelling: the service does not document whether a running prediction stops or is refunded.

        Args:
            predictions: One or more predictions or ids. The service ignores ids that it does not have.

        Returns:
            Number of predictions that the service reports as deleted. It may be too low after a lost reply: the request
            is then sent again, and predictions deleted by the first request are not counted.

        Raises:
            UnsupportedError: The provider cannot delete.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "delete")
        ids = _ids(predictions)
        deleted = 0
        for start in range(0, len(ids), MAX_PAGE_SIZE):
            deleted += await reads.read(provider.delete(ids[start : start + MAX_PAGE_SIZE]), provider.read_deleted)
        return deleted

    async def balance(self) -> Decimal:
        """Return the balance of the account in USD.

        Raises:
            UnsupportedError: The provider does not report it.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "balance")
        return await reads.read(provider.balance(), provider.read_balance)

    async def models(self) -> tuple[ServiceModel, ...]:
        """Return the service's catalogue, with models of every kind. `Model.from_service` makes one usable in jobs.

        Raises:
            UnsupportedError: The provider does not report it.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "models")
        return _with_warning(await reads.read(provider.models(), provider.read_models), "models").items

    async def price(self, job: Job) -> ServicePrice:
        """Return the service's price of a job, with and without the account's discount.

        It is read once for each kind of job in a session: model, seconds, resolution, sound, and what else the
        service's formula names. GPTProto has a public list, without discounts. `Job.price` returns the price of the
        built-in catalogue without a request. Images are not uploaded or checked.

        Args:
            job: The job.

        Raises:
            UnsupportedError: The provider does not report it.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        return await self._engine.money.prices.service_price(job)

    async def usage(self, start: When, end: When, model: str | Model | None = None) -> Usage:
        """Return the account's usage and cost in a span of at most 31 days.

        Args:
            start: Start of the span: a timezone-aware datetime, or seconds since the epoch.
            end: End of the span, likewise.
            model: Only usage of this model, by id or short name.

        Raises:
            ConfigurationError: A time has no zone, or the end is not 0 to 31 days after the start.
            UnsupportedError: The provider does not report it.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "usage")
        since, until = _utc("start", start), _utc("end", end)
        if not timedelta(0) <= until - since <= MAX_USAGE_SPAN:
            raise ConfigurationError(
                f"usage: expected an end 0 to {MAX_USAGE_SPAN.days} days after the start, got {until - since}"
            )
        return await reads.read(provider.usage(since, until, model=_model_id(model)), provider.read_usage)

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
        """Yield the lines of the account's bill, newest first: deductions and refunds.

        Args:
            kind: Only deductions ("deduct") or only refunds ("refund").
            predictions: Only lines about these predictions or ids; empty yields lines about all.
            model: Only lines about this model, by id or short name.
            start: Only lines from then on: a timezone-aware datetime, or seconds since the epoch.
            end: Only lines up to then.
            page_size: Lines per request, 1 to 100. Pages after the first have at least 20.
            limit: Greatest number of lines to yield; None yields all.

        Raises:
            ConfigurationError: An argument is out of range.
            UnsupportedError: The provider does not report it.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "billings")
        size = _page_size(page_size, limit)
        ids, model_id = _ids(predictions), _model_id(model)
        since, until = _optional_utc("start", start), _optional_utc("end", end)

        async def read(page: int, size: int) -> Page[Billing]:
            request = provider.billings(
                page=page, page_size=size, kind=kind, prediction_ids=ids, model=model_id, start=since, end=until
            )
            return _with_warning(await reads.read(request, provider.read_billings), "billings")

        paginator = Paginator(
            read, size=size, key=lambda line: line.id or (line.prediction_id, line.kind, line.created_at)
        )
        async for line in paginator.items(limit):
            yield line

    async def webhook_secret(self) -> Secret:
        """Return the secret that signs this account's webhooks; `Secret.reveal` returns its text.

        Raises:
            UnsupportedError: The provider has no webhooks.
            ApiError: The service refused.
            TransportError: The service could not be reached.
        """
        reads, provider = self._engine.reads, account_of(self._engine.provider, "webhook_secret")
        return await reads.read(provider.webhook_secret(), provider.read_webhook_secret)


def _with_warning(page: Page[T], what: str) -> Page[T]:
    """Return a page, and log a warning when some of its items could not be parsed."""
    if page.unread:
        log.warning("%d of %d %s of a page could not be parsed and were left out", page.unread, page.size, what)
    return page


def _page_size(page_size: int, limit: int | None) -> int:
    """Return the size of the first page.

    Raises:
        ConfigurationError: A number is out of range.
    """
    if not 1 <= page_size <= MAX_PAGE_SIZE:
        raise ConfigurationError(f"page_size: expected 1 to {MAX_PAGE_SIZE}, got {page_size!r}")
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit: expected at least 1, got {limit!r}")
    return page_size if limit is None else min(page_size, limit)


def _model_id(model: str | Model | None) -> str | None:
    """Return the id of a model by any of its names; a name that the catalogue does not have is taken as an id."""
    if model is None or isinstance(model, Model):
        return None if model is None else model.id
    row = find_model(model)
    return model if row is None else row.id


def _ids(predictions: str | Prediction | Iterable[str | Prediction]) -> list[str]:
    """Return the ids of predictions, each once, in the order given."""
    if isinstance(predictions, (str, Prediction)):
        predictions = [predictions]
    return list(dict.fromkeys(each.id if isinstance(each, Prediction) else each for each in predictions))


def _optional_utc(name: str, when: When | None) -> datetime | None:
    return None if when is None else _utc(name, when)


def _utc(name: str, when: object) -> datetime:
    """Return a time in UTC.

    Raises:
        ConfigurationError: It is no time, or has no zone.
    """
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise ConfigurationError(
                f"{name}: expected a timezone-aware datetime, got {when.isoformat()} without a zone"
            )
        return when.astimezone(UTC)
    if isinstance(when, bool) or not isinstance(when, (int, float)) or not math.isfinite(when):
        raise ConfigurationError(
            f"{name}: expected a timezone-aware datetime or seconds since the epoch, got {when!r:.40}"
        )
    try:
        return datetime.fromtimestamp(when, UTC)
    except (OverflowError, OSError, ValueError):
        raise ConfigurationError(
            f"{name}: expected seconds since the epoch of a representable time, got {when!r:.40}"
        ) from None
