"""Status requests and delay of the watch policies, compared with fixed and growing intervals, in virtual time.

    python benchmarks/bench_watching.py [--jobs 1000] [--plot frontier.svg] [--json FILE] [--quick]

The real planner and watcher run against an in-memory service whose requests take 0.2 s each; requests and delays are
counted at the service. The intervals are computed for the same completion times. The plot needs the dependency group
`bench`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import anyio
import attrs
import looptime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import _chart

import _suite
from kling_async import WatchPolicy
from kling_async._core.read_rate import default_ceiling
from support.fleet import (
    Compared,
    Figures,
    Fleet,
    alone,
    dominating,
    exponential,
    fixed,
    fleet,
    log_normal,
    quantiles,
    run_watch,
    watch,
)

Point = tuple[float, float]
"""Status requests per prediction, and the mean delay in seconds."""

MEDIANS_S, SIGMA = (60.0, 120.0), 0.4
"""Log-normal durations of single videos."""
WIDE_SIGMA = 0.557
"""Sigma of the durations of many, with a median of 60 s: one in twenty takes more than 150 s."""
OTHERS, SESSIONS = 50, 60
COUNTS = (1, 10, 100, 1000, 3000, 10_000)
PLOTTED_COUNTS = (1, 10, 100, 1000, 10_000)
INTERVALS_S = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0)
REQUESTS, DELAY, WORST = "requests per prediction", "s of delay", "s of delay, worst"
REQUEST_SHARE, DELAY_SHARE = "of the requests of a fixed 5 s interval", "of the delay of a fixed 5 s interval"
PERCENTILE, BUSIEST = "s of delay, 95th percentile", "reads in the busiest second"
LOST_DELAY = "s until a lost delivery is found"
FIXED, WEBHOOKS, LIST = "fixed(5)", "webhook first", "list"
NAMES = ("balanced", "gentle", "eager")
LABELS = {
    "balanced": '`"balanced"` (default)',
    FIXED: "`WatchPolicy.fixed(5)`",
    LIST: '`"list"`, which the vendor asks not to use',
}


def label(name: str) -> str:
    return LABELS.get(name, f'`"{name}"`')


def single(report: _suite.Report) -> None:
    """Measure a caller that waits for one video: the first of its session, and one after 50 others."""
    for median in MEDIANS_S:
        part = f"Waiting for one video, {median:g} s in the middle"
        report.notes[part] = f"log-normal durations, sigma {SIGMA:g}; a request takes 0.2 s; no list"
        times, few = quantiles(3000, median, SIGMA), quantiles(400, median, SIGMA)

        def add(name: str, figures: Compared, worst: float, part: str = part, *, baseline: bool = False) -> None:
            for unit, figure in (
                (REQUESTS, figures.requests),
                (REQUEST_SHARE, figures.request_share),
                (DELAY, figures.delay),
                (DELAY_SHARE, figures.delay_share),
                (PERCENTILE, figures.percentile(0.95)),
                (WORST, worst),
            ):
                report.add(part, name, unit, figure, baseline=baseline)

        for name in NAMES:
            policy = WatchPolicy.named(name)
            add(f"{label(name)}, first of its session", alone(policy, times), alone(policy, few).delays[-1])
        after = f"{label('balanced')}, after {OTHERS} others"
        learned = partial(alone, WatchPolicy.balanced(), others=OTHERS, sessions=SESSIONS, sigma=SIGMA)
        add(after, learned(times), learned(few).delays[-1])
        policy = WatchPolicy.fixed(5)
        add(label(FIXED), alone(policy, times), alone(policy, few).delays[-1], baseline=True)
        first = f"{label('balanced')}, first of its session"
        report.bound(part, REQUEST_SHARE, first, at_most=0.75)
        report.bound(part, DELAY_SHARE, first, at_most=1.15)
        report.bound(part, WORST, first, at_most=9.0)
        report.bound(part, REQUEST_SHARE, after, at_most=0.6)
        report.bound(part, DELAY_SHARE, after, at_most=1.15)
        report.bound(part, PERCENTILE, after, at_most=12.0)


@attrs.frozen
class Many:
    """Figures of a policy with a number of predictions pending at once.

    Attributes:
        requests: requests per prediction.
        delay: mean delay in seconds.
        busiest: most reads in any second.
    """

    requests: float
    delay: float
    busiest: int


def pending(policy: WatchPolicy, all_times: Sequence[Sequence[float]]) -> Many:
    """Watch predictions that start within 10 s, once for each list of durations."""
    services = [fleet(times, apart=10 / len(times), lists=policy.pages) for times in all_times]
    figures = [run_watch(service, policy) for service in services]
    return Many(
        fmean(each.requests for each in figures),
        fmean(each.delay for each in figures),
        max(service.busiest for service in services),
    )


def at_equal_requests(times: Sequence[float], requests: float) -> Point:
    """Return the point of the fixed interval that needs the same number of requests."""
    low, high = 0.2, 600.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fixed(times, middle)[0] > requests else (low, middle)
    return fixed(times, high)


def many(
    report: _suite.Report, counts: Sequence[int]
) -> Mapping[int, tuple[Mapping[str, Many], Mapping[str, Sequence[Point]]]]:
    """Measure the policies with more and more predictions pending, and the fixed and growing intervals beside them."""
    part = "Watching more and more at once"
    equal, better = f"{DELAY} with a fixed interval and equal requests", "fixed and growing intervals that are better"
    ceiling = "reads per second permitted"
    report.notes[part] = (
        "begun within 10 s, in a session of as many slots that has learned nothing; half take more than 60 s, one in "
        "twenty more than 150 s; a request takes 0.2 s; no list"
    )
    found: dict[int, tuple[Mapping[str, Many], Mapping[str, Sequence[Point]]]] = {}
    for count in counts:
        all_times = [log_normal(count, 60.0, WIDE_SIGMA, seed=seed) for seed in range(max(1, 200 // count))]
        times = [seconds for each in all_times for seconds in each]
        points = {name: pending(WatchPolicy.named(name), all_times) for name in NAMES}
        curves = {
            "fixed interval": [fixed(times, interval) for interval in INTERVALS_S],
            "1 s, growing by half up to a cap": [exponential(times, 1.0, 1.5, cap) for cap in (*INTERVALS_S, math.inf)],
            "5 s, growing by a tenth up to a cap": [exponential(times, 5.0, 1.1, cap) for cap in INTERVALS_S[3:]],
        }
        found[count] = points, curves
        ours = points["balanced"]
        name = f"{label('balanced')}, {count:,} pending"
        for unit, figure in (
            (REQUESTS, ours.requests),
            (DELAY, ours.delay),
            (equal, at_equal_requests(times, ours.requests)[1]),
            (better, len(dominating(times, ours.requests, ours.delay))),
            (BUSIEST, ours.busiest),
            (ceiling, default_ceiling(count)),
        ):
            report.add(part, name, unit, figure)
        report.bound(part, better, name, at_most=0)
        report.bound(part, BUSIEST, name, at_most=default_ceiling(count))
        if count == 1000:  # noqa: PLR2004 -- the number for which a delay is aimed at
            report.bound(part, DELAY, name, at_most=4.0)
    return found


def policies(report: _suite.Report, times: Sequence[float]) -> None:
    """Compare all policies with all predictions pending at once, with and without lost webhook deliveries."""
    part = "Watching many at once"
    report.notes[part] = (
        f"{len(times):,} predictions begun within 10 s; half take more than 60 s, one in twenty more than 150 s; "
        "a request takes 0.2 s"
    )

    def add(name: str, figures: Figures, service: Fleet, found: float, *, baseline: bool = False) -> None:
        units = {REQUESTS: figures.requests, DELAY: figures.delay, BUSIEST: service.busiest, LOST_DELAY: found}
        for unit, figure in units.items():
            if not math.isnan(figure):
                report.add(part, name, unit, figure, baseline=baseline)

    for name in (*NAMES, LIST):
        service = fleet(times)
        add(label(name), run_watch(service, WatchPolicy.named(name)), service, math.nan)
    service = fleet(times)
    add(label(FIXED), run_watch(service, WatchPolicy.fixed(5), ceiling=math.inf), service, math.nan, baseline=True)
    for lost, case in ((0, "all delivered within 1 s"), (2, "every second delivery lost"), (1, "all deliveries lost")):
        service = fleet(times)
        missed = {record.id for record in service.records[::lost]} if lost else set[str]()
        figures = run_watch(
            service,
            WatchPolicy.webhook_first(),
            delivered=lambda record, missed=missed: record.id not in missed,
        )
        found = fmean(figures.delays[id_] for id_ in missed) if missed else math.nan
        name = f"{label(WEBHOOKS)}, {case}"
        add(name, figures, service, found)
        report.ratio(part, REQUESTS, name, label(FIXED), at_most=round(1 / 3, 2))
        if missed:
            report.bound(part, LOST_DELAY, name, at_most=20.0)


def idle(report: _suite.Report, count: int, seconds: float, name: str) -> None:
    """Measure CPU and requests while no prediction ends."""

    async def watched(service: Fleet) -> None:
        with anyio.move_on_after(seconds):
            await watch(service, WatchPolicy.named(name))

    service = fleet([1e9] * count, apart=0.001, lists=name == LIST)
    loop = looptime.new_event_loop(noop_cycles=1)
    cpu = time.process_time()
    loop.run_until_complete(watched(service))
    loop.close()
    cpu = time.process_time() - cpu
    part = "Watching while nothing ends"
    report.notes[part] = f"{count:,} pending for {seconds:g} s, with the in-memory service and without sockets"
    report.add(part, label(name), "requests/s", len(service.sent) / seconds)
    report.add(part, label(name), "% of a core", 100 * cpu / seconds)


def plot(path: Path, found: Mapping[int, tuple[Mapping[str, Many], Mapping[str, Sequence[Point]]]]) -> None:
    """Draw requests against delay: a panel for each number of pending predictions."""
    plt = _chart.pyplot()
    from matplotlib.ticker import NullFormatter, ScalarFormatter  # noqa: PLC0415 -- only the plot needs it

    counts = [count for count in PLOTTED_COUNTS if count in found]
    rows = math.ceil(len(counts) / 2)
    figure, grid = plt.subplots(rows, 2, figsize=(9, 3.6 * rows), layout="constrained", sharey=True, squeeze=False)
    axes = grid.ravel()
    for spare in axes[len(counts) :]:
        spare.remove()
    for axis, count in zip(axes, counts, strict=False):
        points, curves = found[count]
        for line, curve in curves.items():
            axis.plot(*zip(*sorted(curve), strict=True), label=line, linewidth=1, marker=".")
        ours = sorted((each.requests, each.delay) for each in points.values())
        axis.plot(*zip(*ours, strict=True), label="kling_async", linewidth=2, marker="o", color="black")
        for name, each in points.items():
            right = name == "eager"
            axis.annotate(
                name,
                (each.requests, each.delay),
                xytext=(6 if right else -6, 4 if right else -12),
                textcoords="offset points",
                ha="left" if right else "right",
            )
        axis.set(xscale="log", yscale="log", xlabel="status requests per prediction", xlim=(1.4, 80), ylim=(0.4, 40))
        axis.set_title(f"{count:,} pending")
        axis.set_xticks([2, 5, 10, 20, 50])
        axis.set_yticks([0.5, 1, 2, 5, 10, 20])
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(ScalarFormatter())
            side.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    for axis in grid[:, 0]:
        axis.set_ylabel("mean delay, s")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower right")
    _chart.save(figure, path)
    print(f"plotted to {path}")


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    counts: Sequence[int] = COUNTS
    if options.quick:
        options.jobs, counts = 50, COUNTS[:3]
    report = _suite.Report(options)
    single(report)
    found = many(report, counts)
    policies(report, log_normal(options.jobs, 60.0, WIDE_SIGMA))
    for name in ("balanced", LIST):
        idle(report, 10 * options.jobs, 300.0, name)
    report.finish()
    if options.plot is not None:
        plot(options.plot, found)


if __name__ == "__main__":
    main()
