"""The check of providers: ours pass, and each broken one is told apart."""

from __future__ import annotations

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
async def test_ours_pass(provider: Provider) -> None:
    await check_provider(provider)


class NotPaid(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        return attrs.evolve(super().submit(job, image, end_image, webhook=webhook), effect=Effect.READ)


class NotPaidWithAWebhook(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        request = super().submit(job, image, end_image, webhook=webhook)
        return attrs.evolve(request, effect=Effect.READ) if webhook else request


class WebhookInThePath(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        request = super().submit(job, image, end_image)
        return attrs.evolve(request, url=f"{request.url}/{quote(webhook, safe='')}") if webhook else request


class PaidBalance(WaveSpeed):
    def balance(self) -> HttpRequest:
        return attrs.evolve(super().balance(), effect=Effect.PAID)


class GoesElsewhere(WaveSpeed):
    def models(self) -> HttpRequest:
        return attrs.evolve(super().models(), url="https://models.example/all")


class KeyInTheUrl(WaveSpeed):
    def balance(self) -> HttpRequest:
        request = super().balance()
        return attrs.evolve(request, url=f"{request.url}?key={self.api_key.reveal()}")


class KeyInTheBody(WaveSpeed):
    def balance(self) -> HttpRequest:
        return attrs.evolve(super().balance(), body=self.api_key.reveal().encode())


class KeyInTheRepr(WaveSpeed):
    def __repr__(self) -> str:
        return self.api_key.reveal()


class NoAuthorization(WaveSpeed):
    def submit(self, job: Job, image: str, end_image: str | None, *, webhook: str | None = None) -> HttpRequest:
        return attrs.evolve(super().submit(job, image, end_image, webhook=webhook), headers={})


class IdAsItIs(WaveSpeed):
    def result(self, prediction_id: str) -> HttpRequest:
        return attrs.evolve(super().result("x"), url=f"{self.base_url}/api/v3/predictions/{prediction_id}/result")


class IdWithoutItsSigns(WaveSpeed):
    def result(self, prediction_id: str) -> HttpRequest:
        return super().result("".join(letter for letter in prediction_id if letter.isalnum()) or "x")


class BelievesReplies(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        data = response.json()
        assert isinstance(data, dict)
        return Prediction(id=data["data"]["id"], key=key)


class GivesNone(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        del response, key
        return None  # type: ignore[return-value]  # that is what is wrong with it


class AcceptsRefusals(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        if response.body == b"{}":
            return Prediction(id="p1")
        return super().read_prediction(attrs.evolve(response, status=200), key=key)


class ShowsWhatTheReplyQuotes(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        prediction = super().read_prediction(response, key=key)
        return attrs.evolve(prediction, error=response.body.decode("utf-8", "replace"))


class EndsWhatItDoesNotKnow(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        prediction = super().read_prediction(response, key=key)
        known = {"created", "processing", "completed"}
        return prediction if prediction.raw_status in known else attrs.evolve(prediction, status=Status.FAILED)


class LosesTheWord(WaveSpeed):
    def read_prediction(self, response: HttpResponse, *, key: str | None = None) -> Prediction:
        prediction = super().read_prediction(response, key=key)
        return attrs.evolve(prediction, raw_status=prediction.status.value)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (NotPaid, "`submit` is to be Effect.PAID"),
        (NotPaidWithAWebhook, "`submit` with a webhook is to be Effect.PAID"),
        (WebhookInThePath, "shows the token of its webhook"),
        (PaidBalance, "`balance` is to be Effect.READ"),
        (GoesElsewhere, "`models` goes to https://models.example"),
        (KeyInTheUrl, "`balance` has the key in its URL"),
        (KeyInTheBody, "`balance` has the key in its body"),
        (KeyInTheRepr, "the repr of the provider"),
        (NoAuthorization, "give the key as `key=`"),
        (IdAsItIs, "is not quoted"),
        (IdWithoutItsSigns, "is not quoted"),
        (BelievesReplies, "`read_prediction` of status .* is to raise an ApiError or give a value"),
        (GivesNone, "gave NoneType, not a Prediction"),
        (AcceptsRefusals, "`read_prediction` of status 400 is to raise an ApiError"),
        (ShowsWhatTheReplyQuotes, "shows the key that a reply quotes"),
        (EndsWhatItDoesNotKnow, "means that the prediction runs, and it had ended"),
        (LosesTheWord, "`raw_status` is the service's own word"),
    ],
)
async def test_a_broken_one_is_told_apart(broken: type[WaveSpeed], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        await check_provider(broken(api_key=KEY))


async def test_a_dialect_of_another_shape_says_its_own() -> None:
    with pytest.raises(AssertionError, match="needs `reply=`"):
        await check_provider(WaveSpeed(api_key=KEY), reply=lambda word: json_response({"state": word}))
    await check_provider(
        WaveSpeed(api_key=KEY),
        key=KEY,
        job=Job(prompt="x", image="https://pictures.example/a.png"),
        reply=lambda word: json_response({"data": {"id": "p", "status": word}}),
    )
