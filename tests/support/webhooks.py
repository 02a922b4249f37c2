"""Webhook bodies and signatures, written from the vendor's documentation and independent of the package."""

from __future__ import annotations

import hashlib
import hmac
import json


def body_of(prediction_id: str, **fields: object) -> bytes:
    """Return the body for a completed prediction."""
    record = {"id": prediction_id, "status": "completed", "outputs": ["https://outputs.example/a.mp4"], "error": ""}
    return json.dumps(record | fields).encode()


def signed(secret: str, body: bytes, *, at: float, webhook_id: str = "w1") -> dict[str, str]:
    """Return the headers of a delivery at Unix time `at`."""
    text = f"{webhook_id}.{int(at)}.".encode() + body
    digest = hmac.new(secret.removeprefix("whsec_").encode(), text, hashlib.sha256).hexdigest()
    return {"webhook-id": webhook_id, "webhook-timestamp": str(int(at)), "webhook-signature": f"v3,{digest}"}
