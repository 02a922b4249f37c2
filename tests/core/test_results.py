"""Files from a ledger: results, errors manifest, statistics, data set, table."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pyarrow.json  # type: ignore[import-untyped]  # it has no types
import pytest
from pyarrow import parquet

from kling_async import ConfigurationError, FirstFrame, FrameAt, Job, LastFrame, LedgerError
from kling_async._core.content import content_of
from kling_async._core.video_frames import VideoFrame
from kling_async.ledger import Content, Entry, SQLiteLedger, State, read_ledger, read_steps
from kling_async.manifest import read_manifest
from kling_async.results import Format, _parquet, export, job_of, result_of
from kling_async.results._rows import STATUS
from support.cli import ROOT
from support.pictures import png

pytestmark = pytest.mark.anyio

URL = "https://example.com/face.png"
STANDARD = "kwaivgi/kling-v2.1-i2v-standard"
TO_SUBMITTED = (State.INTENT, State.SUBMITTED)
PATHS = {
    State.PENDING: (),
    State.SKIPPED: (State.SKIPPED,),
    State.INTENT: (State.INTENT,),
    State.UNCERTAIN: (State.INTENT, State.UNCERTAIN),
    State.REJECTED: (State.INTENT, State.REJECTED),
    State.REUSED: (State.REUSED,),
    State.ABANDONED: (State.INTENT, State.UNCERTAIN, State.ABANDONED),
    State.SUBMITTED: TO_SUBMITTED,
    State.FAILED: (*TO_SUBMITTED, State.FAILED),
    State.EXPIRED: (*TO_SUBMITTED, State.EXPIRED),
    State.COMPLETED: (*TO_SUBMITTED, State.COMPLETED),
    State.DOWNLOADED: (*TO_SUBMITTED, State.COMPLETED, State.DOWNLOADED),
}
SECONDS = {State.INTENT: 0, State.SUBMITTED: 2, State.COMPLETED: 62, State.FAILED: 42, State.DOWNLOADED: 66}
START = 1_800_000_000.0


async def write(path: Path, *jobs: dict[str, Any]) -> Path:
    """Write a ledger with jobs in any state, as a session would."""
    ledger = SQLiteLedger(path)
    await ledger.open()
    for number, job in enumerate(jobs):
        batch, key, state = job.get("batch", "spring"), job.get("key", f"job-{number}"), job["state"]
        start = START + job.get("start", 0)
        fields = {"image": URL, "prompt": "Waves", "model": STANDARD, "duration": 5} | job.get("job", {})
        files = json.dumps(job["files"]) if "files" in job else None
        content = Content(json.dumps(fields), files, labels=job.get("labels"))
        await ledger.claim(batch, key, content=content, model=STANDARD, at=start)
        for step in PATHS[state]:
            await ledger.record(
                Entry(
                    batch=batch,
                    key=key,
                    state=step,
                    at=start + SECONDS.get(step, 90) * job.get("pace", 1),
                    attempt=1 if step is State.INTENT else None,
                    prediction_id=f"p{batch}{number}" if step is State.SUBMITTED else None,
                    cost=Decimal("0.45") if step is State.SUBMITTED else None,
                    error=job.get("error") if step is state else None,
                    code=job.get("code") if step is state else None,
                    path=job.get("path") if step is state else None,
                    bytes=5 if step is State.DOWNLOADED else None,
                    sha256="ab" * 32 if step is State.DOWNLOADED else None,
                )
            )
    await ledger.aclose()
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_results_have_line_per_job(tmp_path: Path) -> None:
    out = tmp_path / "videos"
    ledger = await write(
        tmp_path / "run.db",
        {"key": "a", "state": State.DOWNLOADED, "path": str(out / "sub" / "a.mp4")},
        {"key": "b", "state": State.FAILED, "error": "the input is refused", "code": 1200},
        *({"state": state, "start": 100} for state in PATHS if state not in {State.DOWNLOADED, State.FAILED}),
    )
    (made,) = export(ledger, out, [Format.RESULTS])
    assert (made.path, made.rows, made.left_out) == (out / "results.jsonl", len(PATHS), {})
    rows = {row["key"]: row for row in lines(made.path)}
    assert rows["a"] == {
        "key": "a",
        "batch": "spring",
        "model": STANDARD,
        "status": "saved",
        "prediction_id": "pspring0",
        "file": "sub/a.mp4",
        "bytes": 5,
        "sha256": "ab" * 32,
        "cost_usd": 0.45,
        "image": URL,
        "prompt": "Waves",
        "duration": 5,
        "attempts": 1,
        "submitted_at": "2027-01-15T08:00:02.000+00:00",
        "updated_at": "2027-01-15T08:01:06.000+00:00",
        "error": None,
        "labels": {},
    }
    assert rows["b"]["error"] == {"code": 1200, "message": "the input is refused"}
    assert {row["status"] for row in rows.values()} == set(STATUS.values())
    assert list(out.iterdir()) == [made.path], "no partial file"


async def test_results_join_videos_with_pictures_and_columns(tmp_path: Path) -> None:
    ledger = await write(
        tmp_path / "run.db",
        {"key": "a", "state": State.REJECTED, "labels": '{"SKU": 1000}', "files": {"image": str(tmp_path / "a.png")}},
        {"key": "b", "state": State.REJECTED, "labels": '{"SKU": 1001}'},
    )
    (tmp_path / "a.png").write_bytes(png())
    export(ledger, tmp_path, [Format.RESULTS, Format.ERRORS, Format.PARQUET])
    found = {row["key"]: (row["image"], row["labels"]) for row in lines(tmp_path / "results.jsonl")}
    assert found == {"a": ("a.png", {"SKU": 1000}), "b": (URL, {"SKU": 1001})}
    table = parquet.read_table(tmp_path / "results").to_pylist()
    assert {(row["image"], row["labels"]) for row in table} == {("a.png", '{"SKU": 1000}'), (URL, '{"SKU": 1001}')}
    assert {key: job.labels for key, job in read_manifest(tmp_path / "errors.jsonl")} == {
        "a": {"SKU": 1000},
        "b": {"SKU": 1001},
    }


async def test_columns_of_a_later_run_replace_those_before(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await write(path, {"key": "a", "state": State.DOWNLOADED, "labels": '{"SKU": 1}'})
    ledger = SQLiteLedger(path)
    await ledger.open()
    (row,) = read_ledger(path)
    for labels in ('{"SKU": 2}', None):
        await ledger.claim("spring", "a", content=Content(row.job or "", labels=labels), model=STANDARD, at=START)
    await ledger.aclose()
    assert [row.labels for row in read_ledger(path)] == ['{"SKU": 2}'], "without columns, they stay"


async def test_rows_left_out_of_a_run_stay_in_its_errors(tmp_path: Path) -> None:
    ledger = await write(tmp_path / "run.db", {"key": "a", "state": State.REJECTED})
    rows = [
        {"image": str(tmp_path / "photos" / "b.png"), "prompt": "x", "_error": {"status": "invalid", "message": "?"}}
    ]
    (made,) = export(ledger, tmp_path / "out", [Format.ERRORS], invalid=rows)
    assert (made.rows, made.invalid, made.root) == (2, 1, tmp_path / "photos")
    (again,) = export(ledger, tmp_path / "out", [Format.ERRORS])
    assert (again.rows, again.invalid) == (2, 1), "an export without the list keeps them"
    assert lines(made.path)[0] == rows[0]
    (mended,) = export(ledger, tmp_path / "out", [Format.ERRORS], invalid=[])
    assert (mended.rows, mended.invalid) == (1, 0)


async def test_errors_manifest_reads_back_as_same_jobs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "z ü.png"):
        (photos / name).write_bytes(png())
    wanted = {
        "failed": Job(prompt="Waves", image=photos / "a.png", model="kling-v2.1-pro", duration=10, guidance_scale=0.3),
        "rejected": Job(
            prompt="Wind \N{SNOWMAN}\n", image=URL, end_image=photos / "z ü.png", model="kling-v2.1-pro-start-end-frame"
        ),
        "never sent": Job(model="kling-v3.0-pro", image=URL, sound=True, multi_prompt=["a", "b"], extra={"seed": 7}),
        "expired": Job(prompt="Waves", image=URL, negative_prompt="blur"),
    }
    states = [State.FAILED, State.REJECTED, State.PENDING, State.EXPIRED]
    ledger = await write(
        tmp_path / "run.db",
        *(
            {"key": key, "state": state, "error": "no", "job": plain(job), "files": files(job)}
            for (key, job), state in zip(wanted.items(), states, strict=True)
        ),
        *({"state": state} for state in PATHS if state not in {*states, State.SKIPPED}),
    )
    (made,) = export(ledger, tmp_path / "out", [Format.ERRORS])
    assert (made.rows, made.left_out, made.root) == (4, {}, photos)
    assert dict(read_manifest(made.path, root=made.root)) == wanted
    assert lines(made.path)[0]["_error"] in [
        {"status": status, "code": None, "message": message}
        for status, message in (("waiting", None), ("failed", "no"), ("rejected", "no"), ("expired", "no"))
    ]
    (beside,) = export(ledger, tmp_path, [Format.ERRORS])
    assert beside.root is None
    assert {row.get("image") for row in lines(beside.path)} == {"photos/a.png", URL}
    assert dict(read_manifest(beside.path)) == wanted


@pytest.mark.parametrize(
    ("frame", "shown"),
    [
        (LastFrame("dawn"), {"continues": "dawn"}),
        (FirstFrame("dawn"), {"image": "first_frame:job:00"}),
        (FrameAt("dawn", 2), {"continues": "dawn", "continues_at": 2.0}),
    ],
)
async def test_job_that_continues_another_names_it(tmp_path: Path, frame: VideoFrame, shown: dict[str, object]) -> None:
    path = tmp_path / "run.db"
    ledger = SQLiteLedger(path)
    await ledger.open()
    content = content_of(Job(prompt="Sail", image=frame), lambda _: "", parents={"dawn": "00"})
    await ledger.claim("bay", "sail", content=content, model=STANDARD, at=START)
    await ledger.aclose()
    (row,) = read_ledger(path)
    job = job_of(row) or {}
    assert {name: job[name] for name in ("image", "continues", "continues_at") if name in job} == shown


def plain(job: Job) -> dict[str, Any]:
    """Return the fields of a job as a ledger has them."""
    fields = {
        "model": job.model,
        "prompt": job.prompt or None,
        "image": "sha256:00" if isinstance(job.image, Path) else job.image,
        "end_image": "sha256:00" if isinstance(job.end_image, Path) else job.end_image,
        "negative_prompt": job.negative_prompt,
        "guidance_scale": job.guidance_scale,
        "duration": job.duration,
        "sound": job.sound,
        "multi_prompt": [{"prompt": shot.prompt} for shot in job.multi_prompt] or None,
        "extra": dict(job.extra) or None,
    }
    return {name: value for name, value in fields.items() if value is not None} | (
        {} if job.prompt else {"prompt": None}
    )


def files(job: Job) -> dict[str, str]:
    images = {"image": job.image, "end_image": job.end_image}
    return {name: str(image) for name, image in images.items() if isinstance(image, Path)}


async def test_jobs_missing_in_errors_manifest_are_counted_by_reason(tmp_path: Path) -> None:
    ledger = await write(
        tmp_path / "run.db",
        {"state": State.FAILED, "job": {"image": "sha256:1234"}},
        {"state": State.FAILED, "job": {"image": "sha256:1234"}, "files": {"image": str(tmp_path / "gone.png")}},
        {"state": State.FAILED, "job": {"model": "somebody/elses"}},
        {"state": State.FAILED, "key": "twice"},
        {"state": State.FAILED, "key": "twice", "batch": "autumn"},
        {"state": State.FAILED, "key": "old"},
    )
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("DELETE FROM content WHERE key = 'old'")
        connection.commit()
    (made,) = export(ledger, tmp_path, [Format.ERRORS])
    assert made.rows == 1
    assert {reason.split(":")[0]: count for reason, count in made.left_out.items()} == {
        "its image was given as bytes, which the ledger does not keep": 1,
        "its image file is gone": 1,
        "it is not valid by itself": 1,
        "its key is in two batches": 1,
        "the ledger does not have its content": 1,
    }
    assert len(read_manifest(made.path)) == 1
    (one,) = export(ledger, tmp_path, [Format.ERRORS], batch="autumn")
    assert (one.rows, one.left_out) == (1, {})


async def test_stats_have_counts_money_phases_and_errors(tmp_path: Path) -> None:
    ledger = await write(
        tmp_path / "run.db",
        *({"state": State.DOWNLOADED, "pace": pace} for pace in range(1, 101)),
        {"state": State.FAILED, "code": 5000, "error": "busy"},
        *({"state": State.FAILED, "code": 1200, "error": "refused"} for _ in range(3)),
        {"state": State.REJECTED, "error": "no such parameter"},
        {"state": State.PENDING, "batch": "autumn"},
    )
    (made,) = export(ledger, tmp_path, [Format.STATS], batch="spring")
    stats = json.loads(made.path.read_text())
    assert stats["jobs"] == made.rows == 105
    assert stats["states"] == {"saved": 100, "failed": 4, "rejected": 1}
    assert stats["models"] == {STANDARD: stats["states"]}
    assert (stats["spent_usd"], stats["refundable_usd"], stats["refunded_usd"]) == (46.8, 1.8, 0.0)
    assert stats["phases"] == {
        "waiting": {"count": 105, "p50": 0.0, "p95": 0.0},
        "submitting": {"count": 104, "p50": 96.0, "p95": 190.0},
        "generating": {"count": 100, "p50": 3000.0, "p95": 5700.0},
        "downloading": {"count": 100, "p50": 200.0, "p95": 380.0},
        "whole": {"count": 100, "p50": 3300.0, "p95": 6270.0},
    }
    assert stats["errors"] == [
        {"status": "failed", "code": 1200, "count": 3, "example": "refused"},
        {"status": "failed", "code": 5000, "count": 1, "example": "busy"},
        {"status": "rejected", "code": None, "count": 1, "example": "no such parameter"},
    ]


async def test_phases_of_resent_job_are_of_last_attempt(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "run.db")
    await ledger.open()
    await ledger.claim("", "a", content=Content("{}"), model=STANDARD, at=0)
    moves = [(State.INTENT, 0), (State.PENDING, 3), (State.INTENT, 10), (State.SUBMITTED, 11), (State.FAILED, 50)]
    moves += [(State.INTENT, 100), (State.SUBMITTED, 104), (State.COMPLETED, 164), (State.DOWNLOADED, 170)]
    for state, at in moves:
        attempt = 1 if state is State.INTENT else None
        await ledger.record(Entry(batch="", key="a", state=state, at=at, attempt=attempt))
    await ledger.aclose()
    steps = [(step.state, step.at) for step in read_steps(tmp_path / "run.db")]
    assert steps == [(State.PENDING, 0), *moves]
    (made,) = export(tmp_path / "run.db", tmp_path, [Format.STATS])
    phases = json.loads(made.path.read_text())["phases"]
    assert {name: phase["p50"] for name, phase in phases.items()} == {
        "waiting": 100,
        "submitting": 4,
        "generating": 60,
        "downloading": 6,
        "whole": 170,
    }


async def test_metadata_is_readable_as_data_set(tmp_path: Path) -> None:
    out = tmp_path / "videos"
    (out / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/b.mp4"):
        (out / name).write_bytes(b"video")
    (tmp_path / "else.mp4").write_bytes(b"video")
    ledger = await write(
        tmp_path / "run.db",
        {"key": "a", "state": State.DOWNLOADED, "path": str(out / "a.mp4"), "job": {"negative_prompt": "blur"}},
        {"key": "b", "state": State.DOWNLOADED, "path": str(out / "sub" / "b.mp4")},
        {"key": "c", "state": State.DOWNLOADED, "path": str(out / "gone.mp4")},
        {"key": "d", "state": State.DOWNLOADED, "path": str(tmp_path / "else.mp4")},
        {"key": "e", "state": State.FAILED},
    )
    (made,) = export(ledger, out, [Format.METADATA])
    assert (made.path, made.rows) == (out / "metadata.jsonl", 2)
    assert made.left_out == {"its video is gone": 1, "its video is in another folder": 1}
    # VideoFolder infers types from the first block and expects `file_name` relative to the file.
    table = pyarrow.json.read_json(made.path)
    assert str(table.schema.field("file_name").type) == "string"
    assert "null" not in {str(field.type) for field in table.schema}
    assert sorted(table["file_name"].to_pylist()) == ["a.mp4", "sub/b.mp4"]
    assert not {name for name in table.column_names if name.endswith("file_name")} - {"file_name"}


async def test_parquet_export_writes_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parquet, "SHARD_ROWS", 4)
    states = list(PATHS)
    ledger = await write(tmp_path / "run.db", *({"state": state, "error": "no"} for state in states))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "part-00007.parquet").write_bytes(b"of an earlier, larger export")
    (made,) = export(ledger, tmp_path, [Format.PARQUET])
    assert sorted(path.name for path in made.path.iterdir()) == [f"part-0000{n}.parquet" for n in range(3)]
    table = parquet.read_table(made.path)
    assert table.num_rows == made.rows == len(states)
    wanted = {row.key: result_of(row, tmp_path) for row in read_ledger(ledger)}
    for row in table.to_pylist():
        assert row["status"] == wanted[row["key"]]["status"]
        assert row["error_message"] == (wanted[row["key"]]["error"] or {"message": None})["message"]  # type: ignore[index]  # a mapping
        assert row["updated_at"].isoformat(timespec="milliseconds") == wanted[row["key"]]["updated_at"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationError, match=r"kling-async\[parquet\]"):
        export(ledger, tmp_path, [Format.PARQUET])


async def test_missing_ledger_writes_no_files(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        export(tmp_path / "none.db", tmp_path / "out")
    assert not (tmp_path / "out").exists()


async def test_failed_export_keeps_earlier_file(tmp_path: Path) -> None:
    ledger = await write(tmp_path / "run.db", {"state": State.PENDING})
    export(ledger, tmp_path, [Format.RESULTS])
    before = (tmp_path / "results.jsonl").read_text()
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("UPDATE content SET job = '{'")
        connection.commit()
    with pytest.raises(ValueError, match="Expecting"):
        export(ledger, tmp_path, [Format.RESULTS])
    assert (tmp_path / "results.jsonl").read_text() == before
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("run.db")} == {"results.jsonl"}


MEMORY = """
import re, sys
from kling_async.results import Format, export
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
export(sys.argv[1], sys.argv[3])
before = peak()
export(sys.argv[2], sys.argv[3])
print(peak() - before)
"""


@pytest.mark.repeats
async def test_process_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    few = await write(tmp_path / "few.db", {"state": State.DOWNLOADED}, {"state": State.FAILED})
    many = await write(tmp_path / "many.db", {"state": State.DOWNLOADED, "key": "first"})
    with closing(sqlite3.connect(many)) as connection:
        names = [name for _, name, *_ in connection.execute("PRAGMA table_info(job)")]
        new = {"key": "'k' || n", "prediction_id": "'p' || n"}
        chosen = ", ".join(new.get(name, name) for name in names)
        numbers = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 30000)"
        connection.execute(f"INSERT INTO job {numbers} SELECT {chosen} FROM c, job")
        connection.execute(
            f"INSERT INTO step {numbers} SELECT batch, 'k' || n, state, at, attempt, NULL, NULL FROM c, step"
        )
        connection.commit()
    command = [sys.executable, "-c", MEMORY, str(few), str(many), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = await anyio.run_process(command, env=environment)
    assert len(lines(tmp_path / "results.jsonl")) == 30_001
    # As objects the rows are 40 MB. Kept are 8 bytes per duration; SQLite sorts in a few megabytes.
    assert float(ran.stdout) < 12
