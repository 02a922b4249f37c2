"""Every route of the API, once: the servers listen by this table and the schema is written from it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

import attrs

from kling_async.emulator import bodies, files, handlers

from .bodies import Item
from .exchange import Handler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .catalogue import Model

__all__ = ["COMMON", "UNKNOWN", "WAVESPEED", "Route", "methods_of"]


@attrs.frozen
class Route:
    """One route.

    Attributes:
        method: HTTP method.
        path: the path, as aiohttp writes it.
        name: as in `faults.ROUTES`.
        handler: what answers.
        answer: what is answered with: the name of a schema in `openapi`.
        body: the keys of the JSON body, or `multipart` or `file`.
        errors: statuses besides 200 that this route has of its own: 401 goes without saying where a key is wanted.
        kind: `json` with an envelope and a key, or `file` with neither.
    """

    method: str
    path: str
    name: str
    handler: Handler
    answer: str = ""
    body: tuple[Item, ...] | Literal["multipart", "file"] | None = None
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
"""What WaveSpeed has and GPTProto has not."""

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
"""What both have; the last stands for one path per model."""

UNKNOWN: Final = Route("*", "/{anything:.*}", "unknown", handlers.unknown)
"""Everything else."""


def methods_of(routes: tuple[Route, ...], models: Mapping[str, Model]) -> Callable[[str], frozenset[str]]:
    """A function that tells which methods a path knows; none for a path that is not there.

    Args:
        routes: all of a persona's.
        models: its models, each of which is a path.
    """
    known = [
        (re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path)), route.method) for route in routes if ":" not in route.path
    ]
    submits = frozenset(f"/api/v3/{model_id}" for model_id in models)

    literal = {route.path for route in routes}

    def methods(path: str) -> frozenset[str]:
        # A path that stands there word for word goes before one with a place for any word.
        found = {
            method
            for pattern, method in known
            if (pattern.pattern == path if path in literal else pattern.fullmatch(path))
        }
        if "GET" in found:
            found.add("HEAD")
        return frozenset(found | ({"POST"} if path in submits else set()))

    return methods
