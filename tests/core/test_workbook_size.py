"""Workbooks that would fill the memory are refused by their XML, before a library makes a table of them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kling_async import ManifestError
from kling_async.manifest import _workbook, read_manifest
from support.sheets import write_xlsx

HEADER = '<c r="A1" t="inlineStr"><is><t>image</t></is></c><c r="B1" t="inlineStr"><is><t>prompt</t></is></c>'
ROW = (
    '<row r="2"><c r="A2" t="inlineStr"><is><t>https://example.com/a.jpg</t></is></c>'
    '<c r="B2" t="inlineStr"><is><t>x</t></is></c></row>'
)


def workbook(path: Path, rows: str, *, name: str = "xl/worksheets/sheet2.xml") -> Path:
    """Write a workbook with these rows in its visible sheet."""
    write_xlsx(path, [])
    with zipfile.ZipFile(path) as file:
        parts = {part: file.read(part).decode() for part in file.namelist()}
    parts[name] = parts["xl/worksheets/sheet2.xml"].replace("<sheetData>", f"<sheetData>{rows}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for part, content in parts.items():
            file.writestr(part, content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    (problem,) = caught.value.problems
    assert problem.line is None
    return problem.message


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (f'<row r="1">{HEADER}</row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>', "1,048,576 rows of 16,384"),
        (f"<row r='1'>{HEADER}</row><row r='99999'><c s='1' r='ZZZ99999'><v>1</v></c></row>", "99,999 rows of 18,278"),
        (
            f"<row r='1'>{'<c><v>1</v></c>' * 9000}</row><row r='1048570'><c><v>1</v></c></row>",
            "1,048,570 rows of 9,000",
        ),
        ("<row>" + "<c><v>1</v></c>" * 6000 + "</row>" + "<row><c><v>1</v></c></row>" * 6000, "6,001 rows of 6,000"),
        ("<row>" + " " * 2**21 + "</row>", "elements of at most 1,048,576 bytes"),
        (f'<row><c x="{"a" * 2**21}" r="XFD1048576"><v>1</v></c></row>', "elements of at most 1,048,576 bytes"),
    ],
)
def test_table_that_does_not_fit_into_memory_is_refused(tmp_path: Path, rows: str, said: str) -> None:
    message = refused(workbook(tmp_path / "far.xlsx", rows))
    assert said in message
    assert "xl/worksheets/sheet2.xml" in message
    assert message.endswith("save the sheet as CSV UTF-8")


def test_bomb_is_refused_by_its_unpacked_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workbook, "MAX_UNPACKED_BYTES", 2**20)
    path = workbook(tmp_path / "bomb.xlsx", "<row></row>" * 200_000)
    assert path.stat().st_size < 20_000
    assert "at most 1,048,576 bytes unpacked" in refused(path)


def test_sheet_that_lies_elsewhere_in_the_file_is_measured(tmp_path: Path) -> None:
    far = '<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
    assert "(xl/other.xml)" in refused(workbook(tmp_path / "far.xlsx", far, name="xl/other.xml"))


def test_empty_cells_with_a_style_count_for_nothing(tmp_path: Path) -> None:
    """Whole rows and columns are coloured, and the cells at the end of the sheet are there, without a value."""
    styled = '<row r="1048576"><c r="A1048576" s="1"/><c r="XFD1048576" s="1"/></row>'
    path = workbook(tmp_path / "styled.xlsx", f'<row r="1">{HEADER}<c r="XFD1" s="1"/></row>{ROW}{styled}')
    assert [job.prompt for _, job in read_manifest(path)] == ["x"]


@pytest.mark.parametrize(
    ("part", "said"),
    [("xl/workbook.bin", "a binary workbook (.xlsb)"), ("content.xml", "an OpenDocument sheet (.ods)")],
)
def test_other_kinds_of_workbooks_are_named(tmp_path: Path, part: str, said: str) -> None:
    assert refused(workbook(tmp_path / "other.xlsx", "", name=part)).startswith(f"is {said} by its content")


def test_damaged_part_is_refused(tmp_path: Path) -> None:
    path = workbook(tmp_path / "cut.xlsx", f'<row r="1">{HEADER}</row>{ROW * 500}')
    content = bytearray(path.read_bytes())
    content[content.rindex(b"xl/worksheets/sheet2.xml", 0, content.index(b"PK\x01\x02")) + 60] ^= 0xFF
    path.write_bytes(content)
    assert refused(path).startswith("cannot be read as an Excel workbook")


@pytest.mark.parametrize(("offset", "value", "said"), [(10, 97, "compression"), (8, 1, "encrypted")])
def test_part_that_cannot_be_unpacked_is_refused(tmp_path: Path, offset: int, value: int, said: str) -> None:
    """It is packed in another way (method 97), or needs a password (bit 0 of its flags)."""
    path = workbook(tmp_path / "packed.xlsx", f"<row r='1'>{HEADER}</row>{ROW}")
    content = bytearray(path.read_bytes())
    # In the directory at the end of the file, where each field is two bytes further.
    at = content.index(b"PK\1\2")
    content[at + offset : at + offset + 2] = value.to_bytes(2, "little")
    path.write_bytes(content)
    assert said in refused(path)
