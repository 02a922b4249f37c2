"""The example's command, as written in docs/applications/fastapi.md."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import anyio
import pytest

from kling_async.examples.studio import main
from support.patience import PATIENCE_S
from support.pictures import png

pytestmark = pytest.mark.anyio


async def test_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kling_async.examples.studio", "--emulator", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = await anyio.open_process(command, env=environment, stderr=subprocess.STDOUT, cwd=tmp_path)
    assert process.stdout is not None
    try:
        with anyio.fail_after(PATIENCE_S):
            said = ""
            while "Ctrl-C" not in said:
                said += (await process.stdout.receive()).decode()
            assert f"Videos are saved in {tmp_path / 'videos'}." in said
            found = re.search(r"Open (http://127\.0\.0\.1:\d+) ", said)
            assert found, said
            url = found[1]
            async with aiohttp.ClientSession() as http:
                async with http.get(url) as response:
                    assert "Kling studio" in await response.text()
                    assert "script-src 'self'" in response.headers["Content-Security-Policy"]
                for path in ("", "/models", "/assets/studio.js"):
                    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example"):
                        async with http.get(url + path, headers={"Host": host}) as response:
                            assert response.status == 400, "a foreign name that resolves to this computer"
                asked = {"prompt": "Waves", "model": "kling-v2.1-pro", "duration": "5"}
                for kind, status in (("image/png", 202), ("text/plain", 415)):
                    headers = {"Content-Type": kind}
                    async with http.post(f"{url}/videos", params=asked, data=png(), headers=headers) as response:
                        assert response.status == status, "what any site may send is not taken"
                headers = {"Content-Type": "image/png", "Host": "evil.example"}
                async with http.post(f"{url}/videos", params=asked, data=png(), headers=headers) as response:
                    assert response.status == 400
                async with http.post(
                    f"{url}/videos",
                    params=asked,
                    data=io.BytesIO(bytes(11 * 2**20)),
                    headers={"Content-Type": "image/png"},
                ) as response:
                    assert response.status == 413
            process.send_signal(signal.SIGINT)
            rest = "".join([chunk.decode() async for chunk in process.stdout])
            assert await process.wait() == 0, rest
            assert "Traceback" not in rest
    finally:
        if process.returncode is None:
            process.kill()
        await process.aclose()


async def test_used_port_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["studio", "--port", str(port)])
        with pytest.raises(SystemExit):
            await main()
    assert f"port {port} is in use by another program; choose another one with --port" in capsys.readouterr().err
