"""Prices of runs, how certain each is, and the kinds of jobs that cost the same."""

from __future__ import annotations

from decimal import Decimal
from enum import Enum

import attrs


class Certainty(Enum):
    """Certainty of a price, the most certain first."""

    STATED = "stated"
    """Printed on a page of the vendor."""
    REPORTED = "reported"
    """Read by a third party: a reseller's list, or a copy of the vendor's page that was not read itself."""
    INFERRED = "inferred"
    """Computed from other prices; printed on no page."""
    UNKNOWN = "unknown"
    """No price was found."""

    @property
    def approximate(self) -> bool:
        """True for a price that may differ from what the service charges."""
        return self in {Certainty.REPORTED, Certainty.INFERRED}

    @property
    def rank(self) -> int:
        """0 for the most certain, and greater for less."""
        return _RANKS.index(self)


_RANKS = tuple(Certainty)


@attrs.frozen
class Price:
    """Price of one run by the price list.

    Attributes:
        usd: Amount in USD; None if unknown.
        certainty: Certainty of the amount.
        source: Page, third party or inference that it is from.
    """

    usd: Decimal | None
    certainty: Certainty
    source: str = ""

    def __str__(self) -> str:
        if self.usd is None:
            return "unknown"
        return f"{'≈ ' if self.certainty.approximate else ''}{dollars(self.usd)}"


@attrs.frozen(kw_only=True)
class Rate:
    """Price of a model at one resolution, where that is not the default.

    Attributes:
        resolution: The value of `resolution`.
        usd_per_second: USD per second of video, without sound; None if unknown.
        certainty: Certainty of the price.
        source: Source of the price.
    """

    resolution: str
    usd_per_second: Decimal | None
    certainty: Certainty
    source: str = ""


@attrs.frozen
class Kind:
    """Properties that determine the price of a job.

    Attributes:
        model: Full id of the model.
        duration: Seconds of video.
        sound: Whether sound is asked for; None if nothing is said, which may mean either at a provider.
        resolution: Resolution as given; empty for the model's default.
        inputs: Further inputs that the service's formula of the price names, as JSON; all of `extra` for a model of
            your own without a formula. Empty without any.
    """

    model: str
    duration: int
    sound: bool | None
    resolution: str = ""
    inputs: str = ""


_CENT = Decimal("0.01")
_MAX_DECIMALS = Decimal("0.0001")


def dollars(usd: Decimal) -> str:
    """Format an amount with two to four decimal places, such as $0.45 or $0.105."""
    usd = usd.quantize(_MAX_DECIMALS)
    return f"${max(usd.normalize(), usd.quantize(_CENT), key=_decimal_places):f}"


def _decimal_places(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0
