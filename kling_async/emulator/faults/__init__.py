"""Scripted faults: what goes wrong, on which route and how often.

    emu.faults.add("submit", faults.AcceptThenDrop(), times=1, after=2)

This answers two submits normally; the third is accepted and charged, but its response is lost. Rules are matched in
the order they were added; each matching exchange uses up one of a rule's `times`. `Delay` combines with the next
matching rule; of all other faults, at most one applies to an exchange.

Routes: `submit`, `result`, `list`, `delete`, `models`, `price`, `balance`, `billings`, `usage`, `webhook_secret`,
`upload_ticket`, `upload_put`, `upload_binary`, `upload_get`, `output`, and `webhook` for the deliveries that the
emulator sends. `"*"` means every route except `webhook`.
"""

from __future__ import annotations

from .kinds import (
    ROUTES,
    AcceptThenDrop,
    CutBody,
    DataItems,
    DataList,
    Delay,
    Drop,
    DropAfterReading,
    Duplicate,
    EmptyOutputs,
    EnvelopeCode,
    Enveloped,
    FailTask,
    Fault,
    Flagged,
    Html502,
    NullFlags,
    NullOutputs,
    ObjectOutputs,
    Shape,
    SlowBody,
    Sparse,
    Status,
    StatusLag404,
    StringOutputs,
    TruncatedJson,
    UnknownStatus,
    Unwrapped,
    Wrapping,
    build,
)
from .rules import Call, Faults, Rule

__all__ = [
    "ROUTES",
    "AcceptThenDrop",
    "Call",
    "CutBody",
    "DataItems",
    "DataList",
    "Delay",
    "Drop",
    "DropAfterReading",
    "Duplicate",
    "EmptyOutputs",
    "EnvelopeCode",
    "Enveloped",
    "FailTask",
    "Fault",
    "Faults",
    "Flagged",
    "Html502",
    "NullFlags",
    "NullOutputs",
    "ObjectOutputs",
    "Rule",
    "Shape",
    "SlowBody",
    "Sparse",
    "Status",
    "StatusLag404",
    "StringOutputs",
    "TruncatedJson",
    "UnknownStatus",
    "Unwrapped",
    "Wrapping",
    "build",
]
