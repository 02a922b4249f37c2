"""The page, and who may use the emulator's own routes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from kling_async.emulator import Emulator, Rule, faults

if TYPE_CHECKING:
    from emulator.conftest import Api

    from kling_async.emulator import ManualClock

pytestmark = pytest.mark.anyio


async def test_the_page_asks_nobody_else(api: Api) -> None:
    async with api.http.get(f"{api.base}/__emulator__/") as response:
        text = await response.text()
        assert (response.status, response.content_type, response.charset) == (200, "text/html", "utf-8")
        policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'")
    assert "frame-ancestors 'none'" in policy
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+", text) == []
    assert re.findall(r"\s(?:src|srcset|action)=", text) == []
    assert "innerHTML" not in text
    named = set(re.findall(r'fault: "(\w+)"', text))
    assert named <= set(faults.__all__)


async def test_the_buttons_of_the_page_work(api: Api, emu: Emulator) -> None:
    async with api.http.get(f"{api.base}/__emulator__/") as response:
        text = await response.text()
    bodies = re.findall(r'^  \["[^"]+", (\{.*\})\],$', text, re.MULTILINE)
    for body in bodies:
        asked = json.loads(re.sub(r"(\w+):(?= )", r'"\1":', body))
        assert (await api.post("/__emulator__/faults", asked)).status == 200, body
    assert len(emu.faults.rules) == len(bodies) == 7


async def test_what_the_page_shows(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    emu.faults.add("submit", faults.FailTask(1200, "<b>sensitive</b>"))
    failed, good = [(await api.submit(image=image, prompt=prompt)).data["id"] for prompt in ("one", "two")]
    await clock.advance(60)
    state = (await api.call("GET", "/__emulator__/state")).body
    newest, oldest = state["predictions"]
    assert (newest["id"], newest["status"], newest["prompt"], newest["refunded"]) == (good, "completed", "two", False)
    assert (await api.call("GET", newest["output"])).status == 200
    assert (oldest["id"], oldest["code"], oldest["error"], oldest["output"]) == (failed, 1200, "<b>sensitive</b>", None)
    assert oldest["refunded"]
    first = state["accounts"][0]
    assert (first["balance"], first["charged"], first["refunded"]) == (999.55, 0.9, 0.45)
    assert api.key not in json.dumps(state)
    assert state["requests"][0]["path"] == "/api/v3/kwaivgi/kling-v2.1-i2v-pro"
    assert state["counts"] == {"upload_ticket": 1, "upload_put": 1, "submit": 2}
    assert (state["running"], state["peak_running"], state["total_predictions"]) == (0, 2, 2)


STATUS = {"route": "balance", "fault": "Status", "args": {"status": 500}}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "{own}"}, 200),
        ({"Origin": "{own}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "https://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "localhost:{port}"}, 200),
    ],
)
async def test_who_may_change_anything(api: Api, emu: Emulator, headers: dict[str, str], status: int) -> None:
    values = {"own": api.base, "port": urlsplit(api.base).port}
    sent = {name: value.format(**values) for name, value in headers.items()}
    for method, path, body in (
        ("POST", "faults", STATUS),
        ("POST", "chaos", {"rate": 0}),
        ("DELETE", "faults", None),
    ):
        reply = await api.call(method, f"/__emulator__/{path}", json=body, headers=sent)
        assert reply.status == status, path
    # What others may not change they may not read either.
    assert (await api.call("GET", "/__emulator__/state", headers=sent)).status == status
    assert emu.faults.rules == ()


async def test_a_link_from_elsewhere_leads_to_the_page(api: Api) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert (await api.call("GET", "/__emulator__/", headers=headers)).status == 200
    assert (await api.call("GET", "/__emulator__/account", headers=headers)).status == 403
    assert (await api.call("POST", "/__emulator__/", headers=headers)).status == 404


async def test_nobody_but_this_computer(api: Api, emu: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp.web.Request.remote", "192.0.2.7")
    for path in ("", "state", "account", "openapi.json"):
        assert (await api.call("GET", f"/__emulator__/{path}")).body == {"code": 404, "message": "Not found"}
    assert (await api.post("/__emulator__/faults", STATUS)).status == 404
    assert emu.faults.rules == ()


async def test_charges_over_control(api: Api, image: str) -> None:
    await api.submit(image=image)
    account = (await api.call("GET", "/__emulator__/account")).body
    [charge] = account["charges"]
    assert (charge["prompt"], len(charge["fingerprint"]), account["chaos"]) == ("a cat", 16, None)
    wrong = await api.call("GET", "/__emulator__/account", headers={"Authorization": "Bearer wsk_other"})
    assert wrong.status == 404


async def test_under_another_name() -> None:
    async with (
        Emulator(profile="tiny", host="127.0.0.1", advertise="localhost") as emu,
        aiohttp.ClientSession() as http,
    ):
        emu.faults.add("balance", faults.Drop())
        async with http.get(f"{emu.base_url}/__emulator__/faults") as response:
            [rule] = await response.json()
        assert rule["hits"] == 0


def test_rules_are_public() -> None:
    assert Rule("submit", faults.Drop()).spent is False


async def test_a_mask_hides_short_keys_too() -> None:
    options: dict[str, Any] = {"profile": "tiny", "keys": ["short", "wsk_0123456789abcdef0123"]}
    async with (
        Emulator(**options) as emu,
        aiohttp.ClientSession() as http,
        http.get(f"{emu.base_url}/__emulator__/state") as response,
    ):
        keys = [account["key"] for account in (await response.json())["accounts"]]
    assert keys == ["…", "wsk_0123…0123"]
