"""Price of jobs that are not sent yet: list prices and the service's quotes, for `run`, `resume` and `estimate`."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Self

import attrs
from rich.text import Text

from kling_async._core.account import ServicePrice
from kling_async._core.budget import Budget
from kling_async._core.catalogue import Model, find_model
from kling_async._core.prices import Certainty, Kind, Price
from kling_async._core.text import one_line
from kling_async.errors import UnsupportedError

from .output import format_duration, format_usd, new_table, plural, print_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from kling_async._session.session import KlingSession


@attrs.frozen
class Line:
    """Jobs of one kind.

    Attributes:
        kind: Model, duration, sound and resolution, which determine the price.
        jobs: Number of jobs.
        price: List price of one job.
        quote: Price of one job that the service quotes this account; None if it was not asked or gave no price.
    """

    kind: Kind
    jobs: int
    price: Price
    quote: ServicePrice | None = None

    @property
    def name(self) -> str:
        """Short name of the model."""
        row = find_model(self.kind.model)
        resolution = f" at {self.kind.resolution}" if self.kind.resolution else ""
        sound = " with sound" if self.kind.sound else ""
        return one_line(row.name if row else self.kind.model) + resolution + sound

    @property
    def quoted_usd(self) -> Decimal | None:
        """USD that the service quotes for one job; None without a quote in USD."""
        return self.quote.discounted if self.quote is not None and self.quote.currency == "USD" else None


@attrs.frozen
class Plan:
    """Jobs by kind, with prices.

    Attributes:
        lines: One line per kind.
        provider: Name of the provider.
    """

    lines: tuple[Line, ...]
    provider: str

    @classmethod
    def of(
        cls,
        kinds: Mapping[Kind, int],
        provider: str,
        quotes: Mapping[Kind, ServicePrice | None] | None = None,
        *,
        models: Mapping[str, Model] | None = None,
    ) -> Self:
        """Return the plan for a number of jobs of each kind.

        Args:
            kinds: Number of jobs of each kind.
            provider: Name of the provider.
            quotes: The service's price for each kind.
            models: Models that are not in the catalogue, by id.
        """
        lines = (
            Line(kind, jobs, _list_price(kind, provider, models or {}), (quotes or {}).get(kind))
            for kind, jobs in sorted(kinds.items(), key=lambda item: attrs.astuple(item[0]))
        )
        return cls(tuple(lines), provider)

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return sum(line.jobs for line in self.lines)

    @property
    def usd(self) -> Decimal:
        """USD at list price of the jobs that have one."""
        return sum((line.price.usd * line.jobs for line in self.lines if line.price.usd is not None), Decimal(0))

    @property
    def unpriced(self) -> int:
        """Number of jobs without a list price."""
        return sum(line.jobs for line in self.lines if line.price.usd is None)

    @property
    def cost(self) -> str:
        """Cost for a sentence: `≈ $0.56 at list price and 1 job of unknown price`."""
        listed = f"{'≈ ' if self.approximate else ''}{format_usd(self.usd)} at list price"
        unknown = f"{plural(self.unpriced, 'job')} of unknown price"
        return listed if not self.unpriced else unknown if self.unpriced == self.jobs else f"{listed} and {unknown}"

    @property
    def approximate(self) -> bool:
        """True if a price may differ from what is charged."""
        return any(line.price.certainty.approximate for line in self.lines)

    @property
    def quoted_usd(self) -> Decimal | None:
        """USD that the service quotes in all; None unless it quotes every kind."""
        quotes = [(line.quoted_usd, line.jobs) for line in self.lines]
        known = [usd * jobs for usd, jobs in quotes if usd is not None]
        return sum(known, Decimal(0)) if len(known) == len(quotes) else None


def _list_price(kind: Kind, provider: str, models: Mapping[str, Model]) -> Price:
    row = models.get(kind.model) or find_model(kind.model)
    if row is None:
        return Price(None, Certainty.UNKNOWN)
    return row.price_of(kind, provider)


def parse_budget(usd: str | None, *, allow_estimate: bool) -> Budget | None:
    """Parse the option `--budget`.

    Raises:
        ConfigurationError: It is not an amount.
    """
    return None if usd is None else Budget(usd, allow_estimate=allow_estimate)


def check_supported(kinds: Mapping[Kind, int], provider: str) -> None:
    """Check that the provider has every model.

    Raises:
        UnsupportedError: It lacks some; the message names all of them.
    """
    missing: Counter[str] = Counter()
    for kind, count in kinds.items():
        row = find_model(kind.model)
        if row is not None and provider not in row.providers:
            missing[row.name] += count
    if missing:
        names = ", ".join(f"{name} ({plural(count, 'job')})" for name, count in missing.items())
        raise UnsupportedError(
            f"{provider} does not have {names}", advice="choose another provider or model; see kling-async models"
        )


def print_plan(console: Console, plan: Plan, *, quoted: bool = False) -> None:
    """Print a table of the kinds, and the totals.

    Args:
        console: The console to print to.
        plan: The jobs.
        quoted: Add the service's own prices.
    """
    more = (">yours", ">total") if quoted else ()
    table = new_table(console, "model", ">seconds", ">jobs", ">each", ">total", *more)
    for line in plan.lines:
        total = Price(None if line.price.usd is None else line.price.usd * line.jobs, line.price.certainty)
        cells = [line.name, str(line.kind.duration), str(line.jobs), str(line.price), str(total)]
        if quoted:
            each = line.quoted_usd
            cells += [str(line.quote or "no quote"), format_usd(None if each is None else each * line.jobs)]
        table.add_row(*cells)
    console.print(table)
    text = Text.assemble("List price: ", (f"{'≈ ' if plan.approximate else ''}{format_usd(plan.usd)}", "bold"))
    if plan.unpriced:
        text.append(f", and {plural(plan.unpriced, 'job')} of unknown price", "yellow")
    if plan.approximate:
        text.append("   (≈: read by third parties, or computed from other prices)", "dim")
    print_text(console, text)
    if quoted and plan.quoted_usd is not None:
        text = Text.assemble("Price for this account: ", (format_usd(plan.quoted_usd), "bold green"))
        if not plan.unpriced and plan.quoted_usd != plan.usd:
            text.append(f"   ({format_difference(plan.quoted_usd - plan.usd)})", "dim")
        print_text(console, text)


def format_difference(usd: Decimal) -> str:
    """Format the difference of an amount from the list price."""
    if not usd:
        return "as listed"
    return f"{format_usd(abs(usd))} {'above' if usd > 0 else 'below'} list price"


def print_level_hint(console: Console, kinds: Mapping[Kind, int], session: KlingSession, *, speed: float = 1.0) -> None:
    """Print how long the jobs take at the lowest level, and the option that raises it.

    Args:
        console: The console to print to.
        kinds: Number of jobs of each kind.
        session: The session with the level.
        speed: How many times as fast as the real service the jobs run.
    """
    level, slots, jobs = session.level, session.max_in_flight, sum(kinds.values())
    if jobs <= level.in_flight or level.name != "bronze":
        return
    work = sum(
        (row.usual if (row := find_model(kind.model)) else 120.0) * kind.duration / 5 * count
        for kind, count in kinds.items()
    )
    seconds = max(work / slots, (jobs / level.starts - 1) * level.per)
    pace = f", {speed:g} times as fast here" if speed != 1 else ""
    limits = f"{level.starts} starts a minute and {slots} at once{pace}, so about {format_duration(seconds / speed)}"
    print_text(
        console,
        Text.assemble(
            (f"Level bronze: {limits}. ", "dim"),
            "If the account has a higher level, say so: ",
            ("--level silver", "bold"),
        ),
    )
