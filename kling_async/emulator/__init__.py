"""A local server for the APIs of WaveSpeedAI and GPTProto, for tests, demos and experiments.

    async with Emulator(speed=60) as emu:
        ...  # use emu.base_url and emu.api_key with any client

It has accounts with balances, rate and concurrency limits, charges and refunds. It renders real MP4s from the input
pictures, delivers signed webhooks, fails on request (`emu.faults`) or at random (`chaos=Chaos(0.1)`), and is as far
away as you like (`network="wan"`). Its record shows what happened: `emu.charges()`, `emu.double_paid()`,
`emu.running_at(t)`, `emu.requests`, and the page at `/__emulator__/`. It shares no code with the SDK: both were written
from the vendor's pages, so each checks the other.
"""

from __future__ import annotations

from kling_async.emulator import faults

from .accounts import LEVELS, Charge, Level, LevelName
from .chaos import KINDS, Chaos
from .clock import Clock, ManualClock, RealClock, ScaledClock
from .faults import Call, Fault, Faults, Rule
from .network import NETWORKS, Bandwidth, Network, NetworkName
from .predictions import PredictionRecord, State, Timing, TimingSource
from .server import DEFAULT_GPTPROTO_KEY, DEFAULT_KEY, Emulator, MissingRendererError, serve
from .service import Leak, RequestRecord
from .webhooks import Delivery

__all__ = [
    "DEFAULT_GPTPROTO_KEY",
    "DEFAULT_KEY",
    "KINDS",
    "LEVELS",
    "NETWORKS",
    "Bandwidth",
    "Call",
    "Chaos",
    "Charge",
    "Clock",
    "Delivery",
    "Emulator",
    "Fault",
    "Faults",
    "Leak",
    "Level",
    "LevelName",
    "ManualClock",
    "MissingRendererError",
    "Network",
    "NetworkName",
    "PredictionRecord",
    "RealClock",
    "RequestRecord",
    "Rule",
    "ScaledClock",
    "State",
    "Timing",
    "TimingSource",
    "faults",
    "serve",
]
