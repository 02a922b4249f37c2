"""Videos of jobs without a key are named after their pictures; the keys stay hashes, and saved videos are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kling_async import Job, KlingSession, Outcome, Outputs, read_ledger
from kling_async._core.content import Identity
from kling_async._session.keys import read_content
from kling_async.emulator import Emulator
from kling_async.manifest import read_manifest, read_rows

pytestmark = [pytest.mark.anyio, pytest.mark.promise(1)]


def picture(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (320, 320), (colour, 90, 90)).save(path)
    return path


async def run(emulator: Emulator, ledger: Path | None, jobs: Any, save_to: Any) -> list[Outcome]:
    session = KlingSession(
        emulator.api_key, base_url=emulator.base_url, level="gold", clock=emulator.clock, ledger=ledger
    )
    async with session as kling, kling.batch(jobs, name="b", save_to=save_to, ordered=True) as batch:
        outcomes = [outcome async for outcome in batch]
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return outcomes


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.mp4")}


def saved(outcomes: list[Outcome]) -> list[str]:
    return [outcome.saved.path.name for outcome in outcomes if outcome.saved is not None]


async def test_names_of_pictures_that_are_unique_stand_alone(tmp_path: Path) -> None:
    """Jobs in a list; those of the same name, and of a name that a key is, have the key behind it."""
    red, blue = picture(tmp_path / "red" / "front.png", 200), picture(tmp_path / "blue" / "Front.png", 20)
    jobs: list[Job | tuple[str, Job]] = [
        Job(prompt="x", image=picture(tmp_path / "SKU-1000.png", 1)),
        Job(prompt="x", image=picture(tmp_path / "猫.png", 2)),
        Job(prompt="x", image=red),
        Job(prompt="x", image=blue),
        Job(prompt="x", image="https://example.com/more/SKU-7.jpg?width=400"),
        Job(prompt="x", image=picture(tmp_path / "bytes.png", 77).read_bytes()),
        ("taken", Job(prompt="y", image=red)),
        Job(prompt="x", image=picture(tmp_path / "taken.png", 3)),
    ]
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        outcomes = await run(emulator, tmp_path / "run.db", jobs, tmp_path / "out")
        keys = [outcome.key for outcome in outcomes]
        assert saved(outcomes) == [
            "SKU-1000.mp4",
            "猫.mp4",
            f"front-{keys[2]}.mp4",
            f"Front-{keys[3]}.mp4",
            "SKU-7.mp4",
            f"{keys[5]}.mp4",
            "taken.mp4",
            f"taken-{keys[7]}.mp4",
        ]
        assert all(len(key) == 16 for key in (*keys[:6], keys[7])), "the keys are hashes"
        assert names(tmp_path / "out") == set(saved(outcomes))
        # The list grew, and the names are not unique any more; a generator, whose names nobody counts; another order.
        more = [Job(prompt="z", image=picture(tmp_path / "new" / "SKU-1000.png", 9)), *jobs]
        again = await run(emulator, tmp_path / "run.db", more, tmp_path / "out")
        assert saved(again)[1:] == saved(outcomes)
        assert saved(again)[0] == f"SKU-1000-{again[0].key}.mp4"
        assert (
            saved(await run(emulator, tmp_path / "run.db", iter(jobs[::-1]), tmp_path / "out")) == saved(outcomes)[::-1]
        )
        assert emulator.counts["output"] == len(emulator.charges()) == 9


async def test_videos_that_are_not_in_a_list_have_the_key_behind_the_name(tmp_path: Path) -> None:
    job = Job(prompt="x", image=picture(tmp_path / "a.png"))
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        (outcome,) = await run(emulator, None, iter([job]), tmp_path / "out")
        assert names(tmp_path / "out") == {f"a-{outcome.key}.mp4"}
        (outcome,) = await run(emulator, None, [job], Outputs(tmp_path / "replaced", replace=True))
        assert names(tmp_path / "replaced") == {f"a-{outcome.key}.mp4"}
        (outcome,) = await run(emulator, None, [job], f"{tmp_path}/{{batch}}/{{model}}-{{key}}")
        assert names(tmp_path / "b") == {"kling-v2.1-standard-a.mp4"}


async def test_rows_of_a_manifest_and_pictures_of_a_folder(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "photos" / f"SKU-{number}.png", number)
    picture(tmp_path / "photos" / "SKU-2.jpg", 9)
    rows = [{"image": f"photos/SKU-{number}.png", "prompt": "x", "Colour": number} for number in range(2)]
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        await run(emulator, tmp_path / "run.db", read_rows(rows, root=tmp_path), tmp_path / "rows")
        assert names(tmp_path / "rows") == {"SKU-0.mp4", "SKU-1.mp4"}
        made = await run(emulator, tmp_path / "f.db", read_manifest(tmp_path / "photos", prompt="x"), tmp_path / "all")
        assert {outcome.key for outcome in made} >= {"SKU-0", "SKU-1"}
        hashes = sorted(outcome.key for outcome in made if len(outcome.key) == 16)
        assert names(tmp_path / "all") == {"SKU-0.mp4", "SKU-1.mp4", *(f"SKU-2-{key}.mp4" for key in hashes)}
        assert len(hashes) == 2


async def test_video_saved_by_an_earlier_version_or_under_another_name_is_found(tmp_path: Path) -> None:
    """Earlier versions named it by its key alone; and the picture may be called otherwise now."""
    job = Job(prompt="x", image=picture(tmp_path / "SKU-1.png"))
    key = (await read_content(job, identity=Identity())).digest[:16]
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        # As an earlier version named it: a key of the caller's is used as it is.
        async with KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            level="gold",
            clock=emulator.clock,
            ledger=tmp_path / "run.db",
        ) as kling:
            async with kling.batch([job], name="b") as batch:
                (prediction,) = [each async for each in batch.completed()]
            assert prediction.key == key
            await kling.save(prediction, tmp_path / "out" / f"{key}.mp4")
        assert saved(await run(emulator, tmp_path / "run.db", [job], tmp_path / "out")) == [f"{key}.mp4"]
        renamed = Job(prompt="x", image=(tmp_path / "SKU-1.png").rename(tmp_path / "other.png"))
        assert saved(await run(emulator, tmp_path / "run.db", [renamed], tmp_path / "out")) == [f"{key}.mp4"]
        assert saved(await run(emulator, tmp_path / "run.db", [renamed], tmp_path / "new")) == ["other.mp4"]
        last = Job(prompt="x", image=(tmp_path / "other.png").rename(tmp_path / "last.png"))
        assert saved(await run(emulator, tmp_path / "run.db", [last], tmp_path / "new")) == ["other.mp4"]
        assert emulator.counts["output"] == 2
        assert len(emulator.charges()) == 1


@pytest.mark.parametrize("key", ["Kleid grün (2)", None])
async def test_video_that_an_earlier_version_saved_without_spaces_is_found(key: str | None, tmp_path: Path) -> None:
    """Its name had a digest for them."""
    job = Job(prompt="x", image=picture(tmp_path / "Kleid grün (2).png"))
    jobs = [job if key is None else (key, job)]
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        former = tmp_path / "out" / "Kleid_grün__2_-6652ec5d5c.mp4"
        async with KlingSession(
            emulator.api_key,
            base_url=emulator.base_url,
            level="gold",
            clock=emulator.clock,
            ledger=tmp_path / "run.db",
        ) as kling:
            async with kling.batch(jobs, name="b") as batch:
                (prediction,) = [each async for each in batch.completed()]
            await kling.save(prediction, former)
        assert saved(await run(emulator, tmp_path / "run.db", jobs, tmp_path / "out")) == [former.name]
        assert saved(await run(emulator, tmp_path / "run.db", jobs, tmp_path / "new")) == ["Kleid grün (2).mp4"]
        assert emulator.counts["output"] == 2
        assert len(emulator.charges()) == 1


async def test_renamed_picture_keeps_its_video(tmp_path: Path) -> None:
    job = Job(prompt="x", image=picture(tmp_path / "one.png"))
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        assert saved(await run(emulator, tmp_path / "run.db", [job], tmp_path / "out")) == ["one.mp4"]
        renamed = Job(prompt="x", image=(tmp_path / "one.png").rename(tmp_path / "two.png"))
        assert saved(await run(emulator, tmp_path / "run.db", [renamed], tmp_path / "out")) == ["one.mp4"]
        assert emulator.counts["output"] == 1
    assert [Path(row.path or "").name for row in read_ledger(tmp_path / "run.db")] == ["one.mp4"]


async def test_no_other_video_of_the_same_name_is_replaced(tmp_path: Path) -> None:
    other = tmp_path / "out" / "p.mp4"
    other.parent.mkdir()
    other.write_bytes(b"another list's")
    async with Emulator(level="gold", speed=200, profile="tiny", downloads=False) as emulator:
        (made,) = await run(emulator, None, [Job(prompt="x", image=picture(tmp_path / "p.png"))], tmp_path / "out")
    assert made.saved is not None
    assert names(tmp_path / "out") == {"p.mp4", f"p-{made.saved.sha256[:8]}.mp4"}
    assert other.read_bytes() == b"another list's"
