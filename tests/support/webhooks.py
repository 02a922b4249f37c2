"""Webhooks as the service sends them, signed here by the words of its documentation."""

from __future__ import annotations

import hashlib
import hmac
import json


def body_of(prediction_id: str, **fields: object) -> bytes:
    """The body of a completed prediction."""
    record = {"id": prediction_id, "status": "completed", "outputs": ["https://outputs.example/a.mp4"], "error": ""}
    return json.dumps(record | fields).encode()


def signed(secret: str, body: bytes, *, at: float, webhook_id: str = "w1") -> dict[str, str]:
    """The headers of a delivery."""
    text = f"{webhook_id}.{int(at)}.".encode() + body
    digest = hmac.new(secret.removeprefix("whsec_").encode(), text, hashlib.sha256).hexdigest()
    return {"webhook-id": webhook_id, "webhook-timestamp": str(int(at)), "webhook-signature": f"v3,{digest}"}
