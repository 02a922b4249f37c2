"""The LangChain tools of the vendor's service, from the package index, against the emulator."""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest

from kling_async.emulator import faults

if TYPE_CHECKING:
    from kling_async.emulator import Emulator

pytestmark = pytest.mark.anyio

langchain_wavespeed = pytest.importorskip("langchain_wavespeed", reason="of the test group")

PICTURE = "https://pictures.example/face.png"
KLING_4 = "kwaivgi/kling-v4.0/image-to-video"


@pytest.fixture
def tool(emu: Emulator, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the tool that runs any model, with the vendor's client that it makes for itself, at the emulator."""
    made = langchain_wavespeed.WaveSpeedRunModel(api_key=emu.api_key, poll_interval=0.02)
    monkeypatch.setattr(made.client, "base_url", emu.base_url)
    return made


async def run(tool: Any, model: str, **inputs: Any) -> str:
    """Run the tool in a thread, since the emulator runs in this event loop."""
    return str(await anyio.to_thread.run_sync(partial(tool.invoke, {"model": model, "input": inputs})))


async def test_tool_runs_models_of_every_kind(tool: Any, emu: Emulator) -> None:
    video = await run(tool, KLING_4, image=PICTURE, resolution="1080p", duration=3)
    image = await run(tool, "wavespeed-ai/flux-dev", prompt="A cat")
    assert video.startswith(f"{emu.base_url}/output/")
    assert (video[-4:], image[-4:]) == (".mp4", ".png")
    assert [charge.amount for charge in emu.charges()] == [Decimal("0.705"), Decimal("0.012")]
    assert emu.leaks == ()


async def test_refusals_and_failures_are_told_to_the_agent(tool: Any, emu: Emulator) -> None:
    with pytest.raises(Exception, match="dynamic_range needs a resolution of 1080p, 4k"):
        await run(tool, KLING_4, image=PICTURE, dynamic_range="hdr")
    emu.faults.add("submit", faults.FailTask(1200, "The content contains sensitive information."))
    with pytest.raises(Exception, match="The content contains sensitive information"):
        await run(tool, KLING_4, image=PICTURE)
    emu.faults.add("submit", faults.Status(502, accepted=True))
    with pytest.raises(Exception, match="do not retry blindly"):
        await run(tool, KLING_4, image=PICTURE)
    assert emu.counts["submit"] == 3, "none is sent again"
