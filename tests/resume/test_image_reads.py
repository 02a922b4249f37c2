"""An image file is read twice for a paid request, for the key and while it is sent, and must be the same both times."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from kling_async import (
    HttpRequest,
    HttpResponse,
    InvalidJobError,
    Job,
    KeyReusedError,
    KlingSession,
    Outcome,
    PredictionFailedError,
    WatchPolicy,
)
from kling_async._core.content import Identity
from kling_async._core.http import Effect
from kling_async._session.keys import FileDigests, read_content
from kling_async.testing import json_response
from support.clocks import AdjustedClock
from support.pictures import png
from support.service import Service, open_session

pytestmark = pytest.mark.anyio

Images = Literal["upload", "inline"]
WAYS: list[Images] = ["upload", "inline"]


@attrs.define
class Face:
    """An image file whose opens are counted.

    Attributes:
        path: path of the file.
        opened: number of opens for reading.
        before: functions to call right before the open of a number, from 1.
    """

    path: Path
    opened: int = 0
    before: dict[int, Callable[[], None]] = attrs.field(factory=dict)

    def replace(self) -> None:
        """Put another image in the place of the file, as an editor does."""
        os.replace(self.path.with_suffix(".other"), self.path)  # noqa: PTH105 -- a rename opens nothing

    def count(self, path: object) -> None:
        if path == str(self.path):
            self.opened += 1
            self.before.pop(self.opened, lambda: None)()


_counted: list[Face] = []
_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counted:
        for face in _counted:
            face.count(os.fspath(arguments[0]) if isinstance(arguments[0], os.PathLike) else arguments[0])


@pytest.fixture
def face(tmp_path: Path) -> Iterator[Face]:
    made = Face(tmp_path / "face.png")
    made.path.write_bytes(png(320, 320))
    made.path.with_suffix(".other").write_bytes(png(320, 333))
    if not _hooks:
        # An audit hook sees every open, whichever way a file is opened. It cannot be removed.
        _hooks.append(_audit)
        sys.addaudithook(_audit)
    _counted.append(made)
    yield made
    _counted.remove(made)


@attrs.define
class Studio(Service):
    """Service that accepts uploads.

    Attributes:
        uploads: contents of the uploads.
    """

    seconds: Any = 0.05
    latency: float = 0.001
    uploads: list[bytes] = attrs.field(factory=list)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.url.startswith("https://storage.example/"):
            self.uploads.append(request.body or b"")
            return HttpResponse(status=200, headers={"etag": '"1"'})
        if request.url.endswith("media/uploads"):
            upload = {"url": "https://storage.example/1", "method": "PUT", "headers": {}}
            data = {"upload": upload, "download_url": f"https://pictures.example/{len(self.uploads)}.png"}
            return json_response({"code": 200, "message": "success", "data": data})
        return await super().__call__(request)


def session(service: Studio, images: Images, **options: Any) -> KlingSession:
    return open_session(
        service, images=images, watch=WatchPolicy.fixed(0.02), clock=AdjustedClock(service, pace=0.01), **options
    )


async def once(kling: KlingSession, job: Job) -> Outcome:
    async with kling.batch([job], name="b") as batch:
        (outcome,) = [outcome async for outcome in batch]
    return outcome


def job(face: Face) -> Job:
    return Job(prompt="x", image=face.path)


# ---- new jobs ----


@pytest.mark.parametrize("images", WAYS)
async def test_new_job_reads_its_image_twice(face: Face, images: Images) -> None:
    service = Studio()
    async with session(service, images) as kling:
        await kling.generate(job(face))
    assert face.opened == 2
    assert len(service.paid) == 1


@pytest.mark.parametrize("images", WAYS)
async def test_job_of_a_batch_reads_its_image_twice(face: Face, images: Images) -> None:
    service = Studio()
    async with session(service, images) as kling:
        assert (await once(kling, job(face))).ok
    assert face.opened == 2
    assert len(service.paid) == 1


async def test_uploaded_image_is_read_once_for_each_later_job(face: Face) -> None:
    service = Studio()
    async with session(service, "upload") as kling:
        for prompt in "abc":
            await kling.generate(Job(prompt=prompt, image=face.path))
    assert face.opened == 2 + 1 + 1
    assert len(service.uploads) == 1


@pytest.mark.promise(1)
@pytest.mark.parametrize("images", WAYS)
async def test_file_replaced_after_keying_is_refused_unpaid(face: Face, images: Images) -> None:
    service = Studio()
    face.before[2] = face.replace
    async with session(service, images) as kling:
        with pytest.raises(InvalidJobError, match=r"has changed since the job's key was made"):
            await kling.generate(job(face))
    assert face.opened == 2
    assert not service.paid
    assert not service.uploads


@pytest.mark.parametrize("images", WAYS)
async def test_file_of_a_batch_replaced_after_keying_is_refused_unpaid(face: Face, images: Images) -> None:
    service = Studio()
    face.before[2] = face.replace
    async with session(service, images) as kling:
        outcome = await once(kling, job(face))
        assert isinstance(outcome.error, InvalidJobError)
        assert not service.paid
        # Another image is another job.
        assert (await once(kling, job(face))).ok
    assert len(service.paid) == 1


@pytest.mark.parametrize("images", WAYS)
async def test_end_image_replaced_after_keying_is_refused_unpaid(face: Face, images: Images) -> None:
    service = Studio()
    face.before[2] = face.replace
    given = Job(model="kling-v1.6-pro", prompt="x", image=png(400, 400), end_image=face.path)
    async with session(service, images) as kling:
        with pytest.raises(InvalidJobError, match="end_image"):
            await kling.generate(given)
    assert not service.paid


# ---- files that are looked at before their batch ----


async def test_known_file_is_read_again_only_if_it_was_changed(face: Face) -> None:
    known = FileDigests()

    async def digest() -> str:
        return (await read_content(job(face), identity=Identity(), known=known)).digest

    first = await digest()
    assert (await digest(), face.opened) == (first, 1)
    times = face.path.stat()
    changed = face.path.read_bytes()[:-1] + b"x"
    face.opened = 0
    # Of the same size and time: another file.
    face.path.with_suffix(".other").write_bytes(changed)
    os.utime(face.path.with_suffix(".other"), ns=(times.st_atime_ns, times.st_mtime_ns))
    face.replace()
    second = await digest()
    assert second != first
    assert (await digest(), face.opened) == (second, 1)
    # The same file, written again.
    with face.path.open("ab") as file:
        file.write(b"more")
    face.opened = 0
    assert await digest() not in {first, second}
    assert face.opened == 1


async def test_known_file_that_is_gone_is_refused(face: Face) -> None:
    known = FileDigests()
    await read_content(job(face), identity=Identity(), known=known)
    face.path.unlink()
    with pytest.raises(InvalidJobError, match="cannot read"):
        await read_content(job(face), identity=Identity(), known=known)


# ---- jobs out of a ledger ----


async def refused(service: Studio, face: Face, ledger: Path, images: Images) -> None:
    """Leave a job in a ledger that was keyed and not accepted."""
    service.script = lambda _, body: json_response({"code": 401, "message": "no"}, status=401) if body else None
    async with session(service, images, ledger=ledger) as kling:
        assert not (await once(kling, job(face))).ok
    service.script = None
    face.opened = 0


@pytest.mark.parametrize("images", WAYS)
async def test_recalled_job_reads_its_image_twice_at_most(face: Face, images: Images, tmp_path: Path) -> None:
    service = Studio()
    await refused(service, face, tmp_path / "run.db", images)
    async with session(service, images, ledger=tmp_path / "run.db") as kling, kling.resume(name="b") as batch:
        assert [outcome.ok async for outcome in batch] == [True]
    assert 1 <= face.opened <= 2
    assert len(service.paid) == 1


@pytest.mark.promise(1)
@pytest.mark.parametrize(("images", "number"), [("upload", 1), ("inline", 1), ("inline", 2)])
async def test_file_of_a_recalled_job_that_is_replaced_is_refused_unpaid(
    face: Face, images: Images, number: int, tmp_path: Path
) -> None:
    service = Studio()
    await refused(service, face, tmp_path / "run.db", images)
    face.before[number] = face.replace
    async with session(service, images, ledger=tmp_path / "run.db") as kling, kling.resume(name="b") as batch:
        (outcome,) = [outcome async for outcome in batch]
    assert isinstance(outcome.error, InvalidJobError | KeyReusedError)
    assert not service.paid


async def test_upload_of_an_earlier_run_is_sent_without_another_read(face: Face, tmp_path: Path) -> None:
    """The file is compared once, and what is sent is the upload: a file replaced afterwards changes nothing."""
    service = Studio()
    await refused(service, face, tmp_path / "run.db", "upload")
    uploads = list(service.uploads)
    face.before[2] = face.replace
    async with session(service, "upload", ledger=tmp_path / "run.db") as kling, kling.resume(name="b") as batch:
        assert [outcome.ok async for outcome in batch] == [True]
    assert face.opened == 1
    assert service.uploads == uploads == [png(320, 320)]


# ---- retries ----


def failing() -> Studio:
    service = Studio()
    service.failures["x"] = {"code": 5000, "error": "trouble"}

    def script(request: HttpRequest, body: dict[str, Any]) -> HttpResponse | None:
        if request.effect is Effect.PAID and service.paid:
            service.failures.clear()
        return None

    service.script = script
    return service


@pytest.mark.parametrize(
    ("images", "file", "opened"),
    # An upload is used again. A ledger file has the failed job, whose image is compared before it is paid for again.
    [("upload", False, 2), ("upload", True, 3), ("inline", False, 3), ("inline", True, 4)],
)
async def test_retried_job_reads_its_image_twice_at_most_for_each_request(
    face: Face, images: Images, opened: int, tmp_path: Path, *, file: bool
) -> None:
    service = failing()
    async with session(service, images, retry_failed=1, ledger=tmp_path / "run.db" if file else None) as kling:
        assert (await kling.generate(job(face))).output
    assert len(service.paid) == 2
    assert face.opened == opened


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("images", "file", "number"), [("upload", True, 3), ("inline", False, 3), ("inline", True, 3), ("inline", True, 4)]
)
async def test_file_that_is_replaced_before_a_retry_is_not_paid_for_again(
    face: Face, images: Images, number: int, tmp_path: Path, *, file: bool
) -> None:
    service = failing()
    face.before[number] = face.replace
    async with session(service, images, retry_failed=1, ledger=tmp_path / "run.db" if file else None) as kling:
        outcome = await once(kling, job(face))
    assert isinstance(outcome.error, PredictionFailedError | InvalidJobError)
    assert not face.before
    assert len(service.paid) == 1
    assert outcome.cost == job(face).price("wavespeed").usd, "the failed prediction is counted once, though found again"
