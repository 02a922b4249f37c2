"""Two independent S3 servers, moto's and rclone's, each in its own process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from obstore.store import S3Store

KEY_ID = "testkey"
SECRET = "testsecret123"
BUCKET = "bucket"

_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@attrs.frozen
class S3Server:
    """A server with one bucket.

    Attributes:
        name: Name of the program.
        endpoint: URL of the server.
        writes_once: True if it honours `If-None-Match: *`.
    """

    name: str
    endpoint: str
    writes_once: bool

    def store(self, prefix: str = "", bucket: str = BUCKET, secret: str = SECRET, **more: Any) -> S3Store:
        return S3Store(
            bucket,
            prefix=prefix or None,
            endpoint=self.endpoint,
            access_key_id=KEY_ID,
            secret_access_key=secret,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
            **more,
        )

    def environment(self) -> dict[str, str]:
        """Return the environment that makes obstore use this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }


@contextmanager
def moto() -> Iterator[S3Server]:
    command = [sys.executable, "-c", _MOTO]
    with _running(command, lambda line: line.strip()) as port:
        endpoint = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")) as made:
            assert made.status == 200
        yield S3Server("moto", endpoint, writes_once=True)


@contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    (folder / BUCKET).mkdir(parents=True)
    command = [
        str(Path(sysconfig.get_path("scripts")) / "rclone"),
        *("serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{KEY_ID},{SECRET}", str(folder)),
    ]

    def port(line: str) -> str:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        return found[1] if found else ""

    with _running(command, port) as found:
        yield S3Server("rclone", f"http://127.0.0.1:{found}", writes_once=False)


@contextmanager
def _running(command: list[str], port: Callable[[str], str]) -> Iterator[str]:
    """Run the server and yield what `port` finds in its output."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"RCLONE_CONFIG": os.devnull},
    ) as process:
        assert process.stdout is not None
        limit = threading.Timer(60, process.kill)
        limit.start()
        # Keep reading its output, so that it does not block on a full pipe.
        drain = threading.Thread(target=process.stdout.read)
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := port(line):
                    break
            else:
                raise AssertionError(f"{command[0]} did not start: {''.join(lines)}")
            drain.start()
            limit.cancel()
            yield found
        finally:
            limit.cancel()
            process.kill()
            if drain.ident:
                drain.join()
