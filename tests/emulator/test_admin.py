"""Control API: the web page, access control, account data."""

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


async def test_page_loads_nothing_from_other_hosts(api: Api) -> None:
    async with api.http.get(f"{api.base}/__emulator__/") as response:
        text = await response.text()
        assert (response.status, response.content_type, response.charset) == (200, "text/html", "utf-8")
        policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; connect-src 'self'")
    assert "frame-ancestors 'none'" in policy
    assert re.findall(r"(?:https?:)?//[\w.]+\.\w+", text) == []
    assert re.findall(r"\s(?:src|srcset|action)=", text) == []
    assert "innerHTML" not in text
    kinds = set(re.findall(r'fault: "(\w+)"', text))
    assert kinds <= set(faults.__all__)


async def test_fault_buttons_of_page_send_valid_rules(api: Api, emu: Emulator) -> None:
    async with api.http.get(f"{api.base}/__emulator__/") as response:
        text = await response.text()
    bodies = re.findall(r'^  \["[^"]+", (\{.*\})\],$', text, re.MULTILINE)
    for body in bodies:
        rule = json.loads(re.sub(r"(\w+):(?= )", r'"\1":', body))
        assert (await api.post("/__emulator__/faults", rule)).status == 200, body
    assert len(emu.faults.rules) == len(bodies) == 7


async def test_state_lists_accounts_predictions_and_requests(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
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


RULE = {"route": "balance", "fault": "Status", "args": {"status": 500}}


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
async def test_control_api_refuses_other_origins_and_hosts(
    api: Api, emu: Emulator, headers: dict[str, str], status: int
) -> None:
    values = {"own": api.base, "port": urlsplit(api.base).port}
    sent = {name: value.format(**values) for name, value in headers.items()}
    for method, path, body in (
        ("POST", "faults", RULE),
        ("POST", "chaos", {"rate": 0}),
        ("DELETE", "faults", None),
    ):
        reply = await api.call(method, f"/__emulator__/{path}", json=body, headers=sent)
        assert reply.status == status, path
    assert (await api.call("GET", "/__emulator__/state", headers=sent)).status == status
    assert emu.faults.rules == ()


async def test_cross_site_link_may_open_the_page_only(api: Api) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert (await api.call("GET", "/__emulator__/", headers=headers)).status == 200
    assert (await api.call("GET", "/__emulator__/account", headers=headers)).status == 403
    assert (await api.call("POST", "/__emulator__/", headers=headers)).status == 404


async def test_control_api_responds_404_to_remote_clients(
    api: Api, emu: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiohttp.web.Request.remote", "192.0.2.7")
    for path in ("", "state", "account", "openapi.json"):
        assert (await api.call("GET", f"/__emulator__/{path}")).body == {"code": 404, "message": "Not found"}
    assert (await api.post("/__emulator__/faults", RULE)).status == 404
    assert emu.faults.rules == ()


async def test_account_route_lists_charges(api: Api, image: str) -> None:
    await api.submit(image=image)
    account = (await api.call("GET", "/__emulator__/account")).body
    [charge] = account["charges"]
    assert (charge["prompt"], len(charge["fingerprint"]), account["chaos"]) == ("a cat", 16, None)
    wrong = await api.call("GET", "/__emulator__/account", headers={"Authorization": "Bearer wsk_other"})
    assert wrong.status == 404


async def test_control_api_accepts_advertised_host_name() -> None:
    async with (
        Emulator(profile="tiny", host="127.0.0.1", advertise="localhost") as emu,
        aiohttp.ClientSession() as http,
    ):
        emu.faults.add("balance", faults.Drop())
        async with http.get(f"{emu.base_url}/__emulator__/faults") as response:
            [rule] = await response.json()
        assert rule["hits"] == 0


@pytest.mark.parametrize("persona", ["base_url", "gptproto_url"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("evil.example:8787", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 401),
        ("LOCALHOST:1", 401),
        ("10.0.0.7:9000", 401),
        ("[fd00::7]:9000", 401),
        ("emulator:8787", 401),
    ],
)
async def test_api_answers_under_own_names_only(host: str, status: int, persona: str) -> None:
    """The page of a foreign name that resolves to this computer would be of the same origin."""
    async with Emulator(profile="tiny", advertise="emulator", host="127.0.0.1") as emu, aiohttp.ClientSession() as http:
        url = getattr(emu, persona).replace("emulator", "127.0.0.1")
        async with http.get(f"{url}/api/v3/predictions/p/result", headers={"Host": host}) as response:
            assert response.status == status
            assert ("advertise=" in await response.text()) is (status == 403)


def test_new_rule_is_not_spent() -> None:
    assert Rule("submit", faults.Drop()).spent is False


async def test_state_masks_api_keys() -> None:
    options: dict[str, Any] = {"profile": "tiny", "keys": ["short", "wsk_0123456789abcdef0123"]}
    async with (
        Emulator(**options) as emu,
        aiohttp.ClientSession() as http,
        http.get(f"{emu.base_url}/__emulator__/state") as response,
    ):
        keys = [account["key"] for account in (await response.json())["accounts"]]
    assert keys == ["…", "wsk_0123…0123"]
