"""Rows of an Excel workbook. Needs the extra `xlsx`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from kling_async.errors import ConfigurationError, Problem

from ._row import Row
from ._text import Header
from ._values import cell, plain
from ._workbook import size_problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ._columns import Columns


def xlsx_rows(file: IO[bytes], columns: Columns) -> Iterator[Row]:
    """Yield the rows of the first visible sheet that has any, numbered as in the spreadsheet.

    Raises:
        ConfigurationError: python-calamine is not installed.
    """
    try:
        # An optional package.
        import python_calamine as calamine  # noqa: PLC0415 -- see above
    except ImportError as error:
        raise ConfigurationError(
            "Excel workbooks need python-calamine",
            advice="install kling-async[xlsx], or save the sheet as CSV UTF-8",
        ) from error
    too_large = size_problem(file)
    if too_large:
        yield Row(0, problems=(Problem("", too_large),))
        return
    try:
        book = calamine.CalamineWorkbook.from_filelike(file)
        shown = [one.name for one in book.sheets_metadata if one.visible == calamine.SheetVisibleEnum.Visible]
        sheets = (book.get_sheet_by_name(name) for name in shown)
        sheet = next((sheet for sheet in sheets if sheet.start is not None), None)
    except calamine.PasswordError:
        yield Row(0, problems=(Problem("", "is locked by a password: save a copy without one"),))
        return
    except (calamine.CalamineError, ValueError, OSError) as error:
        said = f"cannot be read as an Excel workbook: {error}; save it again as .xlsx, or as CSV UTF-8"
        yield Row(0, problems=(Problem("", said),))
        return
    header: Header | None = None
    for number, values in enumerate(sheet.iter_rows() if sheet is not None else (), 1):
        if not any(value != "" for value in values):
            continue
        if header is None:
            header = Header.of([str(plain("", value)) for value in values], columns)
            if header.problems:
                yield Row(number, problems=header.problems, header=True)
                return
        else:
            yield _row(number, header, values)


def _row(number: int, header: Header, values: Sequence[object]) -> Row:
    fields: dict[str, object] = {}
    labels: dict[str, object] = {}
    problems: list[Problem] = []
    for place, value in enumerate(values):
        if value == "":
            continue
        name = header.names[place]
        field = header.resolved.fields.get(name)
        if field is not None:
            try:
                fields[field] = cell(field, value) if isinstance(value, str) else plain(field, value)
            except ValueError as error:
                problems.append(Problem(field, str(error)))
        elif name in header.resolved.labels:
            labels[header.resolved.labels[name]] = plain("", value)
        elif not name and (place or header.names[0]):
            problems.append(Problem("", f"column {place + 1} has no name in the header"))
    return header.resolved.row(number, fields, labels, tuple(problems))
