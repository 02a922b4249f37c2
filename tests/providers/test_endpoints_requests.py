"""What is asked of the account's endpoints: exactly, by docs and by what the vendor's own clients send."""

from __future__ import annotations

import email
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from email.message import Message
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import Effect, GPTProto, HttpRequest, Job, UnsupportedError, WaveSpeed

KEY = "wsk_0123456789abcdef"
URL = "https://pictures.example/face.png"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
WAVESPEED = WaveSpeed(api_key=KEY)
NOON = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)


def body(request: HttpRequest) -> Any:
    assert request.body is not None
    return json.loads(request.body)


def test_every_endpoint_is_a_read_of_the_own_origin_with_the_key() -> None:
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


def test_the_list_says_its_page_and_only_the_filters_that_were_given() -> None:
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


def test_delete_names_the_ids() -> None:
    assert body(WAVESPEED.delete(("a", "b"))) == {"ids": ["a", "b"]}


def test_a_price_is_asked_for_with_all_inputs_and_no_file() -> None:
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


def test_usage_has_iso_times_and_the_bill_has_milliseconds() -> None:
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
    """The parts of a form, as the standard library reads them."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + (request.body or b""))
    found = message.get_payload()
    assert isinstance(found, list)
    return [part for part in found if isinstance(part, Message)]


@given(st.binary(min_size=1, max_size=200))
def test_a_form_holds_the_file_as_it_is(content: bytes) -> None:
    request = WAVESPEED.upload_binary(filename='a "b"\r\n.png', content=content, content_type="image/png")
    boundary = request.headers["Content-Type"].partition("boundary=")[2]
    assert request.body is not None
    pieces = request.body.split(b"--" + boundary.encode())
    assert len(pieces) == 3
    head, _, rest = pieces[1].partition(b"\r\n\r\n")
    assert rest == content + b"\r\n"
    assert head.count(b"\r\n") == 2, "the name of the file ends no line"


def test_a_form_is_one_that_others_read() -> None:
    (part,) = parts(WAVESPEED.upload_binary(filename="a.png", content=PNG, content_type="image/png"))
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_filename() == "a.png"
    assert part.get_content_type() == "image/png"


REFUSED: list[tuple[str, Callable[[GPTProto], HttpRequest]]] = [
    ("/api/v3/predictions", lambda provider: provider.predictions(page=1)),
    ("/api/v3/predictions/delete", lambda provider: provider.delete(["a"])),
    ("/api/v3/balance", lambda provider: provider.balance()),
    ("/api/v3/models", lambda provider: provider.models()),
    ("/api/v3/model/price", lambda provider: provider.price(Job(prompt="x", image=URL))),
    ("/api/v3/user/usage_stats", lambda provider: provider.usage(NOON, NOON)),
    ("/api/v3/billings/search", lambda provider: provider.billings(kind="refund")),
    ("/api/v3/webhook/secret", lambda provider: provider.webhook_secret()),
    (
        "/api/v3/media/upload/binary",
        lambda provider: provider.upload_binary(filename="a", content=b"x", content_type="image/png"),
    ),
]


@pytest.mark.parametrize(("path", "ask"), REFUSED, ids=[path for path, _ in REFUSED])
def test_gptproto_refuses_what_none_of_its_pages_names(path: str, ask: Callable[[GPTProto], HttpRequest]) -> None:
    with pytest.raises(UnsupportedError) as caught:
        ask(GPTProto(api_key=KEY))
    assert "gptproto" in str(caught.value)
    assert path in str(caught.value)


def test_the_last_frame_of_2_6_pro_has_another_name_at_gptproto() -> None:
    job = Job(model="kling-v2.6-pro", prompt="x", image=URL, end_image=URL)
    assert "end_image" in body(WAVESPEED.submit(job, URL, URL))
    sent = body(GPTProto(api_key=KEY).submit(job, URL, URL))
    assert sent["last_image"] == URL
    assert "end_image" not in sent
