"""An in-memory WaveSpeed service on the event loop's clock, for tests that need no sockets."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs

from kling_async import HttpRequest, HttpResponse, KlingSession, Level
from kling_async._core.http import Effect
from kling_async.testing import LoopClock, ScriptedTransport, json_response

IMAGE = "https://pictures.example/face.png"
EPOCH = 1_800_000_000.0
"""Unix seconds at the start of the loop's clock."""


@attrs.define
class Service:
    """A service that accepts every job and completes it after `seconds`.

    Attributes:
        seconds: duration of a prediction, or a function of its inputs.
        script: function that may return another response to a request; None for the regular one.
        latency: seconds per request.
        clock: clock of the predictions.
        accepted: start (seconds of `clock`), duration and inputs of each prediction, by id.
        paid: inputs of all accepted submits.
        reads: number of status requests.
        lists: number of history requests.
        epoch: Unix seconds at the start of `clock`.
        echo: function from the inputs to the `input` in the history; None omits it.
        peak: highest number of concurrent predictions.
        models: model id of each prediction, by id.
        failures: fields of a failed result, by prompt.
    """

    seconds: float | Callable[[dict[str, Any]], float] = 60.0
    script: Callable[[HttpRequest, dict[str, Any]], HttpResponse | Awaitable[HttpResponse] | None] | None = None
    latency: float = 0.1
    clock: LoopClock = attrs.field(factory=LoopClock)
    accepted: dict[str, tuple[float, float, dict[str, Any]]] = attrs.field(factory=dict)
    paid: list[dict[str, Any]] = attrs.field(factory=list)
    reads: int = 0
    lists: int = 0
    epoch: float = EPOCH
    echo: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    peak: int = 0
    models: dict[str, str] = attrs.field(factory=dict)
    failures: dict[str, dict[str, Any]] = attrs.field(factory=dict)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        await anyio.sleep(self.latency)
        body = json.loads(request.body) if request.body else {}
        if self.script is not None:
            scripted = self.script(request, body)
            if scripted is not None:
                return scripted if isinstance(scripted, HttpResponse) else await scripted
        if request.effect is Effect.PAID:
            return self.accept(body, request.url.partition("/api/v3/")[2])
        if request.url.endswith("/api/v3/predictions"):
            return self.history(body)
        if request.url.endswith("/api/v3/billings/search"):
            # Empty: it confirms what the history lacks.
            return json_response({"code": 200, "message": "success", "data": {"page": 1, "items": []}})
        return self.read(request.url.rsplit("/", 2)[-2])

    def accept(self, body: dict[str, Any], model: str = "kwaivgi/kling-v2.1-i2v-standard") -> HttpResponse:
        number = len(self.accepted)
        id_ = f"p{number:05d}"
        seconds = self.seconds(body) if callable(self.seconds) else self.seconds
        self.accepted[id_] = (self.clock.monotonic(), seconds, body)
        self.models[id_] = model
        self.paid.append(body)
        self.peak = max(self.peak, self.count_running())
        return json_response({"code": 200, "message": "success", "data": self.record(id_)})

    def history(self, body: dict[str, Any]) -> HttpResponse:
        """Return a page of all predictions, newest first."""
        self.lists += 1
        records = []
        for id_, (_, _, inputs) in reversed(self.accepted.items()):
            records.append(self.record(id_) | ({"input": self.echo(inputs)} if self.echo else {}))
        first = (body["page"] - 1) * body["page_size"]
        items = records[first : first + body["page_size"]]
        return json_response({"code": 200, "message": "success", "data": {"page": body["page"], "items": items}})

    def read(self, id_: str) -> HttpResponse:
        self.reads += 1
        if id_ not in self.accepted:
            return json_response({"code": 404, "message": "not found"}, status=404)
        return json_response({"code": 200, "message": "success", "data": self.record(id_)})

    def count_running(self) -> int:
        now = self.clock.monotonic()
        return sum(since + seconds > now for since, seconds, _ in self.accepted.values())

    def record(self, id_: str) -> dict[str, Any]:
        since, seconds, body = self.accepted[id_]
        age = self.clock.monotonic() - since
        status = "completed" if age >= seconds else "created" if age < 1 else "processing"
        record: dict[str, Any] = {
            "id": id_,
            "status": status,
            "outputs": [f"https://outputs.example/{id_}.mp4"] if status == "completed" else [],
            "error": "",
            "model": self.models[id_],
            "created_at": datetime.fromtimestamp(self.epoch + since, UTC).isoformat(),
        }
        if status == "completed" and body.get("prompt", "") in self.failures:
            record |= {"status": "failed", "outputs": [], **self.failures[body["prompt"]]}
        return record


def open_session(service: Service, **options: Any) -> KlingSession:
    options.setdefault("level", Level("test", 1_000_000, 1_000))
    options.setdefault("clock", service.clock)
    return KlingSession(
        "wsk_secret_key_of_the_test",
        transport=ScriptedTransport(service),
        **options,
    )
