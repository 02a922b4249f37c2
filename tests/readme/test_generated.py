"""Parts of the documentation that follow from the code are as the code has them."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import kling_async
from support.pages import DOCS, pages

PACKAGE = Path(kling_async.__file__).parent
VARIABLE = re.compile(r"\b(?:KLING|WAVESPEED|GPTPROTO)_[A-Z_]+\b")


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """Load the script that writes them."""
    sys.path.insert(0, str(DOCS / "scripts"))
    try:
        yield importlib.import_module("generate")
    finally:
        sys.path.remove(str(DOCS / "scripts"))


def test_generated_parts_are_what_the_code_says(generate: ModuleType) -> None:
    stale = [path.name for path, text in generate.generated().items() if path.read_text() != text]
    assert stale == [], "python docs/scripts/generate.py writes them"


def test_every_part_stands_on_a_page(generate: ModuleType) -> None:
    found = [match["name"] for page in pages() for match in generate.PART.finditer(page.read_text())]
    assert sorted(found) == sorted(generate.PARTS)


def test_reference_has_every_option(generate: ModuleType) -> None:
    text = generate.command_line()
    assert {"## run", "## ledger adopt", "`--budget` `USD`", "`--max-uploads` `N`"} <= set(
        re.findall(r"## run\b|## ledger adopt\b|`--budget` `USD`|`--max-uploads` `N`", text)
    )


def test_settings_page_has_every_variable() -> None:
    """A variable is a text of its own in the code: names in messages and in prose are in longer texts."""
    quoted = re.compile(rf'"({VARIABLE.pattern})"')
    used = {
        name
        for path in PACKAGE.rglob("*.py")
        if "emulator" not in path.parts
        for name in quoted.findall(path.read_text())
    }
    page = (DOCS / "reference" / "settings.md").read_text()
    assert used - set(VARIABLE.findall(page)) == set()
    assert {"KLING_LEVEL", "KLING_WATCH", "WAVESPEED_API_KEY"} <= used
