"""Videos saved per second and the memory that takes, beside what one writes by hand: 50 files of 64 MB, 8 at a time.

    python benchmarks/bench_download.py [--files 50] [--mb 64] [--at-once 8] [--rounds 3] [--folder DIR] [--json FILE]
        [--quick]

Rounds take turns, each in a process of its own, and the server is one too. None of them is kept to a core: threads that
write and take digests are what all contenders are about. What is written by hand downloads with aiohttp to a part, all
writes in threads, or into obstore's store of local files, which has threads of its own. It checks nothing, or takes the
digest alone. Everybody syncs every file. A round begins with one file that is not measured. Memory is the most that was
resident, less what was before any of it, on Linux.
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

PIECE = 2**20
OURS = "kling_async"
SPEED, CPU, MEMORY = "MB/s", "CPU s per GB", "MB of RSS growth"
MOST = 60
"""MB that memory may grow by."""

Save = Callable[[str, Path, int, int], Coroutine[None, None, None]]


async def bare(url: str, folder: Path, files: int, at_once: int) -> None:
    """What one writes by hand."""
    slots = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        path = folder / f"{number}.mp4"
        part = path.with_suffix(".part")
        async with slots, session.get(url) as reply:
            with await asyncio.to_thread(part.open, "wb") as file:
                async for chunk in reply.content.iter_chunked(PIECE):
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(synced, file)
            await asyncio.to_thread(part.replace, path)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(number) for number in range(files)))


async def piped(url: str, folder: Path, files: int, at_once: int) -> None:
    """What one writes by hand after measuring: blocks of 1 MB, of which one is written while the next is read."""
    await by_blocks(url, folder, files, at_once, digest=None)


async def checked(url: str, folder: Path, files: int, at_once: int) -> None:
    """The same, with the digest that results and ledgers want."""
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
                for piece in block:
                    sha256.update(piece)

        async with slots, session.get(url) as reply:
            with await asyncio.to_thread(part.open, "wb") as file:
                writing = None
                while block := await gathered(reply.content):
                    if writing:
                        await writing
                    writing = asyncio.create_task(asyncio.to_thread(write, block))
                if writing:
                    await writing
                await asyncio.to_thread(synced, file)
            await asyncio.to_thread(part.replace, path)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(number) for number in range(files)))


async def stored(url: str, folder: Path, files: int, at_once: int) -> None:
    """What one writes by hand with a library for stores: the stream as it comes, in parts of 1 MB."""
    slots = asyncio.Semaphore(at_once)
    store = LocalStore(folder)

    async def one(number: int) -> None:
        name = f"{number}.mp4"
        async with slots, session.get(url) as reply:
            await obstore.put_async(store, name, reply.content.iter_any(), chunk_size=PIECE)
            await asyncio.to_thread(sync, folder / name)

    def sync(path: Path) -> None:
        # The store does not.
        with path.open("rb+") as file:
            synced(file)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(one(number) for number in range(files)))


async def gathered(content: aiohttp.StreamReader) -> list[bytes]:
    block: list[bytes] = []
    size = 0
    while size < PIECE and (piece := await content.readany()):
        block.append(piece)
        size += len(piece)
    return block


def synced(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


async def kling(url: str, folder: Path, files: int, at_once: int) -> None:
    """A session: resumable, with length, boxes and SHA-256 checked, synced, named once."""
    async with KlingSession(
        "wsk_benchmark", base_url="http://127.0.0.1:9", rate_limiter=NoLimit(), max_saving=at_once
    ) as session:
        done = (Prediction(id=f"{number}", status=Status.COMPLETED, outputs=(url,)) for number in range(files))
        await asyncio.gather(*(session.save(prediction, folder) for prediction in done))


CHECKED = "aiohttp, 1 MB blocks, SHA-256"
UNCHECKED: dict[str, Save] = {
    "aiohttp, 1 MB blocks": piped,
    "aiohttp, chunk by chunk": bare,
    "aiohttp into obstore's LocalStore": stored,
}
CONTENDERS: dict[str, Save] = {OURS: kling, CHECKED: checked, **UNCHECKED}


async def serve(size: int) -> None:
    """One video of that many bytes, to everybody; printed is where.

    The kernel sends it out of a file, so that the server, which would be another computer, leaves the processor to the
    contenders.
    """
    head = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov" + b"\0\0\0\x01mdat" + (size - 24).to_bytes(8, "big")
    reply = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: %d\r\n\r\n" % size
    video = tempfile.TemporaryFile()  # noqa: SIM115 -- it goes with the process
    video.write(head)
    piece = os.urandom(PIECE)
    while (left := size - video.tell()) > 0:
        video.write(piece[:left])
    video.flush()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(reply)
                await asyncio.get_running_loop().sendfile(writer.transport, video, fallback=False)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v.mp4", flush=True)
    await server.serve_forever()


def most() -> int:
    """Bytes of memory that this process has occupied, at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def child(name: str, url: str, folder: Path, options: argparse.Namespace) -> None:
    """One round, in the units that are shown."""
    before = _suite.resident()
    with tempfile.TemporaryDirectory(dir=folder) as warm:
        asyncio.run(CONTENDERS[name](url, Path(warm), 1, 1))
    cpu, wall = time.process_time(), time.perf_counter()
    asyncio.run(CONTENDERS[name](url, folder, options.files, options.at_once))
    seconds, cpu, growth = time.perf_counter() - wall, time.process_time() - cpu, most() - before
    assert [path.stat().st_size for path in folder.iterdir()] == [options.mb * 10**6] * options.files
    total = options.files * options.mb
    print(json.dumps((total / seconds, cpu / total * 1000, growth / 10**6)))


def measure(name: str, url: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """MB per second, CPU seconds per GB, MB of growth."""
    numbers = {"--files": options.files, "--mb": options.mb, "--at-once": options.at_once}
    load = [str(word) for pair in numbers.items() for word in pair]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speed, cpu, growth = json.loads(_suite.said([__file__, "--one", name, url, folder, *load], core=None))
    return speed, cpu, growth


def main() -> None:
    parser = _suite.parser(__doc__)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--mb", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a folder of the disk to measure")
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
        "by hand what ours does, but for the MP4 boxes and going on after a cut; the other baselines check nothing"
    )
    report = _suite.Report(options, notes={part: about})
    server = _suite.start([__file__, "--serve", "--mb", str(options.mb)], core=None)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        found = _suite.interleaved(
            options.rounds, {name: functools.partial(measure, name, url, options) for name in CONTENDERS}
        )
    finally:
        server.kill()
        server.communicate()
    for name, rounds in found.items():
        for unit, figures in zip((SPEED, CPU, MEMORY), zip(*rounds, strict=True), strict=True):
            report.add(part, name, unit, *figures, baseline=name != OURS)
    fastest = max(UNCHECKED, key=lambda name: statistics.median(speed for speed, _, _ in found[name]))
    for baseline in (CHECKED, fastest):
        report.ratio(part, SPEED, OURS, baseline, at_least=0.95)
    report.bound(part, MEMORY, OURS, at_most=MOST)
    report.finish()


if __name__ == "__main__":
    main()
