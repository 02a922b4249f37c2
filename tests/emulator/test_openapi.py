"""The schema of the wire, and others' tools that hold the emulator to it."""

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

# A file that is too large is a 413, which the tool does not know as a refusal.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413"]

# A running prediction that is deleted is still to be seen, as `deleted`: so the vendor has it.
[checks.use_after_free]
enabled = false

# A span of 31 days at most: JSON schema cannot say so.
[[operations]]
include-name = "POST /api/v3/user/usage_stats"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "400"] }} }}

# The tool sends names of form fields that are no multipart any more.
[[operations]]
include-name = "POST /api/v3/media/upload/binary"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["2xx", "400"] }} }}

# The object store wants a ticket's signature, and no key, which the tool sends everywhere.
[[operations]]
include-name = "PUT /storage/media/{{folder}}/{{file}}"
checks = {{ positive_data_acceptance = {{ expected-statuses = ["400", "403"] }} }}
"""


async def schemathesis(emu: Emulator, folder: Path, *options: str) -> tuple[int, str]:
    """Let the tool loose on the emulator's socket: its exit status and what it says."""
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


ROOMY = {"timing": 0.0, "level": Level(10**6, 10**6), "balance": 1e9, "downloads": False}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("settings", [ROOMY])
async def test_schemathesis_finds_no_disagreement(emu: Emulator, tmp_path: Path) -> None:
    # It makes up callbacks; none of them shall be called.
    emu.faults.add("webhook", faults.Drop(), times=None)
    status, said = await schemathesis(emu, tmp_path, "--max-examples", "2")
    assert status == 0, said
    assert "Tested: 33" in said, said
    assert len(emu.requests) > 1000
    assert {record.route for record in emu.requests} >= {row.name for row in (*routes.WAVESPEED, *routes.COMMON)}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("settings", [ROOMY])
@pytest.mark.parametrize(
    ("fault", "code"),
    [(faults.Status(500), "ST101"), (faults.DataList(), "ST1"), (faults.Status(418), "ST103")],
    ids=["server error", "another shape", "undocumented"],
)
async def test_schemathesis_finds_what_is_wrong(emu: Emulator, tmp_path: Path, fault: Any, code: str) -> None:
    emu.faults.add("balance", fault, times=None)
    status, said = await schemathesis(
        emu, tmp_path, "--max-examples", "2", "--include-path", "/api/v3/balance", "--phases", "fuzzing"
    )
    assert status == 1, said
    assert code in said


def validator(document: dict[str, Any], path: str, method: str, status: int = 200) -> Any:
    """A check of one answer against the document."""
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    schema = content["application/json"]["schema"] | {"components": document["components"]}
    return jsonschema_rs.validator_for(schema, validate_formats=True)


async def test_every_route_and_model_is_in_it(api: Api) -> None:
    document = (await api.call("GET", "/__emulator__/openapi.json")).body
    assert document["openapi"] == "3.1.0"
    assert document["servers"] == [{"url": api.base}]
    assert {path.removeprefix("/api/v3/") for path in document["paths"]} >= set(WAVESPEED)
    for row in (*routes.WAVESPEED, *routes.COMMON):
        if row.name != "submit":
            assert row.method.lower() in document["paths"][row.path]
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                assert answer["description"]


async def test_answers_in_every_state_are_as_it_says(api: Api, emu: Emulator, clock: ManualClock, image: str) -> None:
    document = (await api.call("GET", "/__emulator__/openapi.json")).body
    path = "/api/v3/predictions/{prediction_id}/result"
    result = validator(document, path, "get")
    seen = set()
    for fault in (None, faults.FailTask(5000), faults.FailTask(None, status="timeout")):
        if fault is not None:
            emu.faults.add("submit", fault)
        reply = await api.submit(image=image)
        validator(document, f"/api/v3/{PRO}", "post").validate(reply.body)
        for seconds in (0, 30, 30):
            await clock.advance(seconds)
            answer = (await api.result(reply.data["id"])).body
            result.validate(answer)
            seen.add(answer["data"]["status"])
    gone = (await api.submit(image=image)).data["id"]
    await api.call("DELETE", f"/api/v3/predictions/{gone}")
    result.validate((await api.result(gone)).body)
    assert seen == {"created", "processing", "completed", "failed", "timeout"}
    validator(document, path, "get", 404).validate((await api.result("nothing")).body)
    validator(document, "/api/v3/predictions", "post").validate((await api.post("/api/v3/predictions", {})).body)
    search = "/api/v3/billings/search"
    validator(document, search, "post").validate((await api.post(search, {})).body)
    usage = "/api/v3/user/usage_stats"
    span = {"start_time": "2026-09-21T00:00:00Z", "end_time": "2026-09-22T00:00:00Z"}
    answer = (await api.post(usage, span)).body
    validator(document, usage, "post").validate(answer)
    assert len(answer["data"]["daily_usage"]) == 1


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
async def test_what_the_quirks_send_is_not_as_it_says(
    api: Api, emu: Emulator, clock: ManualClock, image: str, shape: Any
) -> None:
    document = (await api.call("GET", "/__emulator__/openapi.json")).body
    prediction = (await api.submit(image=image)).data
    await clock.advance(60)
    emu.faults.add("result", shape)
    answer = (await api.result(prediction["id"])).body
    assert not validator(document, "/api/v3/predictions/{prediction_id}/result", "get").is_valid(answer)


async def test_methods(api: Api) -> None:
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
async def test_bodies_that_are_refused(api: Api, path: str, body: dict[str, Any]) -> None:
    reply = await api.post(path, body)
    assert (reply.status, reply.body["code"]) == (400, 400)


async def test_what_others_tools_found(api: Api, clock: ManualClock) -> None:
    """Each of these was a 500, or was refused although JSON has it so."""
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
