"""Parsers for the account endpoints; as lenient as `_wire`. Unreadable items of a page are counted, not raised.

Imported on first use: most sessions only submit, and building these classes takes as long as all others together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, NewType, TypeVar, cast

import attrs

from kling_async._core.account import Billing, DailyUsage, ModelUsage, Page, ServiceModel, ServicePrice, Usage

from . import _wire
from ._units import Money, money
from ._wire import Number, Text

T = TypeVar("T")

Moment = NewType("Moment", datetime)
Object = NewType("Object", Mapping[str, object])

_NO_TEXT = Text("")
_NOTHING = Object({})

_MIN_MILLISECONDS_DIGITS = 11
"""Number of digits from which a number counts as milliseconds since the epoch; seconds have 10 until the year 2286."""


def _moment(value: object, _: object) -> Moment | None:
    """Parse RFC 3339, or milliseconds since the epoch as a number or a string: documentation and clients disagree."""
    if isinstance(value, bool):
        return None
    number = value if isinstance(value, (int, float)) else None
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) >= _MIN_MILLISECONDS_DIGITS:
        number = int(value) if len(value) < 2 * _MIN_MILLISECONDS_DIGITS else None
    if number is None:
        return cast("Moment | None", _wire.moment(value))
    try:
        return Moment(datetime.fromtimestamp(number / 1000, UTC))
    except (OverflowError, OSError, ValueError):
        return None


def _object(value: object, _: object) -> Object:
    return Object(cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {})


for _type, _hook in (
    (Money | None, lambda value, _: money(value)),
    (Moment | None, _moment),
    (Object, _object),
):
    _wire.register(_type, _hook)


def rows(data: object, *names: str) -> list[object]:
    """Return `data` if it is a list, else the list under the first of `names` that has one; null counts as empty.

    Raises:
        ValueError: There is no list.
    """
    if isinstance(data, list):
        return data
    if isinstance(data, Mapping):
        for name in names:
            if isinstance(data.get(name), list):
                return cast("list[object]", data[name])
        # Go encodes an empty list as null.
        if any(name in data and data[name] is None for name in names):
            return []
    raise ValueError(f"no list of {names[0]} in it")


def page(data: object, names: tuple[str, ...], read: Callable[[object], T], request_id: str | None) -> Page[T]:
    """Parse the items of a page; skip those that cannot be parsed.

    Raises:
        ValueError: There is no list in `data`.
    """
    items: list[T] = []
    found = rows(data, *names)
    for item in found:
        try:
            items.append(read(item))
        except ValueError:
            continue
    return Page(items=tuple(items), size=len(found), request_id=request_id)


def _raw(data: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", data) if isinstance(data, Mapping) else {}


@attrs.frozen
class _ModelEntry:
    """Model of the catalogue. `model_uuid` and `category` are the names in docs/list-models."""

    model_id: Text = _NO_TEXT
    model_uuid: Text = _NO_TEXT
    name: Text = _NO_TEXT
    description: Text = _NO_TEXT
    type: Text = _NO_TEXT
    category: Text = _NO_TEXT
    base_price: Money | None = None
    formula: Text = _NO_TEXT
    api_schema: Object = _NOTHING


def model(item: object, request_id: str | None) -> ServiceModel:
    """Parse an entry of the catalogue, in either of its two formats.

    Raises:
        ValueError: It has no id.
    """
    entry = _wire.structure(item, _ModelEntry)
    id_ = (entry.model_id or entry.model_uuid).strip()
    if not id_:
        raise ValueError("no model id in it")
    run = _run_schema(entry.api_schema)
    return ServiceModel(
        id=id_,
        name=entry.name,
        description=entry.description,
        type=entry.type or entry.category,
        base_price=entry.base_price,
        formula=entry.formula,
        path=str(run.get("api_path") or ""),
        schema=_object(run.get("request_schema"), None),
        request_id=request_id,
        raw=_raw(item),
    )


def _run_schema(api_schema: Mapping[str, object]) -> Mapping[str, object]:
    """Return the schema of the submit request, else the first schema, else an empty one."""
    found = api_schema.get("api_schemas")
    schemas = [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []
    return next((entry for entry in schemas if entry.get("type") == "model_run"), schemas[0] if schemas else {})


@attrs.frozen
class _Price:
    model_id: Text = _NO_TEXT
    price: Money | None = None
    discounted_price: Money | None = None
    discount_rate: Money | None = None
    unit_price: Money | None = None
    currency: Text = _NO_TEXT


def price(data: object, model_id: str, request_id: str | None) -> ServicePrice:
    """Parse the price of a job.

    Raises:
        ValueError: There is no price in it.
    """
    quote = _wire.structure(data, _Price)
    listed = next((each for each in (quote.price, quote.unit_price, quote.discounted_price) if each is not None), None)
    if listed is None:
        raise ValueError("no price in it")
    return ServicePrice(
        model=quote.model_id or model_id,
        price=listed,
        discounted=listed if quote.discounted_price is None else quote.discounted_price,
        rate=quote.discount_rate,
        currency=quote.currency or "USD",
        request_id=request_id,
        raw=_raw(data),
    )


@attrs.frozen
class _ModelUsage:
    model_uuid: Text = _NO_TEXT
    model_type: Text = _NO_TEXT
    unit_price: Money | None = None
    total_cost: Money | None = None
    total_count: Number | None = None
    last_used_date: Moment | None = None


@attrs.frozen
class _DailyUsage:
    date: Text = _NO_TEXT
    amount: Money | None = None
    count: Number | None = None
    models: Any = None


@attrs.frozen
class _Summary:
    total_cost: Money | None = None
    total_requests: Number | None = None
    success_requests: Number | None = None


def usage(data: object, request_id: str | None) -> Usage:
    """Parse the usage.

    Raises:
        ValueError: `data` is not an object, or has none of the parts of a usage report.
    """
    if not isinstance(data, Mapping) or not {"summary", "per_model_usage", "daily_usage"} & set(data):
        raise ValueError("no usage in it")
    models = tuple(
        ModelUsage(
            model=used.model_uuid,
            type=used.model_type,
            unit_price=used.unit_price,
            cost=used.total_cost or Decimal(0),
            count=used.total_count or 0,
            last_used=used.last_used_date,
        )
        for used in _structured(data.get("per_model_usage"), _ModelUsage)
    )
    days = tuple(
        DailyUsage(
            day=_day(used.date),
            cost=used.amount or Decimal(0),
            count=used.count or 0,
            models=tuple(_model_name(each) for each in used.models) if isinstance(used.models, list) else (),
        )
        for used in _structured(data.get("daily_usage"), _DailyUsage)
    )
    summary = _wire.structure(_object(data.get("summary"), None), _Summary)
    cost: Decimal | None = summary.total_cost
    return Usage(
        cost=sum((used.cost for used in models), Decimal(0)) if cost is None else cost,
        requests=summary.total_requests or 0,
        succeeded=summary.success_requests or 0,
        models=models,
        days=days,
        request_id=request_id,
        raw=data,
    )


def _structured(items: object, cls: type[T]) -> list[T]:
    found = items if isinstance(items, list) else []
    return [_wire.structure(item, cls) for item in found if isinstance(item, Mapping)]


def _model_name(value: object) -> str:
    return str(value.get("model_uuid") or "") if isinstance(value, Mapping) else str(value)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text.strip()[:10])
    except ValueError:
        return None


@attrs.frozen
class _Billing:
    uuid: Text = _NO_TEXT
    access_key_name: Text = _NO_TEXT
    billing_type: Text = _NO_TEXT
    price: Money | None = None
    created_at: Moment | None = None
    order: Object = _NOTHING
    prediction: Object = _NOTHING


def billing(item: object, request_id: str | None) -> Billing:
    """Parse one line of the bill.

    Raises:
        ValueError: It has no amount.
    """
    line = _wire.structure(item, _Billing)
    if line.price is None:
        raise ValueError("no price in the line")
    return Billing(
        id=line.uuid,
        kind=line.billing_type,
        # `kind` gives the direction.
        price=abs(line.price),
        created_at=line.created_at,
        prediction_id=str(line.prediction.get("uuid") or "") or None,
        model=str(line.prediction.get("model_uuid") or ""),
        status=str(line.prediction.get("status") or ""),
        list_price=money(line.order.get("origin_price")),
        key_name=line.access_key_name,
        request_id=request_id,
        raw=_raw(item),
    )
