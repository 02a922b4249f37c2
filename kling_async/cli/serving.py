"""`kling-async emulator`, and the emulators that other commands run beside their work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import attrs
from rich.text import Text

from kling_async.emulator import Chaos, Emulator, serve

from .choices import LevelChoice, ProfileChoice
from .interrupts import Exit
from .output import block, console, reach_loopback_directly

if TYPE_CHECKING:
    from rich.console import Console


@attrs.frozen(kw_only=True)
class ServeOptions:
    """What the user asked for; see the help of the command."""

    host: str = "127.0.0.1"
    port: int = 8787
    gptproto_port: int = 8788
    speed: float = 1.0
    seconds: float | None = None
    level: LevelChoice = LevelChoice.GOLD
    balance: float = 1000.0
    profile: ProfileChoice = ProfileChoice.VIDEO
    seed: int | None = None
    chaos: float = 0.0


def emulator_of(*, level: LevelChoice, profile: ProfileChoice, **more: Any) -> Emulator:
    """An emulator that this process can reach, not entered yet."""
    reach_loopback_directly()
    return Emulator(level=level.value, profile=profile.value, **more)


def serve_emulator(options: ServeOptions) -> Exit:
    """Serve until interrupted."""
    to = console()
    emulator = emulator_of(
        host=options.host,
        port=options.port,
        gptproto_port=options.gptproto_port,
        speed=options.speed,
        timing=options.seconds,
        level=options.level,
        balance=options.balance,
        profile=options.profile,
        seed=options.seed,
        chaos=Chaos(options.chaos, options.seed or 0) if options.chaos else None,
    )
    anyio.run(lambda: serve(emulator, ready=lambda ready: _announce(to, ready, options)))
    to.print("The emulator has ended.")
    return Exit.WELL


def _announce(to: Console, emulator: Emulator, options: ServeOptions) -> None:
    pace = "in real time" if options.speed == 1 else f"{options.speed:g} times as fast as the real service"
    lines = [
        Text.assemble(("WaveSpeed  ", "dim"), (emulator.base_url, "bold cyan")),
        Text.assemble(("GPTProto   ", "dim"), (emulator.gptproto_url, "bold cyan")),
        Text.assemble(("accounts   ", "dim"), f"level {options.level}, ${options.balance:,.2f} each, {pace}"),
    ]
    if options.chaos:
        lines.append(
            Text.assemble(("chaos      ", "dim"), (f"{options.chaos:.0%} of all requests meet a fault", "yellow"))
        )
    block(to, "Kling on this computer, for nothing", lines)
    to.print("Paste this where your program runs:")
    to.print()
    # Not framed and never wrapped: it is there to be copied.
    for line in (
        f"export WAVESPEED_BASE_URL={emulator.base_url} WAVESPEED_API_KEY={emulator.api_key}",
        f"export GPTPROTO_BASE_URL={emulator.gptproto_url} GPTPROTO_API_KEY={emulator.gptproto_key}",
    ):
        to.print(Text(line, "green"), soft_wrap=True)
    to.print()
    to.print(Text("Ctrl-C ends it.", "dim"))
    to.file.flush()
