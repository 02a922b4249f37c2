"""The routes of the API itself: submit, results, lists, money."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from kling_async.emulator import faults as kinds
from kling_async.emulator.catalogue import InputError
from kling_async.emulator.exchange import Exchange, RefusedError
from kling_async.emulator.predictions import Prediction, Verdict
from kling_async.emulator.wire import Json, iso, parse_time, reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiohttp import web

    from kling_async.emulator.accounts import Account, Entry
    from kling_async.emulator.catalogue import Model

__all__ = [
    "balance",
    "billings",
    "delete_many",
    "delete_one",
    "models",
    "price",
    "pricing",
    "result",
    "search",
    "submit",
    "unknown",
    "usage",
    "webhook_secret",
]

_MAX_PAGE: Final = 100
_MAX_SPAN_SECONDS: Final = 31 * 86400
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_TOO_MANY: Final = 429


async def submit(exchange: Exchange) -> web.Response:
    """`POST /api/v3/{model_id}`: refuse, or create and charge."""
    account = exchange.account()
    service, site, persona = exchange.service, exchange.site, exchange.site.persona
    model = persona.models.get(exchange.request.match_info["model_id"])
    if model is None:
        raise RefusedError(_NOT_FOUND, "Model not found")
    raw = await exchange.body()
    webhook = exchange.request.query.get("webhook") if persona.name == "wavespeed" else None
    if webhook is not None and raw.get("enable_base64_output") is True:
        text = "webhook callback does not support base64 output, please use the normal API to use base64 output"
        return reply({"error": text}, _BAD_REQUEST)
    inputs = _inputs(model, raw)
    _check_webhook(webhook)

    now = exchange.now
    refusal = account.refusal(now)
    if refusal is not None:
        headers = {"Retry-After": str(max(1, math.ceil(refusal.seconds)))} if service.rules.retry_after else None
        raise RefusedError(_TOO_MANY, refusal.message, headers)
    cost = model.price(inputs) * (1 - service.rules.discount)
    if account.balance(now) < cost:
        if persona.name == "wavespeed":
            raise RefusedError(service.rules.no_funds_status, "Insufficient balance. Please top up your account.")
        raise RefusedError(_FORBIDDEN, "Insufficient balance")

    queue, work = service.store.times(model, inputs)
    started = account.slot(now) + queue
    prediction = Prediction(
        id=service.store.name(),
        account=account,
        model=model,
        inputs=inputs,
        origin=site.origin,
        created_at=now,
        started_at=started,
        ends_at=started + work,
        price=cost,
        output=service.store.file(),
        webhook=webhook,
        shape=kinds.shape_of(exchange.taken),
    )
    _apply_faults(prediction, exchange)
    images = tuple(str(inputs[name]) for name in model.images if name in inputs)
    service.accept(prediction, images, now)
    return persona.ok(persona.prediction(prediction, "created"))


def _inputs(model: Model, raw: Mapping[str, object]) -> dict[str, object]:
    try:
        return model.clean(raw)
    except InputError as error:
        raise RefusedError(_BAD_REQUEST, str(error)) from None


def _check_webhook(webhook: str | None) -> None:
    if webhook is None:
        return
    try:
        parts = urlsplit(webhook)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise RefusedError(_BAD_REQUEST, "Invalid parameter: webhook must be an absolute URL")


def _apply_faults(prediction: Prediction, exchange: Exchange) -> None:
    now = prediction.created_at
    fail = kinds.first(exchange.taken, kinds.FailTask)
    if fail is not None:
        prediction.verdict = Verdict(fail.status, fail.code, fail.message)
        if fail.seconds is not None:
            prediction.started_at = min(prediction.started_at, now + fail.seconds)
            prediction.ends_at = now + fail.seconds
    lag = kinds.first(exchange.taken, kinds.StatusLag404)
    if lag is not None:
        prediction.hidden_until = now + lag.seconds


async def result(exchange: Exchange) -> web.Response:
    """`GET /api/v3/predictions/{id}/result`, and the same without `/result`."""
    account, now = exchange.account(), exchange.now
    prediction = exchange.service.store.get(exchange.request.match_info["prediction_id"], account, now)
    if prediction is None:
        raise RefusedError(_NOT_FOUND, "Prediction not found")
    return exchange.site.persona.ok(_view(exchange, prediction, now))


def _view(exchange: Exchange, prediction: Prediction, now: float) -> Json:
    state = prediction.state(now)
    shape = prediction.shape
    if isinstance(shape, kinds.UnknownStatus) and (state == "created" or prediction.ended(now)):
        shape = None
    faults = exchange.service.faults
    if shape is None and faults.armed(exchange.call.route):
        shape = faults.take_shape(exchange.call, completed=state == "completed")
    return exchange.site.persona.prediction(prediction, state, shape)


async def search(exchange: Exchange) -> web.Response:
    """`POST /api/v3/predictions`: the account's predictions of the last seven days, newest first."""
    account, now = exchange.account(), exchange.now
    service = exchange.service
    body = await exchange.body()
    page, size = _paging(body, _MAX_PAGE)
    service.store.expire(now)
    found, total = service.store.page(
        account,
        now,
        after=_moment(body, "created_after"),
        before=_moment(body, "created_before"),
        model=_word(body, "model"),
        status=_word(body, "status"),
        offset=(page - 1) * size,
        count=size,
    )
    items: list[Json] = []
    for prediction in found:
        item = _view(exchange, prediction, now)
        if service.rules.input_echo:
            item["input"] = prediction.inputs
        items.append(item)
    return exchange.site.persona.ok({"page": page, "total": total, "items": items})


def _paging(body: Mapping[str, object], default: int) -> tuple[int, int]:
    page, size = body.get("page", 1), body.get("page_size", default)
    if isinstance(page, bool) or not isinstance(page, int) or page < 1:
        raise RefusedError(_BAD_REQUEST, "Invalid parameter: page must be an integer from 1")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_PAGE:
        raise RefusedError(_BAD_REQUEST, f"Invalid parameter: page_size must be an integer from 1 to {_MAX_PAGE}")
    return page, size


def _moment(body: Mapping[str, object], name: str) -> float | None:
    value = body.get(name)
    if value is None or value == "":
        return None
    try:
        return parse_time(value)
    except (ValueError, OverflowError):
        raise RefusedError(_BAD_REQUEST, f"Invalid parameter: {name} must be an ISO 8601 time") from None


def _word(body: Mapping[str, object], name: str) -> str | None:
    value = body.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise RefusedError(_BAD_REQUEST, f"Invalid parameter: {name} must be a string")
    return value


async def delete_many(exchange: Exchange) -> web.Response:
    """`POST /api/v3/predictions/delete`: ids that are unknown or another account's are passed over."""
    account, now = exchange.account(), exchange.now
    ids = (await exchange.body()).get("ids")
    if not isinstance(ids, list):
        raise RefusedError(_BAD_REQUEST, "Missing parameter: ids is required")
    store, count = exchange.service.store, 0
    for prediction_id in ids:
        prediction = store.get(str(prediction_id), account, now)
        if prediction is not None and prediction.deleted_at is None:
            store.drop(prediction, now)
            count += 1
    return exchange.site.persona.ok({"deleted_count": count})


async def delete_one(exchange: Exchange) -> web.Response:
    """`DELETE /api/v3/predictions/{id}`."""
    account, now = exchange.account(), exchange.now
    store = exchange.service.store
    prediction = store.get(exchange.request.match_info["prediction_id"], account, now)
    if prediction is None or prediction.deleted_at is not None:
        raise RefusedError(_NOT_FOUND, "Prediction not found")
    store.drop(prediction, now)
    return exchange.site.persona.ok({"id": prediction.id, "status": "deleted"})


async def balance(exchange: Exchange) -> web.Response:
    """`GET /api/v3/balance`, in USD."""
    return exchange.site.persona.ok({"balance": float(exchange.account().balance(exchange.now))})


async def models(exchange: Exchange) -> web.Response:
    """`GET /api/v3/models`."""
    exchange.account()
    return exchange.site.persona.ok(
        [row.listing(exchange.site.origin) for row in exchange.site.persona.models.values()]
    )


async def _priced(exchange: Exchange) -> tuple[Model, Mapping[str, object]]:
    exchange.account()
    body = await exchange.body()
    model = exchange.site.persona.models.get(str(body.get("model_id")))
    if model is None:
        raise RefusedError(_NOT_FOUND, "Model not found")
    inputs = body.get("inputs")
    return model, inputs if isinstance(inputs, dict) else {}


async def price(exchange: Exchange) -> web.Response:
    """`POST /api/v3/model/price`: list price and what the account pays, in USD."""
    model, inputs = await _priced(exchange)
    amount, discount = model.price(inputs), exchange.service.rules.discount
    return exchange.site.persona.ok(
        {
            "model_id": model.id,
            "price": float(amount),
            "discounted_price": float(amount * (1 - discount)),
            "discount_rate": float(discount),
            "currency": "USD",
        }
    )


async def pricing(exchange: Exchange) -> web.Response:
    """`POST /api/v3/model/pricing`: the older form, one price per model, in USD."""
    model, _ = await _priced(exchange)
    return exchange.site.persona.ok({"model_id": model.id, "unit_price": float(model.base_price), "currency": "USD"})


async def billings(exchange: Exchange) -> web.Response:
    """`POST /api/v3/billings/search`: deductions and refunds, newest first."""
    account, now = exchange.account(), exchange.now
    body = await exchange.body()
    page, size = _paging(body, 10)
    account.settle(now)
    wanted = body.get("prediction_uuids")
    ids = {str(value) for value in wanted} if isinstance(wanted, list) and wanted else None
    after, before = _moment(body, "start_time"), _moment(body, "end_time")
    kind, model = _word(body, "billing_type"), _word(body, "model_uuid")
    lines = [
        (at, billing_type, entry)
        for at, billing_type, entry in _lines(account)
        if (kind is None or kind == billing_type)
        and (ids is None or entry.prediction.id in ids)
        and (model is None or entry.prediction.model.id == model)
        and (after is None or at >= after)
        and (before is None or at <= before)
    ]
    lines.sort(key=lambda line: line[0], reverse=not str(body.get("sort", "")).upper().endswith("ASC"))
    items = [
        _billing(at, billing_type, entry, now) for at, billing_type, entry in lines[(page - 1) * size : page * size]
    ]
    return exchange.site.persona.ok(
        {"page": page, "total": len(lines), "has_more": page * size < len(lines), "items": items}
    )


def _lines(account: Account) -> Iterator[tuple[float, str, Entry]]:
    for entry in account.entries:
        yield entry.at, "deduct", entry
        if entry.refunded_at is not None:
            yield entry.refunded_at, "refund", entry


def _billing(at: float, billing_type: str, entry: Entry, now: float) -> Json:
    prediction, amount = entry.prediction, float(entry.amount)
    mark = "d" if billing_type == "deduct" else "e"
    moment = str(int(at * 1000))
    return {
        "uuid": mark + prediction.id[1:],
        "access_key_id": 1,
        "access_key_name": "emulator",
        "billing_type": billing_type,
        "price": amount,
        "created_at": moment,
        "updated_at": moment,
        "order": {
            "uuid": "c" + prediction.id[1:],
            "state": "paid" if entry.refunded_at is None else "refunded",
            "price": amount,
            "origin_price": float(prediction.model.price(prediction.inputs)),
            "status": "success",
            "ak_id": 1,
        },
        "prediction": {
            "uuid": prediction.id,
            "model_uuid": prediction.model.id,
            "status": prediction.state(now),
        },
    }


async def usage(exchange: Exchange) -> web.Response:
    """`POST /api/v3/user/usage_stats`: what was spent, per model and per day (UTC), in USD without refunds."""
    account, now = exchange.account(), exchange.now
    body = await exchange.body()
    start, end = _moment(body, "start_time"), _moment(body, "end_time")
    if start is None or end is None:
        raise RefusedError(_BAD_REQUEST, "Missing parameter: start_time and end_time are required")
    if not 0 <= end - start <= _MAX_SPAN_SECONDS:
        raise RefusedError(_BAD_REQUEST, "Invalid parameter: the time range must not exceed 31 days")
    account.settle(now)
    model = _word(body, "model_uuid")
    entries = [
        entry
        for entry in account.entries
        if start <= entry.at <= end and (model is None or entry.prediction.model.id == model)
    ]
    paid = [entry for entry in entries if entry.refunded_at is None]
    by_model: dict[str, list[Entry]] = {}
    by_day: dict[str, list[Entry]] = {}
    for entry in paid:
        by_model.setdefault(entry.prediction.model.id, []).append(entry)
        by_day.setdefault(f"{datetime.fromtimestamp(entry.at, UTC):%Y-%m-%d}", []).append(entry)
    return exchange.site.persona.ok(
        {
            "per_model_usage": [
                {
                    "model_uuid": name,
                    "model_type": "image-to-video",
                    "unit_price": float(group[0].prediction.model.base_price),
                    "total_cost": _sum(group),
                    "total_count": len(group),
                    "last_used_date": iso(group[-1].at),
                }
                for name, group in by_model.items()
            ],
            "daily_usage": [
                {
                    "date": day,
                    "amount": _sum(group),
                    "count": len(group),
                    "models": sorted({entry.prediction.model.id for entry in group}),
                }
                for day, group in by_day.items()
            ],
            "summary": {
                "total_cost": _sum(paid),
                "total_requests": len(entries),
                "success_requests": sum(entry.prediction.state(now) == "completed" for entry in entries),
            },
        }
    )


def _sum(entries: list[Entry]) -> float:
    return float(sum((entry.amount for entry in entries), Decimal(0)))


async def webhook_secret(exchange: Exchange) -> web.Response:
    """`GET /api/v3/webhook/secret`: one secret per key."""
    return exchange.site.persona.ok({"secret": exchange.account().webhook_secret})


async def unknown(exchange: Exchange) -> web.Response:
    """Anything else."""
    exchange.account()
    raise RefusedError(_NOT_FOUND)
