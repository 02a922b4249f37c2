"""Jobs without a key are called after their pictures, and nothing that was paid for is paid again."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kling_async import Job, KlingSession, Outcome, WatchPolicy, read_ledger
from kling_async._core import content as contents
from kling_async._core.content import content_of
from kling_async._core.picture_names import picture_name
from kling_async._session.keys import is_derived
from kling_async.cli.choices import SeenChoice
from kling_async.cli.ledgers import LedgerName
from kling_async.cli.reading import identity_of
from kling_async.cli.spending import Payable, due_of_manifest
from kling_async.manifest import read_manifest, read_rows
from kling_async.testing import LoopClock
from support.hashed_keys import FOLDER, HASHED_KEYS, LIST, folder_jobs, list_jobs, picture
from support.service import Service, open_session

pytestmark = [pytest.mark.anyio, pytest.mark.promise(1)]

URL = "https://pictures.example/lake.png"
OTHER = "https://pictures.example/more/lake.png"


def service() -> Service:
    epoch = 1_800_000_000.0 - asyncio.get_running_loop().time()
    return Service(seconds=0.01, latency=0.0, clock=LoopClock(epoch), epoch=epoch)


def session(at: Service, ledger: Path | None, **options: Any) -> KlingSession:
    return open_session(at, watch=WatchPolicy.fixed(0.02), ledger=ledger, grace=0.01, images="inline", **options)


async def run(at: Service, ledger: Path | None, jobs: Any, name: str = "b", **options: Any) -> dict[str, Outcome]:
    async with session(at, ledger) as kling, kling.batch(jobs, name=name, ordered=True, **options) as batch:
        outcomes = [outcome async for outcome in batch]
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return {outcome.key: outcome for outcome in outcomes}


async def test_ledger_of_the_version_before_keeps_its_keys(tmp_path: Path) -> None:
    """Its rows are not paid for again, in any order, nor as the list or folder that they came from."""
    path = Path(shutil.copy(HASHED_KEYS, tmp_path / "run.db"))
    known = {(row.batch, row.key) for row in read_ledger(path)}
    at, photos = service(), tmp_path / "photos"
    jobs, keyed = list_jobs(photos), folder_jobs(photos)
    assert {(LIST, key) for key in await run(at, path, jobs[::-1], LIST)} <= known
    assert {(FOLDER, key) for key in await run(at, path, keyed, FOLDER)} <= known
    folder = tmp_path / "other"
    picture(folder, "anna.png")
    assert {(FOLDER, key) for key in await run(at, path, read_manifest(folder, prompt="Wind"), FOLDER)} <= known
    assert at.paid == []
    # A second picture of that name: the first keeps what was its key, and the rows have none of their own.
    Image.new("RGB", (400, 300)).save(folder / "anna.jpg")
    assert [key for key, _ in read_manifest(folder, prompt="Wind")] == [None, None]
    assert "anna" in await run(at, path, read_manifest(folder, prompt="Wind"), FOLDER)
    assert len(at.paid) == 1
    at.paid.clear()
    new = Job(prompt="Night", image=photos / "SKU-1.png")
    made = await run(at, path, [*jobs, new], LIST)
    assert len(at.paid) == 1
    assert [len(key) for key in made if (LIST, key) not in known] == [16], "new jobs of an old batch as its others"


async def test_estimate_knows_the_keys_of_the_version_before(tmp_path: Path) -> None:
    path = Path(shutil.copy(HASHED_KEYS, tmp_path / "run.db"))
    ledger = LedgerName(path)
    jobs = list_jobs(tmp_path)
    manifest = read_rows([{"image": job.image, "prompt": job.prompt} for job in jobs])
    identity = identity_of(ledger, LIST, None)
    due = await due_of_manifest(manifest, LIST, identity, Payable(ledger, 0, SeenChoice.STOP))
    assert (due.kinds.total(), due.known) == (0, 4)


async def test_jobs_are_called_after_their_pictures(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "run.db"
    first, second = picture(tmp_path, "SKU-1.png"), picture(tmp_path, "猫.png")
    jobs: list[Job | tuple[str, Job]] = [
        Job(prompt="x", image=first),
        Job(prompt="x", image=second),
        Job(prompt="x", image=URL),
        Job(prompt="x", image=OTHER),
        Job(prompt="x", image=first.read_bytes()),
        ("SKU-9", Job(prompt="x", image="https://pictures.example/a.png")),
        Job(prompt="x", image="https://pictures.example/SKU-9.png"),
    ]
    keys = [*await run(at, path, jobs)]
    digests = [content_of(job, lambda _: "").digest for job in jobs if isinstance(job, Job)]
    assert keys[:4] == ["SKU-1", "猫", f"lake-{digests[2][:8]}", f"lake-{digests[3][:8]}"]
    assert len(keys[4]) == 16, "bytes have no name"
    assert keys[5:] == ["SKU-9", f"SKU-9-{digests[5][:8]}"], "a key goes before the name of a picture"
    # The same list as a manifest, and what a run of it would pay for.
    rows: list[dict[str, object]] = []
    for item in jobs:
        key, job = (None, item) if isinstance(item, Job) else item
        rows.append({"key": key, "image": job.image, "prompt": "x"})
    manifest = read_rows(rows)
    assert [*await run(at, path, manifest)] == keys
    due = await due_of_manifest(
        manifest, "b", identity_of(LedgerName(path), "b", None), Payable(LedgerName(path), 0, SeenChoice.STOP)
    )
    assert (due.kinds.total(), due.known, len(at.paid)) == (0, 7, 7)


async def test_rows_that_come_go_and_move_pay_for_nothing_again(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "run.db"
    one, two, far = Job(prompt="a", image=URL), Job(prompt="b", image=URL), Job(prompt="a", image=OTHER)
    assert [*await run(at, path, [one])] == ["lake"]
    hashed = f"lake-{content_of(two, str).digest[:8]}"
    assert [*await run(at, path, [two, one])] == [hashed, "lake"], "it keeps the name, which is not unique any more"
    assert [*await run(at, path, [far, one, two])][1:] == ["lake", hashed]
    twice = [*await run(at, path, [one, one])]
    assert twice == ["lake", f"lake-{content_of(one, str).digest[:8]}"]
    assert [*await run(at, path, (job for job in (one, two, one)))] == ["lake", hashed, twice[1]]
    assert [body["prompt"] for body in at.paid] == ["a", "b", "a", "a"]
    # A row with another prompt is a new job, as without names.
    assert [*await run(at, path, [Job(prompt="c", image=URL)])] != ["lake"]


async def test_input_that_cannot_be_looked_through_names_the_first(tmp_path: Path) -> None:
    at = service()
    jobs = [Job(prompt="a", image=URL), Job(prompt="b", image=OTHER), Job(prompt="a", image=URL)]
    for ledger in (tmp_path / "run.db", None):
        first, second, third = await run(at, ledger, iter(jobs))
        assert first == "lake"
        assert second == f"lake-{content_of(jobs[1], str).digest[:8]}"
        assert third == f"lake-{content_of(jobs[0], str).digest[:8]}"


async def test_job_without_a_key_is_known_by_its_content_in_other_batches(tmp_path: Path) -> None:
    at, path = service(), tmp_path / "run.db"
    job = Job(prompt="a", image=URL)
    await run(at, path, [job], "first")
    async with session(at, path) as kling, kling.batch([job, Job(prompt="b", image=OTHER)], name="second") as batch:
        outcomes = [outcome async for outcome in batch]
    assert not outcomes[0].ok
    assert len(at.paid) == 1
    made = await run(at, path, [("mine", job)], "third")
    assert (list(made), len(at.paid)) == (["mine"], 2), "a key of its own is a wish for another video"


async def test_batch_without_names_is_recognized_by_its_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at, path = service(), tmp_path / "run.db"
    newest = contents.IDENTITY_VERSION
    monkeypatch.setattr(contents, "IDENTITY_VERSION", 2)
    job = Job(prompt="a", image=URL)
    (key,) = await run(at, path, [job])
    assert len(key) == 16
    monkeypatch.setattr(contents, "IDENTITY_VERSION", newest)
    assert [*await run(at, path, [job])] == [key]
    assert len(at.paid) == 1


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Path("photos/SKU 1.v2.jpg"), "SKU 1.v2"),
        (Path(".png"), ".png"),
        ("https://cdn.example/a/SKU%201.jpg?width=300#top", "SKU 1"),
        ("https://cdn.example/a/u\u0308ber.jpg", "\u00fcber"),
        ("https://cdn.example", None),
        ("https://cdn.example/", None),
        ("https://cdn.example/a%2Fb.jpg", None),
        ("https://cdn.example/%00.jpg", None),
        (f"https://cdn.example/{'x' * 201}.jpg", None),
        ("data:image/png;base64,aGk=", None),
        ("photos\\anna.jpg", "anna"),
        (b"\x89PNG", None),
        (Path("a\udcff.png"), None),
        (None, None),
    ],
)
def test_names_of_pictures(image: object, name: str | None) -> None:
    assert picture_name(image) == name


def test_derived_keys_are_told_from_given_ones() -> None:
    content = content_of(Job(prompt="a", image=URL), str)
    derived = ["lake", f"lake-{content.digest[:8]}", f"lake-{content.digest[:8]}-2", content.digest[:16]]
    assert all(is_derived(key, content) for key in [*derived, f"{content.digest[:16]}-at-7"])
    assert not any(is_derived(key, content) for key in ["lakes", "lake-2", "SKU-1", content.digest[:15]])
    assert not is_derived("lake", content_of(Job(prompt="a", image=b"\x89PNG\r\n\x1a\n"), lambda _: "ab"))
