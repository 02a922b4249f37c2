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
    from ._core.catalogue import LEVELS, MODELS, Level
    from ._core.clock import Clock
    from ._core.formula import Formula, FormulaInput
    from ._core.http import Effect, HttpRequest, HttpResponse, Timeouts
    from ._core.job import Job, Shot
    from ._core.model import AtProvider, Caution, EndImage, Model, Requirement
    from ._core.polling import WatchPolicy, WatchStatistics
    from ._core.prediction import Outcome, Prediction, SavedFile, Status
    from ._core.prices import Certainty, Price, Rate
    from ._core.schema import Field
    from ._core.secret import Secret
    from ._core.statistics import SessionStatistics
    from ._core.video_frames import FirstFrame, FrameAt, LastFrame
    from ._http.transport import AiohttpTransport
    from ._session.batch import Batch, BatchStatistics
    from ._session.session import KlingSession
    from ._worker.enqueue import enqueue
    from ._worker.worker import Worker
    from .errors import (
        AlreadyPaidError,
        ApiError,
        AuthenticationError,
        BudgetExceededError,
        CallerBudgetExceededError,
        CallerLimitError,
        ConfigurationError,
        ConnectFailedError,
        ConnectionLostError,
        InDoubtElsewhereError,
        InsufficientBalanceError,
        InvalidJobError,
        KeyReusedError,
        KlingError,
        LedgerError,
        LineLostError,
        ManifestError,
        ModerationError,
        NoOutputError,
        NotFoundError,
        NotInHandError,
        OtherAccountError,
        OutputGoneError,
        PermissionDeniedError,
        PredictionError,
        PredictionExpiredError,
        PredictionFailedError,
        PredictionTimeoutError,
        PriceUnknownError,
        Problem,
        ProtocolError,
        QueueFullError,
        RateLimitedError,
        RateLimiterError,
        ReplyTooLargeError,
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
        UnknownPredictionError,
        UnsupportedError,
        VideoError,
        WebhookRefusal,
        WebhookRefusedError,
        WrongLoopError,
    )
    from .films import Film, join
    from .ledger import Ledger, Row, State, read_ledger
    from .limits import CallerLimits, NoLimit, RateLimiter, StartsPerWindow
    from .providers import GPTProto, Provider, WaveSpeed
    from .storage import Outputs

__all__ = [
    "LEVELS",
    "MODELS",
    "AiohttpTransport",
    "AlreadyPaidError",
    "ApiError",
    "AtProvider",
    "AuthenticationError",
    "Batch",
    "BatchStatistics",
    "Billing",
    "Budget",
    "BudgetExceededError",
    "CallerBudgetExceededError",
    "CallerLimitError",
    "CallerLimits",
    "Caution",
    "Certainty",
    "Clock",
    "ConfigurationError",
    "ConnectFailedError",
    "ConnectionLostError",
    "DailyUsage",
    "Effect",
    "EndImage",
    "Field",
    "Film",
    "FirstFrame",
    "Formula",
    "FormulaInput",
    "FrameAt",
    "GPTProto",
    "HttpRequest",
    "HttpResponse",
    "InDoubtElsewhereError",
    "InsufficientBalanceError",
    "InvalidJobError",
    "Job",
    "KeyReusedError",
    "KlingError",
    "KlingSession",
    "LastFrame",
    "Ledger",
    "LedgerError",
    "Level",
    "LineLostError",
    "ManifestError",
    "Model",
    "ModelUsage",
    "ModerationError",
    "NoLimit",
    "NoOutputError",
    "NotFoundError",
    "NotInHandError",
    "OtherAccountError",
    "Outcome",
    "OutputGoneError",
    "Outputs",
    "PermissionDeniedError",
    "Prediction",
    "PredictionError",
    "PredictionExpiredError",
    "PredictionFailedError",
    "PredictionTimeoutError",
    "Price",
    "PriceUnknownError",
    "Problem",
    "ProtocolError",
    "Provider",
    "QueueFullError",
    "Rate",
    "RateLimitedError",
    "RateLimiter",
    "RateLimiterError",
    "ReplyTooLargeError",
    "RequestRejectedError",
    "Requirement",
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
    "UnknownPredictionError",
    "UnsupportedError",
    "Usage",
    "VideoError",
    "WatchPolicy",
    "WatchStatistics",
    "WaveSpeed",
    "WebhookRefusal",
    "WebhookRefusedError",
    "Worker",
    "WrongLoopError",
    "enqueue",
    "errors",
    "events",
    "join",
    "read_ledger",
]

_MODULE_OF = {
    name: module
    for module, names in {
        "._session.batch": "Batch BatchStatistics",
        "._core.account": "Billing DailyUsage ModelUsage ServiceModel ServicePrice Usage",
        "._core.budget": "Budget",
        "._core.catalogue": "LEVELS MODELS Level",
        "._core.formula": "Formula FormulaInput",
        "._core.model": "AtProvider Caution EndImage Model Requirement",
        "._core.prices": "Certainty Price Rate",
        "._core.clock": "Clock",
        ".errors": (
            "AlreadyPaidError ApiError AuthenticationError BudgetExceededError CallerBudgetExceededError "
            "CallerLimitError ConfigurationError ConnectFailedError ConnectionLostError InDoubtElsewhereError "
            "InsufficientBalanceError InvalidJobError KeyReusedError KlingError LedgerError LineLostError "
            "ManifestError ModerationError NoOutputError NotFoundError NotInHandError OtherAccountError "
            "OutputGoneError PermissionDeniedError PredictionError PredictionExpiredError PredictionFailedError "
            "PredictionTimeoutError PriceUnknownError Problem ProtocolError QueueFullError RateLimitedError "
            "RateLimiterError ReplyTooLargeError RequestRejectedError RowProblem ServerError SessionClosedError "
            "SkippedError Spent StorageError SubmissionUncertainError TransportError TransportTimeoutError "
            "UnknownJobError UnknownPredictionError UnsupportedError VideoError WebhookRefusal "
            "WebhookRefusedError WrongLoopError"
        ),
        "._core.http": "Effect HttpRequest HttpResponse Timeouts",
        "._core.job": "Job Shot",
        "._core.video_frames": "FirstFrame FrameAt LastFrame",
        "._core.polling": "WatchPolicy WatchStatistics",
        "._core.prediction": "Outcome Prediction SavedFile Status",
        "._core.schema": "Field",
        "._core.secret": "Secret",
        "._core.statistics": "SessionStatistics",
        "._http.transport": "AiohttpTransport",
        "._session.session": "KlingSession",
        "._worker.enqueue": "enqueue",
        "._worker.worker": "Worker",
        ".films": "Film join",
        ".ledger": "Ledger Row State read_ledger",
        ".limits": "CallerLimits NoLimit RateLimiter StartsPerWindow",
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
