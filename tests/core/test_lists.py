"""Lists as people have them: any format, any header, other columns, numbers of libraries, rows to leave out."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kling_async import ConfigurationError, Job, ManifestError, Model, ServiceModel
from kling_async.manifest import Manifest, batch_name, read_manifest, read_rows
from support.pictures import jpeg, png
from support.sheets import write_xlsx
from support.videos import mp4

URL = "https://example.com/face.png"
EDIT = ServiceModel(
    id="kwaivgi/kling-test/edit",
    schema={
        "properties": {
            "prompt": {"type": "string"},
            "video": {"type": "string"},
            "mode": {"type": "string"},
            "options": {"type": "object"},
            "loop": {"type": "boolean"},
        }
    },
)


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("SKU-1.jpg").write_bytes(jpeg())
    Path("SKU-2.png").write_bytes(png())


def problems(source: Any, **options: Any) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(source, **options) if isinstance(source, (str, Path)) else read_rows(source, **options)
    return [str(problem) for problem in caught.value.problems]


def write(name: str, text: str, encoding: str = "utf-8") -> str:
    Path(name).write_bytes(text.encode(encoding))
    return name


def found(manifest: Manifest) -> list[tuple[str | None, str, str, int]]:
    """Return key, file, prompt and duration of every row."""
    return [(key, Path(str(job.image)).name, job.prompt, job.duration) for key, job in manifest]


ROWS = [{"key": "a", "image": "SKU-1.jpg", "prompt": "Waves", "duration": 10}, {"image": "SKU-2.png", "prompt": "Wind"}]
WANTED = [("a", "SKU-1.jpg", "Waves", 10), (None, "SKU-2.png", "Wind", 5)]
CSV = "key,image,prompt,duration\na,SKU-1.jpg,Waves,10\n,SKU-2.png,Wind,\n"
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TEXTS = {"csv": CSV, "tsv": CSV.replace(",", "\t"), "jsonl": LINES, "json": json.dumps(ROWS, indent=2)}


# ---- sources ----


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_are_read_plain_packed_and_piped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = TEXTS[kind].encode()
    Path(f"jobs.{kind}").write_bytes(content)
    Path(f"jobs.{kind}.gz").write_bytes(gzip.compress(content))
    for name in (f"jobs.{kind}", f"jobs.{kind}.gz"):
        assert found(read_manifest(name)) == WANTED
        assert batch_name([name]) == "jobs"
    for piped in (content, gzip.compress(content)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        manifest = read_manifest("-")
        assert (found(manifest), found(manifest), manifest.name) == (WANTED, WANTED, "stdin")
    assert batch_name(["-"]) == "stdin"


def test_json_lines_may_have_the_suffix_of_json() -> None:
    assert found(read_manifest(write("jobs.json", LINES))) == WANTED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"image": {"0": "a.jpg"},\n "prompt": {"0": "x"}}',
            "jobs.json: expected an array of objects, [{...}, {...}]",
        ),
        ('[{"image": "SKU-1.jpg", "prompt": "x"}', "jobs.json:2: is not JSON: the array has no end, the file was cut"),
        ('[{"image": "SKU-1.jpg"} {"image"', "jobs.json:2: is not JSON: expected a comma; the rest was not read"),
        ('[{"prompt": "x", "prompt": "y"}]', "jobs.json:1 prompt: is given twice; the rest was not read"),
        ("[5]", "jobs.json:1: expected an object, got int"),
        ("[{nonsense}]", "jobs.json:1: is not JSON: Expecting property name"),
        ("[" * 100_000, "jobs.json:1: is not JSON"),
        ("[]", "jobs.json: has no rows"),
        ("", "jobs.json: has no rows"),
    ],
)
def test_damaged_json_is_a_problem(text: str, said: str) -> None:
    assert problems(write("jobs.json", text), prompt="x")[-1].startswith(said)


def test_json_array_is_read_in_pieces() -> None:
    rows = [{"key": str(number), "image": URL, "prompt": f"Waves {number} " * 100} for number in range(300)]
    manifest = read_manifest(write("jobs.json", json.dumps(rows)))
    assert [key for key, _ in manifest] == [row["key"] for row in rows]
    Path("jobs.json").write_bytes(b'[{"image": "caf\xe9"}]')
    assert problems("jobs.json") == ["jobs.json: is not UTF-8 (byte 0xe9); save it as UTF-8; the rest was not read"]


@pytest.mark.parametrize("cut", [30, 60])
def test_damaged_gzip_is_a_problem(cut: int) -> None:
    Path("jobs.csv.gz").write_bytes(gzip.compress(os.urandom(200).hex().encode())[:cut])
    assert "damaged or cut" in problems("jobs.csv.gz")[0]
    assert "expected a packed file of .csv" in problems(write("jobs.parquet.gz", ""))[0]


def test_workbook_is_read_with_its_own_row_numbers() -> None:
    rows: list[list[object]] = [
        [None, None, None, None, None],
        ["Filename", "Motion prompt", "Duration (s)", "SKU", "In stock"],
        ["SKU-1.jpg", "Waves", 10, 1000, True],
        [None, None, None, None, None],
        ["SKU-2.png", "Wind", None, 1000.5, False],
    ]
    path = write_xlsx(Path("jobs.xlsx"), rows, hidden=[["image", "prompt"], ["x", "y"]])
    columns = {"prompt": "Motion prompt"}
    manifest = read_manifest(path, columns=columns)
    assert found(manifest) == [(None, *row[1:]) for row in WANTED]
    assert [job.labels for _, job in manifest] == [{"SKU": 1000, "In stock": True}, {"SKU": 1000.5, "In stock": False}]
    assert manifest.columns == ("SKU", "In stock")
    rows[4][2] = 15
    assert problems(write_xlsx(path, rows), columns=columns) == ["jobs.xlsx:5 duration: expected 5 or 10, got 15"]
    assert problems(write_xlsx(path, [])) == ["jobs.xlsx: has no rows"]
    assert "cannot be read as an Excel workbook" in problems(write("jobs.xlsx", "PK nothing"))[0]


def test_missing_calamine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(ConfigurationError, match=r"install kling-async\[xlsx\], or save the sheet as CSV UTF-8"):
        read_manifest(write_xlsx(Path("jobs.xlsx"), [["image"]]))


def photos() -> Path:
    folder = Path("photos")
    for name in ("b.jfif", "c.JPE", "a/front.jpg", "b/front.jpg", "anna.jpg", "anna.png", "gallery/small.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png() if name.endswith("png") else jpeg())
    for name in ("clip.mov", "notes.txt", ".hidden.jpg", "README"):
        (folder / name).write_bytes(b"x")
    return folder


def test_folder_tells_what_is_left_out_and_takes_subfolders_on_request() -> None:
    folder = photos()
    manifest = read_manifest(folder, prompt="x")
    assert [key for key, _ in manifest] == [None, None, "b", "c"], "two differ only in the suffix"
    assert manifest.left_out == {".mov": 1, ".txt": 1, "no suffix": 1, "subfolders": 3}
    every = read_manifest(folder, prompt="x", recursive=True)
    assert [key for key, _ in every] == [None, None, "b", "c", "a/front", "b/front", "gallery/small"]
    (folder / "run.db").touch()
    (folder / "b" / "results.jsonl").touch()
    mine = read_manifest(folder, prompt="x", recursive=True)
    assert [key for key, _ in mine] == [None, None, "b", "c", "a/front"], "not what a run has written"
    assert problems("photos/..", prompt="x", root="photos")[0].startswith("photos/../SKU-1.jpg image: ")
    (folder / "empty" / "below").mkdir(parents=True)
    said = (
        "photos/empty: has no pictures; it has 1 x subfolders; recursive=True (--recursive) takes those in subfolders"
    )
    assert problems(folder / "empty", prompt="x") == [said]


@pytest.mark.parametrize("name", ["a.txt", "a.jpg.txt", "A.TXT", "a.prompt.txt", "a.prompt", "a.caption", "a.md"])
def test_sidecars_of_any_usual_name_have_the_prompt(name: str) -> None:
    Path("photos").mkdir()
    Path("photos/a.jpg").write_bytes(jpeg())
    Path("photos", name).write_text(" She smiles\n")
    for source in ("photos", "photos/a.jpg", "photos/*.jpg"):
        ((key, job),) = read_manifest(source)
        assert (key, job.prompt) == ("a", "She smiles")
    assert read_manifest("photos").left_out == {}


def test_names_that_differ_by_case_have_their_own_prompts() -> None:
    Path("photos").mkdir()
    for stem in ("Anna", "anna"):
        Path("photos", f"{stem}.jpg").write_bytes(jpeg())
        Path("photos", f"{stem}.txt").write_text(f"{stem} smiles")
    if len(list(Path("photos").iterdir())) < 4:
        pytest.skip("this file system has one file of each name")
    assert [(key, job.prompt) for key, job in read_manifest("photos")] == [
        ("Anna", "Anna smiles"),
        ("anna", "anna smiles"),
    ]
    assert [job.prompt for _, job in read_manifest("photos/*.jpg")] == ["Anna smiles", "anna smiles"]


@pytest.mark.parametrize("key", ["Nat", "NaN", "#N/A"])
def test_words_for_nothing_are_keys_all_the_same(key: str) -> None:
    """Another key would pay for the row again."""
    assert [found for found, _ in read_manifest(write("jobs.csv", f"key,image,prompt\n{key},{URL},x\n"))] == [key]


def test_pictures_and_patterns_are_lists() -> None:
    wanted = [("SKU-1", "SKU-1.jpg", "x", 5), ("SKU-2", "SKU-2.png", "x", 5)]
    sources: list[Any] = [["SKU-1.jpg", Path("SKU-2.png"), "SKU-1.jpg"], "SKU-*", "./*", ["SKU-1*", "SKU-2.png"]]
    for source in sources:
        assert found(read_manifest(source, prompt="x")) == wanted
    assert found(read_manifest("SKU-1.jpg", prompt="x")) == wanted[:1]
    Path("other").mkdir()
    Path("other/sku-1.JPG").write_bytes(jpeg())
    keys = [key for key, _ in read_manifest(["SKU-1.jpg", "SKU-2.png", "other/sku-1.JPG"], prompt="x")]
    assert keys == [None, "SKU-2", None], "the names differ only in case"
    Path("odd[1].jpg").write_bytes(jpeg())
    assert found(read_manifest("odd[1].jpg", prompt="x"))[0][0] == "odd[1]"


def test_batches_are_called_after_the_list_or_the_folder() -> None:
    here = Path.cwd().name
    assert batch_name(["SKU-1.jpg"]) == "SKU-1"
    assert batch_name(["SKU-1.jpg", "SKU-2.png"]) == here
    assert batch_name(["*.jpg"]) == here
    assert batch_name(["photos/*/front.jpg"]) == batch_name(["photos/"]) == "photos"
    assert batch_name(["photos/a/front.jpg", "photos/b/front.jpg"]) == "photos"
    assert batch_name(["jobs.v2.csv"]) == batch_name(["jobs.v2.csv.gz"]) == "jobs.v2"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("*.gif", "*.gif: no picture matches the pattern"),
        (["SKU-1.jpg", "jobs.csv"], "jobs.csv: expected one list, one folder, or pictures alone, got jobs.csv"),
        (["SKU-1.jpg", "*.gif"], "*.gif: expected one list, one folder, or pictures alone, got a pattern that matches"),
        ("gone.jpg", "gone.jpg image: "),
        ([], ": expected a folder of pictures, pictures, a pattern such as photos/*.jpg, or a file of .csv, "),
    ],
)
def test_paths_that_are_no_list_are_refused(source: Any, said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(source, prompt="x")
    assert str(caught.value.problems[0]).replace(str(Path.cwd()) + os.sep, "").startswith(said)


# ---- columns ----


def test_header_is_understood_as_people_write_it() -> None:
    path = write("jobs.csv", f"ID,Image URL,Prompt ,Negative-Prompt,SECONDS,Price\n7,{URL},Waves,blur,10,9.99\n")
    ((key, job),) = read_manifest(path)
    assert (key, job) == ("7", Job(image=URL, prompt="Waves", negative_prompt="blur", duration=10))
    assert job.labels == {"Price": "9.99"}
    rows = [{"photo": URL, "text": "Waves", "duration_s": 10.0, "prompt": None, "score": float("nan")}]
    ((key, job),) = read_rows(rows, columns={"prompt": "text", "rank": "score"})
    assert (key, job, job.labels) == (None, Job(image=URL, prompt="Waves", duration=10), {})


def test_given_columns_go_before_their_own_names() -> None:
    path = write("jobs.csv", f"image,Filename,prompt,duratoin\nnone,{URL},Waves,7\n")
    ((_, job),) = read_manifest(path, columns={"image": "Filename", "duratoin": "duratoin"})
    assert (job.image, job.labels) == (URL, {"image": "none", "duratoin": "7"})
    ((_, job),) = read_manifest(path, columns={"image": "FILENAME", "length": "duratoin"})
    assert job.labels == {"image": "none", "length": "7"}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            "Picture,Photo,prompt",
            "jobs.csv:1 image: two columns may be it: Picture and Photo; say which, as in --column",
        ),
        (
            "Bild,prompt",
            "jobs.csv:1 image: no column is image; the columns are Bild, prompt: name it, as in --column im",
        ),
        (
            "image,Titre",
            "jobs.csv:1 prompt: no column is prompt; the columns are image, Titre: name it, as in --column",
        ),
        (
            "image,Promt",
            "jobs.csv:1 Promt: unknown field: the service would ignore it and charge; did you mean prompt?",
        ),
        ("image,prompt,seed", "jobs.csv:1 seed: unknown field: the service would ignore it and charge; inputs of your"),
    ],
)
def test_header_is_checked_first_and_alone(header: str, said: str) -> None:
    message, *others = problems(write("jobs.csv", f"{header}\n" + "nonsense,\n" * 5))
    assert message.startswith(said)
    assert not others, "the rows were not read"


def test_missing_columns_are_no_problem_where_the_model_or_a_default_has_them() -> None:
    assert len(read_manifest(write("jobs.csv", f"image,Titre\n{URL},a\n"), prompt="Waves")) == 1
    assert len(read_manifest(write("jobs.csv", "key,Titre\na,b\n"), prompt="Waves", image=URL)) == 1
    assert "jobs.csv:2 image: required" in problems(write("jobs.csv", "model,prompt\nkling-v2.1-pro,a\n"))[0]


def test_wrong_names_of_columns_are_refused() -> None:
    path = write("jobs.csv", f"image,Filename,prompt\n{URL},a,Waves\n")
    assert problems(path, columns={"image": "File"}) == [
        "jobs.csv:1 image: there is no column 'File'; the columns are image, Filename, prompt"
    ]
    with pytest.raises(ConfigurationError, match="got imge=Filename; did you mean image=Filename"):
        read_manifest(path, columns={"imge": "Filename"})


def test_defaults_are_checked_before_the_rows() -> None:
    path = write("jobs.csv", "image,prompt\n" + "gone.png,\n" * 5)
    assert problems(path, model="kling-v2.1-pro", duration=15) == [
        "jobs.csv duration: expected 5 or 10, got 15 (given for rows without it)"
    ]
    assert problems(path, model="klng")[0].startswith("jobs.csv model: unknown model 'klng'; did you mean ")


def test_index_columns_of_pandas_are_no_columns() -> None:
    for header in (",image,prompt", "Unnamed: 0,image,prompt"):
        ((_, job),) = read_manifest(write("jobs.csv", f"{header}\n0,{URL},Waves\n"))
        assert job.labels == {}
    ((_, job),) = read_rows([{"__index_level_0__": 3, "image": URL, "prompt": "Waves"}])
    assert job.labels == {}


MISSING = type("NAType", (), {})()
"""A missing value, as pandas has it."""


def test_values_of_libraries_are_understood() -> None:
    row = {
        "key": np.int64(7),
        "image": URL,
        "prompt": np.str_("Waves"),
        "negative_prompt": float("nan"),
        "model": "kling-v3.0-pro",
        "duration": np.float64(10),
        "guidance_scale": np.float32(0.5),
        "sound": np.bool_(True),
        "end_image": MISSING,
        "multi_prompt": None,
        "rank": np.int32(3),
        "embedding": np.array([1.5, 2.0]),
    }
    ((key, job),) = read_rows([row])
    assert key == "7"
    assert job == Job(image=URL, prompt="Waves", model="kling-v3.0-pro", duration=10, guidance_scale=0.5, sound=True)
    assert job.labels == {"rank": 3, "embedding": "[1.5 2. ]"}
    path = write(
        "jobs.csv", f"key,image,prompt,negative_prompt,duration,sound,model\n5,{URL},x,NaN,5.0,1.0,kling-v3.0-pro"
    )
    ((key, job),) = read_manifest(path)
    assert (key, job.negative_prompt, job.duration, job.sound) == ("5", None, 5, True)
    ((key, job),) = read_manifest(
        write("jobs.jsonl", f'{{"key": 5.0, "image": "{URL}", "prompt": "x", "duration": 5.0}}')
    )
    assert (key, job.duration) == ("5", 5)


# ---- the ten worst inputs ----


def decomposed() -> str:
    return unicodedata.normalize("NFD", "mädchen.png")


BASE64 = base64.b64encode(jpeg()).decode()
WORST: dict[str, tuple[str, bytes]] = {
    "first line of Excel": ("jobs.csv", f"sep=;\nimage;prompt\n{URL};Waves".encode()),
    "quoted first line": ("jobs.csv", f'"sep=|"\r\nimage|prompt\r\n{URL}|Waves\r\n'.encode()),
    "ends of lines of an old Mac": ("jobs.csv", f"image,prompt\r{URL},Waves\r".encode()),
    "UTF-16 of Excel": ("jobs.csv", f"image\tprompt\r\n{URL}\tWaves\r\n".encode("utf-16")),
    "UTF-16 without mark": ("jobs.jsonl", f'{{"image": "{URL}", "prompt": "Waves"}}\n'.encode("utf-16-le")),
    "old Mac, one object a line": ("jobs.json", f'{{"image": "{URL}", "prompt": "Waves"}}\r'.encode()),
    "old Mac, an array": ("jobs.json", f'[{{"image": "{URL}",\r "prompt": "Waves"}}]\r'.encode()),
    "UTF-16, one object a line": ("jobs.json", f'{{"image": "{URL}", "prompt": "Waves"}}\r\n'.encode("utf-16")),
    "UTF-16, an array": ("jobs.json", f'[{{"image": "{URL}", "prompt": "Waves"}}]\r\n'.encode("utf-16")),
    "UTF-16 of others": ("jobs.csv", b"\xfe\xff" + f"image,prompt\n{URL},Waves\n".encode("utf-16-be")),
    "mark in front": ("jobs.json", b"\xef\xbb\xbf" + f'[{{"image": "{URL}", "prompt": "Waves"}}]'.encode()),
    "backslashes": ("jobs.csv", b"image,prompt\nphotos\\anna.jpg,Waves\n"),
    "URL of a file": ("jobs.csv", b"image,prompt\nfile://{here}/photos/a%20b.jpg,Waves\n"),
    "one accent": ("jobs.csv", "image,prompt\nmädchen.png,Waves\n".encode()),
    "base64": ("jobs.jsonl", json.dumps({"image": BASE64, "prompt": "Waves"}).encode()),
    "escaped name": ("jobs.csv", b"image,prompt\nphotos/a%20b.jpg,Waves\n"),
}


@pytest.mark.parametrize("name", WORST)
def test_worst_inputs_are_read(name: str, tmp_path: Path) -> None:
    Path("photos").mkdir()
    for image in (Path("photos/anna.jpg"), Path("photos/a b.jpg"), Path(decomposed())):
        image.write_bytes(jpeg())
    path, content = WORST[name]
    Path(path).write_bytes(content.replace(b"{here}", str(tmp_path).encode()))
    ((_, job),) = read_manifest(path)
    images = {URL, tmp_path / "photos" / "anna.jpg", tmp_path / "photos" / "a b.jpg", tmp_path / decomposed(), jpeg()}
    assert job.prompt == "Waves"
    assert job.image in images


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (BASE64[:200] + "!", "begins as a picture in base64, and is cut or damaged after 201 characters (a cell of Ex"),
        ("sku-1.JPG", "'sku-1.JPG' does not exist (in {here}); 'SKU-1.jpg' is there"),
        ("SKU-1", "'SKU-1' does not exist (in {here}); 'SKU-1.jpg' is there"),
        (
            "E:\\shots\\SKU-1.jpg",
            "'E:\\\\shots\\\\SKU-1.jpg' does not exist (in {here}); 'SKU-1.jpg' is there",
        ),
        (
            "D:\\x\\y.jpg",
            "'D:\\\\x\\\\y.jpg' does not exist (in {here}): a path on another computer; copy the pictures",
        ),
        ("/var/SKU-2.png", "'/var/SKU-2.png' is outside of {here}; 'SKU-2.png' is there"),
        ("..\\secret.png", "'..\\\\secret.png' does not exist (in {here})"),
        ("file:///etc/passwd", "'file:///etc/passwd' is outside of {here}"),
    ],
)
def test_worst_names_of_files_are_refused_with_their_mend(image: str, said: str, tmp_path: Path) -> None:
    (message,) = problems([{"image": image, "prompt": "x"}], root=".")
    assert message.startswith("rows:1 image: " + said.replace("{here}", str(tmp_path)))


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_picture_where_a_prompt_belongs_is_a_problem(field: str) -> None:
    """A small one would be sent as the prompt, and paid for."""
    small = BASE64[:400]
    for text in (small, f"data:image/png;base64,{small}"):
        said = f"{field}: is a picture in base64: it belongs into the column of the image"
        (problem,) = problems([{"image": URL, "prompt": "x", field: text}])
        assert problem == f"rows:1 {said}"
    ((_, job),) = read_rows([{"image": URL, "prompt": "/9j/ is how it begins"}])
    assert job.prompt == "/9j/ is how it begins"


def test_advice_names_rows_only_where_there_are_some() -> None:
    """Of a list that is not there, none can be left out."""
    for source in ("gone.csv", write("jobs.csv", ""), write("jobs.parquet", "no")):
        with pytest.raises(ManifestError) as caught:
            read_manifest(source)
        assert caught.value.advice == "correct it and run it again"
    with pytest.raises(ManifestError) as caught:
        read_manifest("SKU-1.jpg")
    assert "--skip-invalid" in caught.value.advice


def test_nothing_leads_out_of_the_folder_in_another_form(tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "secret.png").write_bytes(png())
    up = os.path.relpath(outside, Path.cwd())
    for image in (
        f"{up}/secret.png".replace("/", "\\"),
        f"file://{outside}/secret.png",
        f"{up}/secret.png".replace("..", "%2e%2e"),
    ):
        (message,) = problems([{"image": image, "prompt": "x"}], root=".")
        assert "secret.png" in message
        assert "is there" not in message


# ---- rows to leave out ----


def test_invalid_rows_are_left_out_on_request() -> None:
    text = f"a,{URL},Waves,5,1\nb,gone.png,Waves,5,2\nb,{URL},Wind,10,3\nb,{URL},x,5,4\nc,{URL},x,7,5\n"
    path = write("jobs.csv", "key,image,prompt,duration,SKU\n" + text)
    assert len(problems(path)) == 4
    manifest = read_manifest(path, skip_invalid=True)
    assert [key for key, _ in manifest] == ["a", "b"], "the first valid row keeps its key"
    assert (len(manifest), manifest.skipped) == (2, 3)
    assert [job.duration for _, job in manifest] == [5, 10]
    assert [(problem.line, problem.path) for problem in manifest.invalid] == [(3, "image"), (5, "key"), (6, "duration")]
    first, second, third = manifest.invalid_rows()
    note = first.pop("_error")
    assert first == {
        "key": "b",
        "image": str(Path("gone.png").absolute()),
        "prompt": "Waves",
        "duration": "5",
        "labels": {"SKU": "2"},
    }
    assert note == {
        "status": "invalid",
        "code": None,
        "message": f"jobs.csv:3: image: 'gone.png' does not exist (in {Path.cwd()})",
    }
    assert (second["key"], third["key"]) == ("b", "c")
    # Mended, they are rows of a manifest.
    Path("errors.jsonl").write_text(json.dumps(third | {"duration": 10}))
    ((key, job),) = read_manifest("errors.jsonl")
    assert (key, job.duration, job.labels) == ("c", 10, {"SKU": "5"})


def test_what_concerns_the_whole_list_is_never_left_out() -> None:
    assert problems(write("jobs.csv", "image,prompt\ngone.png,x\n"), skip_invalid=True)
    assert problems(write("jobs.csv", f"image,promt\n{URL},x\n"), skip_invalid=True, prompt="x")
    Path("jobs.parquet").write_bytes(b"PAR1 and nothing more")
    assert problems("jobs.parquet", skip_invalid=True)
    rows = [{"image": URL, "prompt": "x"}, {"image": URL}, None, {"image": b"GIF89a" + bytes(100), "prompt": "x"}]
    manifest = read_rows(rows, skip_invalid=True)  # type: ignore[arg-type]  # what is tested
    assert (len(manifest), manifest.skipped) == (1, 3)
    assert [set(row) for row in manifest.invalid_rows()] == [{"image", "_error"}, {"_error"}, {"prompt", "_error"}]


def test_labels_are_no_part_of_a_job() -> None:
    one, other = (Job(image=URL, prompt="x", labels={"sku": number}) for number in (1, 2))
    assert (one, hash(one)) == (other, hash(other))
    with pytest.raises(ValueError, match="labels: expected a mapping, got int"):
        Job(image=URL, prompt="x", labels=5)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(ValueError, match="labels: is not JSON"):
        Job(image=URL, prompt="x", labels={"a": {1}})


# ---- single inputs of models ----


def test_columns_of_single_inputs_become_extra() -> None:
    """They would travel along into the results and not be sent, while the row is paid for."""
    Path("walk.mp4").write_bytes(mp4(5_000))
    header = "prompt,extra.video,Extra.mode,extra.options.strength,extra.loop\n"
    text = write("jobs.csv", header + "x,file:walk.mp4,pro,0.5,true\ny,file:walk.mp4,,,\n")
    model = Model.from_service(EDIT)
    for source in (
        text,
        write_xlsx(
            Path("jobs.xlsx"),
            [header.strip().split(","), ["x", "file:walk.mp4", "pro", 0.5, True], ["y", "file:walk.mp4"]],
        ),
    ):
        (_, first), (_, second) = read_manifest(source, models=[model], model=model.id)
        options = {"mode": "pro", "options": {"strength": 0.5}, "loop": True}
        assert {**first.extra} == {"video": Path("walk.mp4").resolve(), **options}
        assert {**second.extra} == {"video": Path("walk.mp4").resolve()}
        assert first.labels == {}
    (_, named), *_ = read_manifest(
        write("jobs.csv", "prompt,Clip\nx,file:walk.mp4\n"),
        models=[model],
        model=model.id,
        columns={"extra.video": "Clip"},
    )
    assert {**named.extra} == {"video": Path("walk.mp4").resolve()}
    twice = write("jobs.csv", 'prompt,extra,extra.video\nx,"{""video"": ""a""}",file:walk.mp4\n')
    assert problems(twice, models=[model], model=model.id) == [
        "jobs.csv:2 extra.video: is given twice: by two columns, or in extra, too"
    ]


def test_unknown_model_is_the_only_problem_of_its_row() -> None:
    """The limits of the default model are no reason to change anything: what else is wrong depends on the model."""
    path = write("jobs.jsonl", json.dumps({"image": URL, "prompt": "x", "model": "klng", "duration": 7, "sound": True}))
    (problem,) = problems(path)
    assert problem.startswith("jobs.jsonl:1 model: unknown model 'klng'; did you mean ")


def test_header_names_all_that_is_missing_at_once() -> None:
    """Otherwise each round names one column more."""
    path = write("jobs.csv", "Bild,Motion Prompt\nSKU-1.jpg,Waves\n")
    said = problems(path)
    assert len(said) == 2
    assert "--column 'prompt=Motion Prompt'" in said[0]
    assert "no column is image; the columns are Bild, Motion Prompt: name it, as in --column image=COLUMN" in said[1]


def test_files_in_a_subfolder_name_the_option_for_it() -> None:
    Path("photos").mkdir()
    Path("SKU-1.jpg").rename("photos/SKU-1.jpg")
    path = write("jobs.csv", "image,prompt\nSKU-1.jpg,Waves\n")
    (said,) = problems(path)
    assert said.endswith("; 'photos/SKU-1.jpg' is there: name the folder of the files, --root photos")
    Path("more").mkdir()
    Path("more/SKU-1.jpg").write_bytes(jpeg())
    assert "--root" not in problems(path)[0], "which of two is not known"
