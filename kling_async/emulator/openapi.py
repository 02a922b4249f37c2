"""The wire of the WaveSpeed persona as OpenAPI 3.1, written from the tables that the routes themselves use."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, get_args

from kling_async.emulator import routes

from .predictions import State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .catalogue import Model
    from .routes import Route

__all__ = ["document"]

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "number", "minimum": 0}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_YES_NO: Final[Schema] = {"type": "boolean"}
_URL: Final[Schema] = {"type": "string", "format": "uri", "pattern": "^https?://"}
_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_NANOSECONDS: Final[Schema] = _TIME | {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$"}
_MILLISECONDS: Final[Schema] = {"type": "string", "pattern": r"^\d{11,}$", "description": "epoch milliseconds"}
_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(properties: Mapping[str, Schema], optional: Iterable[str] = ()) -> Schema:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "required": [name for name in properties if name not in set(optional)],
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_STATUSES: Final = [*get_args(State)]

_PREDICTION: Final = _object(
    {
        "id": _ID,
        "model": _TEXT,
        "outputs": _list(_URL),
        "urls": _object({"get": _URL}),
        "has_nsfw_contents": _list(_YES_NO),
        "status": {"enum": _STATUSES},
        "created_at": _NANOSECONDS,
        "error": _TEXT,
        "executionTime": _COUNT | {"description": "milliseconds"},
        "timings": _object({"inference": _COUNT}),
        "code": {"type": "integer", "description": "of a failure"},
        "input": {"type": "object"},
    },
    optional=("code", "input"),
) | {
    "allOf": [
        {
            "if": {"properties": {"status": {"const": "completed"}}},
            "then": {"properties": {"outputs": {"minItems": 1}, "error": {"const": ""}, "code": False}},
            "else": {"properties": {"outputs": {"maxItems": 0}, "has_nsfw_contents": {"maxItems": 0}}},
        },
        {
            "if": {"properties": {"status": {"enum": ["created", "processing"]}}},
            "then": {"properties": {"error": {"const": ""}, "code": False}},
        },
    ]
}

_UPLOAD: Final = {
    "type": {"enum": ["image", "video", "audio"]},
    "filename": _TEXT,
    "size": _COUNT,
    "download_url": _URL,
}

_DATA: Final[Mapping[str, Schema]] = {
    "Prediction": _PREDICTION,
    "Page": _object(
        {"page": _COUNT, "total": _COUNT, "items": _list(_ref("Prediction")) | {"maxItems": 100}}, optional=("total",)
    ),
    "Deleted": _object({"id": _ID, "status": {"const": "deleted"}}),
    "DeletedMany": _object({"deleted_count": _COUNT}),
    "Ticket": _object(
        _UPLOAD
        | {
            "upload": _object(
                {
                    "method": {"const": "PUT"},
                    "url": _URL,
                    "headers": {"type": "object", "additionalProperties": _TEXT},
                    "expires_at": _TIME,
                }
            )
        }
    ),
    "Upload": _object(_UPLOAD),
    "Balance": _object({"balance": {"type": "number", "description": "USD"}}),
    "Models": _list(
        _object(
            {
                "model_id": _TEXT,
                "name": _TEXT,
                "description": _TEXT,
                "type": _TEXT,
                "base_price": _NUMBER,
                "sort_order": {"type": "integer"},
                "formula": _TEXT | {"description": "JSONata"},
                "api_schema": _object(
                    {
                        "api_schemas": _list(
                            _object(
                                {
                                    "type": {"const": "model_run"},
                                    "method": {"const": "POST"},
                                    "server": _URL,
                                    "api_path": _TEXT,
                                    "request_schema": {"type": "object", "description": "JSON schema"},
                                }
                            )
                        )
                    }
                ),
            }
        )
    ),
    "Price": _object(
        {
            "model_id": _TEXT,
            "price": _NUMBER,
            "discounted_price": _NUMBER,
            "discount_rate": _NUMBER | {"maximum": 1},
            "currency": {"const": "USD"},
        }
    ),
    "UnitPrice": _object({"model_id": _TEXT, "unit_price": _NUMBER, "currency": {"const": "USD"}}),
    "Billings": _object(
        {
            "page": _COUNT,
            "total": _COUNT,
            "has_more": _YES_NO,
            "items": _list(
                _object(
                    {
                        "uuid": _ID,
                        "access_key_id": _COUNT,
                        "access_key_name": _TEXT,
                        "billing_type": {"enum": ["deduct", "refund"]},
                        "price": _NUMBER,
                        "created_at": _MILLISECONDS,
                        "updated_at": _MILLISECONDS,
                        "order": _object(
                            {
                                "uuid": _ID,
                                "state": {"enum": ["paid", "refunded"]},
                                "price": _NUMBER,
                                "origin_price": _NUMBER,
                                "status": _TEXT,
                                "ak_id": _COUNT,
                            }
                        ),
                        "prediction": _object({"uuid": _ID, "model_uuid": _TEXT, "status": {"enum": _STATUSES}}),
                    }
                )
            )
            | {"maxItems": 100},
        }
    ),
    "Usage": _object(
        {
            "per_model_usage": _list(
                _object(
                    {
                        "model_uuid": _TEXT,
                        "model_type": _TEXT,
                        "unit_price": _NUMBER,
                        "total_cost": _NUMBER,
                        "total_count": _COUNT,
                        "last_used_date": _TIME,
                    }
                )
            ),
            "daily_usage": _list(
                _object(
                    {
                        "date": {"type": "string", "format": "date"},
                        "amount": _NUMBER,
                        "count": _COUNT,
                        "models": _list(_TEXT),
                    }
                )
            ),
            "summary": _object({"total_cost": _NUMBER, "total_requests": _COUNT, "success_requests": _COUNT}),
        }
    ),
    "Secret": _object({"secret": {"type": "string", "pattern": "^whsec_"}}),
}
"""What stands in `data`, by the names that `routes` uses."""

_TEXTS: Final[Mapping[int, str]] = {
    400: "A key is missing or does not fit.",
    401: "The API key is missing or unknown.",
    402: "The balance does not suffice.",
    403: "The balance does not suffice, or the key may not do this.",
    404: "There is no such thing, or it is older than seven days, or another account's.",
    413: "The file is too large.",
    429: "Too many starts in a minute, or too many predictions at once.",
}
_UPLOADS: Final = frozenset({"Upload", "Ticket"})
"""Their failures are told inside of an HTTP 200."""


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _error_schema(status: int) -> Schema:
    return _object({"code": {"const": status}, "message": _TEXT}) | {"description": "The gateway's usual form."}


def _error(status: int, *, submit: bool = False) -> Schema:
    schema = _error_schema(status)
    if submit and status == 400:  # noqa: PLR2004 - the status this refusal comes with
        schema = {"anyOf": [schema, _object({"error": _TEXT})]}
    answer: Schema = {"description": _TEXTS[status], "content": _json(schema)}
    if status == 429:  # noqa: PLR2004 - the status that may say when to come again
        answer["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}
    return answer


def _success(name: str) -> Schema:
    schema = _object({"code": {"const": 200}, "message": {"const": "success"}, "data": _ref(name)})
    if name in _UPLOADS:
        schema = {"anyOf": [schema, _object({"code": {"const": 500}, "message": _TEXT})]}
    return {"description": "Done.", "content": _json(schema)}


def _body(route: Route) -> Schema | None:
    if route.body is None:
        return None
    if route.body == "multipart":
        file = {"type": "string", "format": "binary"}
        schema: Schema = {"type": "object", "required": ["file"], "properties": {"file": file}}
        return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    if route.body == "file":
        return {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
    required = [item.name for item in route.body if item.required]
    schema = {"type": "object", "properties": {item.name: item.schema() for item in route.body}}
    return {"required": bool(required), "content": _json(schema | ({"required": required} if required else {}))}


def _parameters(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _summary(route: Route) -> str:
    text = " ".join((route.handler.__doc__ or "").split())
    return text.partition(": ")[2] or text


def _operation(route: Route) -> Schema:
    number = re.sub(r"\W+", "_", route.path.removeprefix("/api/v3/")).strip("_")
    operation: Schema = {
        "operationId": f"{route.method.lower()}_{number}",
        "summary": _summary(route),
        "tags": [route.name],
        "parameters": _parameters(route.path),
    }
    body = _body(route)
    if body is not None:
        operation["requestBody"] = body
    if route.kind == "file":
        return operation | {"security": [], **_FILES[route.name]}
    operation["responses"] = {
        "200": _success(route.answer),
        **{str(status): _error(status) for status in sorted({*route.errors, 401})},
    }
    return operation


_PLAIN: Final[Schema] = {"text/plain": {"schema": _TEXT}}
_XML: Final[Schema] = {"application/xml": {"schema": {"type": "object", "xml": {"name": "Error"}}}}


def _served(content_type: str) -> Schema:
    return {
        "responses": {
            "200": {"description": "The file.", "content": {content_type: {}}},
            "206": {"description": "A part of it.", "content": {content_type: {}}},
            "304": {"description": "It has not changed."},
            "404": {"description": _TEXTS[404], "content": _PLAIN},
            "416": {"description": "The range lies outside of it."},
        }
    }


_FILES: Final[Mapping[str, Schema]] = {
    "output": _served("video/mp4"),
    "upload_get": _served("*/*"),
    "upload_put": {
        "parameters": [
            *_parameters("{folder}{file}"),
            {"name": "X-Amz-Signature", "in": "query", "required": True, "schema": _TEXT},
        ],
        "responses": {
            "200": {"description": "It is kept."},
            "400": {"description": "The body is not what was announced, or a key was sent.", "content": _XML},
            "403": {"description": "The signature is not good for this.", "content": _XML},
            "412": {"description": "There is one already.", "content": _XML},
            "507": {"description": "The quota is used up.", "content": _XML},
        },
    },
}


def _links() -> Schema:
    def link(path: str, method: str) -> Schema:
        route = next(row for row in _API if row.path == path and row.method == method)
        operation = _operation(route)["operationId"]
        return {"operationId": operation, "parameters": {"prediction_id": "$response.body#/data/id"}}

    base = "/api/v3/predictions/{prediction_id}"
    return {
        "result": link(f"{base}/result", "GET"),
        "prediction": link(base, "GET"),
        "delete": link(base, "DELETE"),
    }


_API: Final = (*routes.WAVESPEED, *routes.COMMON)


def _submit(route: Route, model: Model) -> Schema:
    webhook: Schema = {
        "name": "webhook",
        "in": "query",
        "description": "URL that is told of the end.",
        "schema": {"type": "string", "pattern": r"^https?://[a-z0-9-]+(\.[a-z0-9-]+)*(:[1-9][0-9]{0,3})?(/[\w./-]*)?$"},
    }
    success = _success(route.answer) | {"links": _links()}
    return {
        "operationId": "submit_" + re.sub(r"\W+", "_", model.id),
        "summary": f"Start a run of {model.id}: ${model.base_price} for five seconds.",
        "tags": [route.name],
        "parameters": [webhook],
        "requestBody": {"required": True, "content": _json(model.accepted())},
        "responses": {
            "200": success,
            **{str(status): _error(status, submit=True) for status in sorted({*route.errors, 401})},
        },
    }


def document(server: str, models: Mapping[str, Model], *, max_upload_bytes: int) -> Schema:
    """The whole document.

    Args:
        server: base URL.
        models: the models, by id; each is a path.
        max_upload_bytes: greatest single upload.
    """
    paths: dict[str, Schema] = {}
    for route in _API:
        if route.name == "submit":
            for model_id, model in models.items():
                paths[f"/api/v3/{model_id}"] = {"post": _submit(route, model)}
        else:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    size = paths["/api/v3/media/uploads"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    size["size"]["maximum"] = max_upload_bytes
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "WaveSpeedAI API v3 for Kling image-to-video, as the emulator speaks it",
            "version": "3",
            "description": "Errors of gateways (5xx, also as HTML) may come on every path and are not listed.",
        },
        "servers": [{"url": server}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(_DATA),
        },
    }
