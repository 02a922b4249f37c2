"""Proxies of the environment and of the session: used, or refused before the first byte."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator

import aiohttp
import aiohttp_socks
import attrs
import pytest

from kling_async import AiohttpTransport, ConfigurationError, KlingSession
from kling_async._core.http import HttpRequest
from kling_async._http import proxies
from kling_async.emulator import Emulator
from kling_async.errors import ConnectFailedError
from support.pictures import png
from support.sockets import Handler, head_of, opened, serving

pytestmark = pytest.mark.anyio

PASSWORD = "secret-of-the-proxy"
REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@attrs.define
class Seen:
    """Requests that a SOCKS proxy has received.

    Attributes:
        targets: Hosts and ports.
        logins: User names and passwords.
        refuse: Reply code of SOCKS5 for every request; 0 accepts.
    """

    targets: list[tuple[str, int]] = attrs.field(factory=list)
    logins: list[tuple[str, str]] = attrs.field(factory=list)
    refuse: int = 0


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
    writer.close()


def socks(seen: Seen, to: str | None = None) -> Handler:
    """Return a SOCKS proxy of versions 4 and 5, which connects to what is asked for, or to the port of a URL."""

    async def text(reader: asyncio.StreamReader) -> str:
        return (await reader.readexactly((await reader.readexactly(1))[0])).decode()

    async def target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[str, int, bytes]:
        if await reader.readexactly(1) == b"\x04":
            _, port = struct.unpack("!BH", await reader.readexactly(3))
            address = await reader.readexactly(4)
            await reader.readuntil(b"\0")
            host = ".".join(map(str, address))
            if host.startswith("0.0.0."):
                host = (await reader.readuntil(b"\0"))[:-1].decode()
            return host, port, b"\0\x5a" + bytes(6)
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        writer.write(b"\x05\x02" if 2 in methods else b"\x05\x00")
        if 2 in methods:
            await reader.readexactly(1)
            seen.logins.append((await text(reader), await text(reader)))
            writer.write(b"\x01\x00")
        _, _, _, kind = await reader.readexactly(4)
        host = await text(reader) if kind == 3 else ".".join(map(str, await reader.readexactly(4)))
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        return host, port, bytes([5, seen.refuse, 0, 1]) + bytes(6)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port, accepted = await target(reader, writer)
        seen.targets.append((host, port))
        writer.write(accepted)
        if seen.refuse:
            await writer.drain()
            return
        port = int(to.rpartition(":")[2]) if to else port
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(relay(reader, up_writer), relay(up_reader, writer))
        finally:
            up_writer.transport.abort()

    return handler


async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await head_of(reader)
    writer.write(REPLY)
    await writer.drain()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextlib.asynccontextmanager
async def proxied(seen: Seen, scheme: str, *, login: str = "") -> AsyncIterator[str]:
    """Yield the URL of a SOCKS proxy in front of the service."""
    async with serving(service) as behind, serving(socks(seen, behind)) as url:
        yield url.replace("http://", f"{scheme}://{login}")


@pytest.mark.parametrize(
    ("scheme", "host"),
    [
        ("socks5h", "api.example"),
        ("socks4a", "api.example"),
        ("socks5", "127.0.0.1"),
        ("socks4", "127.0.0.1"),
        ("socks", "127.0.0.1"),
    ],
)
@pytest.mark.parametrize("how", ["proxy=", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"])
async def test_socks_proxy_is_used(how: str, scheme: str, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with `h` and `a` does the proxy look up the names."""
    seen = Seen()
    async with proxied(seen, scheme) as url:
        if how != "proxy=":
            monkeypatch.setenv(how, url)
        async with opened(AiohttpTransport(proxy=url if how == "proxy=" else None)) as transport:
            response = await transport.send(HttpRequest(method="GET", url=f"http://{host}:8080/a"))
            async with transport.stream(HttpRequest(method="GET", url=f"http://{host}:8080/b")) as streamed:
                assert streamed.status == 200
    assert response.body == b"{}"
    assert set(seen.targets) == {(host, 8080)}


async def test_http_proxy_of_all_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(service) as url:
        monkeypatch.setenv("ALL_PROXY", url)
        async with opened(AiohttpTransport()) as transport:
            assert (await transport.send(HttpRequest(method="GET", url="http://api.example/a"))).status == 200


async def test_own_proxy_of_the_scheme_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(service) as url:
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
        monkeypatch.setenv("HTTP_PROXY", url)
        async with opened(AiohttpTransport()) as transport:
            assert (await transport.send(HttpRequest(method="GET", url="http://api.example/a"))).status == 200


async def test_exempt_host_has_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with serving(service) as url, opened(AiohttpTransport()) as transport:
        await transport.open(url)
        assert (await transport.send(HttpRequest(method="GET", url=url))).status == 200


async def test_login_is_sent_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    seen = Seen()
    login = f"me:{PASSWORD}%40@"
    async with proxied(seen, "socks5h", login=login) as url, opened(AiohttpTransport(proxy=url)) as transport:
        await transport.send(HttpRequest(method="GET", url="http://api.example/"))
        shown = repr(transport)
    assert seen.logins == [("me", f"{PASSWORD}@")]
    assert PASSWORD not in shown + caplog.text


@pytest.mark.promise(1, 8)
@pytest.mark.parametrize("refuse", [1, 5], ids=["failure", "connection refused"])
async def test_refusal_of_the_proxy_is_not_sent(refuse: int) -> None:
    behind = proxied(Seen(refuse=refuse), "socks5h", login=f"me:{PASSWORD}@")
    async with behind as url, opened(AiohttpTransport(proxy=url)) as transport:
        with pytest.raises(ConnectFailedError) as caught:
            await transport.send(HttpRequest(method="POST", url="http://api.example/", body=b"{}"))
    assert PASSWORD not in str(caught.value) + repr(caught.value)


async def test_unreachable_socks_proxy_is_not_sent() -> None:
    async with opened(AiohttpTransport(proxy="socks5://127.0.0.1:9")) as transport:
        with pytest.raises(ConnectFailedError):
            await transport.send(HttpRequest(method="GET", url="http://127.0.0.1:1/"))


@pytest.mark.parametrize("how", ["proxy=", "ALL_PROXY", "HTTPS_PROXY"])
@pytest.mark.parametrize(
    ("proxy", "installed", "said"),
    [
        (f"socks5://me:{PASSWORD}@proxy.example:1080", False, "needs aiohttp-socks, which is not installed"),
        (f"ftp://me:{PASSWORD}@proxy.example", True, "got ftp://"),
        (f"socks6://me:{PASSWORD}@proxy.example", True, "got socks6://"),
        (f"http://me:{PASSWORD}@proxy.example:99999", True, "without a host"),
        (f"http://me:{PASSWORD}@", True, "without a host"),
    ],
)
@pytest.mark.promise(8)
async def test_proxy_that_cannot_be_used_is_refused_before_the_first_byte(
    how: str, proxy: str, said: str, *, installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed:
        monkeypatch.setattr(proxies, "find_spec", lambda _: None)
    if how != "proxy=":
        monkeypatch.setenv(how, proxy)
    with pytest.raises(ConfigurationError, match=said) as caught:
        async with KlingSession("key", base_url="https://api.example", proxy=proxy if how == "proxy=" else None):
            raise AssertionError("it was opened")
    assert "nothing was sent" in str(caught.value)
    assert PASSWORD not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("own", [False, True], ids=["TCP connector", "SOCKS connector"])
async def test_client_session_of_ones_own_decides_about_socks(*, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    async with proxied(seen, "socks5") as url:
        monkeypatch.setenv("ALL_PROXY", url)
        connector = aiohttp_socks.ProxyConnector.from_url(url) if own else aiohttp.TCPConnector()
        async with aiohttp.ClientSession(connector=connector) as given:
            transport = AiohttpTransport(client_session=given)
            if own:
                await transport.open("http://api.example")
                assert (await transport.send(HttpRequest(method="GET", url="http://api.example/"))).status == 200
            else:
                with pytest.raises(ConfigurationError, match="client_session"):
                    await transport.open("http://api.example")
                with pytest.raises(ConnectFailedError, match="client_session"):
                    await transport.send(HttpRequest(method="GET", url="http://api.example/"))
    assert bool(seen.targets) is own


async def test_whole_job_runs_through_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen()
    async with Emulator(speed=500, profile="tiny", seed=7) as emulator, serving(socks(seen)) as url:
        monkeypatch.setenv("ALL_PROXY", url.replace("http", "socks5h"))
        async with KlingSession(emulator.api_key, base_url=emulator.base_url, clock=emulator.clock) as kling:
            prediction = await kling.generate(prompt="She turns", image=png())
    assert prediction.output
    assert seen.targets
