"""Outputs in object stores: two independent S3 servers, memory and folders."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import obstore
import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from obstore.store import LocalStore, MemoryStore, S3Store

from kling_async import Job, KlingSession, Outputs, SavedFile, Spent, State, StorageError, read_ledger
from kling_async.emulator import Emulator
from kling_async.storage import Fields, Target, _objects
from support.object_stores import KEY_ID, SECRET, S3Server, moto, rclone
from support.outputs import SHORT, VIDEO, Host, output_host
from support.patience import PATIENCE_S
from support.pictures import png
from support.videos import mp4

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from obstore.store import ObjectStore

    from kling_async.storage._part import Part

pytestmark = pytest.mark.anyio

LARGE = mp4(_objects._MAX_SINGLE_PUT_BYTES + 3 * 2**20, seed=3)
"""Size in bytes, large enough for a multipart upload."""


@pytest.fixture(scope="session", params=["moto", "rclone"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with moto() if request.param == "moto" else rclone(tmp_path_factory.mktemp("rclone")) as running:
        yield running


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Fail when code of the storage blocks the event loop."""
    with blockbuster_ctx("kling_async.storage") as detector:
        yield detector


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with output_host() as host:
        yield host


@pytest.fixture
def prefix(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Prefix in the bucket for one test; its temporary files are in a folder of their own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path.name


def target(store: ObjectStore, key: str = "one", *, replace: bool = False) -> Target:
    return Outputs("s3://bucket/videos", store=store, replace=replace).target(Fields(key=key, id="p1"))


async def content(store: ObjectStore, name: str) -> bytes:
    return bytes(await (await obstore.get_async(store, name)).bytes_async())


async def about(store: ObjectStore, name: str) -> dict[str, str]:
    return dict((await obstore.get_async(store, name, options={"head": True})).attributes)


def listed(store: ObjectStore) -> list[str]:
    return sorted(found["path"] for found in obstore.list(store).collect())


@pytest.mark.parametrize("video", [VIDEO, LARGE], ids=["single", "multipart"])
async def test_output_is_put(video: bytes, server: S3Server, prefix: str, host: Host, tmp_path: Path) -> None:
    host.content = video
    store = server.store(prefix)
    destination = target(store)
    saved = await host.save(destination)
    assert str(saved) == saved.address == destination.address == "s3://bucket/videos/one.mp4"
    assert saved.bytes == len(video)
    assert listed(store) == ["one.mp4"]
    assert await content(store, "one.mp4") == video
    assert await about(store, "one.mp4") == {"Content-Type": "video/mp4", "sha256": saved.sha256}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="s3://bucket"):
        os.fspath(saved)
    assert await destination.kept(saved.address, saved.bytes, saved.sha256) == saved
    assert await destination.kept(saved.address, saved.bytes + 1, saved.sha256) is None
    assert await destination.kept("s3://bucket/videos/other.mp4", saved.bytes, saved.sha256) is None
    await obstore.delete_async(store, "one.mp4")
    assert await destination.kept(saved.address, saved.bytes, saved.sha256) is None


async def test_broken_transfer_resumes(server: S3Server, prefix: str, host: Host) -> None:
    host.cut(2**20 + 7)
    store = server.store(prefix)
    await host.save(target(store))
    assert await content(store, "one.mp4") == VIDEO
    assert host.ranges == [None, f"bytes={2**20 + 7}-"]


@pytest.mark.parametrize("video", [SHORT, LARGE], ids=["single", "multipart"])
async def test_object_with_other_content_is_kept(video: bytes, server: S3Server, prefix: str, host: Host) -> None:
    host.content = video
    store = server.store(prefix)
    longer, same_length = b"another job's", bytes(len(video))
    for other, metadata in ((longer, {}), (same_length, {}), (same_length, {"sha256": "0" * 64})):
        await obstore.put_async(store, "one.mp4", other, attributes=metadata)
        saved = await host.save(target(store))
        name = f"one-{saved.sha256[:8]}.mp4"
        assert saved.address == f"s3://bucket/videos/{name}"
        assert await content(store, "one.mp4") == other
        assert await content(store, name) == video
        assert await target(store).kept(saved.address, saved.bytes, saved.sha256) == saved


@pytest.mark.parametrize("named", [True, False], ids=["digest in metadata", "no digest in metadata"])
async def test_object_with_same_content_is_not_rewritten(
    *, named: bool, server: S3Server, prefix: str, host: Host
) -> None:
    store = server.store(prefix)
    first = await host.save(target(store))
    marks = {"mark": "1"} | ({"sha256": first.sha256} if named else {})
    await obstore.put_async(store, "one.mp4", VIDEO, attributes=marks)
    assert await host.save(target(store)) == first
    assert (await about(store, "one.mp4"))["mark"] == "1"
    assert listed(store) == ["one.mp4"]


async def test_replace_replaces_object(server: S3Server, prefix: str, host: Host) -> None:
    store = server.store(prefix)
    await obstore.put_async(store, "one.mp4", b"old")
    await host.save(target(store, replace=True))
    assert await content(store, "one.mp4") == VIDEO
    assert listed(store) == ["one.mp4"]


async def test_concurrent_put_does_not_overwrite(
    server: S3Server, prefix: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process puts its object between check and put: create-only mode decides, where the store has it."""
    store = server.store(prefix)
    has = _objects.ObjectTarget._has

    async def late(target: _objects.ObjectTarget, name: str, part: Part) -> bool | None:
        found = await has(target, name, part)
        if found is None and name == "one.mp4":
            await obstore.put_async(store, "one.mp4", b"another job's")
        return found

    monkeypatch.setattr(_objects.ObjectTarget, "_has", late)
    saved = await host.save(target(store))
    if server.writes_once:
        assert await content(store, "one.mp4") == b"another job's"
        assert saved.address == f"s3://bucket/videos/one-{saved.sha256[:8]}.mp4"
    else:
        # rclone has no conditional put, so only the check protects.
        assert saved.address == "s3://bucket/videos/one.mp4"
    assert await content(store, saved.address.removeprefix("s3://bucket/videos/")) == VIDEO


async def test_incomplete_mp4_is_not_put(server: S3Server, prefix: str, host: Host, tmp_path: Path) -> None:
    store = server.store(prefix)
    for wrong in (b"<html>expired</html>", b"", VIDEO[:-1]):
        host.content = wrong
        with pytest.raises(StorageError):
            await host.save(target(store))
    assert listed(store) == []
    assert list(tmp_path.iterdir()) == []


async def test_credentials_from_environment(
    server: S3Server, prefix: str, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    saved = await host.save(Outputs.of(f"s3://bucket/{prefix}/{{shard}}/{{key}}").target(Fields(key="one", id="p1")))
    shard = saved.address.split("/")[-2]
    assert saved.address == f"s3://bucket/{prefix}/{shard}/one.mp4"
    assert await content(server.store(prefix), f"{shard}/one.mp4") == VIDEO


async def test_store_errors_are_described_without_secrets(
    server: S3Server, prefix: str, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    stores = {
        "NoSuchBucket" if server.name == "moto" else "40": server.store(bucket="nosuchbucket"),
        "cannot be reached": S3Store(
            "bucket",
            endpoint="http://127.0.0.1:9",
            access_key_id=KEY_ID,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        ),
    }
    if server.name == "rclone":  # moto accepts any credentials
        stores["403 Forbidden"] = server.store(prefix, secret="wrong-" + SECRET)
    with caplog.at_level(0):
        for message, store in stores.items():
            with pytest.raises(StorageError) as caught:
                await host.save(target(store))
            error = caught.value
            assert message in str(error)
            assert error.spent is Spent.YES
            assert error.target == "s3://bucket/videos/one.mp4"
            shown = "".join(traceback.format_exception(error))
            assert SECRET not in shown
            assert "Debug source" not in shown
            assert error.__context__ is None
    assert SECRET not in caplog.text
    assert SECRET not in repr(Outputs("s3://bucket/x", store=server.store()))
    assert SECRET not in repr(target(server.store()))


@pytest.mark.parametrize("video", [VIDEO, LARGE], ids=["single", "multipart"])
async def test_cancellation_during_put_leaves_nothing(video: bytes, host: Host, prefix: str, tmp_path: Path) -> None:
    """The store receives a request and never responds."""
    host.content = video
    asked = asyncio.Event()
    served: dict[asyncio.Task[None] | None, asyncio.StreamWriter] = {}

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served[asyncio.current_task()] = writer
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if head.startswith("HEAD"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            asked.set()
            await reader.read()
        writer.close()

    quiet = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with quiet:
        endpoint = f"http://127.0.0.1:{quiet.sockets[0].getsockname()[1]}"
        store = S3Server("silent", endpoint, writes_once=False).store()
        before = asyncio.all_tasks()
        task = asyncio.create_task(host.save(target(store)))
        with anyio.fail_after(PATIENCE_S):
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        others = before | set(served)
        assert [other for other in asyncio.all_tasks() - others if "RequestHandler" not in repr(other)] == []
        assert list(tmp_path.iterdir()) == []
        for handler, writer in served.items():
            writer.close()
            if handler is not None:
                await asyncio.wait([handler], timeout=PATIENCE_S)
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


KILLED = """
import asyncio, sys
from obstore.store import MemoryStore
from kling_async import Outputs
from kling_async._clock import SystemClock
from kling_async._http.transport import AiohttpTransport
from kling_async.storage import Fields, save_output
target = Outputs("memory://bucket", store=MemoryStore()).target(Fields(key="one", id="p1"))
asyncio.run(save_output(AiohttpTransport(), sys.argv[1], target, SystemClock()))
"""


async def test_killed_process_leaves_no_temporary_file(host: Host, tmp_path: Path) -> None:
    stopped = host.hang(3 * 2**19)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    process = await anyio.open_process([sys.executable, "-c", KILLED, host.url], env=environment, stderr=None)
    async with process:
        with anyio.fail_after(PATIENCE_S):
            await stopped.wait()
        process.kill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("video", [VIDEO, LARGE], ids=["single", "multipart"])
@pytest.mark.parametrize("kind", ["memory", "folder"])
async def test_other_stores(kind: str, video: bytes, host: Host, tmp_path: Path) -> None:
    host.content = video
    store: ObjectStore = MemoryStore() if kind == "memory" else LocalStore(tmp_path)
    outputs = Outputs(f"{kind}://videos", "{date}/{key}", store=store)
    for _ in range(2):
        saved = await host.save(outputs.target(Fields(key="one", id="p1")))
        assert saved.address == f"{kind}://videos/1970-01-01/one.mp4"
    host.content = SHORT
    other = await host.save(outputs.target(Fields(key="one", id="p2")))
    assert await content(store, "1970-01-01/one.mp4") == video
    assert await content(store, other.address.removeprefix(f"{kind}://videos/")) == SHORT


async def test_batch_into_bucket_is_resumed(server: S3Server, prefix: str, tmp_path: Path) -> None:
    ledger = tmp_path / "run.db"
    store = server.store(prefix)
    jobs = {key: Job(prompt=key, image=png()) for key in ("one", "../two", "Three")}
    outputs = Outputs("s3://bucket/videos", "{batch}/{model}/{shard}/{key}", store=store)

    async def run(emulator: Emulator) -> dict[str, SavedFile | None]:
        async with (
            KlingSession(
                emulator.api_key, base_url=emulator.base_url, level="gold", clock=emulator.clock, ledger=ledger
            ) as kling,
            kling.batch(jobs, name="spring", save_to=outputs) as batch,
        ):
            return {outcome.key: outcome.saved async for outcome in batch}

    async with Emulator(level="gold", speed=200, profile="tiny") as emulator:
        first = await run(emulator)
        assert emulator.counts["output"] == 3
        assert await run(emulator) == first
        assert emulator.counts["output"] == 3
        gone = first["one"]
        assert gone is not None
        await obstore.delete_async(store, gone.address.removeprefix("s3://bucket/videos/"))
        assert await run(emulator) == first
        assert emulator.counts["output"] == 4
    rows = {row.key: row for row in read_ledger(ledger)}
    assert {row.state for row in rows.values()} == {State.DOWNLOADED}
    assert {key: row.path for key, row in rows.items()} == {key: str(saved) for key, saved in first.items()}
    assert len(listed(store)) == 3
    assert all(name.startswith("spring/kling-v2.1-standard/") for name in listed(store))
