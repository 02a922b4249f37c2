"""OpenAPI 3.1 document of the WaveSpeed persona, generated from the tables that the routes use."""

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
"""A JSON schema or another part of the document."""

_STRING: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "number", "minimum": 0}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_BOOLEAN: Final[Schema] = {"type": "boolean"}
_HTTP_URL: Final[Schema] = {"type": "string", "format": "uri", "pattern": "^https?://"}
_DATE_TIME: Final[Schema] = {"type": "string", "format": "date-time"}
_NANOSECONDS: Final[Schema] = _DATE_TIME | {"pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z$"}
_MILLISECONDS: Final[Schema] = {"type": "string", "pattern": r"^\d{11,}$", "description": "epoch milliseconds"}
_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9a-f]{32}$"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(properties: Mapping[str, Schema], optional: Iterable[str] = ()) -> Schema:
    """Return the schema of an object with only these keys."""
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
        "model": _STRING,
        "outputs": _list(_HTTP_URL),
        "urls": _object({"get": _HTTP_URL}),
        "has_nsfw_contents": _list(_BOOLEAN),
        "status": {"enum": _STATUSES},
        "created_at": _NANOSECONDS,
        "error": _STRING,
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
    "filename": _STRING,
    "size": _COUNT,
    "download_url": _HTTP_URL,
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
                    "url": _HTTP_URL,
                    "headers": {"type": "object", "additionalProperties": _STRING},
                    "expires_at": _DATE_TIME,
                }
            )
        }
    ),
    "Upload": _object(_UPLOAD),
    "Balance": _object({"balance": {"type": "number", "description": "USD"}}),
    "Models": _list(
        _object(
            {
                "model_id": _STRING,
                "name": _STRING,
                "description": _STRING,
                "type": _STRING,
                "base_price": _NUMBER,
                "sort_order": {"type": "integer"},
                "formula": _STRING | {"description": "JSONata"},
                "api_schema": _object(
                    {
                        "api_schemas": _list(
                            _object(
                                {
                                    "type": {"const": "model_run"},
                                    "method": {"const": "POST"},
                                    "server": _HTTP_URL,
                                    "api_path": _STRING,
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
            "model_id": _STRING,
            "price": _NUMBER,
            "discounted_price": _NUMBER,
            "discount_rate": _NUMBER | {"maximum": 1},
            "currency": {"const": "USD"},
        }
    ),
    "UnitPrice": _object({"model_id": _STRING, "unit_price": _NUMBER, "currency": {"const": "USD"}}),
    "Billings": _object(
        {
            "page": _COUNT,
            "total": _COUNT,
            "has_more": _BOOLEAN,
            "items": _list(
                _object(
                    {
                        "uuid": _ID,
                        "access_key_id": _COUNT,
                        "access_key_name": _STRING,
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
                                "status": _STRING,
                                "ak_id": _COUNT,
                            }
                        ),
                        "prediction": _object({"uuid": _ID, "model_uuid": _STRING, "status": {"enum": _STATUSES}}),
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
                        "model_uuid": _STRING,
                        "model_type": _STRING,
                        "unit_price": _NUMBER,
                        "total_cost": _NUMBER,
                        "total_count": _COUNT,
                        "last_used_date": _DATE_TIME,
                    }
                )
            ),
            "daily_usage": _list(
                _object(
                    {
                        "date": {"type": "string", "format": "date"},
                        "amount": _NUMBER,
                        "count": _COUNT,
                        "models": _list(_STRING),
                    }
                )
            ),
            "summary": _object({"total_cost": _NUMBER, "total_requests": _COUNT, "success_requests": _COUNT}),
        }
    ),
    "Secret": _object({"secret": {"type": "string", "pattern": "^whsec_"}}),
}
"""Schemas of `data`, by the names that `routes` uses."""

_ERROR_TEXTS: Final[Mapping[int, str]] = {
    400: "A parameter is missing or invalid.",
    401: "The API key is missing or unknown.",
    402: "The balance is insufficient.",
    403: "The balance is insufficient, or the key lacks permission.",
    404: "Not found: unknown, older than seven days, or owned by another account.",
    413: "The file is too large.",
    429: "The limit of starts per minute or of concurrent predictions is reached.",
}
_UPLOAD_RESPONSES: Final = frozenset({"Upload", "Ticket"})
"""Responses that report a failure with HTTP 200 and an error `code`."""


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _error_schema(status: int) -> Schema:
    return _object({"code": {"const": status}, "message": _STRING}) | {"description": "Error envelope."}


def _error(status: int, *, submit: bool = False) -> Schema:
    schema = _error_schema(status)
    if submit and status == 400:  # noqa: PLR2004 -- webhook with base64 output is refused in this form
        schema = {"anyOf": [schema, _object({"error": _STRING})]}
    response: Schema = {"description": _ERROR_TEXTS[status], "content": _json(schema)}
    if status == 429:  # noqa: PLR2004 -- the only error with Retry-After
        response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "string"}}}
    return response


def _success(name: str) -> Schema:
    schema = _object({"code": {"const": 200}, "message": {"const": "success"}, "data": _ref(name)})
    if name in _UPLOAD_RESPONSES:
        schema = {"anyOf": [schema, _object({"code": {"const": 500}, "message": _STRING})]}
    return {"description": "Success.", "content": _json(schema)}


def _body(route: Route) -> Schema | None:
    if route.body is None:
        return None
    if route.body == "multipart":
        file = {"type": "string", "format": "binary"}
        schema: Schema = {"type": "object", "required": ["file"], "properties": {"file": file}}
        return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    if route.body == "file":
        return {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
    required = [parameter.name for parameter in route.body if parameter.required]
    schema = {"type": "object", "properties": {parameter.name: parameter.schema() for parameter in route.body}}
    return {"required": bool(required), "content": _json(schema | ({"required": required} if required else {}))}


def _parameters(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _summary(route: Route) -> str:
    """Return the docstring of the handler, without the method and path before its colon."""
    text = " ".join((route.handler.__doc__ or "").split())
    text = text.partition(": ")[2] or text
    return text[:1].upper() + text[1:]


def _operation(route: Route) -> Schema:
    name = re.sub(r"\W+", "_", route.path.removeprefix("/api/v3/")).strip("_")
    operation: Schema = {
        "operationId": f"{route.method.lower()}_{name}",
        "summary": _summary(route),
        "tags": [route.name],
        "parameters": _parameters(route.path),
    }
    body = _body(route)
    if body is not None:
        operation["requestBody"] = body
    if route.kind == "file":
        return operation | {"security": [], **_FILE_OPERATIONS[route.name]}
    operation["responses"] = {
        "200": _success(route.response),
        **{str(status): _error(status) for status in sorted({*route.errors, 401})},
    }
    return operation


_PLAIN_TEXT: Final[Schema] = {"text/plain": {"schema": _STRING}}
_XML_ERROR: Final[Schema] = {"application/xml": {"schema": {"type": "object", "xml": {"name": "Error"}}}}


def _file_responses(content_type: str) -> Schema:
    return {
        "responses": {
            "200": {"description": "The file.", "content": {content_type: {}}},
            "206": {"description": "The requested range.", "content": {content_type: {}}},
            "304": {"description": "Not modified."},
            "404": {"description": _ERROR_TEXTS[404], "content": _PLAIN_TEXT},
            "416": {"description": "The range is outside the file."},
        }
    }


_FILE_OPERATIONS: Final[Mapping[str, Schema]] = {
    "output": _file_responses("video/mp4"),
    "upload_get": _file_responses("*/*"),
    "upload_put": {
        "parameters": [
            *_parameters("{folder}{file}"),
            {"name": "X-Amz-Signature", "in": "query", "required": True, "schema": _STRING},
        ],
        "responses": {
            "200": {"description": "Stored."},
            "400": {"description": "The size is not the announced one, or a key was sent.", "content": _XML_ERROR},
            "403": {"description": "The signature is expired or does not match.", "content": _XML_ERROR},
            "412": {"description": "The object exists already.", "content": _XML_ERROR},
            "507": {"description": "The storage quota is used up.", "content": _XML_ERROR},
        },
    },
}


def _links() -> Schema:
    def link(path: str, method: str) -> Schema:
        route = next(row for row in _ROUTES if row.path == path and row.method == method)
        operation = _operation(route)["operationId"]
        return {"operationId": operation, "parameters": {"prediction_id": "$response.body#/data/id"}}

    base = "/api/v3/predictions/{prediction_id}"
    return {
        "result": link(f"{base}/result", "GET"),
        "prediction": link(base, "GET"),
        "delete": link(base, "DELETE"),
    }


_ROUTES: Final = (*routes.WAVESPEED, *routes.COMMON)


def _submit_operation(route: Route, model: Model) -> Schema:
    webhook: Schema = {
        "name": "webhook",
        "in": "query",
        "description": "URL that receives a POST when the prediction ends.",
        "schema": {"type": "string", "pattern": r"^https?://[a-z0-9-]+(\.[a-z0-9-]+)*(:[1-9][0-9]{0,3})?(/[\w./-]*)?$"},
    }
    success = _success(route.response) | {"links": _links()}
    return {
        "operationId": "submit_" + re.sub(r"\W+", "_", model.id),
        "summary": f"Submit a prediction to {model.id}: ${model.price({})} for five seconds.",
        "tags": [route.name],
        "parameters": [webhook],
        "requestBody": {"required": True, "content": _json(model.request_schema())},
        "responses": {
            "200": success,
            **{str(status): _error(status, submit=True) for status in sorted({*route.errors, 401})},
        },
    }


def document(server: str, models: Mapping[str, Model], *, max_upload_bytes: int) -> Schema:
    """Return the OpenAPI document.

    Args:
        server: base URL.
        models: models by id; each has a path of its own.
        max_upload_bytes: maximum size of one upload.
    """
    paths: dict[str, Schema] = {}
    for route in _ROUTES:
        if route.name == "submit":
            for model_id, model in models.items():
                paths[f"/api/v3/{model_id}"] = {"post": _submit_operation(route, model)}
        else:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    ticket = paths["/api/v3/media/uploads"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    ticket["properties"]["size"]["maximum"] = max_upload_bytes
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "WaveSpeedAI API v3 for Kling image-to-video, as emulated",
            "version": "3",
            "description": "Every path may respond with a gateway error (5xx, also as HTML); these are not listed.",
        },
        "servers": [{"url": server}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(_DATA),
        },
    }
