"""The OpenAPI document, checked against the emulator's responses and by schemathesis."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import anyio
import jsonschema_rs
import pytest

from kling_async.emulator import Level, faults, routes
from kling_async.emulator.catalogue import WAVESPEED

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.conftest import Api

    from kling_async.emulator import Emulator, ManualClock

pytestmark = pytest.mark.anyio

PRO = "kwaivgi/kling-v2.1-i2v-pro"

CONFIG = """
[auth.openapi.key]
bearer = "{key}"

# A file that is too large gets 413, which the tool does not count as a rejection.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413"]

# A deleted prediction that was running stays readable as `deleted`, like at the vendor.
[checks.use_after_free]
enabled = false

# The limit of 31 days cannot be expressed in JSON schema.
[[operations]]
include-name = "POST /api/v3/user/usage_stats"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "400"] }} }}

# The tool sends form field names that make the multipart body invalid.
[[operations]]
include-name = "POST /api/v3/media/upload/binary"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "400"] }} }}

# The object store needs a ticket's signature and refuses the key, which the tool always sends.
[[operations]]
include-name = "PUT /storage/media/{{folder}}/{{file}}"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["400", "403"] }} }}
"""


async def schemathesis(emu: Emulator, folder: Path, *options: str) -> tuple[int, str]:
    """Run schemathesis against the emulator and return its exit status and output."""
    config = folder / "schemathesis.toml"
    await anyio.Path(config).write_text(CONFIG.format(key=emu.api_key))
    code = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    result = await anyio.run_process(
        [
            *(sys.executable, "-c", code, "--config-file", str(config), "run"),
            f"{emu.base_url}/__emulator__/openapi.json",
            *("--seed", "7", "--no-color", *options),
        ],
        check=False,
        cwd=folder,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "PYTHONWARNINGS": "default"},
    )
    return result.returncode, (result.stdout + result.stderr).decode()


UNLIMITED = {"timing": 0.0, "level": Level(10**6, 10**6), "balance": 1e9, "downloads": False}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("settings", [UNLIMITED])
@pytest.mark.repeats
async def test_schemathesis_accepts_the_emulator(emu: Emulator, tmp_path: Path) -> None:
    # The tool invents callback URLs; none of them must be called.
    emu.faults.add("webhook", faults.Drop(), times=None)
    status, text = await schemathesis(emu, tmp_path, "--max-examples", "2")
    assert status == 0, text
    others = {(row.method, row.path) for row in (*routes.WAVESPEED, *routes.COMMON) if row.name != "submit"}
    assert f"Tested: {len(others) + len(WAVESPEED)}" in text, text
    assert len(emu.requests) > 1000
    assert {record.route for record in emu.requests} >= {row.name for row in (*routes.WAVESPEED, *routes.COMMON)}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("settings", [UNLIMITED])
@pytest.mark.parametrize(
    ("fault", "code"),
    [(faults.Status(500), "ST101"), (faults.DataList(), "ST1"), (faults.Status(418), "ST103")],
    ids=["server error", "another shape", "undocumented"],
)
async def test_schemathesis_reports_faulty_responses(emu: Emulator, tmp_path: Path, fault: Any, code: str) -> None:
    emu.faults.add("balance", fault, times=None)
    status, text = await schemathesis(
        emu, tmp_path, "--max-examples", "2", "--include-path", "/api/v3/balance", "--phases", "fuzzing"
    )
    assert status == 1, text
    assert code in text


def validator(document: dict[str, Any], path: str, method: str, status: int = 200) -> Any:
    """Return the JSON schema validator of one response in the document."""
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    schema = content["application/json"]["schema"] | {"components": document["components"]}
    return jsonschema_rs.validator_for(schema, validate_formats=True)


async def test_document_contains_every_route_and_model(api: Api) -> None:
    document = (await api.call("GET", "/__emulator__/openapi.json")).body
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": api.base}]
    assert {path.removeprefix("/api/v3/") for path in document["paths"]} >= set(WAVESPEED)
    for row in (*routes.WAVESPEED, *routes.COMMON):
        if row.name != "submit":
            assert row.method.lower() in document["paths"][row.path]
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                assert response["description"]


async def test_responses_in_every_state_match_the_document(
    api: Api, emu: Emulator, clock: ManualClock, image: str
) -> None:
    document = (await api.call("GET", "/__emulator__/openapi.json")).body
    path = "/api/v3/predictions/{prediction_id}/result"
    result = validator(document, path, "get")
    statuses = set()
    for fault in (None, faults.FailTask(5000), faults.FailTask(None, status="timeout")):
        if fault is not None:
            emu.faults.add("submit", fault)
        reply = await api.submit(image=image)
        validator(document, f"/api/v3/{PRO}", "post").validate(reply.body)
        for seconds in (0, 30, 30):
            await clock.advance(seconds)
            body = (await api.result(reply.data["id"])).body
            result.validate(body)
            statuses.add(body["data"]["status"])
    deleted = (await api.submit(image=image)).data["id"]
    await api.call("DELETE", f"/api/v3/predictions/{deleted}")
    result.validate((await api.result(deleted)).body)
    assert statuses == {"created", "processing", "completed", "failed", "timeout"}
    validator(document, path, "get", 404).validate((await api.result("nothing")).body)
    validator(document, "/api/v3/predictions", "post").validate((await api.post("/api/v3/predictions", {})).body)
    search = "/api/v3/billings/search"
    validator(document, search, "post").validate((await api.post(search, {})).body)
    usage = "/api/v3/user/usage_stats"
    span = {"start_time": "2026-09-21T00:00:00Z", "end_time": "2026-09-22T00:00:00Z"}
    body = (await api.post(usage, span)).body
    validator(document, usage, "post").validate(body)
    assert len(body["data"]["daily_usage"]) == 1


@pytest.mark.parametrize(
    "shape",
    [
        faults.EmptyOutputs(),
        faults.NullOutputs(),
        faults.ObjectOutputs(),
        faults.StringOutputs(),
        faults.NullFlags(),
        faults.Sparse(),
        faults.UnknownStatus("pending"),
        faults.Unwrapped(),
        faults.DataList(),
        faults.EnvelopeCode(500),
    ],
    ids=lambda shape: type(shape).__name__,
)
async def test_deviating_responses_do_not_match_the_document(
    api: Api, emu: Emulator, clock: ManualClock, image: str, shape: Any
) -> None:
    document = (await api.call("GET", "/__emulator__/openapi.json")).body
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    emu.faults.add("result", shape)
    body = (await api.result(prediction["id"])).body
    assert not validator(document, "/api/v3/predictions/{prediction_id}/result", "get").is_valid(body)


async def test_wrong_method_gets_405_with_allow(api: Api) -> None:
    for method, path, allowed in (
        ("GET", "/api/v3/predictions", "POST"),
        ("PUT", "/api/v3/balance", "GET, HEAD"),
        ("GET", f"/api/v3/{PRO}", "POST"),
        ("POST", "/api/v3/balance", "GET, HEAD"),
        ("PUT", "/api/v3/predictions/0123", "DELETE, GET, HEAD"),
        ("GET", "/api/v3/predictions/delete", None),
        ("POST", "/output/x.mp4", "GET, HEAD"),
    ):
        reply = await api.call(method, path)
        assert (reply.status, reply.headers.get("Allow")) == ((405, allowed) if allowed else (404, None)), path


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v3/predictions", {"page": True}),
        ("/api/v3/predictions", {"page": 1.5}),
        ("/api/v3/predictions/delete", {"ids": [1]}),
        ("/api/v3/model/price", {"model_id": PRO, "inputs": "x"}),
        ("/api/v3/model/price", {}),
        ("/api/v3/billings/search", {"billing_type": "gift"}),
        ("/api/v3/billings/search", {"prediction_uuids": "x"}),
        ("/api/v3/media/uploads", {"filename": "a.png", "size": 3, "content_type": 3}),
    ],
)
async def test_invalid_bodies_get_400(api: Api, path: str, body: dict[str, Any]) -> None:
    reply = await api.post(path, body)
    assert (reply.status, reply.body["code"]) == (400, 400)


async def test_edge_cases_found_by_schemathesis(api: Api, clock: ManualClock) -> None:
    """Each of these once caused a 500 or was refused although it is valid JSON."""
    assert (await api.submit(image="data:image/png;base64,é")).status == 200
    assert (await api.post("/api/v3/predictions", {"page": 1.0, "page_size": 31.0})).data["page"] == 1
    leap = await api.post("/api/v3/predictions", {"created_after": "2016-12-31T23:59:60Z"})
    assert leap.status == 200
    deep = await api.call("POST", f"/api/v3/{PRO}", data=b"[" * 100_000)
    assert deep.status == 400
    bad = b'--x\r\nContent-Disposition: form-data; name="\x0f"\r\n\r\n1\r\n--x--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert (await api.call("POST", "/api/v3/media/upload/binary", data=bad, headers=headers)).status == 400
    ticket = {"filename": "a.png", "size": 3, "content_type": "image/png; charset=x"}
    assert (await api.post("/api/v3/media/uploads", ticket)).body["code"] == 500
