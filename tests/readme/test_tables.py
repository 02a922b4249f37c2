"""Tables and lists of the pages hold what the code holds."""

from __future__ import annotations

import inspect
import re

from kling_async import LEVELS, MODELS, KlingSession, testing
from support import model_table
from support.pages import DOCS, README, ROOT, pages
from support.promises import PROMISES


def test_checks_of_the_testing_page_are_all_there_are() -> None:
    checks = {name for name in testing.__all__ if name.startswith("check_")}
    assert set(re.findall(r"`(check_\w+)`", (DOCS / "guides" / "testing.md").read_text())) == checks


def test_levels_page_holds_the_levels() -> None:
    text = (DOCS / "guides" / "limits.md").read_text()
    for level in LEVELS.values():
        assert f'`"{level.name}"`' in text
        assert f"| {level.in_flight:,} | {level.starts:,} |" in text


def test_models_page_holds_every_model() -> None:
    lines = (DOCS / "guides" / "models.md").read_text().splitlines()
    missing = [row for row in model_table.rows() if row not in lines]
    assert not missing, "put into docs/guides/models.md:\n" + "\n".join(missing)
    start = lines.index(model_table.HEAD[0])
    assert lines[start + 2 : start + 2 + len(MODELS)] == model_table.rows()
    assert not lines[start + 2 + len(MODELS)]


def test_models_page_holds_the_prices() -> None:
    text = (DOCS / "guides" / "models.md").read_text()
    for model in MODELS[:4]:
        assert model.price_per_5s is not None
        five, ten = model.price(5), model.price(10)
        assert f"| `{model.name}` | `{model.id}` | 5, 10 | {five} / {ten} |".replace("$", "") in text


def test_pages_name_options_that_the_session_has() -> None:
    text = "".join(page.read_text() for page in pages())
    parameters = set(inspect.signature(KlingSession.__init__).parameters)
    common = {"level", "ledger", "max_in_flight", "rate_limiter", "provider", "transport", "observers"}
    assert common <= parameters & set(re.findall(r"(\w+)=", text))


def test_guarantees_page_holds_the_promises() -> None:
    listed = re.findall(r"^(\d+)\. (.*)$", (DOCS / "guarantees.md").read_text(), re.MULTILINE)
    assert {int(number): text for number, text in listed} == PROMISES


def test_readme_names_tests_that_hold_the_promises() -> None:
    rows = re.findall(r"^\| (\d+) \| .* \| \[[\w.]+\]\((tests/[\w/.]+)\) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) >= 8
    for number, path in rows:
        marked = re.findall(r"promise\(([\d, ]+)\)", (ROOT / path).read_text())
        assert any(number in numbers.split(", ") for numbers in marked), (number, path)
