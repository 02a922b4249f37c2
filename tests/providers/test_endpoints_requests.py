"""Requests to the account endpoints, byte by byte: as documented and as the vendor's own clients send them."""

from __future__ import annotations

import email
import json
from datetime import UTC, datetime, timedelta, timezone
from email.message import Message
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import Effect, GPTProto, HttpRequest, Job, UnsupportedError, WaveSpeed
from kling_async.providers import AccountProvider
from kling_async.providers.protocol import ENDPOINTS, AccountEndpoint, account_of

KEY = "wsk_0123456789abcdef"
URL = "https://pictures.example/face.png"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
WAVESPEED = WaveSpeed(api_key=KEY)
NOON = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)


def body(request: HttpRequest) -> Any:
    assert request.body is not None
    return json.loads(request.body)


def test_endpoint_is_authorized_read_of_base_url() -> None:
    job = Job(prompt="x", image=URL)
    requests = {
        "POST https://api.wavespeed.ai/api/v3/predictions": WAVESPEED.predictions(),
        "POST https://api.wavespeed.ai/api/v3/predictions/delete": WAVESPEED.delete(["a"]),
        "GET https://api.wavespeed.ai/api/v3/balance": WAVESPEED.balance(),
        "GET https://api.wavespeed.ai/api/v3/models": WAVESPEED.models(),
        "POST https://api.wavespeed.ai/api/v3/model/price": WAVESPEED.price(job),
        "POST https://api.wavespeed.ai/api/v3/user/usage_stats": WAVESPEED.usage(NOON, NOON),
        "POST https://api.wavespeed.ai/api/v3/billings/search": WAVESPEED.billings(),
        "GET https://api.wavespeed.ai/api/v3/webhook/secret": WAVESPEED.webhook_secret(),
        "POST https://api.wavespeed.ai/api/v3/media/upload/binary": WAVESPEED.upload_binary(
            filename="a.png", content=PNG, content_type="image/png"
        ),
    }
    for expected, request in requests.items():
        assert f"{request.method} {request.url}" == expected
        assert request.effect is Effect.READ
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(request)
        assert (request.body is None) == (request.method == "GET")


def test_list_request_sends_page_and_given_filters_only() -> None:
    assert body(WAVESPEED.predictions()) == {"page": 1, "page_size": 100}
    berlin = NOON.astimezone(timezone(timedelta(hours=1)))
    assert body(
        WAVESPEED.predictions(
            page=3, page_size=7, model="m/x", status="failed", created_after=berlin, created_before=NOON
        )
    ) == {
        "page": 3,
        "page_size": 7,
        "model": "m/x",
        "status": "failed",
        "created_after": "2026-11-21T12:00:00.123456Z",
        "created_before": "2026-11-21T12:00:00.123456Z",
    }


def test_delete_request_lists_ids() -> None:
    assert body(WAVESPEED.delete(("a", "b"))) == {"ids": ["a", "b"]}


def test_price_request_sends_all_inputs_and_no_file() -> None:
    job = Job(model="kling-v2.1-pro", prompt="She turns", image=URL, duration=10)
    assert body(WAVESPEED.price(job)) == {
        "model_id": "kwaivgi/kling-v2.1-i2v-pro",
        "inputs": {"prompt": "She turns", "image": URL, "duration": 10},
    }
    frames = Job(
        model="kling-v2.1-start-end-frame", prompt="x", image=PNG, end_image="data:image/png;base64,iVBORw0KGgo="
    )
    inputs = body(WAVESPEED.price(frames))["inputs"]
    assert inputs["image"] == inputs["end_image"] == "https://example.com/image.png"


def test_usage_sends_iso_times_and_billings_milliseconds() -> None:
    assert body(WAVESPEED.usage(NOON, NOON + timedelta(days=1), model="m/x")) == {
        "start_time": "2026-11-21T12:00:00.123456Z",
        "end_time": "2026-11-22T12:00:00.123456Z",
        "model_uuid": "m/x",
    }
    assert body(WAVESPEED.billings()) == {"page": 1, "page_size": 100, "sort": "created_at DESC"}
    sent = body(WAVESPEED.billings(page=2, kind="refund", prediction_ids=["a"], model="m/x", start=NOON, end=NOON))
    assert sent == {
        "page": 2,
        "page_size": 100,
        "sort": "created_at DESC",
        "billing_type": "refund",
        "prediction_uuids": ["a"],
        "model_uuid": "m/x",
        "start_time": "1795262400123",
        "end_time": "1795262400123",
    }


def parts(request: HttpRequest) -> list[Message]:
    """Parse the parts of a form with the standard library."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + (request.body or b""))
    found = message.get_payload()
    assert isinstance(found, list)
    return [part for part in found if isinstance(part, Message)]


@given(st.binary(min_size=1, max_size=200))
def test_upload_form_contains_file_unchanged(content: bytes) -> None:
    request = WAVESPEED.upload_binary(filename='a "b"\r\n.png', content=content, content_type="image/png")
    boundary = request.headers["Content-Type"].partition("boundary=")[2]
    assert request.body is not None
    pieces = request.body.split(b"--" + boundary.encode())
    assert len(pieces) == 3
    head, _, rest = pieces[1].partition(b"\r\n\r\n")
    assert rest == content + b"\r\n"
    assert head.count(b"\r\n") == 2, "the filename does not break the header"


def test_upload_form_is_parsed_by_standard_library() -> None:
    (part,) = parts(WAVESPEED.upload_binary(filename="a.png", content=PNG, content_type="image/png"))
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_filename() == "a.png"
    assert part.get_content_type() == "image/png"


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS.keys() - {"price"}))
def test_gptproto_has_no_account_endpoints(endpoint: AccountEndpoint) -> None:
    reader, label = ENDPOINTS[endpoint]
    assert not hasattr(GPTProto, endpoint)
    assert not hasattr(GPTProto, reader)
    with pytest.raises(UnsupportedError, match=f"^gptproto has no {label}: GPTProto does not define `{endpoint}` and"):
        account_of(GPTProto(api_key=KEY), endpoint)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_wavespeed_has_all_account_endpoints(endpoint: AccountEndpoint) -> None:
    assert account_of(WAVESPEED, endpoint) is WAVESPEED


def test_account_endpoint_needs_request_and_reader() -> None:
    class RequestAlone(GPTProto):
        def balance(self) -> HttpRequest:
            return HttpRequest(method="GET", url=self.base_url)

    with pytest.raises(UnsupportedError, match="RequestAlone does not define `balance` and `read_balance`"):
        account_of(RequestAlone(api_key=KEY), "balance")


def test_endpoints_table_names_every_member_of_account_provider() -> None:
    members = {name for name in vars(AccountProvider) if not name.startswith("_")}
    assert members == {name for request, (reader, _) in ENDPOINTS.items() for name in (request, reader)}


def test_gptproto_renames_last_frame_of_2_6_pro() -> None:
    job = Job(model="kling-v2.6-pro", prompt="x", image=URL, end_image=URL)
    assert "end_image" in body(WAVESPEED.submit(job, URL, URL))
    sent = body(GPTProto(api_key=KEY).submit(job, URL, URL))
    assert sent["last_image"] == URL
    assert "end_image" not in sent
