"""A provider of one's own: the five core members run jobs, optional members are looked up one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest

from kling_async import (
    ConfigurationError,
    Effect,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    Prediction,
    ProtocolError,
    Provider,
    Status,
    UnsupportedError,
)
from kling_async.testing import ScriptedTransport, VirtualClock, json_response
from support.pictures import png

pytestmark = pytest.mark.anyio

PNG = png()


class CoreProvider:
    """A service with its own paths and format, without account endpoints and uploads."""

    name = "core"
    base_url = "https://core.example"

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        assert (end_image, webhook) == (None, None)
        body = json_response({"prompt": job.prompt, "image": image}).body
        return self._request("POST", "videos", Effect.PAID, body)

    def result(self, prediction_id: str) -> HttpRequest:
        return self._request("GET", f"videos/{prediction_id}", Effect.READ)

    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        record: Any = response.json()
        if response.status != 200:
            raise ProtocolError("no record", status=response.status)
        return Prediction(
            id=record["video"],
            status=Status.of(record["state"]),
            raw_status=record["state"],
            outputs=tuple(record.get("files", ())),
            key=key,
        )

    def _request(self, method: str, path: str, effect: Effect, body: bytes | None = None) -> HttpRequest:
        headers = {"Authorization": "Token core-key"}
        return HttpRequest(method=method, url=f"{self.base_url}/{path}", effect=effect, headers=headers, body=body)


class WithBalance(CoreProvider):
    """The same with one endpoint of the account."""

    def balance(self) -> HttpRequest:
        return self._request("GET", "balance", Effect.READ)

    def read_balance(self, response: HttpResponse) -> Decimal:
        return Decimal(response.body.decode())


def service(request: HttpRequest) -> HttpResponse:
    if request.url.endswith("/balance"):
        return HttpResponse(status=200, body=b"12.50")
    if request.effect is Effect.PAID:
        return json_response({"video": "v1", "state": "created"})
    return json_response({"video": "v1", "state": "completed", "files": ["https://files.example/v1.mp4"]})


def opened(provider: Provider, **options: Any) -> tuple[KlingSession, VirtualClock, ScriptedTransport]:
    clock, transport = VirtualClock(), ScriptedTransport(service)
    return KlingSession(provider=provider, transport=transport, clock=clock, **options), clock, transport


@pytest.mark.parametrize(
    ("options", "image"),
    [({}, "https://pictures.example/face.png"), ({"images": "inline"}, PNG)],
    ids=["URL", "inline"],
)
async def test_core_members_run_a_job(options: dict[str, Any], image: str | bytes) -> None:
    session, clock, transport = opened(CoreProvider(), **options)
    async with session as kling:
        running = asyncio.create_task(kling.generate(prompt="Waves", image=image))
        while not running.done():  # an image in a file or in bytes is read in a thread
            await clock.advance(10)
        assert (await running).output == "https://files.example/v1.mp4"
    assert sum(request.effect is Effect.PAID for request in transport.requests) == 1
    assert {request.url.partition("/videos")[0] for request in transport.requests} == {"https://core.example"}


async def first(items: Any) -> Any:
    return await anext(items)


CALLS: dict[str, Callable[[KlingSession], Awaitable[object]]] = {
    "list of predictions": lambda kling: first(kling.predictions()),
    "deletion of predictions": lambda kling: kling.delete("v1"),
    "balance": lambda kling: kling.balance(),
    "list of models": lambda kling: kling.models(),
    "prices": lambda kling: kling.price(Job(prompt="Waves", image="https://pictures.example/face.png")),
    "usage": lambda kling: kling.usage(0.0, 1.0),
    "billings": lambda kling: first(kling.billings()),
    "webhooks": lambda kling: kling.webhook_secret(),
}


@pytest.mark.parametrize("label", CALLS)
async def test_session_call_without_endpoint_raises(label: str) -> None:
    session, _, transport = opened(CoreProvider())
    async with session as kling:
        with pytest.raises(UnsupportedError, match=f"^core has no {label}: CoreProvider does not define"):
            await CALLS[label](kling)
    assert transport.requests == []


async def test_session_upload_without_endpoint_raises_with_advice() -> None:
    session, _, transport = opened(CoreProvider())
    async with session as kling:
        with pytest.raises(UnsupportedError, match="core takes no uploads") as caught:
            await kling.upload(PNG)
    assert 'images="inline"' in caught.value.advice
    assert transport.requests == []


async def test_session_webhooks_without_endpoint_raise() -> None:
    with pytest.raises(ConfigurationError, match="webhook_url: core has no webhooks"):
        KlingSession(provider=CoreProvider(), webhook_url="https://you.example/hooks")


async def test_single_account_endpoint_is_used() -> None:
    session, _, _ = opened(WithBalance())
    async with session as kling:
        assert await kling.balance() == Decimal("12.50")
        with pytest.raises(UnsupportedError, match="core has no list of models"):
            await kling.models()
