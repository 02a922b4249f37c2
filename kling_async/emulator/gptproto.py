"""The GPTProto persona: the same paths with its own keys, errors and field names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from .wire import Json, apply_shape, default_text, reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .catalogue import Model
    from .faults import Shape
    from .predictions import Prediction, State

__all__ = ["GPTProto"]

_UNAUTHORIZED: Final = 401
_TOO_MANY_REQUESTS: Final = 429


class GPTProto:
    """GPTProto: key raw or after `Bearer `, camelCase, times with a space, `error: null`."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.name = "gptproto"
        self.models = models

    def key(self, authorization: str) -> str:
        """Return the key, with or without `Bearer ` before it."""
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else authorization.strip()

    def ok(self, data: object) -> web.Response:
        """Return `{"data": ..., "message": "success", "code": 200}`."""
        return reply({"data": data, "message": "success", "code": 200})

    def error(self, status: int, message: str | None = None) -> web.Response:
        """Return `{"error": {"message": ..., "type": "<status>"}}` with the same HTTP status."""
        if status == _UNAUTHORIZED:
            message = "Invalid signature"
        elif status == _TOO_MANY_REQUESTS and message is None:
            message = "too many requests"
        return reply({"error": {"message": message or default_text(status), "type": str(status)}}, status)

    def prediction(self, prediction: Prediction, state: State, shape: Shape | None = None) -> Json:
        """Return the prediction object, in camelCase."""
        done = state == "completed"
        milliseconds = prediction.inference_milliseconds if done else 0
        failure = prediction.failure
        if failure is not None and failure.status != state:
            failure = None
        data: Json = {
            "id": prediction.id,
            "model": prediction.model.id,
            "outputs": [f"{prediction.origin}/output/{prediction.output}"] if done else [],
            "urls": {"get": f"{prediction.origin}/api/v3/predictions/{prediction.id}/result"},
            "hasNsfwContents": [False] if done else [],
            "status": state,
            "createdAt": f"{datetime.fromtimestamp(int(prediction.created_at), UTC):%Y-%m-%d %H:%M:%S}",
            "error": None if failure is None else failure.message,
            "executionTime": milliseconds,
            "timings": {"inference": milliseconds},
        }
        if failure is not None and failure.code is not None:
            data["code"] = failure.code
        if shape is not None:
            apply_shape("outputs", "hasNsfwContents", data, shape)
        return data
