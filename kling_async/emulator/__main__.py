"""Command line of the emulator: `python -m kling_async.emulator --port 8787 --speed 60`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

import anyio

from .chaos import Chaos
from .network import NETWORKS
from .server import Emulator, MissingRendererError, serve

if TYPE_CHECKING:
    from collections.abc import Sequence


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kling_async.emulator",
        description="A local server for the WaveSpeedAI and GPTProto APIs. Renders real MP4s and costs nothing.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--advertise", metavar="NAME", help="host name that clients use; default: the address")
    parser.add_argument("--port", type=int, default=8787, help="port of WaveSpeed; 0 selects a free one")
    parser.add_argument("--gptproto-port", type=int, default=8788, help="port of GPTProto; 0 selects a free one")
    parser.add_argument("--key", action="append", dest="keys", help="accepted API key; can be repeated")
    parser.add_argument("--level", choices=("bronze", "silver", "gold", "ultra"), default="gold")
    parser.add_argument("--balance", type=float, default=1000.0, help="initial balance of each account, in USD")
    parser.add_argument("--speed", type=float, default=1.0, help="emulator seconds per real second")
    parser.add_argument("--seconds", type=float, help="duration of every prediction, in emulator seconds")
    parser.add_argument("--seed", type=int, help="seed of times, ids and chaos, for reproducible runs")
    parser.add_argument("--chaos", type=float, metavar="RATE", help="share of requests with a random fault, 0 to 1")
    parser.add_argument(
        "--network", choices=tuple(NETWORKS), help="line to the clients; default: no latency, no limits"
    )
    parser.add_argument("--profile", choices=("video", "tiny"), default="video")
    parser.add_argument("--resolution", choices=("small", "full"), default="small")
    parser.add_argument("--over-limit", choices=("reject", "queue"), default="reject")
    parser.add_argument("--retry-after", action="store_true", help="send Retry-After with a 429")
    return parser.parse_args(argv)


def _announce(emulator: Emulator) -> None:
    lines = (
        f"WaveSpeed  {emulator.base_url}",
        f"GPTProto   {emulator.gptproto_url}",
        f"key        {emulator.api_key}",
        f"page       {emulator.base_url}/__emulator__/",
        "",
        f"export WAVESPEED_BASE_URL={emulator.base_url} WAVESPEED_API_KEY={emulator.api_key}",
        f"export GPTPROTO_BASE_URL={emulator.gptproto_url} GPTPROTO_API_KEY={emulator.gptproto_key}",
        "",
    )
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until interrupted and return the exit status."""
    options = _arguments(argv)
    try:
        emulator = Emulator(
            host=options.host,
            advertise=options.advertise,
            port=options.port,
            gptproto_port=options.gptproto_port,
            keys=options.keys,
            level=options.level,
            balance=options.balance,
            speed=options.speed,
            timing=options.seconds,
            seed=options.seed,
            profile=options.profile,
            resolution=options.resolution,
            over_limit=options.over_limit,
            retry_after=options.retry_after,
            chaos=Chaos(options.chaos, options.seed or 0) if options.chaos else None,
            network=options.network,
        )
        with contextlib.suppress(KeyboardInterrupt):
            anyio.run(lambda: serve(emulator, ready=_announce))
    except (MissingRendererError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
