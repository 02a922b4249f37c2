"""GPTProto's public list of prices: it is read without the key, and tells a price or that it does not know."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from kling_async import GPTProto, Job, ProtocolError, UnsupportedError
from kling_async._core.http import HttpResponse

KEY = "sk-secret"
PROVIDER = GPTProto(api_key=KEY)
IMAGE = "https://pictures.example/face.png"


def job(model: str = "kling-v2.1-pro", **fields: Any) -> Job:
    return Job(model=model, prompt="x", image=IMAGE, **fields)


def item(name: str, usd: object, unit: str) -> dict[str, object]:
    return {"modelManufacturerName": "Kling", "modelName": name, "platformLockPrice": usd, "priceTypeStr": unit}


def read(items: list[Any], made: Job) -> Decimal:
    body = json.dumps({"code": 0, "data": {"items": items}}).encode()
    priced = PROVIDER.read_price(HttpResponse(status=200, body=body), made)
    assert (priced.currency, priced.price, priced.model) == ("USD", priced.discounted, made.model)
    return priced.price


def test_list_is_read_without_the_key() -> None:
    request = PROVIDER.price(job())
    assert (request.method, request.url) == ("GET", "https://gptproto.com/api/home-model-catalog?language=en")
    assert not request.headers
    with pytest.raises(UnsupportedError, match=r"gptproto has no model kwaivgi/kling-v4\.0/image-to-video"):
        PROVIDER.price(job("kling-v4.0"))


@pytest.mark.parametrize(
    ("name", "usd", "unit", "made", "expected"),
    [
        ("kling-v2.1-i2v-pro/image-to-video", "0.08", "per second", job(), "0.40"),
        ("kling-v2.1-pro", "0.08", "Per  Second", job(duration=10), "0.80"),
        ("KLING-V2.1-PRO/image-to-video", 0.4, "per time", job(), "0.4"),
        ("kwaivgi/kling-v2.1-i2v-pro", "0.4", "per time", job(), "0.4"),
        ("kling-v3.0-std/image-to-video", "0.07", "per second", job("kling-v3.0-std", sound=False), "0.35"),
        ("kling-v3-omni-pro", "0.1", "per second", job("kling-o3-pro", duration=3), "0.3"),
    ],
)
def test_prices_that_the_list_tells(name: str, usd: object, unit: str, made: Job, expected: str) -> None:
    others = [item("kling-v2.1-master", "9", unit), {"modelName": 5}, "nonsense", item(name, None, unit)]
    assert read([*others, item(name, usd, unit)], made) == Decimal(expected)


@pytest.mark.parametrize(
    ("items", "made", "said"),
    [
        ([], job(), "expected one price of kling-v2.1-pro in the public list, got 0"),
        ([item("kling-v2.1-pro", "1", "per time"), item("kling-v2.1-i2v-pro", "2", "per time")], job(), "got 2"),
        ([item("kling-v2.1-pro", "1", "1M tokens")], job(), "unknown unit, '1m tokens'"),
        ([item("kling-v2.1-pro", "1", "per time")], job(duration=10), "does not say whether 10 s cost more"),
        ([item("kling-v3.0-std", "1", "per second")], job("kling-v3.0-std"), "with sound: pass sound=False"),
        ([item("kling-v2.6-pro", "1", "per second")], job("kling-v2.6-pro", sound=True), "costs with sound"),
    ],
)
def test_what_the_list_does_not_tell_is_an_error(items: list[Any], made: Job, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        read(items, made)
