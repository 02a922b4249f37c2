"""Status requests and delay of the watch policies, compared with fixed and growing intervals, in virtual time.

    python benchmarks/bench_watching.py [--jobs 1000] [--plot frontier.svg] [--json FILE] [--quick]

The real planner and watcher run against an in-memory service whose requests take 0.2 s each; requests and delays are
counted at the service. The baselines are computed for the same completion times. The plot needs the dependency group
`bench`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import looptime

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import _suite
from kling_async import WatchPolicy
from support.fleet import Figures, Fleet, exponential, fixed, fleet, log_normal, watch

Point = tuple[float, float]
"""Status requests per prediction, and the mean delay in seconds."""

WIDE_SIGMA, NARROW_SIGMA = 0.557, 0.15
"""Sigmas of log-normal durations with a median of 60 s: one in twenty takes more than 150 s, or 77 s."""
INTERVALS_S = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0)
PRICES_S = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
REPORTED_PRICES_S = (0.25, 1.0, 4.0)
"""The prices of eager, balanced and gentle."""
MIN_PLOTTED_REQUESTS = 0.1
"""Requests per prediction below which a policy is not plotted: with webhooks there are almost none."""
REQUESTS, DELAY = "requests per prediction", "s of delay"
FIXED, WEBHOOKS = "fixed(5)", "webhook first"
POLICIES = {
    "gentle": WatchPolicy.gentle(),
    "balanced": WatchPolicy.balanced(),
    "eager": WatchPolicy.eager(),
    FIXED: WatchPolicy.fixed(5),
    WEBHOOKS: WatchPolicy.webhook_first(),
}
LOST = "the same, every second delivery lost"
LABELS = {
    "balanced": '`"balanced"` (default)',
    FIXED: "`WatchPolicy.fixed(5)`",
    WEBHOOKS: f'`"{WEBHOOKS}"`, all delivered within 1 s',
    LOST: LOST,
}


def run(service: Fleet, policy: WatchPolicy, *, lost: int = 1) -> Figures:
    """Watch all predictions; the first of every `lost` webhook deliveries is lost, with 0 none is."""
    lose = {record.id for number, record in enumerate(service.records) if number % lost == 0} if lost else set[str]()
    loop = looptime.new_event_loop(noop_cycles=1)
    try:
        return loop.run_until_complete(watch(service, policy, delivered=lambda record: record.id not in lose))
    finally:
        loop.close()


def at_equal_requests(times: Sequence[float], requests: float) -> Point:
    """Return the point of the fixed interval that needs the same number of requests."""
    low, high = 0.2, 600.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fixed(times, middle)[0] > requests else (low, middle)
    return fixed(times, high)


def frontier(report: _suite.Report, name: str, times: Sequence[float]) -> dict[str, list[Point]]:
    """Measure the trade-off between requests and delay, with a prediction every half second and no list endpoint."""
    part = f"Watching without a list, {name}"
    report.notes[part] = f"{len(times):,} predictions, one started every half second; a request takes 0.2 s"
    curves: dict[str, list[Point]] = {
        "fixed interval": [fixed(times, interval) for interval in INTERVALS_S],
        "1 s, growing by half up to a cap": [exponential(times, 1.0, 1.5, cap) for cap in (*INTERVALS_S, float("inf"))],
        "learned": [],
    }
    print(f"\nwithout a list, {name}")
    print(f"{'price':>8} {'requests':>9} {'delay':>7}   fixed interval with equal requests")
    for price in PRICES_S:
        policy = WatchPolicy(price=price, least=min(1.0, 4 * price), most=120.0, pages=False)
        figures = run(fleet(times, apart=0.5), policy)
        curves["learned"].append((figures.requests, figures.delay))
        other = at_equal_requests(times, figures.requests)
        print(f"{price:8} {figures.requests:9.2f} {figures.delay:5.1f} s   {other[1]:5.1f} s")
        if price in REPORTED_PRICES_S:
            name = f"kling_async, price {price:g} s per request"
            report.add(part, name, REQUESTS, figures.requests)
            report.add(part, name, DELAY, figures.delay)
            report.add(part, name, f"{DELAY} with a fixed interval and equal requests", other[1])
    for curve, points in curves.items():
        dominated = [
            (ours, theirs)
            for ours in curves["learned"]
            for theirs in points
            if curve != "learned" and theirs[0] <= ours[0] and theirs[1] <= ours[1]
        ]
        if curve != "learned":
            print(f"{curve}: dominates {len(dominated)} of {len(PRICES_S)} learned points")
    return curves


def policies(report: _suite.Report, times: Sequence[float]) -> dict[str, Point]:
    """Measure all policies with all predictions pending at once."""
    part = "Watching many at once"
    report.notes[part] = (
        f"{len(times):,} predictions started within 10 s; half take more than 60 s, one in twenty more than 150 s; "
        "a request takes 0.2 s"
    )

    def add(name: str, with_list: Figures, without: Figures) -> None:
        baseline = name == FIXED
        name = LABELS.get(name, f'`"{name}"`')
        figures = {
            REQUESTS + ", with a list": with_list.requests,
            DELAY + ", with a list": with_list.delay,
            REQUESTS + ", without": without.requests,
            DELAY + ", without": without.delay,
        }
        for unit, figure in figures.items():
            report.add(part, name, unit, figure, baseline=baseline)

    print(f"\n{len(times)} pending at once, log-normal, median 60 s, one in twenty over 150 s")
    print(f"{'policy':<16}{'with a list':>24}{'without':>24}")
    points: dict[str, Point] = {}
    for name, policy in POLICIES.items():
        lost = 0 if name == WEBHOOKS else 1
        with_list = run(fleet(times), policy, lost=lost)
        without = run(fleet(times, lists=False), policy, lost=lost)
        points[name] = (with_list.requests, with_list.delay)
        add(name, with_list, without)
        print(
            f"{name:<16}{with_list.requests:9.2f} each, {with_list.delay:5.1f} s"
            f"{without.requests:11.2f} each, {without.delay:5.1f} s",
            flush=True,
        )
    with_list = run(fleet(times), WatchPolicy.webhook_first(), lost=2)
    without = run(fleet(times, lists=False), WatchPolicy.webhook_first(), lost=2)
    print(
        f"{'  every 2nd lost':<16}{with_list.requests:9.2f} each, {with_list.delay:5.1f} s"
        f"{without.requests:11.2f} each, {without.delay:5.1f} s"
    )
    add(LOST, with_list, without)
    requests, delay = fixed(times, 5.0)
    print(f"{'5 s, computed':<16}{requests:9.2f} each, {delay:5.1f} s")
    print(f"balanced: one request per {requests / points['balanced'][0]:.1f} of a fixed 5 s interval")
    return points


def idle(report: _suite.Report, count: int, seconds: float, *, lists: bool) -> None:
    """Measure CPU and requests while no prediction ends."""

    async def watched(service: Fleet) -> None:
        with anyio.move_on_after(seconds):
            await watch(service, WatchPolicy.balanced())

    service = fleet([1e9] * count, apart=0.001, lists=lists)
    loop = looptime.new_event_loop(noop_cycles=1)
    cpu = time.process_time()
    loop.run_until_complete(watched(service))
    loop.close()
    cpu = time.process_time() - cpu
    print(
        f"{count} pending and none ends, {'with' if lists else 'without'} a list: "
        f"{len(service.sent) / seconds:.1f} requests/s, {cpu / seconds:.1%} of a core, including the in-memory service"
    )
    part, name = "Watching while nothing ends", "kling_async, with a list" if lists else "kling_async, without a list"
    report.notes[part] = f"{count:,} pending for {seconds:g} s, without the cost of sockets"
    report.add(part, name, "requests/s", len(service.sent) / seconds)
    report.add(part, name, "% of a core", 100 * cpu / seconds)


def plot(path: Path, curves: dict[str, dict[str, list[Point]]], ours: dict[str, Point], fixed_5_s: Point) -> None:
    """Draw requests against delay: a panel per frontier, and one with the policies."""
    import matplotlib as mpl  # noqa: PLC0415 -- only the plot needs it

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "kling_async"})
    import matplotlib.pyplot as plt  # noqa: PLC0415 -- see above
    from matplotlib.ticker import ScalarFormatter  # noqa: PLC0415 -- see above

    figure, axes = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    for axis, (name, lines) in zip(axes, curves.items(), strict=False):
        for line, points in lines.items():
            learned = line == "learned"
            xs, ys = zip(*sorted(points), strict=True)
            axis.plot(xs, ys, label=line, linewidth=2.5 if learned else 1, marker="o" if learned else ".")
        axis.set_title(f"without a list, {name}")
    for name, point in {**ours, "5 s": fixed_5_s}.items():
        if point[0] >= MIN_PLOTTED_REQUESTS:
            axes[2].plot(*point, "o")
            axes[2].annotate(name, point, xytext=(6, 4), textcoords="offset points")
    axes[2].set_title("1,000 pending, with a list")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlabel="status requests per prediction", ylabel="mean delay, s")
        axis.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20, 50])
        axis.set_yticks([0.5, 1, 2, 5, 10, 20])
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(ScalarFormatter())
            side.set_minor_formatter("")
        axis.grid(alpha=0.3)
    for axis in axes[:2]:
        axis.set_xlim(1.4, 80)
    axes[2].set_xlim(0.2, 40)
    axes[0].legend()
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
    print(f"plotted to {path}")


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.jobs = 50
    report = _suite.Report(options)
    times = log_normal(options.jobs, 60.0, WIDE_SIGMA)
    ours = policies(report, times)
    curves = {
        "wide": frontier(report, "wide: median 60 s, one in twenty over 150 s", times),
        "narrow": frontier(
            report, "narrow: median 60 s, one in twenty over 77 s", log_normal(options.jobs, 60.0, NARROW_SIGMA)
        ),
    }
    print()
    for lists in (True, False):
        idle(report, 10 * options.jobs, 300.0, lists=lists)
    report.finish()
    if options.plot is not None:
        plot(options.plot, curves, ours, fixed(times, 5.0))


if __name__ == "__main__":
    main()
