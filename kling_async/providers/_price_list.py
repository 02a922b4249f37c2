"""Parser for GPTProto's public list of prices, as its own command line reads it (`modelName`, `platformLockPrice`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from kling_async._core.account import ServicePrice

from . import _account, _wire
from ._units import Money
from ._wire import Text

if TYPE_CHECKING:
    from decimal import Decimal

    from kling_async._core.job import Job
    from kling_async._core.model import Model

_NO_TEXT: Final = Text("")
_PER_SECOND: Final = frozenset({"per second", "second", "seconds", "1 second", "s", "/s", "per s", "1s"})
_PER_RUN: Final = frozenset({"per time", "per run", "per request", "per call", "per generation", "per video"})


@attrs.frozen
class _Item:
    model_name: Text = _NO_TEXT
    model: Text = _NO_TEXT
    platform_lock_price: Money | None = None
    price_type_str: Text = _NO_TEXT


def price(data: object, job: Job, request_id: str | None) -> ServicePrice:
    """Return the price of a job.

    Raises:
        ValueError: The list does not tell it: it has no such model, or one price for runs that may cost different
            amounts.
    """
    names = _names(job.row)
    items = [_wire.structure(item, _Item) for item in _account.rows(data, "items") if isinstance(item, dict)]
    found = {
        (item.platform_lock_price, " ".join(item.price_type_str.lower().split()))
        for item in items
        if (item.model_name or item.model).strip().lower() in names and item.platform_lock_price is not None
    }
    if len(found) != 1:
        raise ValueError(f"expected one price of {job.row.name} in the public list, got {len(found)}")
    [(usd, unit)] = found
    return _total(usd, unit, job, request_id)


def _names(row: Model) -> set[str]:
    """Return the names that the list may have for a model: `model/capability`, or the path of the model."""
    names = {row.id, row.id.partition("/")[2], row.name, *row.aliases}
    return {*names, *(f"{name}/image-to-video" for name in names)}


def _total(usd: Decimal | None, unit: str, job: Job, request_id: str | None) -> ServicePrice:
    row = job.row
    by_default = row.at_provider("gptproto").sound_by_default
    if job.sound or (by_default and job.sound is None):
        raise ValueError(f"the public list does not say what {row.name} costs with sound: pass sound=False")
    if unit in _PER_RUN and job.duration != row.default_duration:
        raise ValueError(f"the public list has a price per run, and does not say whether {job.duration} s cost more")
    if usd is None or unit not in _PER_SECOND | _PER_RUN:
        raise ValueError(f"the public list has a price in an unknown unit, {unit[:40]!r}")
    total = usd * job.duration if unit in _PER_SECOND else usd
    return ServicePrice(model=job.model, price=total, discounted=total, request_id=request_id)
