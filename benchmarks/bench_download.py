"""Videos saved per second and the memory that takes, beside what one writes by hand: 50 files of 64 MB, 8 at a time.

    python benchmarks/bench_download.py [--files 50] [--mb 64] [--at-once 8] [--rounds 3] [--folder DIR] [--json FILE]

Contenders take turns, each round in a process of its own; medians and ranges are printed, and the median of our speed
relative to each of the others in the same round. The server is a process too. What is written by hand downloads with
aiohttp to a part, syncs it and renames it, all writes in threads; it checks nothing, or takes the digest alone. Memory
is measured on Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import aiohttp

from kling_async import KlingSession, NoLimit, Prediction, Status

PIECE = 2**20
OURS = "kling_async"

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


CONTENDERS: dict[str, Save] = {
    "aiohttp, chunk by chunk": bare,
    "aiohttp, 1 MB blocks, pipelined": piped,
    "the same with SHA-256": checked,
    OURS: kling,
}


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


def memory(line: str) -> float:
    """MiB of the process: VmRSS now, VmHWM at most."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return next(int(text.split()[1]) / 1024 for text in status.read_text().splitlines() if text.startswith(line))


def child(name: str, url: str, folder: str, files: int, at_once: int) -> None:
    """One round: seconds, CPU seconds and growth of memory in MiB, as JSON."""
    save = CONTENDERS[name]
    before, cpu, wall = memory("VmRSS"), time.process_time(), time.perf_counter()
    asyncio.run(save(url, Path(folder), files, at_once))
    figures = (time.perf_counter() - wall, time.process_time() - cpu, memory("VmHWM") - before)
    sizes = [path.stat().st_size for path in Path(folder).glob("*.mp4")]
    assert len(sizes) == files
    assert len(set(sizes)) == 1
    print(json.dumps(figures))


def measure(name: str, url: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """MB per second, CPU seconds per GB, MiB of growth."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        command = [sys.executable, __file__, "--child", name, url, folder, str(options.files), str(options.at_once)]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, cpu, growth = json.loads(ran.stdout)
    total = options.files * options.mb
    return total / seconds, cpu / total * 1000, growth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--mb", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a folder of the disk to measure")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(options.mb * 10**6)], stdout=subprocess.PIPE, text=True
    )
    figures: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTENDERS}
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        for _ in range(options.rounds):
            for name, rounds in figures.items():
                rounds.append(measure(name, url, options))
    finally:
        server.kill()
        server.wait()

    print(
        f"{options.files} files of {options.mb} MB, {options.at_once} at once, {options.rounds} rounds in turn, "
        f"Python {platform.python_version()}, aiohttp {version('aiohttp')}"
    )
    print(f"{'':34}{'MB/s':>8}{'(range)':>14}{'CPU s/GB':>11}{'RSS growth, MiB':>18}{'(range)':>12}{'ours / it':>10}")
    for name, rounds in figures.items():
        relative = [ours[0] / one[0] for ours, one in zip(figures[OURS], rounds, strict=True)]
        speed, cpu, growth = ([one[index] for one in rounds] for index in range(3))
        print(
            f"{name:34}{statistics.median(speed):>8.0f}{f'{min(speed):.0f}-{max(speed):.0f}':>14}"
            f"{statistics.median(cpu):>11.2f}{statistics.median(growth):>18.0f}"
            f"{f'{min(growth):.0f}-{max(growth):.0f}':>12}{statistics.median(relative):>10.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"options": vars(options), "figures": figures}, default=str, indent=1))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--serve", size]:
            asyncio.run(serve(int(size)))
        case ["--child", name, url, folder, files, at_once]:
            child(name, url, folder, int(files), int(at_once))
        case _:
            main()
