"""Asyncio SDK for Kling image-to-video on WaveSpeedAI and GPTProto.

```python
from pathlib import Path
from kling_async import KlingSession

async with KlingSession() as kling:
    prediction = await kling.generate(prompt="She turns and smiles", image=Path("face.png"))
    await kling.save(prediction, "out/")
```

Start with `KlingSession`. The module `kling_async.errors` draws the tree of all errors, and `kling_async.events` lists
the events of observers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from . import errors, events
    from ._core.account import Billing, DailyUsage, ModelUsage, ServiceModel, ServicePrice, Usage
    from ._core.budget import Budget
    from ._core.catalogue import LEVELS, MODELS, Certainty, EndImage, Level, Model, Price
    from ._core.clock import Clock
    from ._core.http import Effect, HttpRequest, HttpResponse, Timeouts
    from ._core.job import Job, Shot
    from ._core.polling import WatchPolicy, WatchStatistics
    from ._core.prediction import Outcome, Prediction, SavedFile, Status
    from ._core.schema import Field
    from ._core.secret import Secret
    from ._core.statistics import SessionStatistics
    from ._http.transport import AiohttpTransport
    from ._session.batch import Batch, BatchStatistics
    from ._session.session import KlingSession
    from ._worker.enqueue import enqueue
    from ._worker.worker import Worker
    from .errors import (
        ApiError,
        AuthenticationError,
        BudgetExceededError,
        ConfigurationError,
        ConnectFailedError,
        ConnectionLostError,
        InsufficientBalanceError,
        InvalidJobError,
        KeyReusedError,
        KlingError,
        LedgerError,
        ManifestError,
        ModerationError,
        NoOutputError,
        NotFoundError,
        NotInHandError,
        OutputGoneError,
        PermissionDeniedError,
        PredictionError,
        PredictionFailedError,
        PredictionTimeoutError,
        PriceUnknownError,
        Problem,
        ProtocolError,
        QueueFullError,
        RateLimitedError,
        RateLimiterError,
        RequestRejectedError,
        RowProblem,
        ServerError,
        SessionClosedError,
        SkippedError,
        Spent,
        StorageError,
        SubmissionUncertainError,
        TransportError,
        TransportTimeoutError,
        UnknownJobError,
        UnsupportedError,
        WebhookRefusal,
        WebhookRefusedError,
    )
    from .ledger import Ledger, Row, State, read_ledger
    from .limits import NoLimit, RateLimiter, StartsPerWindow
    from .providers import GPTProto, Provider, WaveSpeed
    from .storage import Outputs

__all__ = [
    "LEVELS",
    "MODELS",
    "AiohttpTransport",
    "ApiError",
    "AuthenticationError",
    "Batch",
    "BatchStatistics",
    "Billing",
    "Budget",
    "BudgetExceededError",
    "Certainty",
    "Clock",
    "ConfigurationError",
    "ConnectFailedError",
    "ConnectionLostError",
    "DailyUsage",
    "Effect",
    "EndImage",
    "Field",
    "GPTProto",
    "HttpRequest",
    "HttpResponse",
    "InsufficientBalanceError",
    "InvalidJobError",
    "Job",
    "KeyReusedError",
    "KlingError",
    "KlingSession",
    "Ledger",
    "LedgerError",
    "Level",
    "ManifestError",
    "Model",
    "ModelUsage",
    "ModerationError",
    "NoLimit",
    "NoOutputError",
    "NotFoundError",
    "NotInHandError",
    "Outcome",
    "OutputGoneError",
    "Outputs",
    "PermissionDeniedError",
    "Prediction",
    "PredictionError",
    "PredictionFailedError",
    "PredictionTimeoutError",
    "Price",
    "PriceUnknownError",
    "Problem",
    "ProtocolError",
    "Provider",
    "QueueFullError",
    "RateLimitedError",
    "RateLimiter",
    "RateLimiterError",
    "RequestRejectedError",
    "Row",
    "RowProblem",
    "SavedFile",
    "Secret",
    "ServerError",
    "ServiceModel",
    "ServicePrice",
    "SessionClosedError",
    "SessionStatistics",
    "Shot",
    "SkippedError",
    "Spent",
    "StartsPerWindow",
    "State",
    "Status",
    "StorageError",
    "SubmissionUncertainError",
    "Timeouts",
    "TransportError",
    "TransportTimeoutError",
    "UnknownJobError",
    "UnsupportedError",
    "Usage",
    "WatchPolicy",
    "WatchStatistics",
    "WaveSpeed",
    "WebhookRefusal",
    "WebhookRefusedError",
    "Worker",
    "enqueue",
    "errors",
    "events",
    "read_ledger",
]

_MODULE_OF = {
    name: module
    for module, names in {
        "._session.batch": "Batch BatchStatistics",
        "._core.account": "Billing DailyUsage ModelUsage ServiceModel ServicePrice Usage",
        "._core.budget": "Budget",
        "._core.catalogue": "LEVELS MODELS Certainty EndImage Level Model Price",
        "._core.clock": "Clock",
        ".errors": (
            "ApiError AuthenticationError BudgetExceededError ConfigurationError ConnectFailedError "
            "ConnectionLostError InsufficientBalanceError InvalidJobError KeyReusedError KlingError LedgerError "
            "ManifestError ModerationError NoOutputError NotFoundError NotInHandError OutputGoneError "
            "PermissionDeniedError PredictionError PredictionFailedError PredictionTimeoutError PriceUnknownError "
            "Problem ProtocolError QueueFullError RateLimitedError RateLimiterError RequestRejectedError "
            "RowProblem ServerError SessionClosedError SkippedError Spent StorageError SubmissionUncertainError "
            "TransportError TransportTimeoutError UnknownJobError UnsupportedError WebhookRefusal "
            "WebhookRefusedError"
        ),
        "._core.http": "Effect HttpRequest HttpResponse Timeouts",
        "._core.job": "Job Shot",
        "._core.polling": "WatchPolicy WatchStatistics",
        "._core.prediction": "Outcome Prediction SavedFile Status",
        "._core.schema": "Field",
        "._core.secret": "Secret",
        "._core.statistics": "SessionStatistics",
        "._http.transport": "AiohttpTransport",
        "._session.session": "KlingSession",
        "._worker.enqueue": "enqueue",
        "._worker.worker": "Worker",
        ".ledger": "Ledger Row State read_ledger",
        ".limits": "NoLimit RateLimiter StartsPerWindow",
        ".providers": "GPTProto Provider WaveSpeed",
        ".storage": "Outputs",
    }.items()
    for name in names.split()
}
"""Module of each public name. It is imported when one of its names is first used."""
_MODULES = ("errors", "events")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value: object = import_module(f".{name}", __name__)
    elif name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name], __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
