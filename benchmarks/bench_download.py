"""Download speed, CPU and memory of saving videos, compared with hand-written code: 50 files of 64 MB, 8 at a time.

    python benchmarks/bench_download.py [--files 50] [--mb 64] [--at-once 8] [--rounds 3] [--folder DIR] [--json FILE]
        [--quick]

The contenders take turns, each round in a process of its own, beside a server process. No process is pinned to a core,
since all contenders write and hash in threads. The hand-written ones download with aiohttp to a temporary file, writing
in threads, or into obstore's LocalStore, which has its own threads. They verify nothing, or compute the SHA-256 only.
Every contender syncs every file. A warm-up file precedes each round. Memory is the peak resident size minus the size
before the first download (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import BinaryIO

import aiohttp
import obstore
from obstore.store import LocalStore

import _suite
from kling_async import KlingSession, NoLimit, Prediction, Status

BLOCK_BYTES = 2**20
OURS = "kling_async"
SPEED, CPU, MEMORY = "MB/s", "CPU s per GB", "MB of RSS growth"
MAX_GROWTH_MB = 60
MIN_RELATIVE_SPEED = 0.95

Save = Callable[[str, Path, int, int], Coroutine[None, None, None]]


async def by_chunks(url: str, folder: Path, files: int, at_once: int) -> None:
    """Hand-written: write chunk by chunk, each in a thread."""
    slots = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        path = folder / f"{number}.mp4"
        part = path.with_suffix(".part")
        async with slots, session.get(url) as reply:
            with await asyncio.to_thread(part.open, "wb") as file:
                async for chunk in reply.content.iter_chunked(BLOCK_BYTES):
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(sync, file)
            await asyncio.to_thread(part.replace, path)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(number) for number in range(files)))


async def by_blocks_without_digest(url: str, folder: Path, files: int, at_once: int) -> None:
    """Hand-written and tuned: write a block of 1 MB while the next one is read."""
    await by_blocks(url, folder, files, at_once, digest=None)


async def by_blocks_with_digest(url: str, folder: Path, files: int, at_once: int) -> None:
    """Hand-written and tuned, with the SHA-256 that this package records."""
    await by_blocks(url, folder, files, at_once, digest=hashlib.sha256)


async def by_blocks(
    url: str, folder: Path, files: int, at_once: int, *, digest: Callable[[], hashlib._Hash] | None
) -> None:
    slots = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        path = folder / f"{number}.mp4"
        part = path.with_suffix(".part")
        sha256 = digest() if digest else None

        def write(block: list[bytes]) -> None:
            file.writelines(block)
            if sha256:
                for chunk in block:
                    sha256.update(chunk)

        async with slots, session.get(url) as reply:
            with await asyncio.to_thread(part.open, "wb") as file:
                writing = None
                while block := await read_block(reply.content):
                    if writing:
                        await writing
                    writing = asyncio.create_task(asyncio.to_thread(write, block))
                if writing:
                    await writing
                await asyncio.to_thread(sync, file)
            await asyncio.to_thread(part.replace, path)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(number) for number in range(files)))


async def into_obstore(url: str, folder: Path, files: int, at_once: int) -> None:
    """Hand-written with obstore: stream into its LocalStore in parts of 1 MB."""
    slots = asyncio.Semaphore(at_once)
    store = LocalStore(folder)

    async def one(number: int) -> None:
        name = f"{number}.mp4"
        async with slots, session.get(url) as reply:
            await obstore.put_async(store, name, reply.content.iter_any(), chunk_size=BLOCK_BYTES)
            await asyncio.to_thread(sync_path, folder / name)

    def sync_path(path: Path) -> None:
        # LocalStore does not sync.
        with path.open("rb+") as file:
            sync(file)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(number) for number in range(files)))


async def read_block(content: aiohttp.StreamReader) -> list[bytes]:
    """Return the chunks of the next block; empty at the end of the body."""
    block: list[bytes] = []
    size = 0
    while size < BLOCK_BYTES and (chunk := await content.readany()):
        block.append(chunk)
        size += len(chunk)
    return block


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


async def kling(url: str, folder: Path, files: int, at_once: int) -> None:
    """Save with a session: resumable, with length, MP4 boxes and SHA-256 verified, synced, renamed when complete."""
    async with KlingSession(
        "wsk_benchmark", base_url="http://127.0.0.1:9", rate_limiter=NoLimit(), max_saving=at_once
    ) as session:
        done = (Prediction(id=f"{number}", status=Status.COMPLETED, outputs=(url,)) for number in range(files))
        await asyncio.gather(*(session.save(prediction, folder) for prediction in done))


WITH_DIGEST = "aiohttp, 1 MB blocks, SHA-256"
WITHOUT_DIGEST: dict[str, Save] = {
    "aiohttp, 1 MB blocks": by_blocks_without_digest,
    "aiohttp, chunk by chunk": by_chunks,
    "aiohttp into obstore's LocalStore": into_obstore,
}
CONTENDERS: dict[str, Save] = {OURS: kling, WITH_DIGEST: by_blocks_with_digest, **WITHOUT_DIGEST}


async def serve(size: int) -> None:
    """Serve one video of `size` bytes at every path, and print its URL.

    The kernel sends it from a file (sendfile), so that the server takes little CPU from the contenders.
    """
    head = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov" + b"\0\0\0\x01mdat" + (size - 24).to_bytes(8, "big")
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n" % size
    video = tempfile.TemporaryFile()  # noqa: SIM115 -- removed when the process ends
    video.write(head)
    block = os.urandom(BLOCK_BYTES)
    while (remaining := size - video.tell()) > 0:
        video.write(block[:remaining])
    video.flush()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(reply)
                await asyncio.get_running_loop().sendfile(writer.transport, video, fallback=False)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v.mp4", flush=True)
    await server.serve_forever()


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def child(name: str, url: str, folder: Path, options: argparse.Namespace) -> None:
    """Run one round in this process and print its figures as JSON; see `measure`."""
    before = _suite.resident_bytes()
    with tempfile.TemporaryDirectory(dir=folder) as warm_up:
        asyncio.run(CONTENDERS[name](url, Path(warm_up), 1, 1))
    cpu, wall = time.process_time(), time.perf_counter()
    asyncio.run(CONTENDERS[name](url, folder, options.files, options.at_once))
    seconds, cpu, growth = time.perf_counter() - wall, time.process_time() - cpu, peak_resident_bytes() - before
    assert [path.stat().st_size for path in folder.iterdir()] == [options.mb * 10**6] * options.files
    total = options.files * options.mb
    print(json.dumps((total / seconds, cpu / total * 1000, growth / 10**6)))


def measure(name: str, url: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """Run one round in a process of its own and return MB per second, CPU seconds per GB and MB of memory growth."""
    numbers = {"--files": options.files, "--mb": options.mb, "--at-once": options.at_once}
    load = [str(word) for pair in numbers.items() for word in pair]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speed, cpu, growth = json.loads(_suite.output_of([__file__, "--one", name, url, folder, *load], core=None))
    return speed, cpu, growth


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--mb", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.mb * 10**6))
        return
    if options.one:
        name, url, folder = options.one
        child(name, url, Path(folder), options)
        return
    if options.quick:
        options.files, options.mb, options.at_once, options.rounds = 4, 8, 2, 1

    part = "Downloads to disk"
    about = (
        f"{options.files} files of {options.mb} MB, {options.at_once} at once, all synced; the row with SHA-256 does "
        "by hand what ours does, without MP4 checks and resuming; the other baselines verify nothing"
    )
    report = _suite.Report(options, notes={part: about})
    server = _suite.start([__file__, "--serve", "--mb", str(options.mb)], core=None)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        results = _suite.interleaved(
            options.rounds, {name: functools.partial(measure, name, url, options) for name in CONTENDERS}
        )
    finally:
        server.kill()
        server.communicate()
    for name, rounds in results.items():
        for unit, figures in zip((SPEED, CPU, MEMORY), zip(*rounds, strict=True), strict=True):
            report.add(part, name, unit, *figures, baseline=name != OURS)
    fastest = max(WITHOUT_DIGEST, key=lambda name: statistics.median(speed for speed, _, _ in results[name]))
    for baseline in (WITH_DIGEST, fastest):
        report.ratio(part, SPEED, OURS, baseline, at_least=MIN_RELATIVE_SPEED)
    report.bound(part, MEMORY, OURS, at_most=MAX_GROWTH_MB)
    report.finish()


if __name__ == "__main__":
    main()
