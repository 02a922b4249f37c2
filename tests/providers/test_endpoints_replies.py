"""Responses of the account endpoints, in every format that documentation and vendor clients show."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import ApiError, HttpResponse, Job, NotFoundError, ProtocolError, ServerError, WaveSpeed

KEY = "wsk_0123456789abcdef"
WAVESPEED = WaveSpeed(api_key=KEY)
JOB = Job(prompt="x", image="https://pictures.example/face.png")


def reply(body: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status, headers={"x-request-id": "req-7"}, body=json.dumps(body).encode())


def good(data: object) -> HttpResponse:
    return reply({"code": 200, "message": "success", "data": data})


READERS = {
    "predictions": WAVESPEED.read_predictions,
    "deleted": WAVESPEED.read_deleted,
    "balance": WAVESPEED.read_balance,
    "models": WAVESPEED.read_models,
    "price": lambda response: WAVESPEED.read_price(response, JOB),
    "usage": WAVESPEED.read_usage,
    "billings": WAVESPEED.read_billings,
    "secret": WAVESPEED.read_webhook_secret,
    "upload": WAVESPEED.read_upload,
}
every = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


# ---- all readers ----


@every
def test_refusal_raises_with_body_and_request_id(read: Any) -> None:
    with pytest.raises(NotFoundError) as caught:
        read(reply({"code": 404, "message": "no such thing"}, 404))
    assert (caught.value.request_id, caught.value.raw) == ("req-7", {"code": 404, "message": "no such thing"})
    with pytest.raises(ServerError) as failed:
        read(reply({"code": 500, "message": "Upload failed: invalid file type"}))
    assert failed.value.code == 500
    assert "invalid file type" in str(failed.value)


@every
@pytest.mark.parametrize("data", [{}, None, [[]], {"items": 5}, "", True])
def test_response_without_expected_data_raises_protocol_error(read: Any, data: object) -> None:
    if data == [[]] and read in {WAVESPEED.read_predictions, WAVESPEED.read_models, WAVESPEED.read_billings}:
        assert read(good(data)).unread == 1
        return
    with pytest.raises(ProtocolError) as caught:
        read(good(data))
    assert caught.value.request_id == "req-7"


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
KNOWN = """
items balance deleted_count price discounted_price currency discount_rate summary per_model_usage daily_usage total_cost
total_count models date amount count uuid created_at order prediction model_id base_price api_schema api_schemas
request_schema type formula secret download_url id status input billing_type last_used_date
"""
fields = st.sampled_from(KNOWN.split())
lively = st.recursive(
    anything,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(fields, inner, max_size=5)),
    max_leaves=12,
)


@every
@given(data=lively)
def test_any_data_parses_or_raises_api_error(read: Any, data: object) -> None:
    with contextlib.suppress(ApiError):
        read(good(data))


# ---- predictions ----

RECORD = {
    "id": "45b392b22c3b449fa935bd4dc2219dfe",
    "model": "kwaivgi/kling-v2.1-i2v-pro",
    "status": "failed",
    "code": 1402,
    "error": "Failed to download image from the provided URL.",
    "created_at": "2026-11-21T09:12:48.239112031Z",
}


@pytest.mark.parametrize("name", ["input", "inputs"])
def test_predictions_page_keeps_input(name: str) -> None:
    page = WAVESPEED.read_predictions(
        good({"page": 1, "total": 505, "items": [RECORD, {**RECORD, "id": "b", name: {"prompt": "She turns"}}]})
    )
    assert (page.size, page.unread, page.request_id) == (2, 0, "req-7")
    first, second = page.items
    assert (first.input, second.input) == (None, {"prompt": "She turns"})
    assert first.code == 1402
    assert second.raw[name] == {"prompt": "She turns"}
    assert first.request_id == "req-7"


@pytest.mark.parametrize("data", [{"items": []}, {"items": None, "page": 9}, []])
def test_empty_page(data: object) -> None:
    assert WAVESPEED.read_predictions(good(data)).size == 0


def test_unreadable_item_is_counted_and_skipped() -> None:
    page = WAVESPEED.read_predictions(good({"items": [{"status": "completed"}, RECORD, 5]}))
    assert [prediction.id for prediction in page.items] == [RECORD["id"]]
    assert (page.size, page.unread) == (3, 2)


# ---- money ----


@pytest.mark.parametrize(
    "data", [{"balance": 12.34}, {"balance": "12.34"}, {"balance": 12.34, "currency": "USD"}, 12.34]
)
def test_balance_is_decimal(data: object) -> None:
    balance = WAVESPEED.read_balance(good(data))
    assert balance == Decimal("12.34")
    assert isinstance(balance, Decimal)


@pytest.mark.parametrize("balance", [None, "much", True, 1e300, "1e999999", "NaN", "Infinity"])
def test_invalid_balance_raises_protocol_error(balance: object) -> None:
    with pytest.raises(ProtocolError, match="no balance"):
        WAVESPEED.read_balance(good({"balance": balance}))


def test_discounted_price() -> None:
    data = {"model_id": "m/x", "price": 0.9, "discounted_price": 0.81, "discount_rate": 0.1, "currency": "USD"}
    price = WAVESPEED.read_price(good(data), JOB)
    assert (price.model, price.price, price.discounted, price.rate) == (
        "m/x",
        Decimal("0.9"),
        Decimal("0.81"),
        Decimal("0.1"),
    )
    assert (str(price), price.raw, price.request_id) == ("$0.81", data, "req-7")


@pytest.mark.parametrize(
    "data", [{"price": 0.45}, {"unit_price": 0.45, "currency": "USD"}, {"discounted_price": "0.45", "price": None}]
)
def test_price_without_discount(data: object) -> None:
    price = WAVESPEED.read_price(good(data), JOB)
    assert (price.price, price.discounted, price.currency) == (Decimal("0.45"), Decimal("0.45"), "USD")
    assert price.model == JOB.model


def test_price_in_other_currency_shows_it() -> None:
    assert str(WAVESPEED.read_price(good({"price": 3, "currency": "CNY"}), JOB)) == "3 CNY"


def test_usage() -> None:
    data = {
        "per_model_usage": [
            {
                "model_uuid": "m/x",
                "model_type": "image-to-video",
                "unit_price": 0.45,
                "total_cost": "1.35",
                "total_count": 3,
                "last_used_date": "2026-11-21T09:12:48Z",
            },
            "not an object",
        ],
        "daily_usage": [
            {"date": "2026-11-21", "amount": 0.9, "count": 2, "models": ["m/x", {"model_uuid": "m/y"}]},
            {"date": "today"},
        ],
        "summary": {"total_cost": 1.35, "total_requests": 4, "success_requests": "3"},
    }
    usage = WAVESPEED.read_usage(good(data))
    assert (usage.cost, usage.requests, usage.succeeded) == (Decimal("1.35"), 4, 3)
    (model,) = usage.models
    assert (model.model, model.cost, model.count, model.last_used) == (
        "m/x",
        Decimal("1.35"),
        3,
        datetime(2026, 11, 21, 9, 12, 48, tzinfo=UTC),
    )
    assert [(day.day, day.cost, day.count, day.models) for day in usage.days] == [
        (date(2026, 11, 21), Decimal("0.9"), 2, ("m/x", "m/y")),
        (None, Decimal(0), 0, ()),
    ]
    assert (usage.raw, usage.request_id) == (data, "req-7")


def test_usage_without_summary_is_summed() -> None:
    assert WAVESPEED.read_usage(
        good({"per_model_usage": [{"total_cost": 1}, {"total_cost": 0.5}], "daily_usage": None})
    ).cost == Decimal("1.5")


LINE = {
    "uuid": "line-1",
    "access_key_id": 7,
    "access_key_name": "batch",
    "billing_type": "deduct",
    "price": 0.81,
    "created_at": "1795262400123",
    "updated_at": "1795262400123",
    "order": {"uuid": "o", "state": "paid", "price": 0.81, "origin_price": 0.9, "status": "success", "ak_id": 7},
    "prediction": {"uuid": "p1", "model_uuid": "m/x", "status": "completed"},
}


def test_billing_line() -> None:
    (line,) = WAVESPEED.read_billings(good({"page": 1, "has_more": False, "items": [LINE]})).items
    assert (line.id, line.kind, line.price, line.list_price) == ("line-1", "deduct", Decimal("0.81"), Decimal("0.9"))
    assert (line.prediction_id, line.model, line.status, line.key_name) == ("p1", "m/x", "completed", "batch")
    assert (line.raw, line.request_id) == (LINE, "req-7")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1795262400123", datetime(2026, 11, 21, 12, 0, 0, 123000, tzinfo=UTC)),
        (1795262400123, datetime(2026, 11, 21, 12, 0, 0, 123000, tzinfo=UTC)),
        ("2026-11-21T12:00:00.123456789Z", datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2026-11-21 12:00:00", datetime(2026, 11, 21, 12, tzinfo=UTC)),
        ("yesterday", None),
        (None, None),
        (True, None),
        ("9" * 30, None),
        (10**30, None),
    ],
)
def test_billing_time_formats(written: object, read: datetime | None) -> None:
    (line,) = WAVESPEED.read_billings(good({"items": [{**LINE, "created_at": written}]})).items
    assert line.created_at == read


def test_refund_is_positive_and_line_without_amount_is_unread() -> None:
    page = WAVESPEED.read_billings(
        good({"items": [{"billing_type": "refund", "price": -0.45}, {"uuid": "x", "price": None}]})
    )
    assert [(line.kind, line.price, line.prediction_id) for line in page.items] == [("refund", Decimal("0.45"), None)]
    assert page.unread == 1


def test_deleted_count() -> None:
    assert WAVESPEED.read_deleted(good({"deleted_count": 2})) == 2


# ---- models ----

ENTRY = {
    "model_id": "kwaivgi/kling-v2.1-i2v-pro",
    "name": "Kling",
    "description": "A model",
    "type": "image-to-video",
    "base_price": 0.45,
    "formula": '{"total_price": base_price * duration / 5}',
    "api_schema": {
        "api_schemas": [
            {"type": "model_stream", "api_path": "/api/v3/other"},
            {
                "type": "model_run",
                "api_path": "/api/v3/kwaivgi/kling-v2.1-i2v-pro",
                "request_schema": {"type": "object", "properties": {"image": {"type": "string"}}},
            },
        ]
    },
}


@pytest.mark.parametrize("data", [[ENTRY], {"items": [ENTRY]}], ids=["list", "items"])
def test_models_in_both_formats(data: object) -> None:
    (model,) = WAVESPEED.read_models(good(data)).items
    assert (model.id, model.type, model.base_price) == (ENTRY["model_id"], "image-to-video", Decimal("0.45"))
    assert model.path == "/api/v3/kwaivgi/kling-v2.1-i2v-pro"
    assert model.schema == {"type": "object", "properties": {"image": {"type": "string"}}}
    assert (model.raw, model.request_id) == (ENTRY, "req-7")
    assert hash(model)


def test_models_in_short_format() -> None:
    (model,) = WAVESPEED.read_models(
        good({"items": [{"model_uuid": "m/x", "name": "X", "category": "image-to-video", "description": "d"}]})
    ).items
    assert (model.id, model.type, model.base_price, model.schema, model.path) == ("m/x", "image-to-video", None, {}, "")


# ---- secret and upload ----


@pytest.mark.parametrize(
    "body", [{"code": 200, "message": "success", "data": {"secret": "whsec_x/y+z="}}, {"secret": "whsec_x/y+z="}]
)
def test_webhook_secret_enveloped_or_bare_is_hidden(body: object) -> None:
    secret = WAVESPEED.read_webhook_secret(reply(body))
    assert secret.reveal() == "whsec_x/y+z="
    assert "whsec" not in repr(secret) + str(secret) + f"{secret}"


def test_unreadable_secret_is_not_quoted() -> None:
    for data in ({"secret": "whsec_with space"}, {"webhook": "whsec_elsewhere"}):
        with pytest.raises(ProtocolError) as caught:
            WAVESPEED.read_webhook_secret(good(data))
        assert "whsec" not in str(caught.value) + repr(caught.value.raw)


def test_upload_in_one_request() -> None:
    data = {"type": "image", "download_url": "https://cdn.example/media/images/1.png", "filename": "a.png", "size": 9}
    assert WAVESPEED.read_upload(good(data)) == "https://cdn.example/media/images/1.png"
