"""The service's records of an account: model list, prices, usage and bills. Plain data, with the raw records."""

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
        items: The items that could be read, in the order of the service.
        size: Number of items on the wire; a page shorter than requested is the last one.
        request_id: The service's id of the HTTP request, or None.
    """

    items: tuple[T, ...]
    size: int
    request_id: str | None = None

    @property
    def unread(self) -> int:
        """Number of items in an unknown form, which `items` lacks."""
        return self.size - len(self.items)


@attrs.frozen(kw_only=True)
class ServiceModel:
    """A model in the service's own catalogue (docs: list-models). `Model.from_service` converts it to a `Model`.

    Attributes:
        id: Model id.
        name: Display name.
        description: Short description.
        type: Kind of model, such as `image-to-video`.
        base_price: USD, or None.
        formula: JSONata expression of the price from `base_price` and the inputs; empty if unknown.
        path: Path of the submit endpoint, from the host's root; empty if unknown.
        schema: JSON schema of the inputs (`request_schema`); empty if unknown.
        request_id: The service's id of the HTTP request, or None.
        raw: The entry as received.
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

    @property
    def model(self) -> str:
        """The id by which a job is submitted: the path of its endpoint below `/api/v3/`, or else `id`."""
        return self.path.strip("/").removeprefix("api/v3/") or self.id


@attrs.frozen(kw_only=True)
class ServicePrice:
    """The service's own price of one run of a job (docs: pricing-api). `Job.price()` is the catalogue's estimate.

    Attributes:
        model: Model id.
        price: List price, in `currency`.
        discounted: Price for this account, in `currency`; the list price without a discount.
        rate: Discount as the service writes it, or None.
        currency: Currency code, normally "USD".
        request_id: The service's id of the HTTP request, or None.
        raw: The reply's `data` as received.
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
    """Cost of one model.

    Attributes:
        model: Model id.
        type: Kind of model.
        unit_price: USD per prediction, or None.
        cost: Total cost in USD.
        count: Number of predictions.
        last_used: Time of the last prediction, or None.
    """

    model: str
    type: str = ""
    unit_price: Decimal | None = None
    cost: Decimal = Decimal(0)
    count: int = 0
    last_used: datetime | None = None


@attrs.frozen(kw_only=True)
class DailyUsage:
    """Cost of one day.

    Attributes:
        day: The day, or None if it cannot be read.
        cost: Total cost in USD.
        count: Number of predictions.
        models: Ids of the models that ran.
    """

    day: date | None
    cost: Decimal = Decimal(0)
    count: int = 0
    models: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Usage:
    """Cost of a period (docs: usage).

    Attributes:
        cost: Total cost in USD.
        requests: Number of predictions.
        succeeded: Number of successful predictions.
        models: Cost by model.
        days: Cost by day.
        request_id: The service's id of the HTTP request, or None.
        raw: The reply's `data` as received.
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
        id: Id of the line; empty if it has none.
        kind: "deduct", "refund", or another word of the service.
        price: USD, positive for both kinds: a refund of 0.45 is 0.45.
        created_at: Time of the line, or None.
        prediction_id: Id of the prediction, or None.
        model: Model id; empty if unknown.
        status: Status of the prediction in the service's word; empty if unknown.
        list_price: USD before discounts, or None.
        key_name: Name of the API key; empty if unknown.
        request_id: The service's id of the HTTP request, or None.
        raw: The line as received.
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
