"""What stands in the files: nothing of one machine, and a reason wherever a check is switched off."""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = {".py", ".md", ".toml", ".cfg", ".ini", ".txt", ".json", ".jsonl", ".csv", ".yml", ".yaml", ".sh", ".html", ""}
ELSEWHERE = {"build", "dist", "node_modules", "out", "site", "venv", "videos", "kling-demo", "__pycache__"}
SHOWN_FOLDERS = {".ci", ".github"}


def files() -> Iterator[Path]:
    """The texts of the tree, without what is made by tools."""

    def walk(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".") and path.name not in SHOWN_FOLDERS | {".gitignore"}
            if hidden or path.name in ELSEWHERE or path.name.endswith(".egg-info"):
                continue
            if path.is_dir():
                yield from walk(path)
            elif path.suffix in TEXTS:
                yield path

    return walk(ROOT)


PORTABLE_FOLDERS = {"bin", "dev", "etc", "proc", "sys", "tmp", "usr", "var"}
"""Folders at the root of every Unix-like system."""
URL_PATHS = {"api", "assets", "data", "fal", "hooks", "media", "output", "storage", "v1", "v3", "videos"}
"""First parts of URL paths and JSON pointers."""
PLACEHOLDERS = {"out", "pictures", "target", "x"}
"""First parts of paths in examples, to which nothing is written."""
HOMES = re.compile(r"(?<![\w.:/-])/(?:root|(?:home|Users)/\w+)/|\b[A-Z]:\\{1,2}Users\b")
"""Home folders of people."""
INDEXES = re.compile(
    r"""(?ix)
    https?:// (?:[\w-]+\.)* (?:pypi|pythonhosted|registry|npmjs) \. (?!org/project/) # the host of a package index
    | --? (?:extra-)? index -url | --? find -links | --? trusted -host | --registry[= ] # an index given to an installer
    | \b (?:PIP_|UV_|NPM_CONFIG_) (?:EXTRA_)? (?:DEFAULT_)? (?:INDEX|REGISTRY|FIND_LINKS|TRUSTED_HOST)
    """
)
"""Package indexes, which are the business of whoever installs. Links to project pages are for people."""
ABSOLUTE = re.compile(r"(?<![\w.:/~%$)}\]*?<#-])/([a-z][a-z0-9_.-]*)(?=/[\w.{}*$<-])")
"""An absolute path of two parts or more; a path after an expansion, a host or another path is none."""


def machine_paths(text: str) -> list[str]:
    """Return the paths in a text that exist on one machine only: below an unlisted root folder, or in a home folder."""
    listed = PORTABLE_FOLDERS | URL_PATHS | PLACEHOLDERS
    found = [match[0] for match in ABSOLUTE.finditer(text) if match[1] not in listed]
    return found + [match[0] for match in HOMES.finditer(text)]


def lines() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every line, without the lines of this file that show what it looks for."""
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not (path == Path(__file__) and line.rstrip().endswith("# sample")):
                yield f"{path.relative_to(ROOT)}:{number}", line


def test_no_path_of_one_machine() -> None:
    found = [f"{place}: {line.strip()[:100]}" for place, line in lines() if machine_paths(line)]
    assert found == [], "write a relative path; if it is no path of a file, list its first part above"


def test_no_path_of_this_checkout_or_installation() -> None:
    here = (
        {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix} - {f"/{name}" for name in PORTABLE_FOLDERS} - {"/"}
    )
    here = {path for path in here if path.count("/") > 1}
    assert [place for place, line in lines() if any(path in line for path in here)] == []


def test_no_package_index_is_named() -> None:
    assert [f"{place}: {line.strip()[:100]}" for place, line in lines() if INDEXES.search(line)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cd /build-7/main", True),  # sample
        ('Path("/build-7/x.py")', True),  # sample
        ("cd /root/x", True),  # sample
        ("cd /home/someone/x", True),  # sample
        ("C:\\Users\\someone", True),  # sample
        ("https://example.com/home/page/", False),
        ("https://example.com/build-7/page/", False),
        ("GET /api/v3/predictions", False),
        ("/tmp/x/y", False),
        ("~/build-7/x", False),
        ("build-7/main/x", False),
    ],
)
def test_machine_paths_are_recognized(text: str, found: bool) -> None:  # noqa: FBT001 -- a row
    assert bool(machine_paths(text)) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://pypi.org/simple", True),  # sample
        ("https://files.pythonhosted.org/x", True),  # sample
        ("https://pypi.mirror.example/simple", True),  # sample
        ("https://registry.npmjs.org/x", True),  # sample
        ("pip install --index-url x", True),  # sample
        ("PIP_EXTRA_INDEX_URL=x", True),  # sample
        ("npm install --registry=x", True),  # sample
        ("[attrs](https://pypi.org/project/attrs/)", False),
        ("the index of the package", False),
    ],
)
def test_package_indexes_are_recognized(text: str, found: bool) -> None:  # noqa: FBT001 -- a row
    assert bool(INDEXES.search(text)) is found


SWITCH = re.compile(r"#\s*(noqa|type:\s*ignore|pragma:\s*no|pyright:\s*ignore|ruff:\s*noqa|nosec|mypy:)")
REASONED = re.compile(
    r"#\s*(?:"
    r"noqa: [A-Z0-9, ]+ --? \S"
    r"|type:\s*ignore\[[a-z-, ]+\]\s+#\s*\S"
    r"|pragma: no (?:cover|branch) --? \S"
    r"|pyright: ignore\[[A-Za-z, ]+\]\s+#\s*\S"
    r")"
)


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Every comment with its line; texts that look like one are none."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def unreasoned(source: str) -> list[int]:
    """Lines on which a check is switched off without saying why, there or in a comment on the line above."""
    lines = source.splitlines()
    return [
        number
        for number, comment in comments(source)
        if SWITCH.search(comment)
        and not REASONED.search(comment)
        and not (number > 1 and lines[number - 2].lstrip().startswith("# "))
    ]


def test_every_switched_off_check_has_its_reason() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files()
        if path.suffix == ".py"
        for number in unreasoned(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "complaints"),
    [
        ("x = 1  # no" + "qa: S101", 1),
        ("x = 1  # no" + "qa", 1),
        ("x = 1  # no" + "qa: S101 -- it is", 0),
        ("x = 1  # no" + "qa: S101 - it is", 0),
        ("x = 1  # type" + ": ignore", 1),
        ("x = 1  # type" + ": ignore[arg-type]", 1),
        ("x = 1  # type" + ": ignore[arg-type]  # it is", 0),
        ("x = 1  # pragma" + ": no cover", 1),
        ("x = 1  # pragma" + ": no cover -- it is", 0),
        ("# It is.\nx = 1  # no" + "qa: S101", 0),
        ('x = "# no' + 'qa"', 0),
    ],
)
def test_the_search_for_reasons_itself(line: str, complaints: int) -> None:
    assert len(unreasoned(line)) == complaints


def test_files_end_with_one_newline_and_hold_no_tabs_or_spaces_at_ends() -> None:
    found = []
    for path in files():
        text = path.read_text(encoding="utf-8")
        if path.suffix in {".py", ".md", ".toml", ".json"} or ".ci" in path.parts:
            if text and (not text.endswith("\n") or text.endswith("\n\n")):
                found.append(f"{path.relative_to(ROOT)}: its end")
            found += [
                f"{path.relative_to(ROOT)}:{number}"
                for number, line in enumerate(text.splitlines(), 1)
                if line != line.rstrip() or "\t" in line
            ]
    assert found == []


def test_there_is_something_to_read() -> None:
    read = {path.relative_to(ROOT).as_posix() for path in files()}
    assert {"pyproject.toml", "tests/meta/test_text.py"} <= read
