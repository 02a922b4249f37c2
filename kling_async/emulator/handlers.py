"""Handlers of the API routes: submit, results, lists, deletion, prices, billing."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from kling_async.emulator import bodies

from .catalogue import DISAGREEING
from .exchange import Exchange, RefusedError
from .faults import kinds
from .predictions import Failure, Prediction
from .wire import Json, iso, reply

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from aiohttp import web

    from .accounts import Account, Entry
    from .catalogue import Model

__all__ = [
    "balance",
    "billings",
    "delete_many",
    "delete_one",
    "models",
    "price",
    "price_list",
    "pricing",
    "result",
    "search",
    "submit",
    "unknown",
    "usage",
    "webhook_secret",
]

_MAX_USAGE_SPAN_SECONDS: Final = 31 * 86400
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_METHOD_NOT_ALLOWED: Final = 405
_TOO_MANY_REQUESTS: Final = 429


async def submit(exchange: Exchange) -> web.Response:
    """`POST /api/v3/{model_id}`: check the inputs and limits, then create and charge a prediction."""
    account = exchange.account()
    service, site, persona = exchange.service, exchange.site, exchange.site.persona
    model = persona.models.get(exchange.request.match_info["model_id"])
    if model is None:
        _check_method(exchange)
        raise RefusedError(service.rules.unknown_model_status, "Model not found")
    raw = await exchange.body()
    webhook = exchange.request.query.get("webhook") if persona.name == "wavespeed" else None
    if webhook is not None and raw.get("enable_base64_output") is True:
        text = "webhook callback does not support base64 output, please use the normal API to use base64 output"
        return reply({"error": text}, _BAD_REQUEST)
    inputs = model.clean(raw)
    _check_webhook(webhook)

    now = exchange.now
    refusal = account.refusal(now)
    if refusal is not None:
        headers = {"Retry-After": str(max(1, math.ceil(refusal.seconds)))} if service.rules.retry_after else None
        raise RefusedError(_TOO_MANY_REQUESTS, refusal.message if persona.name == "wavespeed" else None, headers)
    cost = model.price(inputs) * (1 - service.rules.discount)
    if account.balance(now) < cost:
        if persona.name == "wavespeed":
            raise RefusedError(service.rules.no_funds_status, "Insufficient balance. Please top up your account.")
        raise RefusedError(_FORBIDDEN, "Insufficient balance")

    queue, work = service.store.draw_times(model, inputs)
    started = account.slot_free_at(now) + queue
    prediction = Prediction(
        id=service.store.new_id(),
        account=account,
        model=model,
        inputs=inputs,
        origin=site.origin,
        created_at=now,
        started_at=started,
        ends_at=started + work,
        price=cost,
        output=service.store.new_file_name(model.suffix),
        webhook=webhook,
        shape=kinds.first_shape(exchange.faults),
    )
    _apply_faults(prediction, exchange)
    service.accept(prediction, now)
    return persona.ok(persona.prediction(prediction, "created"))


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
    fail = kinds.first(exchange.faults, kinds.FailTask)
    if fail is not None:
        prediction.failure = Failure(fail.status, fail.code, fail.message)
        if fail.seconds is not None:
            prediction.started_at = min(prediction.started_at, now + fail.seconds)
            prediction.ends_at = now + fail.seconds
    lag = kinds.first(exchange.faults, kinds.StatusLag404)
    if lag is not None:
        prediction.hidden_until = now + lag.seconds


async def result(exchange: Exchange) -> web.Response:
    """`GET /api/v3/predictions/{id}` and `.../result`: return the prediction."""
    account, now = exchange.account(), exchange.now
    prediction = exchange.service.store.get(exchange.request.match_info["prediction_id"], account, now)
    if prediction is None:
        raise RefusedError(_NOT_FOUND, "Prediction not found")
    return exchange.site.persona.ok(_view(exchange, prediction, now))


def _check_method(exchange: Exchange) -> None:
    """Check that the path does not exist under another method.

    Raises:
        RefusedError: 405 if it does.
    """
    allowed = exchange.site.methods(exchange.request.path)
    if allowed and exchange.request.method not in allowed:
        raise RefusedError(_METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(sorted(allowed))})


def _view(exchange: Exchange, prediction: Prediction, now: float) -> Json:
    """Return the prediction as this response shows it, with deviations and `input` applied."""
    state = prediction.state(now)
    shape = prediction.shape
    if isinstance(shape, kinds.UnknownStatus) and (state == "created" or prediction.ended(now)):
        shape = None
    shape = kinds.first_shape(exchange.faults) or shape
    faults = exchange.service.faults
    if shape is None and faults.armed(exchange.call.route):
        shape = faults.take_shape(exchange.call, completed=state == "completed")
    data = exchange.site.persona.prediction(prediction, state, shape)
    if exchange.call.route in exchange.service.rules.echoes:
        data["input"] = prediction.inputs
    return data


async def search(exchange: Exchange) -> web.Response:
    """`POST /api/v3/predictions`: list the account's predictions of the last seven days, newest first."""
    account, now = exchange.account(), exchange.now
    service = exchange.service
    query = bodies.read(bodies.LIST, await exchange.body())
    page, size = query["page"], query["page_size"]
    service.store.expire(now)
    found, total = service.store.page(
        account,
        now,
        after=query["created_after"],
        before=query["created_before"],
        model=query["model"],
        status=query["status"],
        offset=(page - 1) * size,
        count=size,
    )
    data: Json = {"page": page, "items": [_view(exchange, prediction, now) for prediction in found]}
    return exchange.site.persona.ok(data | ({"total": total} if service.rules.list_total else {}))


async def delete_many(exchange: Exchange) -> web.Response:
    """`POST /api/v3/predictions/delete`: delete predictions; unknown ids and those of other accounts are ignored."""
    account, now = exchange.account(), exchange.now
    store, count = exchange.service.store, 0
    for prediction_id in bodies.read(bodies.DELETE, await exchange.body())["ids"]:
        prediction = store.get(prediction_id, account, now)
        if prediction is not None and prediction.deleted_at is None:
            store.delete(prediction, now)
            count += 1
    return exchange.site.persona.ok({"deleted_count": count})


async def delete_one(exchange: Exchange) -> web.Response:
    """`DELETE /api/v3/predictions/{id}`: delete one prediction."""
    account, now = exchange.account(), exchange.now
    store = exchange.service.store
    prediction = store.get(exchange.request.match_info["prediction_id"], account, now)
    if prediction is None or prediction.deleted_at is not None:
        raise RefusedError(_NOT_FOUND, "Prediction not found")
    store.delete(prediction, now)
    return exchange.site.persona.ok({"id": prediction.id, "status": "deleted"})


async def balance(exchange: Exchange) -> web.Response:
    """`GET /api/v3/balance`: return the balance in USD."""
    return exchange.site.persona.ok({"balance": float(exchange.account().balance(exchange.now))})


async def models(exchange: Exchange) -> web.Response:
    """`GET /api/v3/models`: list the models with their input schemas and prices."""
    exchange.account()
    rows = DISAGREEING if exchange.service.rules.disagreeing else exchange.site.persona.models
    return exchange.site.persona.ok([row.listing(exchange.site.origin) for row in rows.values()])


async def price_list(exchange: Exchange) -> web.Response:
    """`GET /api/home-model-catalog`: list the prices of GPTProto's models, without a key."""
    items = [row.price_item(number) for number, row in enumerate(exchange.site.persona.models.values(), 1)]
    return exchange.site.persona.ok({"items": items})


async def _model_and_inputs(exchange: Exchange) -> tuple[Model, Mapping[str, object]]:
    exchange.account()
    query = bodies.read(bodies.PRICE, await exchange.body())
    model = exchange.site.persona.models.get(query["model_id"])
    if model is None:
        raise RefusedError(_NOT_FOUND, "Model not found")
    return model, query["inputs"] or {}


async def price(exchange: Exchange) -> web.Response:
    """`POST /api/v3/model/price`: return the list price and the account's price, in USD."""
    model, inputs = await _model_and_inputs(exchange)
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
    """`POST /api/v3/model/pricing`: return one price per model, in USD (older form of `/price`)."""
    model, _ = await _model_and_inputs(exchange)
    return exchange.site.persona.ok({"model_id": model.id, "unit_price": float(model.base_price), "currency": "USD"})


async def billings(exchange: Exchange) -> web.Response:
    """`POST /api/v3/billings/search`: list charges and refunds, newest first."""
    account, now = exchange.account(), exchange.now
    query = bodies.read(bodies.BILLINGS, await exchange.body())
    page, size = query["page"], query["page_size"]
    account.settle(now)
    ids = frozenset(query["prediction_uuids"] or ())
    after, before = query["start_time"], query["end_time"]
    kind, model = query["billing_type"], query["model_uuid"]
    lines = [
        (at, billing_type, entry)
        for at, billing_type, entry in _billing_lines(account)
        if (kind is None or kind == billing_type)
        and (not ids or entry.prediction.id in ids)
        and (model is None or entry.prediction.model.id == model)
        and (after is None or at >= after)
        and (before is None or at <= before)
    ]
    lines.sort(key=lambda line: line[0], reverse=not str(query["sort"]).upper().endswith("ASC"))
    items = [
        _billing_item(at, billing_type, entry, now)
        for at, billing_type, entry in lines[(page - 1) * size : page * size]
    ]
    return exchange.site.persona.ok(
        {"page": page, "total": len(lines), "has_more": page * size < len(lines), "items": items}
    )


def _billing_lines(account: Account) -> Iterator[tuple[float, str, Entry]]:
    for entry in account.entries:
        yield entry.at, "deduct", entry
        if entry.refunded_at is not None:
            yield entry.refunded_at, "refund", entry


def _billing_item(at: float, billing_type: str, entry: Entry, now: float) -> Json:
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
    """`POST /api/v3/user/usage_stats`: return the spending per model and per UTC day, in USD without refunds."""
    account, now = exchange.account(), exchange.now
    query = bodies.read(bodies.USAGE, await exchange.body())
    start, end, model = query["start_time"], query["end_time"], query["model_uuid"]
    if not 0 <= end - start <= _MAX_USAGE_SPAN_SECONDS:
        raise RefusedError(_BAD_REQUEST, "Invalid parameter: the time range must not exceed 31 days")
    account.settle(now)
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
                    "total_cost": _total_amount(group),
                    "total_count": len(group),
                    "last_used_date": iso(group[-1].at),
                }
                for name, group in by_model.items()
            ],
            "daily_usage": [
                {
                    "date": day,
                    "amount": _total_amount(group),
                    "count": len(group),
                    "models": sorted({entry.prediction.model.id for entry in group}),
                }
                for day, group in by_day.items()
            ],
            "summary": {
                "total_cost": _total_amount(paid),
                "total_requests": len(entries),
                "success_requests": sum(entry.prediction.state(now) == "completed" for entry in entries),
            },
        }
    )


def _total_amount(entries: list[Entry]) -> float:
    return float(sum((entry.amount for entry in entries), Decimal(0)))


async def webhook_secret(exchange: Exchange) -> web.Response:
    """`GET /api/v3/webhook/secret`: return the secret that signs the account's webhooks."""
    return exchange.site.persona.ok({"secret": exchange.account().webhook_secret})


async def unknown(exchange: Exchange) -> web.Response:
    """Respond 404 or 405 to any other path."""
    _check_method(exchange)
    exchange.account()
    raise RefusedError(_NOT_FOUND)
