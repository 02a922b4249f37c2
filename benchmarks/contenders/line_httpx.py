"""Hand-written with httpx over a line: a task per job, as many at once as slots; polls every second."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from _line_client import LineLoad


async def work(load: LineLoad) -> None:
    slots = asyncio.Semaphore(load.running)

    async def one(number: int) -> None:
        async with slots:
            content = await asyncio.to_thread(Path(load.pictures[number]).read_bytes)
            asked = {"filename": f"{number}.png", "size": len(content), "content_type": "image/png"}
            ticket = (await client.post("/api/v3/media/uploads", json=asked)).raise_for_status().json()["data"]
            upload = ticket["upload"]
            (await storage.put(upload["url"], content=content, headers=upload["headers"])).raise_for_status()
            inputs = {"prompt": f"number {number}", "image": ticket["download_url"], "duration": 5}
            reply = await client.post("/api/v3/kwaivgi/kling-v2.1-i2v-pro", json=inputs)
            data = reply.raise_for_status().json()["data"]
            while data["status"] != "completed":
                await asyncio.sleep(1.0)
                reply = await client.get(f"/api/v3/predictions/{data['id']}/result")
                data = reply.raise_for_status().json()["data"]
            video = (await storage.get(data["outputs"][0])).raise_for_status()
            await asyncio.to_thread(Path(load.outputs, f"{number}.mp4").write_bytes, video.content)

    headers = {"Authorization": f"Bearer {load.key}"}
    async with (
        httpx.AsyncClient(base_url=load.url, headers=headers, timeout=60) as client,
        httpx.AsyncClient(timeout=60) as storage,
    ):
        await asyncio.gather(*(one(number) for number in range(len(load.pictures))))


def run(load: LineLoad) -> None:
    asyncio.run(work(load))
