"""Pagination over a changing list: every prediction once, even if the service ignores filters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import ConfigurationError, HttpRequest, HttpResponse, KlingSession, ProtocolError
from kling_async._http.pagination import page_with
from kling_async.testing import LoopClock, ScriptedTransport, json_response

pytestmark = pytest.mark.anyio

EPOCH = datetime(2026, 11, 21, tzinfo=UTC)


@attrs.define
class History:
    """List endpoint over creation times, newest first; `between` changes the list before each read but the first."""

    made: dict[str, float]
    between: Callable[[History], None] = lambda _: None
    deleted: set[str] = attrs.field(factory=set)
    arrived: set[str] = attrs.field(factory=set)
    requests: list[dict[str, Any]] = attrs.field(factory=list)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        assert request.body is not None
        body = json.loads(request.body)
        if self.requests:
            self.between(self)
        self.requests.append(body)
        before = body.get("created_before")
        items = sorted(((at, name) for name, at in self.made.items() if name not in self.deleted), reverse=True)
        if before is not None:
            limit = (datetime.fromisoformat(before) - EPOCH).total_seconds()
            items = [(at, name) for at, name in items if at <= limit]
        size = body["page_size"]
        page = items[(body["page"] - 1) * size : body["page"] * size]
        return json_response({"code": 200, "data": {"total": 7, "items": [self.item(name, at) for at, name in page]}})

    def item(self, name: str, at: float) -> dict[str, Any]:
        return {"id": name, "status": "completed", "created_at": (EPOCH + timedelta(seconds=at)).isoformat()}


def many(count: int, apart: float = 7.0) -> dict[str, float]:
    return {f"p{number:04d}": number * apart for number in range(count)}


async def listed(history: History, **options: Any) -> list[str]:
    clock = LoopClock()
    async with KlingSession("wsk_key_of_the_test", transport=ScriptedTransport(history), clock=clock) as kling:
        return [prediction.id async for prediction in kling.predictions(**options)]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 95])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
async def test_list_yields_all_newest_first(count: int, size: int) -> None:
    history = History(many(count))
    assert await listed(history, page_size=size) == sorted(history.made, reverse=True)


async def test_page_costs_one_request_and_short_page_is_last() -> None:
    history = History(many(95))
    await listed(history, page_size=20)
    assert len(history.requests) <= 7
    assert all(request["page_size"] <= 20 for request in history.requests)


@given(index=st.integers(0, 10**6), most=st.integers(1, 100))
def test_page_with_item_extends_past_item(index: int, most: int) -> None:
    number, size = page_with(index, most)
    assert 1 <= size <= max(most, 20)
    assert (number - 1) * size <= index < number * size - 1, "the item, and at least one after it"


def test_page_overlap_is_cheap() -> None:
    end, pages = 100, 1
    while end < 100_000:
        number, size = page_with(end - 1, 100)
        end, pages = number * size, pages + 1
    assert pages < 1150


async def test_limit_reads_only_needed_pages() -> None:
    history = History(many(95))
    assert await listed(history, limit=5) == ["p0094", "p0093", "p0092", "p0091", "p0090"]
    assert [request["page_size"] for request in history.requests] == [5]


@pytest.mark.parametrize("size", [2, 5, 10, 100])
@pytest.mark.parametrize("apart", [7.0, 0.0])
@pytest.mark.parametrize("seed", range(10))
async def test_changing_list_yields_each_item_once(seed: int, apart: float, size: int) -> None:
    rng = random.Random(seed)

    def change(history: History) -> None:
        newest = max(history.made.values())
        for _ in range(rng.choice((0, 0, 1, 3, 12))):
            name = f"q{len(history.arrived):04d}"
            newest += apart
            history.made[name] = newest
            history.arrived.add(name)
        for _ in range(rng.choice((0, 0, 1, 4, 11))):
            history.deleted.add(rng.choice([*history.made]))

    history = History(many(120, apart), change)
    there = set(history.made)
    found = await listed(history, page_size=size)
    assert len(found) == len(set(found)), "nothing twice"
    assert there - history.deleted <= set(found), "nothing lost"


async def test_repeating_list_raises_error() -> None:
    def same(request: HttpRequest) -> HttpResponse:
        count = json.loads(request.body or b"")["page_size"]
        return json_response({"code": 200, "data": {"items": [{"id": f"{number}"} for number in range(count)]}})

    async with KlingSession("wsk_key_of_the_test", transport=ScriptedTransport(same), clock=LoopClock()) as kling:
        with pytest.raises(ProtocolError, match="has no end"):
            async for _ in kling.predictions():
                pass


async def test_unreadable_items_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    def reply(_: HttpRequest) -> HttpResponse:
        return json_response({"code": 200, "data": {"items": [{"id": "a"}, {"status": "completed"}]}})

    async with KlingSession("wsk_key_of_the_test", transport=ScriptedTransport(reply), clock=LoopClock()) as kling:
        assert [prediction.id async for prediction in kling.predictions()] == ["a"]
    assert "1 of 2 predictions of a page" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"page_size": 0}, "page_size: expected 1 to 100, got 0"),
        ({"page_size": 101}, "page_size: expected 1 to 100, got 101"),
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"created_after": datetime(2026, 11, 21)}, "created_after: expected a timezone-aware datetime"),  # noqa: DTZ001 -- the point
        (
            {"created_after": "2026-11-21"},
            "created_after: expected a timezone-aware datetime or seconds since the epoch",
        ),
        ({"created_before": True}, "created_before: expected a timezone-aware datetime or seconds since the epoch"),
        (
            {"created_before": float("nan")},
            "created_before: expected a timezone-aware datetime or seconds since the epoch",
        ),
        ({"created_before": 1e18}, "expected seconds since the epoch of a representable time"),
    ],
)
async def test_invalid_arguments_send_nothing(options: dict[str, Any], said: str) -> None:
    history = History(many(3))
    with pytest.raises(ConfigurationError, match=said):
        await listed(history, **options)
    assert history.requests == []


async def test_times_are_aware_datetimes_or_epoch_seconds() -> None:
    history = History(many(3))
    await listed(
        history, created_after=EPOCH.timestamp(), created_before=EPOCH, model="kling-v2.1-pro", status="failed"
    )
    assert history.requests == [
        {
            "page": 1,
            "page_size": 100,
            "model": "kwaivgi/kling-v2.1-i2v-pro",
            "status": "failed",
            "created_after": "2026-11-21T00:00:00.000000Z",
            "created_before": "2026-11-21T00:00:00.000000Z",
        }
    ]


def bill(request: HttpRequest, lines: list[dict[str, Any]]) -> HttpResponse:
    body = json.loads(request.body or b"")
    size = body["page_size"]
    items = lines[(body["page"] - 1) * size : body["page"] * size]
    return json_response({"code": 200, "data": {"items": items, "has_more": False}})


async def test_growing_bill_yields_each_entry_once() -> None:
    lines = [{"uuid": f"{number}", "billing_type": "deduct", "price": 1} for number in range(35)]

    def reply(request: HttpRequest) -> HttpResponse:
        response = bill(request, lines)
        lines.insert(0, {"uuid": f"late-{len(lines)}", "billing_type": "deduct", "price": 1})
        return response

    transport = ScriptedTransport(reply)
    async with KlingSession("wsk_key_of_the_test", transport=transport, clock=LoopClock()) as kling:
        found = [line.id async for line in kling.billings(page_size=10)]
        assert [line for line in found if "late" not in line] == [f"{number}" for number in range(35)]
        assert len(found) == len(set(found))


async def test_usage_span_is_validated_before_sending() -> None:
    history = History({})
    async with KlingSession("wsk_key_of_the_test", transport=ScriptedTransport(history), clock=LoopClock()) as kling:
        for end in (EPOCH + timedelta(days=31, seconds=1), EPOCH - timedelta(seconds=1)):
            with pytest.raises(ConfigurationError, match="0 to 31 days"):
                await kling.usage(EPOCH, end)
        with pytest.raises(ConfigurationError, match="timezone-aware"):
            await kling.usage(EPOCH.replace(tzinfo=None), EPOCH)
    assert history.requests == []


async def test_delete_splits_ids_into_requests_and_accepts_one_string() -> None:
    def reply(request: HttpRequest) -> HttpResponse:
        return json_response({"code": 200, "data": {"deleted_count": len(json.loads(request.body or b"")["ids"])}})

    transport = ScriptedTransport(reply)
    async with KlingSession("wsk_key_of_the_test", transport=transport, clock=LoopClock()) as kling:
        assert await kling.delete([]) == 0
        assert transport.requests == []
        assert await kling.delete("abc") == 1
        assert await kling.delete(f"p{number}" for number in [*range(250), 3]) == 250
        assert len(transport.requests) == 4
