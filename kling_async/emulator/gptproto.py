"""How the GPTProto persona writes: the same paths, its own keys, errors and field names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from .wire import Json, bend, reply, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .catalogue import Model
    from .faults import Shape
    from .predictions import Prediction, State

__all__ = ["GPTProto"]

_UNAUTHORIZED: Final = 401
_TOO_MANY: Final = 429


class GPTProto:
    """The dialect of GPTProto: key raw or after `Bearer `, camelCase, times with a space, `error: null`."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.name = "gptproto"
        self.models = models

    def key(self, authorization: str) -> str:
        """The key, with or without `Bearer ` before it."""
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else authorization.strip()

    def ok(self, data: object) -> web.Response:
        """`{"data": ..., "message": "success", "code": 200}`."""
        return reply({"data": data, "message": "success", "code": 200})

    def error(self, status: int, message: str | None = None) -> web.Response:
        """`{"error": {"message": ..., "type": "<status>"}}` with the same HTTP status."""
        if status == _UNAUTHORIZED:
            message = "Invalid signature"
        elif status == _TOO_MANY:
            message = "too many requests"
        return reply({"error": {"message": message or text_of(status), "type": str(status)}}, status)

    def prediction(self, prediction: Prediction, state: State, shape: Shape | None = None) -> Json:
        """The prediction object, in camelCase."""
        done = state == "completed"
        milliseconds = prediction.milliseconds if done else 0
        verdict = prediction.verdict
        failed = verdict is not None and verdict.status == state
        data: Json = {
            "id": prediction.id,
            "model": prediction.model.id,
            "outputs": [f"{prediction.origin}/output/{prediction.output}"] if done else [],
            "urls": {"get": f"{prediction.origin}/api/v3/predictions/{prediction.id}/result"},
            "hasNsfwContents": [False] if done else [],
            "status": state,
            "createdAt": f"{datetime.fromtimestamp(int(prediction.created_at), UTC):%Y-%m-%d %H:%M:%S}",
            "error": verdict.message if verdict is not None and failed else None,
            "executionTime": milliseconds,
            "timings": {"inference": milliseconds},
        }
        if verdict is not None and failed and verdict.code is not None:
            data["code"] = verdict.code
        if shape is not None:
            bend("outputs", "hasNsfwContents", data, shape)
        return data
