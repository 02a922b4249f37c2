"""Names of outputs: inside the target, and distinct."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from kling_async import ConfigurationError, KlingSession, Outputs
from kling_async.storage import Fields, Target, suffix_of, target_path
from kling_async.storage.naming import FIELDS, Template, folder_name

AT = 1_800_000_000.0
"""2027-01-15, 08:00 UTC."""


def fields(key: str = "shot-1", **others: Any) -> Fields:
    return Fields(key=key, id="45b3", at=AT, **{"model": "kwaivgi/kling-v2.1-i2v-pro", "batch": "spring", **others})


def named(where: str | Path | Outputs, key: str = "shot-1", **others: str) -> str:
    return os.path.relpath(Outputs.of(where).target(fields(key, **others)).address)


# Keys.


def test_target_path_of_file_or_folder() -> None:
    assert target_path("out", "shot-1") == Path("out/shot-1.mp4")
    assert target_path(Path("out/a.mp4"), "shot-1") == Path("out/a.mp4")
    assert target_path("out/a.MP4", "shot-1") == Path("out/a.MP4")
    assert target_path("out.d", "shot.1", ".png") == Path("out.d/shot.1.png")


KEYS = [
    "",
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "-rf",
    "C:x",
    "CON",
    "nul.a",
    "x" * 500,
    "猫" * 100,
    "e\u0301",
    "²",
    "a\u202eb",
    "猫\u3000と 犬",
    "a ",
    " a",
    "a#b",
]


def is_plain(name: str) -> bool:
    """Return whether a name has letters, digits, marks on them and what names have, and ends as a video."""
    kept = all(one in "._- ()+,&@'" or unicodedata.category(one)[0] in "LM" or one.isdecimal() for one in name)
    return kept and name.endswith(".mp4") and name[0] not in ".- "


NAMES = ["猫と犬", "Кошка", "über", "हिन्दी", "ไทย", "SKU-1000", "a_b.c"]
NAMES += ["Kleid grün 猫", "IMG_1234 (2)", "icon@2x", "salt & pepper, red", "Anna's dress", "c++"]


@pytest.mark.parametrize("name", NAMES)
def test_name_in_any_script_stays_readable(name: str) -> None:
    assert target_path("out", name) == Path("out") / f"{name}.mp4"
    assert named("{date}/{key}", key=name) == f"2027-01-15/{name}.mp4"


def test_names_of_folders_stay_those_of_earlier_versions() -> None:
    """Saved videos are looked for there."""
    digest = hashlib.sha256(b"my list (2)").hexdigest()[:10]
    assert folder_name("my list (2)") == f"my_list__2_-{digest}"
    for template in ("{batch}/{key}", "{key}/{batch}"):
        key, batch = ("a", "my list (2)") if template.startswith("{b") else ("my list (2)", "a")
        assert named(f"out/{template}", key=key, batch=batch) == f"out/my_list__2_-{digest}/a.mp4"
    assert named("out/{batch}-{key}", key="a b", batch="my list (2)") == f"out/my_list__2_-{digest}-a b.mp4"


@pytest.mark.parametrize("name", KEYS)
def test_unsafe_name_is_replaced(name: str) -> None:
    path = target_path("out", name)
    assert path.parent == Path("out")
    assert re.search(r"-[0-9a-f]{10}", path.name)
    assert not path.name.startswith((".", "-"))


names = st.text(alphabet=st.characters(), max_size=200) | st.from_regex(r"[A-Za-z0-9._-]{0,200}", fullmatch=True)


@given(names, names)
@example("a/b", "a_b")
@example("x" * 150, "x" * 151)
@example("é", "e")
@example("CON", "con.")
@example("é", "é")
def test_distinct_names_stay_distinct(one: str, other: str) -> None:
    assume(one != other)
    first, second = target_path("out", one), target_path("out", other)
    # A file system may treat names that differ only by case as equal; the existing file is kept then.
    assert first.name.casefold() != second.name.casefold() or one.casefold() == other.casefold()
    assert first != second
    for path in (first, second):
        assert path.parent == Path("out")
        assert is_plain(path.name)
        assert len(path.name.encode()) <= 120
        assert path.name.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


# Templates.


def test_plain_folder_or_file() -> None:
    assert named("out") == named("out/") == named(Path("out")) == "out/shot-1.mp4"
    assert named("out/a.mp4") == named(Path("out/a.mp4")) == "out/a.mp4"
    assert named("a.mp4") == "a.mp4"
    assert named(Path("out/{key}")) == "out/{key}/shot-1.mp4"
    assert named("/out") == os.path.relpath("/out/shot-1.mp4")


@given(names)
def test_plain_folder_uses_target_path(key: str) -> None:
    assert Outputs.of("out").target(fields(key)).address == str(target_path("out", key).absolute())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("out/{date}/{model}/{key}.mp4", "out/2027-01-15/kling-v2.1-pro/shot-1.mp4"),
        ("{batch}/{id}", "spring/45b3.mp4"),
        ("out/{shard}/{key}.MP4", f"out/{hashlib.sha256(b'shot-1').hexdigest()[:2]}/shot-1.mp4"),
        ("out/{date}/", "out/2027-01-15/shot-1.mp4"),
        ("a/b-{batch}-{key}-c", "a/b-spring-shot-1-c.mp4"),
        ("out/{{x}}/{key}", "out/{x}/shot-1.mp4"),
        ("o u t/{key}", "o u t/shot-1.mp4"),
        ("/{key}", os.path.relpath("/shot-1.mp4")),
        ("../{key}", "../shot-1.mp4"),
    ],
)
def test_templates(where: str, message: str) -> None:
    assert named(where) == message


def test_name_apart_from_folder() -> None:
    assert named(Outputs(Path("out"), "{date}/{key}")) == "out/2027-01-15/shot-1.mp4"
    assert named(Outputs("out.mp4", "{id}")) == "out.mp4/45b3.mp4"
    assert repr(Outputs("out", "{id}")) == "Outputs('out', '{id}')"


def test_unknown_values() -> None:
    assert named("{batch}/{model}/{key}", batch="", model="") == "unnamed/unknown/shot-1.mp4"
    assert re.fullmatch(r"some_new_model-[0-9a-f]{10}/shot-1\.mp4", named("{model}/{key}", model="some/new model"))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("out/{prompt}", "unknown field {prompt}; expected one of {key}, {model}, {id}, {batch}, {date}, {shard}"),
        ("out/{}", "unknown field {}"),
        ("out/{key.__class__}", "unknown field"),
        ("out/{key[0]}", "unknown field"),
        ("out/{key!r}", "takes no format"),
        ("out/{date:%Y/%m}/{key}", "takes no format"),
        ("out/{key", "expected '}'"),
        ("out/key}", "Single '}'"),
        ("{batch}/../{key}", "'..'"),
        ("{batch}/./{key}", "'.'"),
        ("{batch}//{key}", "not a name"),
        ("{batch}/\0{key}", "not allowed"),
        ("{batch}:{key}", "':'"),
        ("{batch}\\{key}", "'\\\\'"),
        ("{batch}/CON/{key}", "reserved"),
        ("{batch}/ {key}", "not a valid name"),
        ("{batch}/a./{key}", "not a valid name"),
        ("{batch}/" + "x" * 300 + "/{key}", "too long"),
    ],
)
def test_invalid_template_is_refused(where: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Outputs.of(where)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["/{key}", "../{key}", "", "a/../{key}", "C:/{key}", "{date}//"])
def test_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        Outputs("out", name)


values = st.text(alphabet=st.characters(), max_size=150) | st.sampled_from(KEYS)
literals = st.sampled_from(["", "-", ".", "..", "a", "CON", "x" * 90, "é" * 60, "/", "/", "/"])
templates = st.lists(st.sampled_from([f"{{{name}}}" for name in FIELDS]) | literals, max_size=12).map("".join)


def parts(target: Target, root: Path) -> tuple[str, ...]:
    return PurePosixPath(target.address).relative_to(root).parts


@given(templates, values, values, values)
@example("{key}{batch}/{key}", "co", "n", "")
@example(".{key}", ".", "", "")
@example("..{key}", "", "", "")
@example("{key}/{batch}/{id}{model}{key}{batch}{date}", "x" * 120, "y" * 120, "z" * 120)
def test_rendered_name_stays_in_folder(template: str, key: str, batch: str, model: str) -> None:
    try:
        outputs = Outputs("/target/out", template)
    except ConfigurationError:
        return
    found = parts(outputs.target(fields(key, batch=batch, model=model)), Path("/target/out"))
    assert len(found) == (template + ("x" if template.endswith("/") else "")).count("/") + 1
    assert found[-1].endswith(".mp4")
    for part in found:
        assert part.strip(". ") not in {"", "mp4"} or part == found[-1]
        assert not part.endswith((".", " "))
        assert len(part.encode()) <= 204
        assert "\0" not in part
        assert not re.match(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)", part)
        assert not PureWindowsPath(part).drive
        assert PureWindowsPath(part).parts == (part,)
        assert unicodedata.is_normalized("NFC", part)


@given(values, values)
@example("a.", "a")
@example("A/", "a/")
def test_distinct_keys_get_distinct_names(one: str, other: str) -> None:
    assume(one.casefold() != other.casefold())
    for template in ("{key}", "{shard}/{key}", "{key}/{date}", "{batch}-{key}", "{date}/{key}/video.mp4"):
        outputs = Outputs("/out", template)
        first, second = (outputs.target(fields(key)).address.casefold() for key in (one, other))
        assert first != second


@pytest.mark.parametrize(
    ("url", "suffix"),
    [
        ("https://h/output/a.mp4", ".mp4"),
        ("https://h/output/a.PNG?sig=1.wav", ".png"),
        ("https://h/output/a.wav#x", ".wav"),
        ("https://h/output/a", ".mp4"),
        ("https://h/output/a.exe", ".mp4"),
        ("https://h/output/..%2f.png/b", ".mp4"),
    ],
)
def test_output_has_the_suffix_of_its_url(url: str, suffix: str) -> None:
    assert suffix_of(url) == suffix
    assert Outputs("out/", "{key}").target(fields("a", suffix=suffix)).address.endswith(f"a{suffix}")
    # The name that was asked for is that of a video.
    assert Outputs("out/", "{key}.mp4").target(fields("a", suffix=suffix)).address.endswith(f"/a{suffix}")


@pytest.mark.parametrize("name", ["face.png", "face.WAV", "face.mp4"])
def test_file_of_any_kind_may_be_named(name: str) -> None:
    assert named(f"out/{name}") == str(Path("out", name))


def test_shards_are_spread() -> None:
    shards = {Template("{shard}/{key}").render(fields(f"key-{number}"))[:2] for number in range(5000)}
    assert len(shards) == 256


# Batches.


@pytest.mark.parametrize("where", ["out/all.mp4", "out/{date}.mp4", Outputs("out", "{model}/{batch}-{shard}")])
def test_batch_needs_distinct_names(where: str | Outputs) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Outputs.of(where, many=True)
    assert "{key}" in caught.value.advice
    Outputs.of(where)


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["out/{prompt}", "out/all.mp4", "ftp://host/out", Path("s3://bucket/x"), "s3://"])
async def test_invalid_save_to_is_refused_before_sending(where: str | Path) -> None:
    async with KlingSession("wsk_key_of_the_test", base_url="http://127.0.0.1:9") as kling:
        with pytest.raises(ConfigurationError):
            kling.batch([], save_to=where)
        with pytest.raises(ConfigurationError):
            if where != "out/all.mp4":
                await kling.save("p1", where)
            raise ConfigurationError("a single output may have a fixed name")


def test_max_saving_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="max_saving"):
        KlingSession("wsk_key_of_the_test", max_saving=0)


# Addresses of object stores.


@pytest.mark.parametrize(
    ("where", "address"),
    [
        ("s3://bucket", "s3://bucket/shot-1.mp4"),
        ("s3://bucket/a/b/", "s3://bucket/a/b/shot-1.mp4"),
        ("s3://bucket/a/{date}/{key}.mp4", "s3://bucket/a/2027-01-15/shot-1.mp4"),
        ("s3://bucket/a/b.mp4", "s3://bucket/a/b.mp4"),
        ("gs://bucket/a", "gs://bucket/a/shot-1.mp4"),
        ("abfss://files@account.dfs.core.windows.net/a", "abfss://files@account.dfs.core.windows.net/a/shot-1.mp4"),
    ],
)
def test_object_store_addresses(where: str, address: str) -> None:
    assert Outputs.of(where).target(fields()).address == address


def test_azure_account_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="Account must be specified"):
        Outputs.of("az://files/a")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    assert Outputs.of("az://files/a").target(fields()).address == "az://files/a/shot-1.mp4"


@given(values)
@pytest.mark.repeats
def test_key_stays_in_prefix(key: str) -> None:
    address = Outputs.of("s3://bucket/a/b").target(fields(key)).address
    assert address.startswith("s3://bucket/a/b/")
    assert is_plain(address.removeprefix("s3://bucket/a/b/"))


SECRET = "AKIA-hush-hush"


@pytest.mark.parametrize(
    "where",
    [
        f"s3://key:{SECRET}@bucket/x",
        f"az://files/x?sig={SECRET}",
        f"az://files/x#{SECRET}",
        f"ftp://key:{SECRET}@host/x",
        "s3://",
        "s3:/bucket/x",
        Path("s3://bucket/x"),
        Path("gs:/bucket/x"),
        "https://host/x",
        "file:///tmp/x",
    ],
)
def test_invalid_address_is_refused_without_secrets(where: str | Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Outputs.of(where)
    assert SECRET not in repr(caught.value)


def test_missing_obstore_names_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kling_async.storage._objects", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigurationError) as caught:
        Outputs.of("s3://bucket/x")
    assert "kling-async[storage]" in str(caught.value)


def test_folder_may_contain_colon() -> None:
    assert named(Path("take:2")) == "take:2/shot-1.mp4"
    assert named("take:2") == "take:2/shot-1.mp4"
    assert named("C:/out") == "C:/out/shot-1.mp4"


@pytest.mark.parametrize("url", ["http://[bad/x.png", "https://[::1/a.png"])
def test_suffix_of_what_is_no_url_is_that_of_a_video(url: str) -> None:
    assert suffix_of(url) == ".mp4"


@pytest.mark.parametrize(("at", "date"), [(-1e13, "0001-12-31"), (1e15, "9999-12-31")])
def test_date_beyond_dates_is_the_nearest(at: float, date: str) -> None:
    assert Template("{date}").render(Fields(key="a", id="p", model="m", batch="b", at=at)) == f"{date}.mp4"
