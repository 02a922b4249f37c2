"""`kling-async emulator`, and the emulators that other commands run inside their own process."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio
from rich.text import Text

from kling_async._core.polling import WATCH_VARIABLE
from kling_async.emulator import Chaos, Emulator, serve
from kling_async.providers._v3 import is_this_machine

from .exits import Exit
from .output import bypass_proxy_for_loopback, make_console, print_panel
from .ports import is_taken, port_in_use

if TYPE_CHECKING:
    from rich.console import Console

    from .choices import LevelChoice, ProfileChoice
    from .options import EmulatorOptions


def new_emulator(*, level: LevelChoice, profile: ProfileChoice, **more: Any) -> Emulator:
    """Return an emulator that this process can reach, not started yet.

    Args:
        level: Level of its accounts.
        profile: Kind of videos.
        more: Further arguments of the emulator.
    """
    bypass_proxy_for_loopback()
    return Emulator(level=level.value, profile=profile.value, **more)


def serve_emulator(options: EmulatorOptions) -> Exit:
    """Serve until interrupted.

    Raises:
        ConfigurationError: A port is in use.
        OSError: The address cannot be listened on.
    """
    console = make_console()
    emulator = new_emulator(
        host=options.host,
        advertise=options.advertise,
        port=options.port,
        gptproto_port=options.gptproto_port,
        speed=options.speed,
        timing=options.seconds,
        level=options.level,
        balance=options.balance,
        profile=options.profile,
        seed=options.seed,
        chaos=Chaos(options.chaos, options.seed or 0) if options.chaos else None,
        network=None if options.network is None else options.network.value,
    )
    try:
        anyio.run(lambda: serve(emulator, ready=lambda ready: _announce(console, ready, options)))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        name, port = (
            ("--port", options.port)
            if is_taken(options.host, options.port)
            else (
                "--gptproto-port",
                options.gptproto_port,
            )
        )
        raise port_in_use(options.host, port, option=name) from None
    console.print("The emulator has ended.")
    return Exit.WELL


def _announce(console: Console, emulator: Emulator, options: EmulatorOptions) -> None:
    """Print the addresses, and the variables that point a program at them."""
    pace = "in real time" if options.speed == 1 else f"{options.speed:g} times as fast as the real service"
    lines = [
        Text.assemble(("WaveSpeed  ", "dim"), (emulator.base_url, "bold cyan")),
        Text.assemble(("GPTProto   ", "dim"), (emulator.gptproto_url, "bold cyan")),
        Text.assemble(("accounts   ", "dim"), f"level {options.level}, ${options.balance:,.2f} each, {pace}"),
    ]
    if options.chaos:
        share = f"{options.chaos:.0%} of all requests meet a fault"
        lines.append(Text.assemble(("chaos      ", "dim"), (share, "yellow")))
    if options.network:
        lines.append(Text.assemble(("network    ", "dim"), (options.network.value, "yellow")))
    print_panel(console, "Kling on this computer, for nothing", lines)
    console.print("Paste this where your program runs:")
    console.print()
    # The package sends no key to other machines over http:// unless it is told to.
    host = urlsplit(emulator.base_url).hostname or ""
    allow = "" if is_this_machine(host) else "KLING_ALLOW_HTTP=1 "
    # What takes seconds here is first read after half a minute by default.
    watch = f" {WATCH_VARIABLE}=eager" if options.speed > 1 else ""
    # Neither framed nor wrapped, so that they can be copied.
    for line in (
        f"export {allow}WAVESPEED_BASE_URL={emulator.base_url} WAVESPEED_API_KEY={emulator.api_key}{watch}",
        f"export {allow}GPTPROTO_BASE_URL={emulator.gptproto_url} GPTPROTO_API_KEY={emulator.gptproto_key}{watch}",
    ):
        console.print(Text(line, "green"), soft_wrap=True)
    console.print()
    console.print(Text("Ctrl-C ends it.", "dim"))
    console.file.flush()
