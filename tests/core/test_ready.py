from __future__ import annotations

import random
from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async._core.turns import Place
from kling_async.limits.ready import ReadyQueue


def queue(weights: dict[str, float] | None = None, closed: set[str] | None = None) -> ReadyQueue[object]:
    """Return a queue of callers with these weights, of whom the closed ones may take nothing."""
    return ReadyQueue(lambda caller: (weights or {}).get(caller, 1.0), lambda caller: caller not in (closed or set()))


def taken(ready: ReadyQueue[object], number: int) -> list[tuple[object, str]]:
    found = [ready.pop() for _ in range(number)]
    return [each for each in found if each is not None]


def worst_deviation(callers: list[str], weights: dict[str, float], window: int) -> float:
    """Return the greatest difference between a caller's starts and its share, over all windows of starts."""
    worst, total = 0.0, sum(weights.values())
    for caller, weight in weights.items():
        sums = [0, *accumulate(each == caller for each in callers)]
        share = window * weight / total
        worst = max(worst, *(abs(sums[at + window] - sums[at] - share) for at in range(len(callers) - window)))
    return worst


def test_items_without_places_go_in_order_of_arrival() -> None:
    ready = queue()
    for number in range(5):
        ready.push(number)
    assert taken(ready, 5) == [(number, "") for number in range(5)]
    assert ready.pop() is None
    assert len(ready) == 0


def test_priority_then_rank_within_a_caller() -> None:
    ready = queue()
    ready.push("late", Place(priority=-1))
    ready.push("first arrived", Place())
    ready.push("film", Place(rank=5))
    ready.push("urgent", Place(priority=7, rank=99))
    assert [item for item, _ in taken(ready, 4)] == ["urgent", "film", "first arrived", "late"]


def test_a_priority_counts_among_its_callers_own_items_only() -> None:
    ready = queue()
    for number in range(4):
        ready.push(("a", number), Place("a", priority=1000))
        ready.push(("b", number), Place("b"))
    assert Counter(caller for _, caller in taken(ready, 4)) == {"a": 2, "b": 2}


@pytest.mark.parametrize("seed", range(8))
def test_starts_follow_the_weights_in_every_window(seed: int) -> None:
    rng = random.Random(seed)
    weights = {f"caller-{number}": float(rng.randint(1, 5)) for number in range(20)}
    ready = queue(weights)
    items = [(caller, number) for caller in weights for number in range(500)]
    rng.shuffle(items)
    for item in items:
        ready.push(item, Place(item[0]))
    callers = [caller for _, caller in taken(ready, 2400)]
    assert worst_deviation(callers, weights, 200) <= 2


def test_one_heavy_caller_among_many_does_not_get_its_share_in_one_piece() -> None:
    weights = {"heavy": 5.0} | {f"light-{number}": 1.0 for number in range(19)}
    ready = queue(weights)
    for caller in weights:
        for number in range(400):
            ready.push((caller, number), Place(caller))
    callers = [caller for _, caller in taken(ready, 1200)]
    assert worst_deviation(callers, weights, 24) <= 2


def test_a_newcomer_is_next_however_much_the_others_have_waiting() -> None:
    ready = queue()
    for number in range(1000):
        ready.push(("old", number), Place("old"))
        ready.push(("older", number), Place("older"))
    taken(ready, 501)
    ready.push("new", Place("new"))
    assert ("new", "new") in taken(ready, 2)


def test_who_had_nothing_waiting_has_no_credit() -> None:
    ready = queue()
    for number in range(200):
        ready.push(("busy", number), Place("busy"))
    ready.push("once", Place("idle"))
    taken(ready, 100)
    for number in range(50):
        ready.push(("idle", number), Place("idle"))
    assert Counter(caller for _, caller in taken(ready, 40)) == {"busy": 20, "idle": 20}


def test_one_at_a_time_is_no_advantage() -> None:
    ready = queue()
    for number in range(200):
        ready.push(("many", number), Place("many"))
    starts = Counter[str]()
    for number in range(100):
        if not starts["queued"]:
            ready.push(("single", number), Place("single"))
            starts["queued"] = 1
        found = ready.pop()
        assert found is not None
        starts[found[1]] += 1
        if found[1] == "single":
            starts["queued"] = 0
    assert abs(starts["many"] - starts["single"]) <= 2


def test_callers_at_their_limits_are_passed_over_until_they_are_let_in() -> None:
    closed = {"full"}
    ready = queue(closed=closed)
    ready.push("waits", Place("full"))
    ready.push("goes", Place("free"))
    assert ready.pop() == ("goes", "free")
    assert ready.pop() is None
    assert len(ready) == 1
    ready.unpark("full")
    assert ready.pop() is None, "it still may not"
    closed.clear()
    ready.unpark("full")
    assert ready.pop() == ("waits", "full")


def test_discarded_items_are_gone_and_take_no_turn() -> None:
    ready = queue()
    for number in range(100):
        ready.push(("a", number), Place("a"))
        ready.push(("b", number), Place("b"))
    assert all(ready.discard(("a", number)) for number in range(100))
    assert not ready.discard(("a", 0))
    assert taken(ready, 101) == [(("b", number), "b") for number in range(100)]


def test_nothing_is_kept_of_callers_who_come_and_go() -> None:
    ready = queue()
    ready.push("stays", Place("stays"))
    for number in range(10_000):
        ready.push(number, Place(f"caller-{number}"))
        ready.discard(number)
    turns = ready._turns
    assert len(ready._lines) == 1
    assert len(turns._debts) + len(turns._future) + len(turns._due) < 300
    assert ready.clear() == [("stays", "stays")]
    assert not ready._lines


@given(st.data())
def test_every_item_comes_out_once_whatever_happens(data: st.DataObject) -> None:
    closed: set[str] = set()
    weights = {"a": 1.0, "b": 3.0, "c": 0.25}
    ready = queue(weights, closed)
    inside: dict[int, str] = {}
    places: dict[int, tuple[int, int]] = {}
    for number in range(data.draw(st.integers(1, 60))):
        caller = data.draw(st.sampled_from("abc"))
        match data.draw(st.sampled_from(["push", "push", "pop", "discard", "close", "open"])):
            case "push":
                priority = data.draw(st.integers(-1, 1))
                ready.push(number, Place(caller, priority))
                inside[number] = caller
                places[number] = (-priority, number)
            case "pop":
                found = ready.pop()
                may = {each for each in inside.values() if each not in closed}
                assert (found is not None) == bool(may)
                if found is not None:
                    item, of = found
                    assert isinstance(item, int)
                    assert inside.pop(item) == of
                    assert of in may
                    assert all(places[each] > places[item] for each, other in inside.items() if other == of)
            case "discard" if inside:
                item = data.draw(st.sampled_from(sorted(inside)))
                assert ready.discard(item)
                del inside[item]
            case "close":
                closed.add(caller)
            case "open":
                closed.discard(caller)
                ready.unpark(caller)
        assert len(ready) == len(inside)
        assert all(ready.waiting(each) == sum(of == each for of in inside.values()) for each in "abc")
    for caller in "abc":
        closed.discard(caller)
        ready.unpark(caller)
    assert {item for item, _ in taken(ready, len(inside))} == inside.keys()
