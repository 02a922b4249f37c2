"""Videos that are told apart by the colour of their last frames, and checks of films that were made of them."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import aiohttp
import av
import numpy as np
import pytest
from PIL import Image

from kling_async import Row, State
from kling_async._core.states import WITH_VIDEO
from kling_async.emulator import Emulator, files
from kling_async.emulator.exchange import Exchange
from kling_async.emulator.predictions import Prediction, PredictionRecord
from support.trees import list_schedule

SIDE_PIXELS = 320
TOLERANCE = 12
"""Difference of a colour before and after encoding, of 256."""


def colour_of(prediction_id: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(prediction_id)[:3]
    return red, green, blue


def coloured(colour: tuple[int, int, int]) -> bytes:
    """Return a video of two frames: a black one, and one of the colour."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast", "crf": "20"})
        stream.width = stream.height = SIDE_PIXELS
        stream.pix_fmt = "yuv420p"
        for each in ((0, 0, 0), colour):
            pixels = np.full((SIDE_PIXELS, SIDE_PIXELS, 3), each, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def give_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let emulators with the profile `video` return videos that end with the colours of their predictions, at once."""

    async def render(exchange: Exchange, prediction: Prediction) -> bytes:
        del exchange
        return coloured(colour_of(prediction.id))

    monkeypatch.setattr(files, "_render", render)


def check_films(rows: Sequence[Row], parents: Mapping[str, str | None], emulator: Emulator) -> None:
    """Check that each clip has a video or says why it has none, and that none was lost or paid for twice."""
    states = {row.key: row for row in rows}
    assert states.keys() == parents.keys()
    assert not emulator.double_paid(by=lambda charge: charge.prompt), "paid twice"
    kept = Counter(charge.prompt for charge in emulator.charges() if charge.refund_due is None)
    for key, row in states.items():
        parent = parents[key]
        if parent is not None and states[parent].state not in WITH_VIDEO:
            assert row.state is State.SKIPPED, (key, row.state, row.error)
            assert f"it continues the job {parent!r}, which has no video" in str(row.error)
        else:
            assert row.state in {*WITH_VIDEO, State.FAILED}, (key, row.state, row.error)
        assert kept[key] == (row.state in WITH_VIDEO), (key, row.state)
    ids = {row.prediction_id for row in rows}
    assert not {charge.prediction_id for charge in emulator.charges() if charge.refund_due is None} - ids, "lost"


async def check_pictures(parents: Mapping[str, str | None], emulator: Emulator) -> None:
    """Check that each clip was sent when its parent had a video, with the last frame of that."""
    emulator.chaos = None
    records = emulator.predictions()
    made = {str(record.inputs["prompt"]): record for record in records if record.status == "completed"}
    async with aiohttp.ClientSession() as client:
        for record in records:
            key = str(record.inputs["prompt"])
            parent = parents[key]
            if parent is None:
                continue
            assert made[parent].ends_at <= record.created_at, f"{key} was sent before {parent} had a video"
            async with client.get(str(record.inputs["image"])) as response:
                picture = np.asarray(Image.open(io.BytesIO(await response.read())).convert("RGB"), np.int16)
            difference = np.abs(picture - colour_of(made[parent].id)).max()
            assert difference <= TOLERANCE, f"{key} begins with another picture: {difference} of 256"


def busy_share(records: Sequence[PredictionRecord], parents: Mapping[str, str | None], slots: int) -> float:
    """Return the time that a scheduler without overhead takes for the same predictions, over the time they took."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for record in records:
        seconds[str(record.inputs["prompt"])] += record.ends_at - record.created_at
    took = max(record.ends_at for record in records) - min(record.created_at for record in records)
    of = {key: parent for key, parent in parents.items() if parent is not None}
    # In the order of the films: the first of the list is the first to start.
    return list_schedule({key: seconds[key] for key in parents if key in seconds}, of, slots=slots) / took
