"""Object stores that refuse a put on the condition that the name is free: the video is put after a look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from obstore.store import S3Store

from kling_async import Outputs, StorageError
from kling_async.storage import Fields
from support.outputs import SHORT, Host, output_host

pytestmark = pytest.mark.anyio

OTHER = b"another job's"


def document(code: str) -> str:
    return f"<Error><Code>{code}</Code><Message>A header you provided implies functionality</Message></Error>"


@attrs.define
class Store:
    """An S3-compatible store.

    Attributes:
        refusal: status and body of its reply to a conditional put.
        objects: content by name.
        requests: method of each request, "PUT if free" for a conditional one.
        on_refusal: called before it refuses.
        readable: False if the credentials may write and not read.
    """

    refusal: tuple[int, str]
    objects: dict[str, bytes] = attrs.field(factory=dict)
    requests: list[str] = attrs.field(factory=list)
    on_refusal: Callable[[], None] = lambda: None
    readable: bool = True
    endpoint: str = ""

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        name = request.path.removeprefix("/bucket/")
        conditional = "If-None-Match" in request.headers
        self.requests.append(request.method + (" if free" if conditional else ""))
        if request.method == "PUT":
            body = await request.read()
            if conditional:
                self.on_refusal()
                status, text = self.refusal
                return web.Response(status=status, text=text, content_type="application/xml")
            self.objects[name] = body
            return web.Response(headers={"ETag": '"1"'})
        if not self.readable:
            return web.Response(status=403)
        if name not in self.objects:
            return web.Response(status=404)
        return web.Response(
            body=self.objects[name], headers={"ETag": '"1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        )

    def outputs(self, **options: Any) -> Outputs:
        store = S3Store(
            "bucket",
            endpoint=self.endpoint,
            access_key_id="id",
            secret_access_key="secret",
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 1},
        )
        return Outputs("s3://bucket", store=store, **options)


@asynccontextmanager
async def serving(store: Store) -> AsyncIterator[tuple[Store, Host]]:
    async with RawTestServer(store) as server, output_host() as host:
        store.endpoint = str(server.make_url("/"))
        host.content = SHORT
        yield store, host


REFUSALS = [
    pytest.param((501, document("NotImplemented")), id="501"),
    pytest.param((501, ""), id="501 without a reason"),
    pytest.param((500, document("NotImplemented")), id="500 with a code"),
    pytest.param((400, ""), id="400 without a reason"),
    pytest.param((400, document("InvalidArgument")), id="400"),
    pytest.param((405, document("MethodNotAllowed")), id="405"),
    pytest.param((409, ""), id="409 of an object that is not there"),
    pytest.param((412, ""), id="412 of an object that is not there"),
]


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_refused_condition_is_replaced_by_a_look_once(refusal: tuple[int, str]) -> None:
    async with serving(Store(refusal)) as (store, host):
        outputs = store.outputs()
        for key in ("one", "two", "three"):
            saved = await host.save(outputs.target(Fields(key=key, id=key)))
            assert saved.address == f"s3://bucket/{key}.mp4"
        # obstore itself tries a 5xx twice here; what another writer may have removed is believed the second time.
        tried = [index for index, request in enumerate(store.requests) if request == "PUT if free"]
        assert len(tried) in {1, 2}
        assert store.requests[tried[-1] + 1 : tried[-1] + 3] == ["HEAD", "PUT"]
        assert store.requests[tried[-1] + 1 :].count("PUT") >= 2, "the last video is put without a condition"
    assert store.objects == dict.fromkeys(("one.mp4", "two.mp4", "three.mp4"), SHORT)


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("late", [False, True], ids=["before the look", "after it"])
async def test_object_of_another_job_is_kept(refusal: tuple[int, str], *, late: bool) -> None:
    async with serving(Store(refusal)) as (store, host):

        def put_other() -> None:
            store.objects.setdefault("one.mp4", OTHER)

        if late:
            store.on_refusal = put_other
        else:
            put_other()
        saved = await host.save(store.outputs().target(Fields(key="one", id="p1")))
        assert saved.address == f"s3://bucket/one-{saved.sha256[:8]}.mp4"
        assert store.objects == {"one.mp4": OTHER, f"one-{saved.sha256[:8]}.mp4": SHORT}


async def test_nothing_is_replaced_unseen() -> None:
    """Neither a condition nor a look is possible: the video is not put over what may be another one."""
    async with serving(Store((501, ""), objects={"one.mp4": OTHER}, readable=False)) as (store, host):
        with pytest.raises(StorageError, match="permission denied"):
            await host.save(store.outputs().target(Fields(key="one", id="p1")))
        assert store.objects == {"one.mp4": OTHER}
        saved = await host.save(store.outputs(replace=True).target(Fields(key="one", id="p1")))
        assert saved.address == "s3://bucket/one.mp4"
        assert store.objects == {"one.mp4": SHORT}


async def test_other_refusals_are_errors() -> None:
    async with serving(Store((503, document("SlowDown")))) as (store, host):
        with pytest.raises(StorageError, match=r"503 .*SlowDown"):
            await host.save(store.outputs().target(Fields(key="one", id="p1")))
        assert "PUT" not in store.requests
