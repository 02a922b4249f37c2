"""`kling-async models --check` against catalogues that agree and that do not."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from typing import Literal

import pytest
from anyio.to_thread import run_sync

from kling_async import MODELS
from kling_async.emulator import Emulator, faults
from support.cli import Cli

pytestmark = pytest.mark.anyio

GONE = [model.name for model in MODELS if "v1.6" in model.name]
CHANGED = {
    "kling-v2.1-standard": ["seed: the catalogue does not have it, and it is required"],
    "kling-v2.1-pro": ["duration: 5 or 10 s in the catalogue, 5 to 12 s at the service"],
    "kling-v2.5-turbo-std": [
        "guidance_scale: the service does not have it",
        "price: 5 s: $0.21 in the catalogue, $0.24 at the service",
    ],
    "kling-v4.0": ["price: 3 s, 1080p: $0.705 in the catalogue, $0.90 at the service"],
    "kwaivgi/kling-v5.0/image-to-video": ["the catalogue does not have it: run it with Model.from_service"],
    **{name: ["the service does not have it"] for name in GONE},
}


async def check(
    cli: Cli, catalogue: Literal["agreeing", "disagreeing"], *words: str, fault: faults.Fault | None = None
) -> subprocess.CompletedProcess[str]:
    async with Emulator(profile="tiny", catalogue=catalogue) as emulator:
        if fault is not None:
            emulator.faults.add("models", fault, times=None)
        env = {"WAVESPEED_BASE_URL": emulator.base_url, "WAVESPEED_API_KEY": emulator.api_key}
        done = await run_sync(partial(cli, "models", "--check", *words, **env, NO_PROXY="127.0.0.1"))
        assert emulator.charges() == ()
    return done


async def test_agreeing_service_has_no_differences(cli: Cli) -> None:
    done = await check(cli, "agreeing")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        done.stdout == f"{len(MODELS)} of {len(MODELS)} models of the catalogue are at the service: no differences.\n"
    )
    assert json.loads((await check(cli, "agreeing", "--json")).stdout) == {}


async def test_every_difference_is_one_line(cli: Cli) -> None:
    done = await check(cli, "disagreeing")
    assert (done.returncode, done.stderr) == (1, "")
    *lines, total = done.stdout.splitlines()
    assert sorted(lines) == sorted(f"{name}  {line}" for name, told in CHANGED.items() for line in told)
    assert (
        total
        == f"{len(MODELS) - len(GONE)} of {len(MODELS)} models of the catalogue are at the service: 10 differences."
    )
    assert json.loads((await check(cli, "disagreeing", "--json")).stdout) == CHANGED


async def test_refusal_is_reported(cli: Cli) -> None:
    done = await check(cli, "agreeing", fault=faults.Status(403, "no such permission"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no such permission" in done.stderr
    assert cli("models", "--check").returncode == 2, "without a key"
