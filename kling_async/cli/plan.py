"""What jobs are going to cost: by the list, and as the service says. `run`, `resume` and `estimate` show it."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Self

import attrs
from rich.text import Text

from kling_async._core.account import ServicePrice
from kling_async._core.catalogue import Certainty, Price, find_model
from kling_async.errors import UnsupportedError
from kling_async.manifest import Kind

from .output import clean, say, span, table, usd
from .progress import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from kling_async._session.session import KlingSession


@attrs.frozen
class Line:
    """Jobs of one kind.

    Attributes:
        kind: What decides their price.
        jobs: How many there are.
        price: What each costs by the price list.
        asked: What the service says that each costs this account; None when it was not asked, or did not say.
    """

    kind: Kind
    jobs: int
    price: Price
    asked: ServicePrice | None = None

    @property
    def name(self) -> str:
        """The model by its short name."""
        row = find_model(self.kind.model)
        return clean(row.name if row else self.kind.model) + (" with sound" if self.kind.sound else "")

    @property
    def asked_usd(self) -> Decimal | None:
        """USD that the service asks for each."""
        return self.asked.discounted if self.asked is not None and self.asked.currency == "USD" else None


@attrs.frozen
class Plan:
    """Jobs by their kinds, with prices.

    Attributes:
        lines: The kinds.
        provider: Who makes the videos.
    """

    lines: tuple[Line, ...]
    provider: str

    @classmethod
    def of(
        cls, kinds: Mapping[Kind, int], provider: str, asked: Mapping[Kind, ServicePrice | None] | None = None
    ) -> Self:
        """The plan for so many jobs of each kind.

        Args:
            kinds: How many jobs there are of each kind.
            provider: Who makes the videos.
            asked: What the service said of each kind.
        """
        lines = (
            Line(kind, jobs, _price(kind, provider), (asked or {}).get(kind))
            for kind, jobs in sorted(kinds.items(), key=lambda item: attrs.astuple(item[0]))
        )
        return cls(tuple(lines), provider)

    @property
    def jobs(self) -> int:
        """How many jobs there are."""
        return sum(line.jobs for line in self.lines)

    @property
    def usd(self) -> Decimal:
        """USD by the price list, of the jobs that have a price there."""
        return sum((line.price.usd * line.jobs for line in self.lines if line.price.usd is not None), Decimal(0))

    @property
    def unpriced(self) -> int:
        """Jobs without a price in the list."""
        return sum(line.jobs for line in self.lines if line.price.usd is None)

    @property
    def inferred(self) -> bool:
        """Whether a price was computed from others."""
        return any(line.price.certainty is Certainty.INFERRED for line in self.lines)

    @property
    def asked_usd(self) -> Decimal | None:
        """USD by what the service says; None unless it said so of every kind."""
        prices = [(line.asked_usd, line.jobs) for line in self.lines]
        known = [usd * jobs for usd, jobs in prices if usd is not None]
        return sum(known, Decimal(0)) if len(known) == len(prices) else None


def _price(kind: Kind, provider: str) -> Price:
    row = find_model(kind.model)
    if row is None:
        return Price(None, Certainty.UNKNOWN)
    return row.price(kind.duration, provider=provider, sound=kind.sound)


def check_supported(kinds: Mapping[Kind, int], provider: str) -> None:
    """Refuse models that the provider lacks, all of them at once.

    Raises:
        UnsupportedError: There are some.
    """
    rows: Counter[str] = Counter()
    for kind, count in kinds.items():
        row = find_model(kind.model)
        if row is not None and provider not in row.providers:
            rows[row.name] += count
    if rows:
        named = ", ".join(f"{name} ({counted(count, 'job')})" for name, count in rows.items())
        raise UnsupportedError(
            f"{provider} does not have {named}", advice="choose another provider or model; see kling-async models"
        )


def tell_plan(to: Console, plan: Plan, *, asked: bool = False) -> None:
    """The table of kinds and the sums below it.

    Args:
        to: Where to.
        plan: What there is.
        asked: Whether the service was asked for its prices.
    """
    more = (">yours", ">together") if asked else ()
    shown = table(to, "model", ">seconds", ">jobs", ">each", ">together", *more)
    for line in plan.lines:
        together = Price(None if line.price.usd is None else line.price.usd * line.jobs, line.price.certainty)
        cells = [line.name, str(line.kind.duration), str(line.jobs), str(line.price), str(together)]
        if asked:
            each = line.asked_usd
            cells += [str(line.asked or "not told"), usd(None if each is None else each * line.jobs)]
        shown.add_row(*cells)
    to.print(shown)
    sum_ = Text.assemble("Price by the list: ", (f"{'≈ ' if plan.inferred else ''}{usd(plan.usd)}", "bold"))
    if plan.unpriced:
        sum_.append(f", and {counted(plan.unpriced, 'job')} whose price is not known", "yellow")
    if plan.inferred:
        sum_.append("   (≈: computed from other prices, on no page of the vendor)", "dim")
    say(to, sum_)
    if asked and plan.asked_usd is not None:
        said = Text.assemble("Price that the service asks of this account: ", (usd(plan.asked_usd), "bold green"))
        if not plan.unpriced and plan.asked_usd != plan.usd:
            said.append(f"   ({compared(plan.asked_usd - plan.usd)})", "dim")
        say(to, said)


def compared(difference: Decimal) -> str:
    """How an amount differs from the price list, in words."""
    if not difference:
        return "as by the list"
    return f"{usd(abs(difference))} {'more' if difference > 0 else 'less'} than by the list"


def tell_level(to: Console, kinds: Mapping[Kind, int], session: KlingSession) -> None:
    """How long it takes at the lowest level, and the word that makes it faster."""
    level, slots, jobs = session.level, session.max_in_flight, sum(kinds.values())
    if jobs <= level.in_flight or level.name != "bronze":
        return
    work = sum(
        (row.usual if (row := find_model(kind.model)) else 120.0) * kind.duration / 5 * count
        for kind, count in kinds.items()
    )
    seconds = max(work / slots, (jobs / level.starts - 1) * level.per)
    say(
        to,
        Text.assemble(
            (f"Level bronze: {level.starts} starts a minute and {slots} at once, so about {span(seconds)}. ", "dim"),
            "If the account has a higher level, say so: ",
            ("--level silver", "bold"),
        ),
    )
