"""Contract check for providers."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from kling_async._core.catalogue import MODELS
from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.job import Job
from kling_async._core.prediction import Prediction
from kling_async.errors import ApiError, UnsupportedError
from kling_async.providers import UploadProvider
from kling_async.providers.protocol import ENDPOINTS, account_of, uploads_of

from ._patience import require
from ._scripted import json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kling_async.providers import Provider

_IMAGE_URL = "https://pictures.example/face.png"
_UNKNOWN_STATUS = "a_word_of_tomorrow"
_WEBHOOK_TOKEN = "the-token-of-one-submit"  # noqa: S105 -- no secret
_HOSTILE_IDS = (
    "a/b",
    "..",
    ".",
    "../../balance",
    "a?b=c",
    "a#b",
    "a b",
    "%2e%2e",
    "a\r\nb",
    "\u00e4",
    "a\\b",
    "//other.example",
)
_STATUSES = (200, 201, 204, 302, 400, 401, 402, 403, 404, 409, 418, 429, 500, 502, 503)
_FIRST_ERROR_STATUS = 400
_ODD_VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1e308, 10**400, "", " ", "text", "\ud800", "2026-13-45T99:99:99Z", "NaN", [], {}, [[]],
    [None], [{}], {"data": None}, {"id": None}, {"id": 7}, {"status": {}}, {"error": {"message": []}}, {"code": "x"},
)  # fmt: skip
_INVALID_JSON = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"<html>502</html>",
    b"{",
    b"NaN",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"1" * 9999,
)
_FIELD_NAMES = (
    "id", "status", "outputs", "error", "model", "created_at", "timings", "has_nsfw_contents", "urls", "code",
    "message", "input", "executionTime", "items", "data", "balance", "secret", "download_url", "upload", "price",
)  # fmt: skip


async def check_provider(
    provider: Provider,
    *,
    key: str | None = None,
    job: Job | None = None,
    reply: Callable[[str], HttpResponse] | None = None,
) -> None:
    """Check a provider against the contract of `Provider`; nothing is sent.

    Only `submit` is paid; the key goes only to the origin of `base_url` and is in no repr or error; ids are quoted; any
    response parses to a value or raises `ApiError`; an unknown status counts as running. Members of `AccountProvider`
    and `UploadProvider` are checked where the provider defines them; each request needs its reader.

    Args:
        provider: The provider.
        key: Its API key; by default the last word of the Authorization header.
        job: A job for a model that the provider has; by default for the first such model of the catalogue.
        reply: Builds the response for a prediction with the given status; by default in WaveSpeed's format.

    Raises:
        AssertionError: The provider breaks the contract; the text says how.
    """
    job = job or Job(prompt="Check", image=_IMAGE_URL, model=_model(provider.name))
    paid = provider.submit(job, _IMAGE_URL, None)
    key = key or _authorization(paid).split(" ")[-1]
    require(key, "`submit`: no Authorization header to take the key from; pass `key=`")
    require(paid.effect is Effect.PAID, "`submit`: expected Effect.PAID, since it must not be sent twice")
    require(key not in repr(provider), "the provider's repr contains the key")
    _check_destination(provider, paid, "submit", key)
    _check_pairs(provider)
    for name, request in _requests(provider, job):
        if name == "submit":
            require(request.effect is Effect.PAID, "`submit` with a webhook: expected Effect.PAID")
            require(
                _WEBHOOK_TOKEN not in repr(request), "`submit`: the request's repr contains the token of its webhook"
            )
        else:
            require(request.effect is Effect.READ, f"`{name}`: expected Effect.READ, since nothing is paid for by it")
        _check_destination(provider, request, name, key)
    _check_ids_are_quoted(provider, key)
    _check_responses(provider, job, key)
    _check_unknown_status(provider, reply or _wavespeed_response)


def _model(provider: str) -> str:
    return next((row.name for row in MODELS if provider in row.providers), MODELS[0].name)


def _wavespeed_response(status: str) -> HttpResponse:
    data = {"id": "p1", "model": "m", "status": status, "outputs": [], "error": ""}
    return json_response({"code": 200, "message": "success", "data": data})


def _authorization(request: HttpRequest) -> str:
    return next((value for name, value in request.headers.items() if name.lower() == "authorization"), "")


def _requests(provider: Provider, job: Job) -> Iterator[tuple[str, HttpRequest]]:
    """Yield every request that the provider can build, with the name of its method."""
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    yield "result", provider.result("p1")
    calls: tuple[tuple[str, Callable[[], HttpRequest]], ...] = (
        (
            "submit",
            lambda: provider.submit(
                job, _IMAGE_URL, None, webhook=f"https://hooks.example/end?kling_token={_WEBHOOK_TOKEN}"
            ),
        ),
        (
            "upload_ticket",
            lambda: uploads_of(provider).upload_ticket(filename="a.png", size=1, content_type="image/png"),
        ),
        (
            "upload_binary",
            lambda: uploads_of(provider).upload_binary(filename="a.png", content=b"x", content_type="image/png"),
        ),
        (
            "predictions",
            lambda: account_of(provider, "predictions").predictions(model="m", status="completed", created_after=start),
        ),
        ("delete", lambda: account_of(provider, "delete").delete(["p1"])),
        ("balance", lambda: account_of(provider, "balance").balance()),
        ("models", lambda: account_of(provider, "models").models()),
        ("price", lambda: account_of(provider, "price").price(job)),
        ("usage", lambda: account_of(provider, "usage").usage(start, end)),
        (
            "billings",
            lambda: account_of(provider, "billings").billings(prediction_ids=["p1"], start=start, end=end),
        ),
        ("webhook_secret", lambda: account_of(provider, "webhook_secret").webhook_secret()),
    )
    for name, call in calls:
        try:
            yield name, call()
        except UnsupportedError:
            continue


def _check_destination(provider: Provider, request: HttpRequest, name: str, key: str) -> None:
    home, url = urlsplit(provider.base_url), urlsplit(request.url)
    require(
        (url.scheme, url.netloc) == (home.scheme, home.netloc),
        f"`{name}` goes to {url.scheme}://{url.netloc}: the key may be sent to {provider.base_url} only",
    )
    require(key not in request.url, f"`{name}`: the URL contains the key")
    require(key.encode() not in (request.body or b""), f"`{name}`: the body contains the key")
    require(key not in repr(request), f"`{name}`: the request's repr contains the key")


def _check_ids_are_quoted(provider: Provider, key: str) -> None:
    plain = urlsplit(provider.result("p1").url)
    for id_ in _HOSTILE_IDS:
        request = provider.result(id_)
        _check_destination(provider, request, "result", key)
        url, wrong = urlsplit(request.url), f"`result`: the URL does not quote the id {id_!r}"
        segments, pairs = url.path.split("/"), parse_qsl(url.query, keep_blank_values=True)
        require(request.url.isascii() and request.url.isprintable() and " " not in request.url, wrong)
        require(len(segments) == len(plain.path.split("/")) and not {".", ".."} & set(segments), wrong)
        require(len(pairs) == len(parse_qsl(plain.query, keep_blank_values=True)) and not url.fragment, wrong)
        require(id_ in {*map(unquote, segments), *(value for _, value in pairs)}, wrong)


def _bodies(key: str) -> Iterator[bytes]:
    """Yield response bodies that a service, a proxy or a bug may send."""
    yield from _INVALID_JSON
    good: dict[str, object] = {"id": "p1", "model": "m", "status": "completed", "outputs": [_IMAGE_URL], "error": ""}
    message = f"the key Bearer {key} is wrong"
    rng = random.Random(1)  # noqa: S311 -- the same responses in every run
    records: list[object] = [*_ODD_VALUES, message, {"message": message}, good | {"error": message}]
    records += [good | {name: value} for name in _FIELD_NAMES for value in _ODD_VALUES]
    records += [{name: rng.choice(_ODD_VALUES) for name in rng.sample(_FIELD_NAMES, 5)} for _ in range(300)]
    for record in records:
        for body in (record, {"code": 200, "message": message, "data": record}):
            yield json.dumps(body).encode()


def _check_pairs(provider: Provider) -> None:
    """Raise when a request has no reader or the reverse, or when uploads are incomplete."""
    for request, (reader, _) in ENDPOINTS.items():
        require(
            hasattr(provider, request) == hasattr(provider, reader),
            f"`{request}` and `{reader}` belong together: define both or neither",
        )
    names = ("upload_ticket", "read_ticket", "upload_binary", "read_upload")
    defined = [name for name in names if hasattr(provider, name)]
    require(
        not defined or isinstance(provider, UploadProvider),
        f"uploads need {', '.join(names)}: only {', '.join(defined)} defined",
    )


def _readers(provider: Provider, job: Job) -> Iterator[tuple[str, Callable[[HttpResponse], object]]]:
    """Yield every parser that the provider defines, with the name of its method."""
    yield "read_prediction", provider.read_prediction
    if isinstance(provider, UploadProvider):
        yield "read_ticket", provider.read_ticket
        yield "read_upload", provider.read_upload
    for endpoint, (name, _) in ENDPOINTS.items():
        if hasattr(provider, endpoint):
            read: Callable[..., object] = getattr(account_of(provider, endpoint), name)
            yield name, partial(_read_with_job, read, job) if endpoint == "price" else read


def _read_with_job(read: Callable[[HttpResponse, Job], object], job: Job, response: HttpResponse) -> object:
    return read(response, job)


def _check_responses(provider: Provider, job: Job, key: str) -> None:
    bodies = list(_bodies(key))
    rng = random.Random(2)  # noqa: S311 -- the same responses in every run
    for name, read in _readers(provider, job):
        for body in bodies:
            _read_one(name, read, HttpResponse(status=200, body=body), key)
        for body in rng.sample(bodies, len(bodies) // 4):
            _read_one(name, read, HttpResponse(status=rng.choice(_STATUSES), body=body), key)
    for status in _STATUSES:
        if status >= _FIRST_ERROR_STATUS:
            refusal = HttpResponse(status=status, body=b"{}")
            made = _read_one("read_prediction", provider.read_prediction, refusal, key)
            require(isinstance(made, ApiError), f"`read_prediction` of status {status}: expected an ApiError")


def _read_one(name: str, read: Callable[[HttpResponse], object], response: HttpResponse, key: str) -> object:
    """Return what the parser returned or raised."""
    shown = f"status {response.status} and the body {response.body[:80]!r}"
    try:
        found = read(response)
    except UnsupportedError as error:
        return error
    except ApiError as error:
        require(
            key not in f"{error!s} {error!r} {vars(error)!r}",
            f"`{name}`: the error contains the key that the response quotes",
        )
        return error
    except Exception as error:
        raise AssertionError(f"`{name}` of {shown}: expected a value or an ApiError, got {error!r}") from error
    if name == "read_prediction":
        require(
            isinstance(found, Prediction), f"`{name}` of {shown}: expected a Prediction, got {type(found).__name__}"
        )
    require(key not in repr(found), f"`{name}`: the value contains the key that the response quotes")
    return found


def _check_unknown_status(provider: Provider, reply: Callable[[str], HttpResponse]) -> None:
    try:
        prediction = provider.read_prediction(reply(_UNKNOWN_STATUS))
    except ApiError as error:
        raise AssertionError(
            f"an unknown status: expected a running prediction, got {type(error).__name__} "
            "(if the service's responses differ from WaveSpeed's, pass `reply=`)"
        ) from error
    require(
        not prediction.status.ended, f"an unknown status: expected a running prediction, got {prediction.status.value}"
    )
    require(
        prediction.raw_status == _UNKNOWN_STATUS,
        f"`raw_status`: expected the service's own word {_UNKNOWN_STATUS!r}, got {prediction.raw_status!r}",
    )
    require(prediction.id, "`read_prediction`: the prediction of a good response has no id")
    named = provider.read_prediction(reply(_UNKNOWN_STATUS), key="shoe-41")
    require(named.key == "shoe-41", f"`read_prediction` with key='shoe-41': got the key {named.key!r}")
