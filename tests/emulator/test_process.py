"""`python -m kling_async.emulator`, and the modules it imports."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import aiohttp
import anyio
import pytest

from kling_async.emulator import Emulator
from support.patience import PATIENCE_S

pytestmark = pytest.mark.anyio

COMMAND = [sys.executable, "-W", "error", "-m", "kling_async.emulator", "--port", "0", "--gptproto-port", "0"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
async def test_command_serves_until_signal(number: str) -> None:
    async with await anyio.open_process([*COMMAND, "--profile", "tiny", "--key", "wsk_mine"]) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        text = ""
        with anyio.fail_after(PATIENCE_S):
            while "GPTPROTO_BASE_URL" not in text:
                text += (await process.stdout.receive()).decode()
        [line] = [line for line in text.splitlines() if line.startswith("export WAVESPEED")]
        settings = dict(part.split("=", 1) for part in line.split()[1:])
        assert settings["WAVESPEED_API_KEY"] == "wsk_mine"
        async with (
            aiohttp.ClientSession(headers={"Authorization": "Bearer wsk_mine"}) as session,
            session.get(f"{settings['WAVESPEED_BASE_URL']}/api/v3/balance") as response,
        ):
            assert (await response.json())["data"] == {"balance": 1000.0}
        process.send_signal(getattr(signal, number))
        with anyio.fail_after(PATIENCE_S):
            assert await process.wait() == 0
        assert [chunk async for chunk in process.stderr] == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
async def test_command_line_sets_chaos() -> None:
    options = ["--profile", "tiny", "--chaos", "0.25", "--seed", "7"]
    async with await anyio.open_process([*COMMAND, *options]) as process:
        assert process.stdout is not None
        text = ""
        with anyio.fail_after(PATIENCE_S):
            while "GPTPROTO_BASE_URL" not in text:
                text += (await process.stdout.receive()).decode()
        [page] = [line.split()[1] for line in text.splitlines() if line.startswith("page")]
        async with aiohttp.ClientSession() as session, session.get(f"{page}chaos") as response:
            chaos = await response.json()
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(PATIENCE_S):
            assert await process.wait() == 0
    assert (chaos["rate"], chaos["seed"], chaos["by_kind"]) == (0.25, 7, {})
    result = await anyio.run_process([*COMMAND, "--profile", "tiny", "--chaos", "3"], check=False)
    assert (result.returncode, b"rate" in result.stderr) == (1, True)


async def test_command_reports_port_in_use() -> None:
    with anyio.fail_after(PATIENCE_S):
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        result = await anyio.run_process(
            [*COMMAND, "--profile", "tiny", "--port", str(port)], check=False, stderr=subprocess.PIPE
        )
        await listener.aclose()
    assert result.returncode == 1
    assert str(port).encode() in result.stderr


async def test_tiny_profile_imports_no_extra() -> None:
    code = (
        "import sys\n"
        "sys.modules['av'] = sys.modules['PIL'] = None\n"
        "import kling_async.emulator\n"
        "kling_async.emulator.Emulator(profile='tiny')\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in {'numpy', 'cattrs', 'typer'}))\n"
    )
    result = await anyio.run_process([sys.executable, "-W", "error", "-c", code])
    assert b"numpy" not in result.stdout


async def test_emulator_that_is_cancelled_while_it_closes_listens_no_more() -> None:
    """`Task.cancel`, which an interrupt calls, is delivered in spite of a shield."""
    emulator = Emulator(profile="tiny")
    await emulator.__aenter__()
    urls = [emulator.base_url, emulator.gptproto_url]
    closing = asyncio.create_task(emulator.__aexit__(None, None, None))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    for url in urls:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
