"""Requests of the built-in providers, byte by byte; the key is in the Authorization header only."""

from __future__ import annotations

import json
import traceback
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_async import (
    ApiError,
    ConfigurationError,
    Effect,
    GPTProto,
    HttpRequest,
    HttpResponse,
    Job,
    KlingSession,
    UnsupportedError,
    WaveSpeed,
)
from kling_async.providers import PROVIDERS, Provider
from kling_async.providers.protocol import uploads_of
from support.leaks import raised_by

KEY = "wsk_0123456789abcdef"
URL = "https://pictures.example/face.png?sig=1&x=ä"
JOB = Job(
    model="kling-v2.1-pro",
    prompt="She turns — “smiles”",
    image=URL,
    negative_prompt="blur",
    guidance_scale=0.5,
    duration="10",
    extra={"seed": 7},
)
FRAMES = Job(model="kling-v2.1-pro-start-end-frame", prompt="She turns", image=URL, end_image=URL)
MASTER_20 = Job(model="kling-v2.0-master", prompt="She turns", image=URL)
both = pytest.mark.parametrize("provider", [WaveSpeed(api_key=KEY), GPTProto(api_key=KEY)], ids=lambda one: one.name)


def body(request: HttpRequest) -> Any:
    assert request.body is not None
    return json.loads(request.body)


# ---- submit ----


def test_wavespeed_submit_request() -> None:
    request = WaveSpeed(api_key=KEY).submit(JOB, URL, None)
    assert request == HttpRequest(
        method="POST",
        url="https://api.wavespeed.ai/api/v3/kwaivgi/kling-v2.1-i2v-pro",
        effect=Effect.PAID,
        headers={
            "Authorization": f"Bearer {KEY}",
            "Content-Type": "application/json",
        },
        body=(
            '{"prompt": "She turns — “smiles”", "image": "https://pictures.example/face.png?sig=1&x=ä", '
            '"negative_prompt": "blur", "guidance_scale": 0.5, "duration": 10, "seed": 7}'
        ).encode(),
    )


def test_gptproto_submit_uses_same_path_on_other_host() -> None:
    ours, theirs = GPTProto(api_key=KEY).submit(JOB, URL, None), WaveSpeed(api_key=KEY).submit(JOB, URL, None)
    assert ours.url == "https://gptproto.com/api/v3/kwaivgi/kling-v2.1-i2v-pro"
    assert (ours.method, ours.effect, ours.body) == (theirs.method, theirs.effect, theirs.body)
    assert ours.headers == {**theirs.headers, "Authorization": KEY}


def test_submit_sends_given_image_urls() -> None:
    request = WaveSpeed(api_key=KEY).submit(FRAMES, "https://uploads.example/1.png", "https://uploads.example/2.png")
    assert request.url.endswith("/api/v3/kwaivgi/kling-v2.1-i2v-pro/start-end-frame")
    assert body(request)["image"] == "https://uploads.example/1.png"
    assert body(request)["end_image"] == "https://uploads.example/2.png"


def test_webhook_is_encoded_query_parameter() -> None:
    request = WaveSpeed(api_key=KEY).submit(JOB, URL, None, webhook="https://me.example/hook?token=a b&c=ü#d")
    path, _, query = request.url.partition("?")
    assert path == "https://api.wavespeed.ai/api/v3/kwaivgi/kling-v2.1-i2v-pro"
    assert query == "webhook=https%3A%2F%2Fme.example%2Fhook%3Ftoken%3Da+b%26c%3D%C3%BC%23d"
    assert body(request) == body(WaveSpeed(api_key=KEY).submit(JOB, URL, None))
    assert "token" not in repr(request)


@both
def test_base_url_may_end_with_slash(provider: WaveSpeed | GPTProto) -> None:
    local = type(provider)(api_key=KEY, base_url="http://127.0.0.1:8000/")
    assert local.base_url == "http://127.0.0.1:8000"
    assert local.submit(JOB, URL, None).url == "http://127.0.0.1:8000/api/v3/kwaivgi/kling-v2.1-i2v-pro"
    assert local.result("p1").url == "http://127.0.0.1:8000/api/v3/predictions/p1/result"


REFUSED_URLS = {
    "other machine": ("http://api.example", "'http://api.example': the API key would be sent unencrypted"),
    "address of another machine": ("http://192.168.1.5:8000", "unencrypted"),
    "capitals": ("HTTP://API.EXAMPLE", "unencrypted"),
    "name that begins like this machine": ("http://localhost.example", "unencrypted"),
    "no scheme": ("api.example", "got 'api.example'"),
    "other scheme": ("ftp://api.example", "got 'ftp://api.example'"),
    "no host": ("https:///api", "got 'https:///api'"),
    "no address": ("https://[::1", "got 'https://"),
    "user info": (f"https://me:{KEY}@api.example", "user info, which is not shown"),
    "user info without a scheme": (f"me:{KEY}@api.example", "user info, which is not shown"),
    "query": (f"https://api.example?key={KEY}", "'https://api.example' with a query"),
    "query with an address": (f"https://api.example?to=a@b&key={KEY}", "user info, which is not shown"),
    "empty query": ("https://api.example?", "with a query"),
    "fragment": (f"https://api.example/#{KEY}", "'https://api.example/' with a query or a fragment"),
}


@both
@pytest.mark.parametrize("name", REFUSED_URLS)
@pytest.mark.promise(8)
def test_base_url_that_could_leak_is_refused(provider: WaveSpeed | GPTProto, name: str) -> None:
    url, said = REFUSED_URLS[name]
    error = raised_by(lambda: type(provider)(api_key=KEY, base_url=url))
    assert isinstance(error, ConfigurationError)
    assert "base_url: expected https://host" in error.message
    assert said in error.message
    assert error.advice
    # The URL that has the key stands in the frame of this test's lambda.
    assert KEY not in str(error) + repr(error) + repr(vars(error))


@both
@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000", "http://127.8.7.6", "http://[::1]:80", "http://a.localhost", "https://api.example/v"],
)
def test_https_and_this_machine_are_allowed(provider: WaveSpeed | GPTProto, url: str) -> None:
    assert type(provider)(api_key=KEY, base_url=url).base_url == url


@both
def test_http_to_other_machines_is_allowed_in_words(provider: WaveSpeed | GPTProto) -> None:
    allowed = type(provider)(api_key=KEY, base_url="http://emulator:8000", allow_http=True)
    assert allowed.result("p1").url == "http://emulator:8000/api/v3/predictions/p1/result"


# ---- result ----


@both
@pytest.mark.promise(8)
def test_result_url_is_built_from_base_url(provider: WaveSpeed | GPTProto) -> None:
    request = provider.result("45b392b22c3b449fa935bd4dc2219dfe")
    assert request == HttpRequest(
        method="GET",
        url=f"{provider.base_url}/api/v3/predictions/45b392b22c3b449fa935bd4dc2219dfe/result",
        effect=Effect.READ,
        headers={"Authorization": provider.authorization()},
    )


@pytest.mark.parametrize(
    ("prediction_id", "segment"),
    [
        ("7c9e6679-7425-40de-944b-e07fc1f90ae7", "7c9e6679-7425-40de-944b-e07fc1f90ae7"),
        ("../../v2/balance", "..%2F..%2Fv2%2Fbalance"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("a?b=c#d", "a%3Fb%3Dc%23d"),
        ("a%2Fb", "a%252Fb"),
        ("a\r\nHost: x", "a%0D%0AHost%3A%20x"),
        ("ä\ud83d", "%C3%A4%ED%A0%BD"),
    ],
)
def test_id_is_quoted_as_one_path_segment(prediction_id: str, segment: str) -> None:
    url = WaveSpeed(api_key=KEY).result(prediction_id).url
    assert url == f"https://api.wavespeed.ai/api/v3/predictions/{segment}/result"


@given(st.text())
def test_any_id_stays_within_result_path(prediction_id: str) -> None:
    segments = WaveSpeed(api_key=KEY).result(prediction_id).url.split("/")
    assert segments[:6] == ["https:", "", "api.wavespeed.ai", "api", "v3", "predictions"]
    assert segments[7:] == ["result"]
    assert segments[6] not in {".", ".."}
    assert not set(segments[6]) & set("?#\\ \r\n\t")


# ---- upload tickets ----


def test_ticket_request_is_read() -> None:
    request = WaveSpeed(api_key=KEY).upload_ticket(filename="image.png", size=12345, content_type="image/png")
    assert (request.method, request.effect) == ("POST", Effect.READ)
    assert request.url == "https://api.wavespeed.ai/api/v3/media/uploads"
    assert body(request) == {"filename": "image.png", "size": 12345, "content_type": "image/png"}
    assert request.headers["Authorization"] == f"Bearer {KEY}"


# ---- unsupported calls ----


def test_gptproto_uploads_raise_with_advice() -> None:
    with pytest.raises(UnsupportedError, match="gptproto takes no uploads") as caught:
        uploads_of(GPTProto(api_key=KEY))
    assert 'images="inline"' in caught.value.advice


def test_gptproto_submit_with_webhook_raises() -> None:
    with pytest.raises(UnsupportedError, match="gptproto has no webhooks") as caught:
        GPTProto(api_key=KEY).submit(JOB, URL, None, webhook="https://me.example/hook")
    assert caught.value.job is JOB


def test_submit_of_unknown_model_names_model_and_provider() -> None:
    with pytest.raises(UnsupportedError, match=r"gptproto has no model kwaivgi/kling-v2\.0-i2v-master") as caught:
        GPTProto(api_key=KEY).submit(MASTER_20, URL, None)
    assert caught.value.job is MASTER_20


# ---- the key ----


def test_disagreement_gptproto_key_is_raw_or_bearer() -> None:
    """Seed 004 and every curl example send it raw, its SDK as Bearer; WaveSpeed's pages all say Bearer."""
    assert GPTProto(api_key=KEY).result("p1").headers["Authorization"] == KEY
    assert GPTProto(api_key=KEY, auth_scheme="bearer").result("p1").headers["Authorization"] == f"Bearer {KEY}"
    assert WaveSpeed(api_key=KEY).result("p1").headers["Authorization"] == f"Bearer {KEY}"


@both
@pytest.mark.promise(8)
def test_key_is_in_authorization_header_only(provider: WaveSpeed | GPTProto) -> None:
    for request in (provider.submit(JOB, URL, None), provider.result("p1")):
        assert [name for name, value in request.headers.items() if KEY in value] == ["Authorization"]
        assert KEY not in request.url
        assert KEY.encode() not in (request.body or b"")
        assert KEY not in repr(request)


@both
def test_repr_hides_key(provider: WaveSpeed | GPTProto) -> None:
    assert repr(provider) == str(provider)
    assert KEY not in repr(provider)
    assert KEY not in repr(KlingSession(provider=provider))
    assert KEY not in repr(KlingSession(KEY, provider=provider.name))


@both
@pytest.mark.parametrize("status", [200, 401, 500])
@pytest.mark.promise(8)
def test_traceback_locals_hide_key(provider: WaveSpeed | GPTProto, status: int) -> None:
    """Error reporters print the locals of every frame."""
    reply = HttpResponse(status=status, body=json.dumps({"code": 401, "message": f"no such key {KEY}"}).encode())
    with pytest.raises(ApiError) as caught:
        provider.read_prediction(reply)
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    ours = [frame for frame in frames if "kling_async" in frame.filename]
    assert ours
    assert "response" in {name for frame in ours for name in frame.locals or {}}
    assert KEY not in str([frame.locals for frame in ours])


@pytest.mark.parametrize("key", ["", "  ", "two words", "ключ"])
def test_invalid_key_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationError):
        WaveSpeed(api_key=key)


# ---- the protocol ----


def test_providers_by_name() -> None:
    assert {name: cls.name for name, cls in PROVIDERS.items()} == {"wavespeed": "wavespeed", "gptproto": "gptproto"}
    for cls in PROVIDERS.values():
        provider: Provider = cls(api_key=KEY)
        assert provider.base_url == cls.default_url
        assert cls.key_variable == f"{cls.name.upper()}_API_KEY"
        assert cls.url_variable == f"{cls.name.upper()}_BASE_URL"


def test_disagreement_gptproto_base_url_has_two_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own SDK reads `GPTPROTO_API_BASE_URL`."""
    monkeypatch.setenv("GPTPROTO_API_BASE_URL", "https://one.example")
    assert KlingSession(KEY, provider="gptproto").provider.base_url == "https://one.example"
    monkeypatch.setenv("GPTPROTO_BASE_URL", "https://two.example")
    assert KlingSession(KEY, provider="gptproto").provider.base_url == "https://two.example"


@both
def test_provider_is_frozen(provider: WaveSpeed | GPTProto) -> None:
    with pytest.raises(AttributeError):
        cast("Any", provider).base_url = "https://elsewhere.example"
