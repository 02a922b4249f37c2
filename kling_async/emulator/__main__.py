"""`python -m kling_async.emulator --port 8787 --speed 60`: the emulator as a process of its own."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

import anyio

from .chaos import Chaos
from .server import Emulator, MissingRendererError, serve

if TYPE_CHECKING:
    from collections.abc import Sequence


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kling_async.emulator",
        description="A local WaveSpeedAI and GPTProto for Kling image-to-video. It renders real MP4s, for nothing.",
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8787, help="WaveSpeed persona; 0 takes a free one")
    parser.add_argument("--gptproto-port", type=int, default=8788, help="GPTProto persona; 0 takes a free one")
    parser.add_argument("--key", action="append", dest="keys", help="an accepted API key; may be given several times")
    parser.add_argument("--level", choices=("bronze", "silver", "gold", "ultra"), default="gold")
    parser.add_argument("--balance", type=float, default=1000.0, help="USD each account starts with")
    parser.add_argument("--speed", type=float, default=1.0, help="emulator seconds per real second")
    parser.add_argument("--seconds", type=float, help="how long every prediction takes, in emulator seconds")
    parser.add_argument("--seed", type=int, help="the same times and ids in every run, and the same chaos")
    parser.add_argument("--chaos", type=float, metavar="RATE", help="share of all requests that meet a fault, 0 to 1")
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
        f"look       {emulator.base_url}/__emulator__/",
        "",
        f"export WAVESPEED_BASE_URL={emulator.base_url} WAVESPEED_API_KEY={emulator.api_key}",
        f"export GPTPROTO_BASE_URL={emulator.gptproto_url} GPTPROTO_API_KEY={emulator.gptproto_key}",
        "",
    )
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run until interrupted; the exit status."""
    options = _arguments(argv)
    try:
        emulator = Emulator(
            host=options.host,
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
        )
        with contextlib.suppress(KeyboardInterrupt):
            anyio.run(lambda: serve(emulator, ready=_announce))
    except (MissingRendererError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
