"""Submit, results, lists and deletion of predictions."""

from __future__ import annotations

import base64
import io
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import aiohttp
import anyio
import anyio.lowlevel
import attrs
import pytest
from aiohttp import web

from kling_async.emulator import Emulator, ManualClock, Timing
from kling_async.emulator.pictures import PictureError, check
from support.patience import PATIENCE_S

if TYPE_CHECKING:
    from emulator.conftest import Api, PngMaker

pytestmark = pytest.mark.anyio

STANDARD = "kwaivgi/kling-v2.1-i2v-standard"
PRO = "kwaivgi/kling-v2.1-i2v-pro"


async def test_prediction_from_submit_to_completion(api: Api, image: str, clock: ManualClock) -> None:
    created = (await api.submit(image=image)).data
    assert re.fullmatch(r"[0-9a-f]{32}", created["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", created["created_at"])
    assert created == {
        "id": created["id"],
        "model": PRO,
        "outputs": [],
        "urls": {"get": f"{api.base}/api/v3/predictions/{created['id']}/result"},
        "has_nsfw_contents": [],
        "status": "created",
        "created_at": created["created_at"],
        "error": "",
        "executionTime": 0,
        "timings": {"inference": 0},
    }
    assert (await api.result(created["id"])).data == created
    await clock.advance(1.0)
    assert (await api.result(created["id"])).data == created | {"status": "processing"}
    await clock.advance(58.9)
    assert (await api.result(created["id"])).data["status"] == "processing"
    await clock.advance(0.2)
    done = (await api.result(created["id"])).data
    [url] = done["outputs"]
    assert re.fullmatch(re.escape(api.base) + r"/output/[0-9a-f-]{36}\.mp4", url)
    assert done == created | {
        "status": "completed",
        "outputs": [url],
        "has_nsfw_contents": [False],
        "executionTime": 59000,
        "timings": {"inference": 59000},
    }
    assert (await api.call("GET", f"/api/v3/predictions/{created['id']}")).data == done


async def test_prediction_and_files_expire_after_seven_days(api: Api, image: str, clock: ManualClock) -> None:
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    url = (await api.result(prediction["id"])).data["outputs"][0]
    await clock.advance(7 * 86400 - 61)
    assert (await api.result(prediction["id"])).status == 200
    await clock.advance(1)
    assert (await api.result(prediction["id"])).body["code"] == 404
    assert (await api.call("GET", url)).status == 404
    assert (await api.call("GET", image)).status == 404
    assert (await api.post("/api/v3/predictions", {})).data["total"] == 0


async def test_wrong_key_gets_401(api: Api, image: str) -> None:
    prediction = (await api.submit(image=image)).data
    for headers in ({"Authorization": "Bearer wrong"}, {"Authorization": api.key}, {"Authorization": ""}):
        reply = await api.call("GET", f"/api/v3/predictions/{prediction['id']}/result", headers=headers)
        assert (reply.status, reply.body) == (401, {"code": 401, "message": "Unauthorized: invalid API key"})
    reply = await api.call("GET", "/api/v3/balance", headers={"Authorization": "", "X-API-Key": api.key})
    assert reply.status == 401
    assert (await api.post(f"/api/v3/{PRO}", {}, headers={"Authorization": ""})).status == 401


async def test_prediction_of_another_account_gets_404(api: Api, emu: Emulator, image: str) -> None:
    prediction = (await api.submit(image=image)).data
    stranger = {"Authorization": f"Bearer {emu.gptproto_key}"}
    assert (await api.call("GET", f"/api/v3/predictions/{prediction['id']}/result", headers=stranger)).status == 404


async def test_unknown_model_and_path_get_404(api: Api, image: str) -> None:
    for model in ("kwaivgi/kling-v2.1-i2v-pro-start-end-frame", "upload", "nobody/nothing"):
        assert (await api.submit(model, image=image)).body == {"code": 404, "message": "Model not found"}
    assert (await api.call("GET", "/api/v3/nothing")).status == 404
    assert (await api.call("PATCH", "/")).status == 404


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "x" * 2501}, "prompt"),
        ({"negative_prompt": "x" * 2501}, "negative_prompt"),
        ({"image": None}, "image"),
        ({"image": ""}, "image"),
        ({"image": "a.png"}, "image"),
        ({"duration": 15}, "duration"),
        ({"duration": 20}, "duration"),
        ({"duration": "7"}, "duration"),
        ({"duration": True}, "duration"),
        ({"duration": 5.0}, "duration"),
        ({"guidance_scale": 1.01}, "guidance_scale"),
        ({"guidance_scale": -0.1}, "guidance_scale"),
        ({"guidance_scale": "0.5"}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
async def test_invalid_inputs_get_400(api: Api, emu: Emulator, image: str, inputs: dict[str, Any], text: str) -> None:
    reply = await api.submit(**{"image": image} | inputs)
    assert reply.status == reply.body["code"] == 400
    assert text in reply.body["message"]
    assert emu.charges() == ()


async def test_body_that_is_no_json_object_gets_400(api: Api) -> None:
    for data in (b"{", b"[1]", b'"x"'):
        reply = await api.call("POST", f"/api/v3/{PRO}", data=data)
        assert reply.body["code"] == 400


async def test_inputs_have_defaults_and_no_unknown_keys(api: Api, emu: Emulator, image: str) -> None:
    await api.submit(image=image, duration="10", negativ_prompt="typo", cfg_scale=1, seed=3, prompt="é" * 2500)
    [record] = emu.predictions()
    assert record.inputs == {"prompt": "é" * 2500, "image": image, "guidance_scale": 0.5, "duration": 10}
    assert emu.charges()[0].amount == Decimal("0.90")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\x89PNG\r\n\x1a\nnot really", 1401),
        (b"GIF89a" + bytes(100), 1401),
        ("small", 1401),
        (b"\xff\xd8\xff" + bytes(11 * 1024 * 1024), 1402),
        ("truncated", 1401),
    ],
    ids=["broken", "gif", "small", "large", "truncated"],
)
async def test_unusable_picture_fails_the_task(
    api: Api, clock: ManualClock, png: PngMaker, content: Any, code: int
) -> None:
    if content == "small":
        content = png(299, 400)
    elif content == "truncated":
        content = png(500, 400)[:-3000]
    url = await api.upload(content)
    inline = "data:image/png;base64," + base64.b64encode(content).decode()
    # aiohttp's client warns about JSON bodies above one megabyte.
    images = (url, inline) if len(inline) < 1_000_000 else (url,)
    ids = [(await api.submit(image=image)).data["id"] for image in images]
    await clock.advance(10)
    for prediction_id in ids:
        failed = (await api.result(prediction_id)).data
        assert (failed["status"], failed["code"], failed["outputs"]) == ("failed", code, [])
        assert failed["error"]
        assert failed["executionTime"] == 0


async def test_inline_pictures_as_data_uri_and_base64(api: Api, clock: ManualClock, png: PngMaker) -> None:
    encoded = base64.b64encode(png()).decode()
    for image in (f"data:image/png;base64,{encoded}", encoded):
        prediction = (await api.submit(image=image)).data
        await clock.advance(60)
        assert (await api.result(prediction["id"])).data["status"] == "completed"
    prediction = (await api.submit(image="data:image/png;base64,%%%")).data
    await clock.advance(60)
    assert (await api.result(prediction["id"])).data["code"] == 1402


async def test_check_reads_size_of_jpeg() -> None:
    image = pytest.importorskip("PIL.Image")
    for options in ({}, {"progressive": True}, {"exif": b"Exif\0\0" + bytes(2000)}):
        buffer = io.BytesIO()
        image.new("RGB", (640, 301)).save(buffer, "JPEG", **options)
        assert check(buffer.getvalue()) == (640, 301)
        with pytest.raises(PictureError):
            check(buffer.getvalue()[:300])


async def test_pictures_are_downloaded_from_other_hosts(api: Api, clock: ManualClock, png: PngMaker) -> None:
    async with Emulator(profile="tiny") as elsewhere:
        form = aiohttp.FormData()
        form.add_field("file", png(), filename="x.png", content_type="image/png")
        async with api.http.post(
            f"{elsewhere.base_url}/api/v3/media/upload/binary",
            data=form,
            headers={"Authorization": f"Bearer {elsewhere.api_key}"},
        ) as response:
            good = (await response.json())["data"]["download_url"]
        urls = [good, f"{elsewhere.base_url}/media/images/none.png", "http://127.0.0.1:9/x.png"]
        ids = [(await api.submit(image=url)).data["id"] for url in urls]
        statuses = []
        for prediction_id in ids:
            # The download takes real time, and the prediction ends only after it.
            while (data := (await api.result(prediction_id)).data)["status"] in {"created", "processing"}:
                await clock.advance(30)
            statuses.append((data["status"], data.get("code"), data["error"]))
        text = "Failed to download image from the provided URL."
        assert statuses == [("completed", None, ""), ("failed", 1402, text), ("failed", 1402, text)]
        assert [charge.refunded for charge in api.emu.charges()] == [False, True, True]
        assert api.emu.running == 0


async def test_prediction_waits_for_slow_picture_download(
    api: Api, emu: Emulator, clock: ManualClock, png: PngMaker
) -> None:
    gate = anyio.Event()

    async def serve(_: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(body=png())

    app = web.Application()
    app.router.add_get("/a.png", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    prediction = (await api.submit(image=f"http://127.0.0.1:{runner.addresses[0][1]}/a.png")).data
    await clock.advance(100)
    assert (await api.result(prediction["id"])).data["status"] == "processing"
    assert emu.running == 1
    gate.set()
    with anyio.fail_after(PATIENCE_S):
        while (data := (await api.result(prediction["id"])).data)["status"] != "completed":
            await anyio.lowlevel.checkpoint()
    assert data["executionTime"] == 99_000
    await clock.advance(1)
    assert emu.running == 0
    await runner.cleanup()


async def test_missing_upload_fails_the_task(api: Api, clock: ManualClock) -> None:
    prediction = (await api.submit(image=f"{api.base}/media/images/none.png")).data
    await clock.advance(10)
    assert (await api.result(prediction["id"])).data["code"] == 1402


async def test_start_end_frame_model_requires_end_image(api: Api, image: str) -> None:
    model = f"{PRO}/start-end-frame"
    assert (await api.submit(model, image=image)).status == 400
    assert (await api.submit(model, image=image, end_image=image)).data["model"] == model


async def test_newer_models_check_inputs_and_prices(api: Api, emu: Emulator, image: str) -> None:
    v3 = "kwaivgi/kling-v3.0-pro/image-to-video"
    assert (await api.submit(v3, image=image, multi_prompt=["a"])).status == 400
    assert (await api.submit(v3, image=image, prompt=None)).status == 400
    shots: dict[str, Any] = {"prompt": None, "multi_prompt": ["a"], "image": image}
    assert (await api.submit(v3, **shots, end_image=image)).status == 400
    assert (await api.submit(v3, image=image, shot_type="round")).status == 400
    assert (await api.submit(v3, image=image, element_list=[1, 2, 3, 4])).status == 400
    assert (await api.submit(v3, image=image, sound="yes")).status == 400
    assert (await api.submit(v3, image=image, duration=2)).status == 400
    assert (await api.submit(v3, image=image, prompt=None, multi_prompt=["a"], duration=15)).status == 200
    v26 = "kwaivgi/kling-v2.6-pro/image-to-video"
    assert (await api.submit(v26, image=image, sound=True, duration=10)).status == 200
    assert (await api.submit("kwaivgi/kling-v2.6-std/image-to-video", image=image, prompt=None)).status == 200
    assert [charge.amount for charge in emu.charges()] == [Decimal("1.68"), Decimal("1.40"), Decimal("0.21")]
    await api.submit(v3, image=image, sound=True)
    assert emu.charges()[-1].amount == Decimal("0.84"), "1.5 times the price with sound"


async def test_list_pages_and_filters(api: Api, clock: ManualClock, image: str) -> None:
    ids = []
    for number in range(7):
        ids.append((await api.submit(STANDARD if number % 2 else PRO, image=image)).data["id"])
        await clock.advance(10)
    first = (await api.post("/api/v3/predictions", {"page": 1, "page_size": 3})).data
    assert [item["id"] for item in first["items"]] == ids[:3:-1]
    assert (first["page"], first["total"]) == (1, 7)
    assert "input" not in first["items"][0]
    last = (await api.post("/api/v3/predictions", {"page": 3, "page_size": 3})).data
    assert [item["id"] for item in last["items"]] == ids[:1]
    assert (await api.post("/api/v3/predictions", {"page": 4, "page_size": 3})).data["items"] == []
    assert last["items"][0] == (await api.result(ids[0])).data
    by_model = (await api.post("/api/v3/predictions", {"page": 2, "page_size": 2, "model": STANDARD})).data
    assert ([item["id"] for item in by_model["items"]], by_model["total"]) == ([ids[1]], 3)
    done = (await api.post("/api/v3/predictions", {"page": 1, "page_size": 100, "status": "completed"})).data
    assert [item["id"] for item in done["items"]] == [ids[1], ids[0]]
    item = (await api.result(ids[4])).data
    after = (await api.post("/api/v3/predictions", {"created_after": item["created_at"], "page_size": 2})).data
    assert ([item["id"] for item in after["items"]], after["total"]) == ([ids[6], ids[5]], 3)
    before = (await api.post("/api/v3/predictions", {"created_before": item["created_at"][:19] + "Z"})).data
    assert before["total"] == 5


async def test_list_refuses_invalid_parameters(api: Api) -> None:
    for body in ({"page": 0}, {"page_size": 101}, {"page_size": "9"}, {"created_after": "soon"}, {"status": 3}):
        assert (await api.post("/api/v3/predictions", body)).body["code"] == 400


@pytest.mark.parametrize("settings", [{"input_echo": True}])
async def test_list_echoes_input(api: Api, image: str) -> None:
    await api.submit(image=image)
    [item] = (await api.post("/api/v3/predictions", {})).data["items"]
    assert item["input"]["prompt"] == "a cat"


async def test_delete_one_and_many(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    ended, running, kept = [(await api.submit(image=image)).data["id"] for _ in range(3)]
    stranger = {"Authorization": f"Bearer {emu.gptproto_key}"}
    reply = await api.post("/api/v3/predictions/delete", {"ids": [kept]}, headers=stranger)
    assert reply.data == {"deleted_count": 0}
    reply = await api.post("/api/v3/predictions/delete", {"ids": [running, "nothing", running]})
    assert reply.data == {"deleted_count": 1}
    assert (await api.result(running)).data["status"] == "deleted"
    assert emu.running == 2
    await clock.advance(60)
    assert (await api.call("DELETE", f"/api/v3/predictions/{ended}")).data == {"id": ended, "status": "deleted"}
    assert (await api.result(ended)).status == 404
    assert (await api.call("DELETE", f"/api/v3/predictions/{ended}")).status == 404
    assert [item["id"] for item in (await api.post("/api/v3/predictions", {})).data["items"]] == [kept]
    assert not any(charge.refunded for charge in emu.charges())
    assert (await api.post("/api/v3/predictions/delete", {})).status == 400


@pytest.mark.parametrize("settings", [{"timing": Timing(spread=0.2), "seed": 5}])
async def test_timing_draws_durations_around_median(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    for _ in range(40):
        await api.submit(image=image)
        await api.submit(image=image, duration=10)
    spans = [record.ends_at - record.created_at for record in emu.predictions()]
    fives, tens = sorted(spans[::2]), sorted(spans[1::2])
    assert len(set(spans)) == 80
    assert 60 < fives[20] < 95
    assert 90 < tens[20] < 140


@pytest.mark.parametrize("settings", [{"timing": Timing(), "seed": 5}])
async def test_same_seed_gives_same_ids_and_times(api: Api, emu: Emulator) -> None:
    async with Emulator(profile="tiny", clock=ManualClock(), seed=5) as twin:
        for there in (api, attrs.evolve(api, emu=twin, base=twin.base_url)):
            await there.submit(image="data:,")
            await there.submit(image="data:,", duration=10)
        assert [attrs.evolve(record, inputs={}) for record in twin.predictions()] == [
            attrs.evolve(record, inputs={}) for record in emu.predictions()
        ]


@pytest.mark.parametrize("settings", [{"timing": lambda model, inputs: 3.0 * inputs["duration"]}])
async def test_timing_can_be_a_function(api: Api, emu: Emulator, image: str) -> None:
    await api.submit(image=image, duration=10)
    [record] = emu.predictions()
    assert record.ends_at - record.created_at == pytest.approx(30)
