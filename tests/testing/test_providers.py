"""`check_provider`: built-in providers pass, each kind of defect is reported."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import quote

import attrs
import pytest

from kling_async import GPTProto, HttpRequest, HttpResponse, Job, Prediction, Provider, Status, WaveSpeed
from kling_async._core.http import Effect
from kling_async.testing import check_provider, json_response

pytestmark = pytest.mark.anyio

KEY = "wsk_the-key-of-the-test"


@pytest.mark.parametrize(
    "provider",
    [
        WaveSpeed(api_key=KEY),
        WaveSpeed(api_key=KEY, base_url="http://127.0.0.1:8080/"),
        GPTProto(api_key="sk-the-key-of-the-test"),
        GPTProto(api_key="sk-the-key-of-the-test", auth_scheme="bearer"),
    ],
    ids=repr,
)
async def test_builtin_providers_satisfy_contract(provider: Provider) -> None:
    await check_provider(provider)


class NotPaid(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        return attrs.evolve(super().submit(job, image, end_image, webhook=webhook), effect=Effect.READ)


class NotPaidWithWebhook(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        request = super().submit(job, image, end_image, webhook=webhook)
        return attrs.evolve(request, effect=Effect.READ) if webhook else request


class WebhookInPath(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        request = super().submit(job, image, end_image)
        return attrs.evolve(request, url=f"{request.url}/{quote(webhook, safe='')}") if webhook else request


class PaidBalance(WaveSpeed):
    def balance(self) -> HttpRequest:
        return attrs.evolve(super().balance(), effect=Effect.PAID)


class OtherOrigin(WaveSpeed):
    def models(self) -> HttpRequest:
        return attrs.evolve(super().models(), url="https://models.example/all")


class KeyInUrl(WaveSpeed):
    def balance(self) -> HttpRequest:
        request = super().balance()
        return attrs.evolve(request, url=f"{request.url}?key={self.api_key.reveal()}")


class KeyInBody(WaveSpeed):
    def balance(self) -> HttpRequest:
        return attrs.evolve(super().balance(), body=self.api_key.reveal().encode())


class KeyInRepr(WaveSpeed):
    def __repr__(self) -> str:
        return self.api_key.reveal()


class NoAuthorization(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        return attrs.evolve(super().submit(job, image, end_image, webhook=webhook), headers={})


class UnquotedId(WaveSpeed):
    def result(self, prediction_id: str) -> HttpRequest:
        return attrs.evolve(super().result("x"), url=f"{self.base_url}/api/v3/predictions/{prediction_id}/result")


class StrippedId(WaveSpeed):
    def result(self, prediction_id: str) -> HttpRequest:
        return super().result("".join(letter for letter in prediction_id if letter.isalnum()) or "x")


class RaisesOnUnexpectedJson(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        data = response.json()
        assert isinstance(data, dict)
        return Prediction(id=data["data"]["id"], key=key)


class ReturnsNone(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        del response, key
        return None  # type: ignore[return-value]  # the defect under test


class AcceptsErrorStatus(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        if response.body == b"{}":
            return Prediction(id="p1")
        return super().read_prediction(attrs.evolve(response, status=200), key=key)


class QuotesResponse(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        prediction = super().read_prediction(response, key=key)
        return attrs.evolve(prediction, error=response.body.decode("utf-8", "replace"))


class EndsUnknownStatus(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        prediction = super().read_prediction(response, key=key)
        known = {"created", "processing", "completed"}
        return prediction if prediction.raw_status in known else attrs.evolve(prediction, status=Status.FAILED)


class LosesRawStatus(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        prediction = super().read_prediction(response, key=key)
        return attrs.evolve(prediction, raw_status=prediction.status.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (NotPaid, "`submit`: expected Effect.PAID"),
        (NotPaidWithWebhook, "`submit` with a webhook: expected Effect.PAID"),
        (WebhookInPath, "contains the token of its webhook"),
        (PaidBalance, "`balance`: expected Effect.READ"),
        (OtherOrigin, "`models` goes to https://models.example"),
        (KeyInUrl, "`balance`: the URL contains the key"),
        (KeyInBody, "`balance`: the body contains the key"),
        (KeyInRepr, "the provider's repr"),
        (NoAuthorization, "pass `key=`"),
        (UnquotedId, "does not quote the id"),
        (StrippedId, "does not quote the id"),
        (RaisesOnUnexpectedJson, "`read_prediction` of status .*: expected a value or an ApiError"),
        (ReturnsNone, "expected a Prediction, got NoneType"),
        (AcceptsErrorStatus, "`read_prediction` of status 400: expected an ApiError"),
        (QuotesResponse, "contains the key that the response quotes"),
        (EndsUnknownStatus, "an unknown status: expected a running prediction, got failed"),
        (LosesRawStatus, "`raw_status`: expected the service's own word"),
    ],
)
async def test_check_provider_reports_defect(broken: type[WaveSpeed], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await check_provider(broken(api_key=KEY))


class FiveMembers:
    """The core protocol and nothing else."""

    name = "gptproto"
    base_url = "https://gptproto.com"

    def __init__(self, api_key: str = KEY) -> None:
        self._gptproto = GPTProto(api_key=api_key)

    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        return self._gptproto.submit(job, image, end_image, webhook=webhook)

    def result(self, prediction_id: str) -> HttpRequest:
        return self._gptproto.result(prediction_id)

    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        return self._gptproto.read_prediction(response, key=key)


class RequestWithoutReader(FiveMembers):
    def balance(self) -> HttpRequest:
        return HttpRequest(method="GET", url=f"{self.base_url}/balance")


class ReaderWithoutRequest(FiveMembers):
    def read_balance(self, response: HttpResponse) -> Decimal:
        return Decimal(response.body.decode())


class UploadsInPart(FiveMembers):
    def read_upload(self, response: HttpResponse) -> str:
        return response.body.decode()


async def test_provider_with_core_members_alone_passes() -> None:
    await check_provider(FiveMembers())


@pytest.mark.parametrize(
    ("incomplete", "message"),
    [
        (RequestWithoutReader, "`balance` and `read_balance` belong together"),
        (ReaderWithoutRequest, "`balance` and `read_balance` belong together"),
        (UploadsInPart, "uploads need upload_ticket, .*: only read_upload defined"),
    ],
)
async def test_check_provider_reports_incomplete_option(incomplete: type[FiveMembers], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await check_provider(incomplete())


async def test_provider_with_other_format_passes_reply() -> None:
    with pytest.raises(AssertionError, match="pass `reply=`"):
        await check_provider(WaveSpeed(api_key=KEY), reply=lambda word: json_response({"state": word}))
    await check_provider(
        WaveSpeed(api_key=KEY),
        key=KEY,
        job=Job(prompt="x", image="https://pictures.example/a.png"),
        reply=lambda word: json_response({"data": {"id": "p", "status": word}}),
    )
