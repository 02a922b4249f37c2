"""What stands in the files: nothing of one machine, and a reason wherever a check is switched off."""

from __future__ import annotations

import io
import re
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


# Put together from halves, so that this file does not hold what it looks for.
PLACES = re.compile(
    "|".join(
        [
            r"(?<![\w.])/(?:" + "wo" + r"rk|root|opt/(?:wheels|pypi)|" + r"home/\w+|Users/\w+)/",
            r"C:\\\\?" + "Users",
            "bash" + "_jobs",
        ]
    )
)
REGISTRIES = re.compile(
    "|".join(
        [
            r"(?:test\.)?py" + r"pi\.org(?!/project/)",
            "python" + r"hosted\.org",
            "registry" + r"\.npmjs",
            "(?:extra-)?index" + "-url",
            "find" + "-links",
            "trusted" + "-host",
        ]
    )
)


def hits(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_a_machine() -> None:
    assert hits(PLACES) == []


def test_no_registry_is_named() -> None:
    """Where packages come from is the business of who installs. A link to a project's page is for readers."""
    assert hits(REGISTRIES) == []


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (PLACES, "cd /ro" + "ot/x", True),
        (PLACES, "cd /ho" + "me/someone/x", True),
        (PLACES, "https://example.com/ho" + "me/page/", False),
        (PLACES, "/tmp/x", False),
        (REGISTRIES, "https://py" + "pi.org/simple", True),
        (REGISTRIES, "pip install --index" + "-url x", True),
        (REGISTRIES, "[attrs](https://py" + "pi.org/project/attrs/)", False),
    ],
)
def test_the_patterns_themselves(pattern: re.Pattern[str], text: str, found: bool) -> None:  # noqa: FBT001 -- a row
    assert bool(pattern.search(text)) is found


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
