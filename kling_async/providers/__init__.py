"""Wire dialects, without I/O: a job becomes an `HttpRequest`, an `HttpResponse` a `Prediction` or an error.

A provider of your own is a class with the five members of `Provider`; pass an instance as `KlingSession(provider=...)`.
Balance, prices, lists, webhooks (`AccountProvider`) and uploads (`UploadProvider`) are optional.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kling_async._core.media import UploadProvider

from .gptproto import GPTProto
from .protocol import AccountProvider, Provider
from .wavespeed import WaveSpeed

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PROVIDERS",
    "AccountProvider",
    "GPTProto",
    "Provider",
    "UploadProvider",
    "WaveSpeed",
]

PROVIDERS: Mapping[str, type[WaveSpeed | GPTProto]] = {"wavespeed": WaveSpeed, "gptproto": GPTProto}
"""Built-in providers by name."""
