"""Chains of clips in one batch, in virtual time: order, slots, window, failures, budgets, and what is sent."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from kling_async import (
    Budget,
    BudgetExceededError,
    CallerLimits,
    FirstFrame,
    FrameAt,
    InvalidJobError,
    Job,
    KlingSession,
    LastFrame,
    Outcome,
    PredictionFailedError,
    SkippedError,
    Spent,
    WatchPolicy,
)
from support.films import chain, clip, pictures, take_ids
from support.service import IMAGE, Service, open_session
from support.trees import list_schedule

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    return take_ids(monkeypatch)


async def run(kling: KlingSession, jobs: Any, **options: Any) -> dict[str, Outcome]:
    async with kling.batch(jobs, **options) as batch:
        return {outcome.key: outcome async for outcome in batch}


async def test_each_clip_begins_with_the_end_of_the_one_before_it() -> None:
    service = Service(seconds=30)
    shots = {
        "night": Job(model="kling-v2.1-pro-start-end-frame", prompt="n", image=LastFrame("sail"), end_image=IMAGE),
        "sail": clip("s", "dawn", duration=10),
        "dawn": clip("d"),
    }
    async with open_session(service) as kling:
        outcomes = await run(kling, shots, name="film")
    assert [*outcomes] == ["dawn", "sail", "night"]
    assert all(outcome.ok for outcome in outcomes.values())
    assert pictures(service) == {"s": "d", "n": "s"}
    starts = [since for since, _, _ in service.accepted.values()]
    assert starts[1] >= starts[0] + 30
    assert starts[2] >= starts[1] + 30


async def test_frames_of_several_jobs_and_other_frames(taken: list[tuple[str, str]]) -> None:
    service = Service(seconds=lambda body: 100.0 if body["prompt"] == "a" else 10.0)
    both = Job(
        model="kling-v2.1-pro-start-end-frame", prompt="both", image=FrameAt("a", 1.5), end_image=FirstFrame("b")
    )
    async with open_session(service) as kling:
        outcomes = await run(kling, {"both": both, "a": clip("a"), "b": clip("b"), "c": clip("c", "both")})
    assert all(outcome.ok for outcome in outcomes.values())
    assert taken == [("both", "image 1.5 a"), ("both", "end_image first b"), ("c", "image last both")]


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ({"a": clip("a", "b"), "b": clip("b", "a")}, "a: continues itself: 'a' -> 'b' -> 'a'"),
        ({"a": clip("a", "a")}, "a: continues itself"),
        ({"b": clip("b", "dwan"), "dawn": clip("d")}, "b: continues 'dwan', which is no key of the same batch"),
        ({1: clip("a"), 2: clip("b", "3")}, "2: continues '3', which is no key"),
    ],
)
async def test_broken_chains_are_told_before_anything_is_sent(jobs: Any, said: str) -> None:
    service = Service()
    async with open_session(service) as kling:
        with pytest.raises(InvalidJobError, match=said):
            await run(kling, jobs)
    assert not service.paid


async def test_what_is_no_job_is_named_among_chains_too() -> None:
    async with open_session(Service()) as kling:
        with pytest.raises(TypeError, match="item 2 of the batch: expected a Job, got str"):
            await run(kling, {**chain("film", 2), "wrong": "no job"})


async def test_numbers_are_keys() -> None:
    service = Service()
    async with open_session(service) as kling:
        outcomes = await run(kling, {2: clip("b", "1"), 1: clip("a")})
    assert [*outcomes] == ["1", "2"]


async def test_lazy_input_names_a_parent_that_was_not_read() -> None:
    service = Service()

    async def lazy() -> AsyncIterator[tuple[str, Job]]:
        yield "b", clip("b", "a")
        yield "c", clip("c", "b")
        yield "a", clip("a")
        yield "d", clip("d", "a")

    async with open_session(service) as kling:
        outcomes = await run(kling, lazy())
    assert {key for key, outcome in outcomes.items() if outcome.ok} == {"a", "d"}
    assert isinstance(outcomes["b"].error, InvalidJobError)
    assert "image.of: expected the key of a job before it in the same batch, got 'a'" in str(outcomes["b"].error)
    assert isinstance(outcomes["c"].error, SkippedError)
    assert "it continues the job 'b', which has no video" in str(outcomes["c"].error)
    assert len(service.paid) == 2


async def test_lazy_clip_continues_one_that_ended_and_was_consumed_long_ago() -> None:
    service = Service(seconds=10)

    async def lazy() -> AsyncIterator[tuple[str, Job]]:
        yield "a", clip("a")
        await anyio.sleep(1000)
        yield "b", clip("b", "a")

    async with open_session(service) as kling, kling.batch(lazy(), window=1) as batch:
        outcomes = [outcome async for outcome in batch]
    assert [(outcome.key, outcome.ok) for outcome in outcomes] == [("a", True), ("b", True)]
    assert pictures(service) == {"b": "a"}


async def test_films_come_out_one_after_the_other_while_all_slots_are_busy() -> None:
    service = Service(seconds=60, latency=0.0)
    jobs: dict[str, Job] = {}
    for film in range(40):
        jobs |= chain(f"f{film:02}", 5)
    keys = [*jobs]
    random.Random(3).shuffle(keys)
    ends: dict[str, float] = {}
    async with open_session(service, max_in_flight=8) as kling, kling.batch({key: jobs[key] for key in keys}) as batch:
        async for outcome in batch:
            assert outcome.ok
            ends[outcome.key] = service.clock.monotonic()
    assert service.peak == 8
    # 200 clips of 60 s in 8 slots, besides the seconds in which ends are noticed and frames are taken.
    assert max(ends.values()) < 1.15 * 200 * 60 / 8
    films = [key.partition("-")[0] for key in ends if key.endswith("-4")]
    order = list(dict.fromkeys(key.partition("-")[0] for key in keys))
    roots = [key.partition("-")[0] for key in keys if key.endswith("-0")]
    assert sorted(films) == sorted(order)
    # Eight at a time, in the order of the input.
    assert all(abs(films.index(film) - roots.index(film)) < 8 for film in films)
    done = sorted(ends[f"{film}-4"] for film in films)
    assert done[7] < 0.35 * done[-1], "the first films are whole long before the last begin"


async def test_clip_that_is_ready_goes_before_those_that_begin() -> None:
    service = Service(seconds=60, latency=0.0)
    jobs = {**chain("film", 3), **{f"single-{number}": clip(f"single-{number}") for number in range(30)}}
    async with open_session(service, max_in_flight=2) as kling:
        outcomes = await run(kling, jobs)
    assert all(outcome.ok for outcome in outcomes.values())
    order = [body["prompt"] for body in service.paid]
    assert order.index("film-1") <= 4
    assert order.index("film-2") <= 7


async def test_waiting_clips_take_no_place_of_the_window_and_are_bounded() -> None:
    service = Service(seconds=60)
    read: list[str] = []

    def lazy() -> Iterator[tuple[str, Job]]:
        for key, job in chain("long", 100_000).items():
            read.append(key)
            yield key, job

    async with open_session(service, max_in_flight=4) as kling, kling.batch(lazy(), window=4) as batch:
        await anyio.sleep(30)
        assert len(read) == 4 * 64 + 2, "those that wait, the one that runs, and one for which there is no place yet"
        assert batch.statistics().waiting == 4 * 64
        for _ in range(3):
            await anext(batch)
        await anyio.sleep(30)
        assert len(read) == 4 * 64 + 5
    assert len(service.paid) == 4


@pytest.mark.parametrize("ordered", [False, True])
async def test_hundreds_of_trees(*, ordered: bool) -> None:
    rng = random.Random(5)
    jobs: dict[str, Job] = {}
    parents: dict[str, str] = {}
    for film in range(250):
        names: list[str] = []
        for number in range(rng.randint(1, 6)):
            name = f"f{film}-{number}"
            jobs[name] = clip(name)
            if names:
                parents[name] = rng.choice(names)
                jobs[name] = clip(name, parents[name])
            names.append(name)
    keys = [*jobs]
    rng.shuffle(keys)
    service = Service(seconds=lambda body: rng.uniform(20, 90))
    watch = WatchPolicy.fixed(15)
    shuffled = {key: jobs[key] for key in keys}
    async with (
        open_session(service, max_in_flight=100, watch=watch) as kling,
        kling.batch(shuffled, ordered=ordered, window=100) as batch,
    ):
        outcomes = [outcome async for outcome in batch]
        assert batch.statistics().waiting == batch.statistics().running == 0
    assert len(outcomes) == len(service.paid) == len(jobs)
    assert all(outcome.ok for outcome in outcomes)
    assert pictures(service) == parents
    assert service.peak == 100
    if ordered:
        assert [outcome.index for outcome in outcomes] == [*range(len(jobs))]


async def test_clips_of_a_failed_one_are_skipped_unpaid_and_name_it() -> None:
    service = Service(failures={"film-1": {"error": "content", "code": 1200}})
    jobs = {**chain("film", 5), "side": clip("side", "film-0"), **chain("other", 2)}
    async with open_session(service) as kling:
        outcomes = await run(kling, jobs)
    assert isinstance(outcomes["film-1"].error, PredictionFailedError)
    for number in (2, 3, 4):
        error = outcomes[f"film-{number}"].error
        assert isinstance(error, SkippedError)
        assert f"it continues the job 'film-{number - 1}', which has no video" in str(error)
        assert error.spent is Spent.NO
        assert outcomes[f"film-{number}"].cost is None
    assert {key for key, outcome in outcomes.items() if outcome.ok} == {"film-0", "side", "other-0", "other-1"}
    assert len(service.paid) == 5


async def test_two_failed_parents_skip_a_clip_once() -> None:
    service = Service(
        seconds=lambda body: 90.0 if body["prompt"] == "b" else 30.0,
        failures={name: {"error": "content", "code": 1200} for name in "ab"},
    )
    both = Job(model="kling-v2.1-pro-start-end-frame", prompt="both", image=LastFrame("a"), end_image=FirstFrame("b"))
    async with open_session(service) as kling, kling.batch({"a": clip("a"), "b": clip("b"), "both": both}) as batch:
        outcomes = [outcome async for outcome in batch]
    assert sorted(outcome.key for outcome in outcomes) == ["a", "b", "both"]
    assert batch.statistics().failed == 3


async def test_clip_waits_for_the_retries_of_the_one_before_it() -> None:
    times = 0

    def seconds(body: dict[str, Any]) -> float:
        nonlocal times
        times += body["prompt"] == "film-0"
        if times == 2:
            service.failures.clear()
        return 30.0

    service = Service(seconds=seconds, failures={"film-0": {"error": "internal", "code": 5000}})
    async with open_session(service, retry_failed=2) as kling:
        outcomes = await run(kling, chain("film", 2))
    assert all(outcome.ok for outcome in outcomes.values())
    assert [body["prompt"] for body in service.paid] == ["film-0", "film-0", "film-1"]


async def test_draining_ends_the_clips_that_were_not_sent() -> None:
    service = Service(seconds=60)
    async with open_session(service) as kling, kling.batch({**chain("film", 3), "one": clip("one")}) as batch:
        await anyio.sleep(10)
        batch.drain()
        outcomes = {outcome.key: outcome async for outcome in batch}
    assert outcomes["film-0"].ok
    assert outcomes["one"].ok
    assert {key for key, each in outcomes.items() if isinstance(each.error, SkippedError)} == {"film-1", "film-2"}
    assert len(service.paid) == 2


async def test_leaving_the_batch_early_sends_nothing_more() -> None:
    service = Service(seconds=60)
    async with open_session(service, budget=Budget(100, allow_estimate=True)) as kling:
        async with kling.batch(chain("film", 3)):
            await anyio.sleep(10)
        await anyio.sleep(300)
        assert len(service.paid) == 1
        assert kling.statistics().running == 0


async def test_reading_goes_on_beside_a_parent_that_no_budget_counts() -> None:
    """The caller of the last clip alone has a budget."""
    service = Service(seconds=60)
    limits = {"ann": CallerLimits(usd=100, allow_estimate=True)}
    jobs = {"a": clip("a"), "b": clip("b", "a"), "c": clip("c", "b", caller="ann"), "z": clip("z")}
    async with open_session(service, callers=limits) as kling:
        outcomes = await run(kling, jobs)
    assert all(outcome.ok for outcome in outcomes.values())
    begun = {body["prompt"]: since for since, _, body in service.accepted.values()}
    assert begun["z"] < begun["a"] + 10


async def test_budget_counts_a_film_when_it_begins() -> None:
    """The second film must not use up what the first one needs to be whole."""
    service = Service(seconds=60)
    price = clip("x").price().usd
    assert price is not None
    async with open_session(service) as kling:
        outcomes = await run(kling, {**chain("a", 3), **chain("b", 3)}, budget=Budget(price * 4, allow_estimate=True))
    paid = [body["prompt"] for body in service.paid]
    assert [key for key, outcome in outcomes.items() if outcome.ok] == paid
    assert {*paid} == {"a-0", "a-1", "a-2", "b-0"}
    assert isinstance(outcomes["b-1"].error, BudgetExceededError)
    assert isinstance(outcomes["b-2"].error, SkippedError)
    assert "it continues the job 'b-1'" in str(outcomes["b-2"].error)


async def test_film_that_has_begun_is_finished_although_the_budget_stops_the_batch() -> None:
    service = Service(seconds=60)
    price = clip("x").price().usd
    assert price is not None

    async def lazy() -> AsyncIterator[tuple[str, Job]]:
        for pair in chain("a", 3).items():
            yield pair
        await anyio.sleep(10)
        yield "big", Job(model="kling-v2.1-pro", prompt="big", image=IMAGE, duration=10)
        yield "more", clip("more")

    async with open_session(service) as kling:
        outcomes = await run(kling, lazy(), budget=Budget(price * 3, allow_estimate=True))
    assert isinstance(outcomes["big"].error, BudgetExceededError)
    assert {key for key, outcome in outcomes.items() if outcome.ok} == {"a-0", "a-1", "a-2"}
    assert {body["prompt"] for body in service.paid} == {"a-0", "a-1", "a-2"}


async def test_money_of_skipped_clips_is_free_again() -> None:
    service = Service(seconds=60, failures={"a-0": {"error": "content", "code": 1200}})
    price = clip("x").price().usd
    assert price is not None
    async with open_session(service) as kling:
        outcomes = await run(kling, {**chain("a", 3), **chain("b", 2)}, budget=Budget(price * 3, allow_estimate=True))
    assert {key for key, outcome in outcomes.items() if outcome.ok} == {"b-0", "b-1"}


async def test_key_of_a_batch_means_nothing_outside_of_one() -> None:
    service = Service()
    async with open_session(service) as kling:
        with pytest.raises(InvalidJobError, match=r"image.of: expected the key of a job in a batch, got 'a'"):
            await kling.generate(prompt="b", image=LastFrame("a"))
    assert not service.paid


async def test_unreadable_clip_ends_what_continues_it(tmp_path: Path) -> None:
    service = Service()
    jobs = {"a": Job(prompt="a", image=tmp_path / "gone.png"), "b": clip("b", "a"), "c": clip("c", "b")}
    async with open_session(service) as kling:
        outcomes = await run(kling, jobs)
    assert isinstance(outcomes["a"].error, InvalidJobError)
    assert isinstance(outcomes["b"].error, SkippedError)
    assert isinstance(outcomes["c"].error, SkippedError)
    assert not service.paid


async def test_clips_are_freed_once_their_outcomes_are_consumed() -> None:
    service = Service(seconds=10)
    alive: weakref.WeakSet[Job] = weakref.WeakSet()

    def lazy() -> Iterator[tuple[str, Job]]:
        for film in range(150):
            for key, job in chain(f"f{film}", 3).items():
                alive.add(job)
                yield key, job

    async with open_session(service, max_in_flight=5) as kling, kling.batch(lazy(), window=5) as batch:
        taken = 0
        async for outcome in batch:
            taken += 1
            del outcome
            if taken % 150 == 0 and taken < 450:
                gc.collect()
                assert len(alive) <= 5 * 64 + 20
    assert taken == 450


async def test_slots_are_as_busy_as_a_list_scheduler_makes_them() -> None:
    """Random trees, and a scheduler without any overhead that starts the next ready clip whenever a slot is free."""
    rng = random.Random(11)
    jobs: dict[str, Job] = {}
    parents: dict[str, str] = {}
    for film in range(40):
        names: list[str] = []
        for number in range(rng.randint(2, 12)):
            name = f"f{film}-{number}"
            if names:
                parents[name] = rng.choice(names[-2:])
            jobs[name] = clip(name, parents.get(name))
            names.append(name)
    seconds = {name: rng.uniform(60, 240) for name in jobs}
    service = Service(seconds=lambda body: seconds[body["prompt"]], latency=0.05)
    async with open_session(service, max_in_flight=12) as kling:
        begun = service.clock.monotonic()
        outcomes = await run(kling, jobs)
        took = service.clock.monotonic() - begun
    assert all(outcome.ok for outcome in outcomes.values())
    assert pictures(service) == parents
    best = list_schedule(seconds, parents, slots=12)
    assert best / took >= 0.95, (best, took)
