"""Server of the live page: access, files and events."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import anyio
import pytest
from blockbuster import blockbuster_ctx

from kling_async import LastFrame
from kling_async._clock import SystemClock
from kling_async.emulator.tiny import TINY_MP4
from kling_async.gallery import Gallery
from kling_async.gallery.cards import Deck
from kling_async.gallery.live import Live
from support.gallery import START, Script
from support.patience import PATIENCE_S
from support.pictures import png

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _nothing_blocks() -> Iterator[None]:
    with blockbuster_ctx("kling_async.gallery"):
        yield


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def gallery(tmp_path: Path) -> AsyncIterator[Gallery]:
    async with Gallery(tmp_path / "out" / "gallery", title="spring", total=3) as gallery:
        yield gallery


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(TINY_MP4)
    return path


def address(gallery: Gallery, path: str = "") -> str:
    assert gallery.url is not None
    return gallery.url + path


async def messages(reply: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str | None, Any]]:
    """Yield kind, id and data of each message."""
    kind, number = "", None
    async for line in reply.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind, number = value, None
        elif name == "id":
            number = value
        elif name == "data":
            yield kind, number, json.loads(value)


async def cards_of(reply: aiohttp.ClientResponse) -> tuple[list[dict[str, Any]], str | None]:
    """Return the cards before the first pulse, and the last id."""
    cards: list[dict[str, Any]] = []
    last = None
    with anyio.fail_after(PATIENCE_S):
        async for kind, number, data in messages(reply):
            if kind == "about":
                return cards, last
            last = number or last
            cards += data
    raise AssertionError("the stream ended")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("127.0.0.1", 403),
        ("evil.example:{port}", 403),
        ("127.0.0.1.evil.example:{port}", 403),
        ("[::1]:{port}", 403),
        ("", 403),
    ],
)
async def test_other_hosts_are_refused(gallery: Gallery, http: aiohttp.ClientSession, host: str, status: int) -> None:
    port = urlsplit(address(gallery)).port
    for path in ("", "events"):
        headers = {"Host": host.format(port=port)}
        async with http.get(address(gallery, path), headers=headers) as reply:
            assert reply.status == status
            if status == 403:
                assert "spring" not in await reply.text()


async def test_paths_without_secret_are_not_found(gallery: Gallery, http: aiohttp.ClientSession) -> None:
    parts = urlsplit(address(gallery))
    root = f"{parts.scheme}://{parts.netloc}"
    for path in ("/", "/x/", "/x/events", "/x/files/0", parts.path[:-2] + "/", "/%E2%82%AC/", "/../" + "etc/passwd"):
        async with http.get(root + path) as reply:
            assert reply.status in {403, 404}, path
            assert "spring" not in await reply.text()
    async with http.get(address(gallery)) as reply:
        assert (reply.status, reply.content_type) == (200, "text/html")
        policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert (reply.headers["Referrer-Policy"], reply.headers["Cross-Origin-Resource-Policy"]) == (
        "no-referrer",
        "same-origin",
    )


async def test_server_listens_on_loopback_only(gallery: Gallery) -> None:
    port = urlsplit(address(gallery)).port
    assert port
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # UDP: sends nothing, only selects the outward address
        except OSError:
            pytest.xfail("this computer has only a loopback address")
        ours = outward.getsockname()[0]
    assert not ours.startswith("127.")
    with pytest.raises(OSError, match=r"."), socket.create_connection((ours, port), timeout=2):
        pass


async def test_only_files_of_cards_are_served(
    gallery: Gallery, http: aiohttp.ClientSession, video: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.html"
    picture.write_bytes(png())
    (tmp_path / "out" / "secret.txt").parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / "secret.txt").write_text("secret")
    script = Script(gallery.observer())
    script.done("a", video, image=picture)
    card: dict[str, Any] = {"image": {"full": None}}
    with anyio.fail_after(PATIENCE_S):
        while card["image"]["full"] is None:
            async with http.get(address(gallery, "events")) as reply:
                ((card,), _) = await cards_of(reply)
    async with http.get(address(gallery, card["video"]), headers={"Range": "bytes=4-7"}) as reply:
        assert (reply.status, await reply.read(), reply.content_type) == (206, b"ftyp", "video/mp4")
    async with http.get(address(gallery, card["image"]["full"])) as reply:
        assert (reply.status, reply.content_type) == (200, "application/octet-stream"), "whatever its name is"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in reply.headers["Content-Security-Policy"]
    for path in (
        *("files/99/video", "files/-1/video", f"files/{'9' * 400}/video", "files/0/", "files/0/end", "files/0/x"),
        *("files/0/..%2f..%2fsecret.txt", "files/..%2f..%2fsecret.txt", "secret.txt"),
    ):
        async with http.get(address(gallery, path)) as reply:
            assert reply.status == 404, path
    video.unlink()
    async with http.get(address(gallery, card["video"])) as reply:
        assert reply.status == 404


async def test_reconnect_receives_only_missed_cards(http: aiohttp.ClientSession) -> None:
    deck = Deck("spring")
    live = Live(deck, SystemClock())
    script = Script(deck.observer("wavespeed"))
    for key in "abc":
        script.admitted(key)
    async with live.serve():
        async with http.get(live.url + "events") as reply:
            assert (reply.content_type, reply.headers["Cache-Control"]) == ("text/event-stream", "no-store")
            cards, last = await cards_of(reply)
        assert [card["key"] for card in cards] == ["a", "b", "c"]
        script.accepted("b")
        everything = ["a", "c", "b"]
        for number, expected in (
            (last, ["b"]),
            ("", everything),
            ("999999", everything),
            ("x", everything),
            ("9" * 5000, everything),
        ):
            async with http.get(live.url + "events", headers={"Last-Event-ID": number or ""}) as reply:
                cards, _ = await cards_of(reply)
            assert [card["key"] for card in cards] == expected
    assert cards[-1]["state"] == "running"
    assert cards[-1]["times"] == [START, START, None, None]


async def test_films_are_sent_when_they_have_changed(http: aiohttp.ClientSession) -> None:
    deck = Deck("spring")
    live = Live(deck, SystemClock(), refresh=0.01, pulse=0.01)
    script = Script(deck.observer("wavespeed"))
    script.admitted("a")
    sent: list[Any] = []
    async with live.serve(), http.get(live.url + "events") as reply:
        async for kind, _, data in messages(reply):
            if kind != "about":
                continue
            sent.append(data.get("films"))
            if len(sent) == 2:
                script.admitted("b", image=LastFrame("a"))
            if len(sent) > 2 and sent[-2]:
                break
    films = [{"name": "a", "clips": [0, 1]}]
    assert sent[0] == []
    assert [each for each in sent[1:] if each is not None] == [films]


async def test_end_event_follows_frozen_page(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    received: list[tuple[str, Any]] = []
    ready = anyio.Event()

    async def listen(url: str) -> None:
        async with http.get(url + "events") as reply:
            ready.set()
            async for kind, _, data in messages(reply):
                received.append((kind, data))
                assert kind != "end" or Path(data).is_file()

    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(PATIENCE_S):
            async with Gallery(tmp_path / "gallery") as gallery:
                tasks.start_soon(listen, address(gallery))
                await ready.wait()
                Script(gallery.observer()).failed("a")
    assert received[-1] == ("end", str(gallery.index))
    assert [data[0]["state"] for kind, data in received if kind == "cards"][-1] == "failed"


async def test_stalled_client_does_not_delay_closing(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    with anyio.fail_after(PATIENCE_S):
        async with Gallery(tmp_path / "gallery") as gallery:
            for _ in range(5):
                async with http.get(address(gallery, "events")) as reply:
                    await cards_of(reply)
            script = Script(gallery.observer())
            for number in range(2_000):
                script.failed(str(number), "x" * 500)
            # A client that does not read its stream.
            stuck = await http.get(address(gallery, "events"))
        stuck.close()
