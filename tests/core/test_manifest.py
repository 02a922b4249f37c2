from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest

from kling_async import Job
from kling_async.errors import KlingError, ManifestError
from kling_async.manifest import Kind, read_manifest, read_rows
from support.pictures import png

URL = "https://example.com/face.png"
STANDARD = "kwaivgi/kling-v2.1-i2v-standard"


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in a folder of its own, so that problems have relative file names."""
    monkeypatch.chdir(tmp_path)
    Path("face.png").write_bytes(png())


def jsonl(*rows: object, name: str = "jobs.jsonl") -> str:
    Path(name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return name


def problems(path: str | Path) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return [str(problem) for problem in caught.value.problems]


def test_rows_become_jobs_with_urls_and_files(tmp_path: Path) -> None:
    manifest = read_manifest(
        jsonl(
            {"key": "a", "prompt": "Waves", "image": URL},
            {"prompt": "Waves", "image": "face.png", "model": "kling-v2.1-pro", "duration": 10},
        )
    )
    first, second = manifest
    assert first == ("a", Job(prompt="Waves", image=URL))
    assert second == (None, Job(prompt="Waves", image=tmp_path / "face.png", model="kling-v2.1-pro", duration=10))
    assert len(manifest) == 2
    assert manifest.kinds == {Kind(STANDARD, 5, sound=None): 1, Kind("kwaivgi/kling-v2.1-i2v-pro", 10, sound=None): 1}


def test_rows_name_callers_and_priorities() -> None:
    Path("jobs.csv").write_text(f"prompt,image,caller,priority\nWaves,{URL},17,5\nWind,{URL},ann,\n")
    assert [(job.caller, job.priority) for _, job in read_manifest("jobs.csv")] == [("17", 5), ("ann", 0)]
    Path("jobs.csv").write_text(f"prompt,image,priority\nWaves,{URL},high\n")
    assert "got 'high'; if the column is not the order" in problems("jobs.csv")[0]


def test_manifest_can_be_iterated_twice() -> None:
    manifest = read_manifest(jsonl({"prompt": "Waves", "image": URL}))
    assert list(manifest) == list(manifest)


@pytest.mark.anyio
async def test_async_iteration_yields_every_row() -> None:
    manifest = read_manifest(jsonl(*({"key": str(n), "prompt": "Waves", "image": URL} for n in range(200))))
    assert [key async for key, _ in manifest] == [str(n) for n in range(200)]


@pytest.mark.anyio
async def test_closing_async_iteration_closes_file() -> None:
    rows = aiter(read_manifest(jsonl(*({"prompt": "Waves", "image": URL} for _ in range(200)))))
    await anext(rows)
    await rows.aclose()  # an open file would warn, and warnings are errors


def test_every_problem_is_reported_with_file_line_and_field() -> None:
    path = jsonl(
        {"prompt": "Waves", "image": URL, "duration": 15},
        "",
        {"prompt": "", "image": URL, "guidance": 2},
        "{not json}",
        "[1]",
        {"prompt": "Waves", "image": URL},
    )
    messages = problems(path)
    assert messages[0] == "jobs.jsonl:1 duration: expected 5 or 10, got 15"
    assert messages[1].startswith(
        "jobs.jsonl:3 guidance: unknown field: the service would ignore it and charge; did you"
    )
    assert messages[2] == "jobs.jsonl:4: is not JSON: Expecting property name enclosed in double quotes (column 2)"
    assert messages[3] == "jobs.jsonl:5: expected one JSON object per line, got list"
    assert len(messages) == 4


def test_manifest_error_is_value_error_and_pickles() -> None:
    path = jsonl(*({"prompt": "Waves", "image": URL, "duration": 15} for _ in range(50)))
    with pytest.raises(ValueError, match=r"jobs\.jsonl duration: .* got 15: rows 1, 2, 3 and 47 more;") as caught:
        read_manifest(path)
    error = caught.value
    assert isinstance(error, ManifestError)
    assert isinstance(error, KlingError)
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_repeated_keys_are_reported_with_both_lines() -> None:
    rows = [{"key": key, "prompt": "Waves", "image": URL} for key in "abcab"]
    assert problems(jsonl(*rows, {"key": "d", "prompt": "Waves", "image": URL, "duration": 1})) == [
        "jobs.jsonl:4 key: 'a' is already the key of line 1",
        "jobs.jsonl:5 key: 'b' is already the key of line 2",
        "jobs.jsonl:6 duration: expected 5 or 10, got 1",
    ]


@pytest.mark.parametrize(("key", "message"), [("", "is empty"), (1.5, "expected text or a whole number, got float")])
def test_key_must_be_nonempty_text_or_a_whole_number(key: object, message: str) -> None:
    assert problems(jsonl({"key": key, "prompt": "Waves", "image": URL})) == [f"jobs.jsonl:1 key: {message}"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("../face.png", "is outside of"),
        ("/etc/passwd", "is outside of"),
        ("link.png", "is outside of"),
        ("out/secret.png", "is outside of"),
        ("missing.png", "does not exist"),
        ("folder", "is not a file"),
        ("loop", ""),
        ("nul\0byte", "embedded null"),
        ("x" * 5000, "cannot be read"),
        ("", "is empty"),
        ("file:///etc/passwd", "is outside of"),
        ("data:text/plain;base64,aGk=", "expected a data URI"),
        (5, "expected a URL"),
        (["face.png"], "expected a URL"),
    ],
)
@pytest.mark.parametrize("field", ["image", "end_image"])
@pytest.mark.promise(9)
def test_image_outside_root_or_invalid_is_refused(
    tmp_path_factory: pytest.TempPathFactory, field: str, image: object, message: str
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Path("link.png").symlink_to(outside / "secret.png")
    Path("out").symlink_to(outside, target_is_directory=True)
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    row = {"prompt": "Waves", "model": "kling-v2.1-pro-start-end-frame", "image": URL, "end_image": URL}
    (messages,) = problems(jsonl(row | {field: image}))
    assert messages.startswith(f"jobs.jsonl:1 {field}: ")
    assert message in messages


def test_link_within_root_is_accepted(tmp_path: Path) -> None:
    Path("lists").mkdir()
    Path("alias.png").symlink_to("face.png")
    path = jsonl({"prompt": "Waves", "image": "alias.png"}, name="lists/jobs.jsonl")
    assert problems(path) == [f"lists/jobs.jsonl:1 image: 'alias.png' does not exist (in {tmp_path / 'lists'})"]
    ((_, job),) = read_manifest(path, root=".")
    assert job.image == tmp_path / "face.png"


def test_image_deleted_after_check_raises_at_its_row() -> None:
    manifest = read_manifest(jsonl({"prompt": "Waves", "image": URL}, {"prompt": "Waves", "image": "face.png"}))
    Path("face.png").unlink()
    rows = iter(manifest)
    next(rows)
    with pytest.raises(ManifestError, match=r"jobs\.jsonl:2 image: 'face\.png' does not exist"):
        next(rows)


def test_repeated_field_is_refused() -> None:
    path = jsonl('{"prompt": "Waves", "image": "https://e.com/a.png", "duration": 5, "duration": 10}')
    assert problems(path) == ["jobs.jsonl:1 duration: is given twice"]


def test_truncated_json_is_reported_at_end_of_line() -> None:
    path = Path("jobs.jsonl")
    path.write_text('{"prompt": "Waves",\r\n{"prompt": "Wa\n')
    assert problems(path) == [
        "jobs.jsonl:1: is not JSON: Expecting property name enclosed in double quotes (column 20)",
        "jobs.jsonl:2: is not JSON: Unterminated string starting at (column 12)",
    ]


@pytest.mark.parametrize("name", ["self", "job", "__class__", "fields"])
def test_hostile_names_of_columns_travel_along(name: str) -> None:
    ((_, job),) = read_manifest(jsonl({"prompt": "Waves", "image": URL, name: 1}))
    assert job == Job(prompt="Waves", image=URL)
    assert job.labels == {name: 1}


def test_deep_or_huge_json_is_a_problem() -> None:
    messages = problems(jsonl("[" * 100_000, '{"duration": ' + "9" * 10_000 + "}"))
    assert [line.split(": ")[1] for line in messages] == ["cannot be parsed as JSON"] * 2


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_invalid_utf8_is_reported_with_line(suffix: str) -> None:
    if suffix == "jsonl":
        lines = [b'{"prompt": "Waves", "image": "https://e.com/a.png"}', b'{"prompt": "caf\xe9"}', b"{}"]
    else:
        lines = [b"prompt,image", b"caf\xe9,https://e.com/a.png", b"Waves,"]
    Path(f"jobs.{suffix}").write_bytes(b"\n".join(lines))
    messages = problems(f"jobs.{suffix}")
    assert messages[0].startswith(f"jobs.{suffix}:2: is not UTF-8 (byte 0xe9 at position ")
    assert messages[1].startswith(f"jobs.{suffix}:3 ")


@pytest.mark.parametrize("name", ["jobs.jsonl", "jobs.csv"])
def test_byte_order_mark_and_crlf_are_accepted(name: str) -> None:
    text = (
        '{"prompt": "Waves", "image": "https://e.com/a.png"}' if name.endswith("l") else f"prompt,image\r\nWaves,{URL}"
    )
    Path(name).write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert len(read_manifest(name)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "missing.jsonl: cannot be read: No such file or directory"),
        ("folder.csv", "folder.csv: cannot be read: Is a directory"),
        (
            "jobs.xls",
            (
                "jobs.xls: expected a folder of pictures, pictures, a pattern such as photos/*.jpg, or a file of .csv, "
                ".tsv, .jsonl, .ndjson, .json, .parquet, .xlsx (also packed: .csv.gz), got .xls"
            ),
        ),
        ("empty.jsonl", "empty.jsonl: has no rows"),
        ("empty.csv", "empty.csv: has no rows"),
    ],
)
def test_unreadable_and_empty_files_are_problems(name: str, message: str) -> None:
    Path("folder.csv").mkdir()
    Path("empty.jsonl").write_text("\n\n")
    Path("empty.csv").write_text("")
    assert problems(name) == [message]


def csv(text: str, name: str = "jobs.csv") -> str:
    Path(name).write_text(text)
    return name


def test_csv_cells_are_converted_and_empty_cells_ignored() -> None:
    path = csv(
        "key,model,prompt,image,guidance_scale,duration,negative_prompt,sound,extra\n"
        '\n a ,kling-v3.0-pro,"Waves, slowly", https://e.com/a.png ,0.5,10,,yes,"{""seed"": 1}"\n'
        ",,,,,,,,\n"
        "b,,Waves,https://e.com/a.png\n"
    )
    (first, job), (second, plain) = read_manifest(path)
    assert (first, second) == ("a", "b")
    assert job == Job(
        model="kling-v3.0-pro",
        prompt="Waves, slowly",
        image="https://e.com/a.png",
        extra={"seed": 1},
        duration=10,
        sound=True,
        guidance_scale=0.5,
    )
    assert plain == Job(prompt="Waves", image="https://e.com/a.png")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_accepts_semicolons_and_tabs(delimiter: str) -> None:
    path = csv(f"prompt{delimiter}image\nWaves, slowly{delimiter}{URL}\n")
    ((_, job),) = read_manifest(path)
    assert job.prompt == "Waves, slowly"


def test_csv_problem_has_first_line_of_row() -> None:
    path = csv(
        f'prompt,image,duration,guidance_scale,sound\n"two\nlines",{URL},5,,\n"three\nmore\nlines",{URL},15,high,maybe\n'
        f"Waves,{URL},5,,,7\n"
    )
    assert problems(path) == [
        "jobs.csv:4 guidance_scale: expected a number from 0 to 1, got 'high'",
        "jobs.csv:4 sound: expected true or false, got 'maybe'",
        "jobs.csv:7: column 6 has no name in the header: put a text with the separator in it into double quotes",
    ]


def test_csv_header_problems_are_reported_once() -> None:
    path = csv(f"prompt,image,duratoin,prompt\nWaves,{URL},5,\nWaves,{URL},5,\n")
    assert problems(path) == [
        "jobs.csv:1 prompt: is the name of two columns",
        (
            "jobs.csv:1 duratoin: unknown field: the service would ignore it and charge; did you mean duration? Then "
            "say --column duration=duratoin; to keep it for the results alone, --column duratoin=duratoin"
        ),
    ]


def test_csv_unclosed_quote_and_giant_cell_are_problems() -> None:
    messages = problems(csv(f'prompt,image\n"Waves,{URL}\nmore\n'))
    assert messages == ["jobs.csv:2: is not CSV: unexpected end of data"]
    messages = problems(csv(f"prompt,image\n{'x' * 140_000},{URL}\nWaves,{URL}\n"))
    assert messages == ["jobs.csv:2: is not CSV: field larger than field limit (131072)"]


def test_memory_does_not_grow_with_rows() -> None:
    def peak(rows: int) -> int:
        path = Path(f"{rows}.jsonl")
        with path.open("w") as file:
            for number in range(rows):
                file.write(f'{{"key": "row {number}", "prompt": "Waves", "image": "{URL}"}}\n')
        tracemalloc.start()
        try:
            manifest = read_manifest(path)
            assert sum(1 for _ in manifest) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    few, many = peak(1000), peak(5000)
    # 16 bytes per key are kept to find repeated ones.
    assert many - few < 4000 * 40


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_named_pipe_is_refused() -> None:
    os.mkfifo("pipe")
    assert "is not a file" in problems(jsonl({"prompt": "Waves", "image": "pipe"}))[0]


def test_left_out_row_keeps_its_own_labels_beside_those_of_columns() -> None:
    rows = [{"prompt": "", "image": URL, "labels": {"sku": "A7"}, "order": "1742"}]
    manifest = read_rows([*rows, {"prompt": "x", "image": URL}], skip_invalid=True)
    (left_out,) = manifest.invalid_rows()
    assert left_out["labels"] == {"sku": "A7", "order": "1742"}
