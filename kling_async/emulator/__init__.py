"""A local service that speaks the wire of WaveSpeedAI and GPTProto, for tests, demos and trying things out.

    async with Emulator(speed=60) as emu:
        ...  # point any client at emu.base_url with emu.api_key

It keeps accounts with balances, rate and concurrency limits, charges and refunds, renders real MP4s from the pictures
it is given, delivers signed webhooks, and goes wrong on demand (`emu.faults`) or by the dice (`chaos=Chaos(0.1)`). Its
own record tells what really happened: `emu.charges()`, `emu.double_paid()`, `emu.running_at(t)`, `emu.requests`; a page
at `/__emulator__/` shows it. It shares no code with the SDK: both were written from the same description of the
service, so each checks the other.
"""

from __future__ import annotations

from kling_async.emulator import faults

from .accounts import LEVELS, Charge, Level, LevelName
from .chaos import KINDS, Chaos
from .clock import Clock, ManualClock, RealClock, ScaledClock
from .faults import Call, Fault, Faults, Rule
from .predictions import PredictionRecord, State, Timing, TimingSource
from .server import DEFAULT_GPTPROTO_KEY, DEFAULT_KEY, Emulator, MissingRendererError, serve
from .service import Leak, RequestRecord
from .webhooks import Delivery

__all__ = [
    "DEFAULT_GPTPROTO_KEY",
    "DEFAULT_KEY",
    "KINDS",
    "LEVELS",
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
