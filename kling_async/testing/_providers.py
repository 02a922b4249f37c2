"""What a session relies on in a provider."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from kling_async._core.catalogue import MODELS
from kling_async._core.http import Effect, HttpRequest, HttpResponse
from kling_async._core.job import Job
from kling_async._core.prediction import Prediction
from kling_async.errors import ApiError, UnsupportedError

from ._patience import require
from ._scripted import json_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kling_async.providers import Provider

_IMAGE = "https://pictures.example/face.png"
_WORD = "a_word_of_tomorrow"
_TOKEN = "the-token-of-one-submit"  # noqa: S105 -- no secret
_IDS = (
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
_FIRST_REFUSAL = 400
_VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1e308, 10**400, "", " ", "text", "\ud800", "2026-13-45T99:99:99Z", "NaN", [], {}, [[]],
    [None], [{}], {"data": None}, {"id": None}, {"id": 7}, {"status": {}}, {"error": {"message": []}}, {"code": "x"},
)  # fmt: skip
_NO_JSON = (
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
_NAMES = (
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
    """Hold a wire dialect to its contract; nothing is sent.

    Only `submit` is paid; the key goes to the origin of `base_url` alone and is not shown; ids are quoted; whatever a
    reply holds gives a value or an `ApiError`; a status that is not known means that the prediction runs.

    Args:
        provider: The dialect.
        key: Its key; by default the last word of its header Authorization.
        job: A job that it has the model of; by default of the first model of the catalogue that names it.
        reply: Gives the reply of a running prediction with that word for its status; by default in WaveSpeed's shape.

    Raises:
        AssertionError: It breaks the contract; says how.
    """
    job = job or Job(prompt="Check", image=_IMAGE, model=_model(provider.name))
    paid = provider.submit(job, _IMAGE, None)
    key = key or _authorization(paid).split(" ")[-1]
    require(key, "`submit` has no header Authorization: give the key as `key=`")
    require(paid.effect is Effect.PAID, "`submit` is to be Effect.PAID: it must not be sent twice")
    require(key not in repr(provider), "the repr of the provider shows the key")
    _goes_home(provider, paid, "submit", key)
    for name, request in _requests(provider, job):
        if name == "submit":
            require(request.effect is Effect.PAID, "`submit` with a webhook is to be Effect.PAID")
            require(_TOKEN not in repr(request), "the repr of the request of `submit` shows the token of its webhook")
        else:
            require(request.effect is Effect.READ, f"`{name}` is to be Effect.READ: nothing is paid for by it")
        _goes_home(provider, request, name, key)
    _ids_are_quoted(provider, key)
    _any_reply(provider, job, key)
    _a_new_status_runs(provider, reply or _wavespeed)


def _model(provider: str) -> str:
    return next((row.name for row in MODELS if provider in row.providers), MODELS[0].name)


def _wavespeed(status: str) -> HttpResponse:
    data = {"id": "p1", "model": "m", "status": status, "outputs": [], "error": ""}
    return json_response({"code": 200, "message": "success", "data": data})


def _authorization(request: HttpRequest) -> str:
    return next((value for name, value in request.headers.items() if name.lower() == "authorization"), "")


def _requests(provider: Provider, job: Job) -> Iterator[tuple[str, HttpRequest]]:
    """Every request that the provider can phrase, by the name of its method."""
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
    yield "result", provider.result("p1")
    calls: tuple[tuple[str, Callable[[], HttpRequest]], ...] = (
        (
            "submit",
            lambda: provider.submit(job, _IMAGE, None, webhook=f"https://hooks.example/end?kling_token={_TOKEN}"),
        ),
        ("upload_ticket", lambda: provider.upload_ticket(filename="a.png", size=1, content_type="image/png")),
        ("upload_binary", lambda: provider.upload_binary(filename="a.png", content=b"x", content_type="image/png")),
        ("predictions", lambda: provider.predictions(model="m", status="completed", created_after=start)),
        ("delete", lambda: provider.delete(["p1"])),
        ("balance", provider.balance),
        ("models", provider.models),
        ("price", lambda: provider.price(job)),
        ("usage", lambda: provider.usage(start, end)),
        ("billings", lambda: provider.billings(prediction_ids=["p1"], start=start, end=end)),
        ("webhook_secret", provider.webhook_secret),
    )
    for name, call in calls:
        try:
            yield name, call()
        except UnsupportedError:
            continue


def _goes_home(provider: Provider, request: HttpRequest, name: str, key: str) -> None:
    home, url = urlsplit(provider.base_url), urlsplit(request.url)
    require(
        (url.scheme, url.netloc) == (home.scheme, home.netloc),
        f"`{name}` goes to {url.scheme}://{url.netloc}, and the key may go to {provider.base_url} only",
    )
    require(key not in request.url, f"`{name}` has the key in its URL")
    require(key.encode() not in (request.body or b""), f"`{name}` has the key in its body")
    require(key not in repr(request), f"the repr of the request of `{name}` shows the key")


def _ids_are_quoted(provider: Provider, key: str) -> None:
    plain = urlsplit(provider.result("p1").url)
    for id_ in _IDS:
        request = provider.result(id_)
        _goes_home(provider, request, "result", key)
        url, wrong = urlsplit(request.url), f"the id {id_!r} is not quoted in the URL of `result`"
        segments, pairs = url.path.split("/"), parse_qsl(url.query, keep_blank_values=True)
        require(request.url.isascii() and request.url.isprintable() and " " not in request.url, wrong)
        require(len(segments) == len(plain.path.split("/")) and not {".", ".."} & set(segments), wrong)
        require(len(pairs) == len(parse_qsl(plain.query, keep_blank_values=True)) and not url.fragment, wrong)
        require(id_ in {*map(unquote, segments), *(value for _, value in pairs)}, wrong)


def _bodies(key: str) -> Iterator[bytes]:
    """What a service, a proxy or a mistake may reply."""
    yield from _NO_JSON
    good: dict[str, object] = {"id": "p1", "model": "m", "status": "completed", "outputs": [_IMAGE], "error": ""}
    told = f"the key Bearer {key} is wrong"
    rng = random.Random(1)  # noqa: S311 -- the same replies at every run
    records: list[object] = [*_VALUES, told, {"message": told}, good | {"error": told}]
    records += [good | {name: value} for name in _NAMES for value in _VALUES]
    records += [{name: rng.choice(_VALUES) for name in rng.sample(_NAMES, 5)} for _ in range(300)]
    for record in records:
        for body in (record, {"code": 200, "message": told, "data": record}):
            yield json.dumps(body).encode()


def _readers(provider: Provider, job: Job) -> Iterator[tuple[str, Callable[[HttpResponse], object]]]:
    yield "read_prediction", provider.read_prediction
    yield "read_predictions", provider.read_predictions
    yield "read_ticket", provider.read_ticket
    yield "read_upload", provider.read_upload
    yield "read_deleted", provider.read_deleted
    yield "read_balance", provider.read_balance
    yield "read_models", provider.read_models
    yield "read_price", lambda response: provider.read_price(response, job)
    yield "read_usage", provider.read_usage
    yield "read_billings", provider.read_billings
    yield "read_webhook_secret", provider.read_webhook_secret


def _any_reply(provider: Provider, job: Job, key: str) -> None:
    bodies = list(_bodies(key))
    rng = random.Random(2)  # noqa: S311 -- the same replies at every run
    for name, read in _readers(provider, job):
        for body in bodies:
            _one_reply(name, read, HttpResponse(status=200, body=body), key)
        for body in rng.sample(bodies, len(bodies) // 4):
            _one_reply(name, read, HttpResponse(status=rng.choice(_STATUSES), body=body), key)
    for status in _STATUSES:
        if status >= _FIRST_REFUSAL:
            refusal = HttpResponse(status=status, body=b"{}")
            made = _one_reply("read_prediction", provider.read_prediction, refusal, key)
            require(isinstance(made, ApiError), f"`read_prediction` of status {status} is to raise an ApiError")


def _one_reply(name: str, read: Callable[[HttpResponse], object], response: HttpResponse, key: str) -> object:
    """What became of it, the error included."""
    shown = f"status {response.status} and the body {response.body[:80]!r}"
    found: object
    try:
        found = read(response)
    except UnsupportedError as error:
        return error
    except ApiError as error:
        require(
            key not in f"{error!s} {error!r} {vars(error)!r}",
            f"the error of `{name}` shows the key that a reply quotes",
        )
        return error
    except Exception as error:
        raise AssertionError(
            f"`{name}` of {shown} is to raise an ApiError or give a value, and raised {error!r}"
        ) from error
    if name == "read_prediction":
        require(isinstance(found, Prediction), f"`{name}` of {shown} gave {type(found).__name__}, not a Prediction")
    require(key not in repr(found), f"what `{name}` gave shows the key that a reply quotes")
    return found


def _a_new_status_runs(provider: Provider, reply: Callable[[str], HttpResponse]) -> None:
    try:
        prediction = provider.read_prediction(reply(_WORD))
    except ApiError as error:
        raise AssertionError(
            "a status that is not known means that the prediction runs, and it was an error "
            "(a dialect of another shape needs `reply=`)"
        ) from error
    require(not prediction.status.ended, "a status that is not known means that the prediction runs, and it had ended")
    require(prediction.raw_status == _WORD, f"`raw_status` is the service's own word, not {prediction.raw_status!r}")
    require(prediction.id, "the prediction of a good reply has no id")
    named = provider.read_prediction(reply(_WORD), key="shoe-41")
    require(named.key == "shoe-41", f"the key that is given goes into the prediction, and it has {named.key!r}")
