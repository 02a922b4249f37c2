"""What the service says of the account: its catalogue, prices, usage and bills. Plain data, with what it came from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Generic, TypeVar

import attrs

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Page(Generic[T]):
    """One page of a list.

    Attributes:
        items: What could be read, in the order of the service.
        size: How many items there were on the wire: a page shorter than was asked for is the last one.
        request_id: The service's id of the HTTP request that brought this.
    """

    items: tuple[T, ...]
    size: int
    request_id: str | None = None

    @property
    def unread(self) -> int:
        """How many items were in no shape that is known."""
        return self.size - len(self.items)


@attrs.frozen(kw_only=True)
class ServiceModel:
    """A model as the service's own catalogue has it (docs: list-models). `Model.from_service` makes a row of it.

    Attributes:
        id: Model id.
        name: Its name.
        description: A sentence or two.
        type: The kind of model, such as `image-to-video`.
        base_price: USD, or None.
        formula: How the price follows from `base_price` and the inputs, in JSONata; empty when it is not told.
        path: Path of the submit, from the host's root; empty when it is not told.
        schema: JSON schema of the inputs (`request_schema`); empty when it is not told.
        request_id: The service's id of the HTTP request that brought this.
        raw: The entry as it came.
    """

    id: str
    name: str = ""
    description: str = attrs.field(default="", repr=False)
    type: str = ""
    base_price: Decimal | None = None
    formula: str = attrs.field(default="", repr=False)
    path: str = attrs.field(default="", repr=False)
    schema: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)
    request_id: str | None = attrs.field(default=None, repr=False)
    raw: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)


@attrs.frozen(kw_only=True)
class ServicePrice:
    """What the service itself asks for one run of a job (docs: pricing-api). `Job.price()` is the catalogue's estimate.

    Attributes:
        model: Model id.
        price: The list price.
        discounted: What this account pays; the list price when it has no discount.
        rate: The discount as the service writes it, or None.
        currency: "USD" unless the service says otherwise.
        request_id: The service's id of the HTTP request that brought this.
        raw: The reply's `data` as it came.
    """

    model: str
    price: Decimal
    discounted: Decimal
    rate: Decimal | None = None
    currency: str = "USD"
    request_id: str | None = attrs.field(default=None, repr=False)
    raw: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)

    def __str__(self) -> str:
        unit, amount = ("$", f"{self.discounted:.2f}") if self.currency == "USD" else ("", f"{self.discounted}")
        return f"{unit}{amount}" + ("" if unit else f" {self.currency}")


@attrs.frozen(kw_only=True)
class ModelUsage:
    """What was spent on one model.

    Attributes:
        model: Model id.
        type: The kind of model.
        unit_price: USD, or None.
        cost: USD.
        count: Predictions.
        last_used: When the last one was, or None.
    """

    model: str
    type: str = ""
    unit_price: Decimal | None = None
    cost: Decimal = Decimal(0)
    count: int = 0
    last_used: datetime | None = None


@attrs.frozen(kw_only=True)
class DailyUsage:
    """What was spent on one day.

    Attributes:
        day: The day, or None when it cannot be read.
        cost: USD.
        count: Predictions.
        models: Ids of the models that ran.
    """

    day: date | None
    cost: Decimal = Decimal(0)
    count: int = 0
    models: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Usage:
    """What was spent in a span of time (docs: usage).

    Attributes:
        cost: USD.
        requests: Predictions that were asked for.
        succeeded: Predictions that went well.
        models: The same by model.
        days: The same by day.
        request_id: The service's id of the HTTP request that brought this.
        raw: The reply's `data` as it came.
    """

    cost: Decimal
    requests: int = 0
    succeeded: int = 0
    models: tuple[ModelUsage, ...] = ()
    days: tuple[DailyUsage, ...] = ()
    request_id: str | None = attrs.field(default=None, repr=False)
    raw: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)


@attrs.frozen(kw_only=True)
class Billing:
    """One line of the account's bill (docs: billings).

    Attributes:
        id: The line's id; empty when it has none.
        kind: "deduct" or "refund", or another word of the service.
        price: USD, never negative by its kind: a refund of 0.45 is 0.45.
        created_at: When it was written, or None.
        prediction_id: The prediction that it is about, or None.
        model: Its model id; empty when it is not told.
        status: The prediction's status in the service's word; empty when it is not told.
        list_price: USD before discounts, or None.
        key_name: The name of the API key; empty when it is not told.
        request_id: The service's id of the HTTP request that brought this.
        raw: The line as it came.
    """

    id: str
    kind: str
    price: Decimal
    created_at: datetime | None = None
    prediction_id: str | None = None
    model: str = ""
    status: str = ""
    list_price: Decimal | None = None
    key_name: str = ""
    request_id: str | None = attrs.field(default=None, repr=False)
    raw: Mapping[str, object] = attrs.field(factory=dict, repr=False, eq=False)
