"""Route table of the API, used by the servers and by the OpenAPI document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import attrs

from kling_async.emulator import bodies, files, handlers

from .bodies import Parameter
from .exchange import Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .catalogue import Model

__all__ = ["COMMON", "GPTPROTO", "UNKNOWN", "WAVESPEED", "Route", "methods_of"]


@attrs.frozen
class Route:
    """One route.

    Attributes:
        method: HTTP method.
        path: path in aiohttp's notation.
        name: route name, as in `faults.ROUTES`.
        handler: handler of the requests.
        response: name of the response schema in `openapi`; empty for `file` routes.
        body: keys of the JSON body, or `multipart` or `file`; None for no body.
        errors: error statuses besides 401, which every `json` route has.
        kind: `json` has an envelope and needs a key, `file` neither.
    """

    method: str
    path: str
    name: str
    handler: Handler
    response: str = ""
    body: tuple[Parameter, ...] | Literal["multipart", "file"] | None = None
    errors: tuple[int, ...] = ()
    kind: Literal["json", "file"] = "json"


WAVESPEED: Final = (
    Route("POST", "/api/v3/predictions", "list", handlers.search, "Page", bodies.LIST, (400,)),
    Route("POST", "/api/v3/predictions/delete", "delete", handlers.delete_many, "DeletedMany", bodies.DELETE, (400,)),
    Route("DELETE", "/api/v3/predictions/{prediction_id}", "delete", handlers.delete_one, "Deleted", errors=(404,)),
    Route("POST", "/api/v3/media/uploads", "upload_ticket", files.upload_ticket, "Ticket", bodies.TICKET, (400, 413)),
    Route(
        "POST",
        "/api/v3/media/upload/binary",
        "upload_binary",
        files.upload_binary,
        "Upload",
        "multipart",
        (400, 413),
    ),
    Route("GET", "/api/v3/balance", "balance", handlers.balance, "Balance"),
    Route("GET", "/api/v3/models", "models", handlers.models, "Models"),
    Route("POST", "/api/v3/model/price", "price", handlers.price, "Price", bodies.PRICE, (400, 404)),
    Route("POST", "/api/v3/model/pricing", "price", handlers.pricing, "UnitPrice", bodies.PRICE, (400, 404)),
    Route("POST", "/api/v3/billings/search", "billings", handlers.billings, "Billings", bodies.BILLINGS, (400,)),
    Route("POST", "/api/v3/user/usage_stats", "usage", handlers.usage, "Usage", bodies.USAGE, (400,)),
    Route("GET", "/api/v3/webhook/secret", "webhook_secret", handlers.webhook_secret, "Secret"),
    Route("PUT", "/storage/media/{folder}/{file}", "upload_put", files.upload_put, body="file", kind="file"),
    Route("GET", "/media/{folder}/{file}", "upload_get", files.upload_get, kind="file"),
)
"""Routes of WaveSpeed only."""

GPTPROTO: Final = (
    Route("GET", "/api/home-model-catalog", "price_list", handlers.price_list, "PriceList", kind="file"),
)
"""Routes of GPTProto only."""

COMMON: Final = (
    Route("GET", "/api/v3/predictions/{prediction_id}/result", "result", handlers.result, "Prediction", errors=(404,)),
    Route("GET", "/api/v3/predictions/{prediction_id}", "result", handlers.result, "Prediction", errors=(404,)),
    Route("GET", "/output/{file}", "output", files.output, kind="file"),
    Route(
        "POST",
        "/api/v3/{model_id:.+}",
        "submit",
        handlers.submit,
        "Prediction",
        errors=(400, 402, 403, 404, 429),
    ),
)
"""Routes of both personas; the last one stands for one path per model."""

UNKNOWN: Final = Route("*", "/{anything:.*}", "unknown", handlers.unknown)
"""Catch-all route."""


def methods_of(routes: tuple[Route, ...], models: Mapping[str, Model]) -> Callable[[str], frozenset[str]]:
    """Return a function from a path to its HTTP methods; an unknown path has none.

    Args:
        routes: all routes of a persona.
        models: models of the persona, by id; each has a path of its own.
    """
    patterns = [
        (re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path)), route.method) for route in routes if ":" not in route.path
    ]
    literal_paths = {route.path for route in routes}
    submit_paths = frozenset(f"/api/v3/{model_id}" for model_id in models)

    def methods(path: str) -> frozenset[str]:
        # A literal path takes precedence over one with a placeholder.
        found = {
            method
            for pattern, method in patterns
            if (pattern.pattern == path if path in literal_paths else pattern.fullmatch(path))
        }
        if "GET" in found:
            found.add("HEAD")
        return frozenset(found | ({"POST"} if path in submit_paths else set()))

    return methods
