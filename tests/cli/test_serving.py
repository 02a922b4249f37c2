"""The variables that `kling-async emulator` prints work where they are pasted."""

from __future__ import annotations

import io
import socket

import anyio
import anyio.to_thread
import attrs
import pytest
from rich.console import Console

from kling_async import ConfigurationError, KlingSession
from kling_async.cli import serving
from kling_async.cli.choices import NetworkChoice, ProfileChoice
from kling_async.cli.options import EmulatorOptions
from kling_async.cli.serving import _announce, serve_emulator
from kling_async.emulator import NETWORKS, Emulator

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("host", ["127.0.0.1", "emulator.example"])
async def test_printed_variables_open_a_session(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLING_ALLOW_HTTP", raising=False)
    printed = Console(file=io.StringIO())
    async with Emulator(profile="tiny", advertise=host) as emulator:
        _announce(printed, emulator, EmulatorOptions())
        assert isinstance(printed.file, io.StringIO)
        exports = [line for line in printed.file.getvalue().splitlines() if line.startswith("export ")]
        for line in exports:
            for name, value in (word.split("=", 1) for word in line.split()[1:]):
                monkeypatch.setenv(name, value)
        assert KlingSession().provider.base_url == emulator.base_url
        assert KlingSession(provider="gptproto").provider.base_url == emulator.gptproto_url
        assert ("KLING_ALLOW_HTTP" in exports[0]) == (host != "127.0.0.1")


@pytest.mark.parametrize("network", [None, *NetworkChoice])
async def test_option_network_sets_the_line(network: NetworkChoice | None, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Emulator] = []

    async def serve(emulator: Emulator, **_: object) -> None:
        served.append(emulator)

    monkeypatch.setattr(serving, "serve", serve)
    options = EmulatorOptions(profile=ProfileChoice.TINY, network=network)
    await anyio.to_thread.run_sync(serve_emulator, options)
    assert [emulator.network for emulator in served] == [None if network is None else NETWORKS[network.value]]
    printed = Console(file=io.StringIO())
    async with Emulator(profile="tiny") as emulator:
        _announce(printed, emulator, options)
    assert isinstance(printed.file, io.StringIO)
    assert ("network" in printed.file.getvalue()) == (network is not None)


@pytest.mark.parametrize(("taken", "option"), [("port", "--port"), ("gptproto_port", "--gptproto-port")])
async def test_used_port_is_named(taken: str, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        options = attrs.evolve(EmulatorOptions(port=0, gptproto_port=0, profile=ProfileChoice.TINY), **{taken: port})
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is in use") as refused:
            await anyio.to_thread.run_sync(serve_emulator, options)
    assert f"choose another port with {option};" in refused.value.advice


def test_option_network_has_every_named_line() -> None:
    assert {choice.value for choice in NetworkChoice} == set(NETWORKS)
