"""The WaveSpeed persona: response format of WaveSpeedAI API v3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .wire import Json, apply_shape, default_text, nanoseconds, reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import web

    from .catalogue import Model
    from .faults import Shape
    from .predictions import Prediction, State

__all__ = ["WaveSpeed"]


class WaveSpeed:
    """WaveSpeedAI API v3: bearer key, `code`/`message`/`data` envelope, snake_case, times in nanoseconds."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self.name = "wavespeed"
        self.models = models

    def key(self, authorization: str) -> str:
        """Return the key after `Bearer `; empty if there is none."""
        scheme, _, key = authorization.partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""

    def ok(self, data: object) -> web.Response:
        """Return `{"code": 200, "message": "success", "data": ...}`."""
        return reply({"code": 200, "message": "success", "data": data})

    def error(self, status: int, message: str | None = None) -> web.Response:
        """Return `{"code": ..., "message": ...}` with the same HTTP status."""
        return reply({"code": status, "message": message or default_text(status)}, status)

    def prediction(self, prediction: Prediction, state: State, shape: Shape | None = None) -> Json:
        """Return the prediction object of submit, result, list and webhooks."""
        done = state == "completed"
        milliseconds = prediction.inference_milliseconds if done else 0
        data: Json = {
            "id": prediction.id,
            "model": prediction.model.id,
            "outputs": [f"{prediction.origin}/output/{prediction.output}"] if done else [],
            "urls": {"get": f"{prediction.origin}/api/v3/predictions/{prediction.id}/result"},
            "has_nsfw_contents": [False] if done else [],
            "status": state,
            "created_at": nanoseconds(prediction.created_at),
            "error": "",
            "executionTime": milliseconds,
            "timings": {"inference": milliseconds},
        }
        failure = prediction.failure
        if failure is not None and failure.status == state:
            data["error"] = failure.message
            if failure.code is not None:
                data["code"] = failure.code
        if shape is not None:
            apply_shape("outputs", "has_nsfw_contents", data, shape)
        return data
