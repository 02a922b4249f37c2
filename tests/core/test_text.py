"""Text from outside on terminals, in logs and in errors."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import kling_async
from kling_async._core.text import one_line, safe_lines
from kling_async._log import log
from kling_async.errors import KlingError

PACKAGE = Path(kling_async.__file__).parent


@pytest.mark.parametrize(
    "text", ["", "plain", "\u732b\u3068\u72ac \u00fcber\u00a0\u3000", "\U0001f469\u200d\U0001f680", "[/b]"]
)
def test_harmless_text_stays(text: str) -> None:
    assert one_line(text) == text
    assert safe_lines(f"{text}\n{text}") == f"{text}\n{text}"


@pytest.mark.parametrize(
    "char", list("\0\a\b\t\n\v\f\r\x1b\x7f\x85\x9b\x9d\u2028\u2029\u202e\u2066\u200f\ufeff\ud83d"), ids=ascii
)
def test_unsafe_character_is_replaced(char: str) -> None:
    assert one_line(f"a{char}b") == "a\ufffdb"
    assert safe_lines(f"a{char}b") == ("a\nb" if char == "\n" else "a\ufffdb")
    one_line(f"a{char}b").encode()


def test_log_records_are_one_line(caplog: pytest.LogCaptureFixture) -> None:
    hostile = "a\x1b[2J\nforged"
    with caplog.at_level(logging.DEBUG, "kling_async"):
        log.warning("job %s: %s, %d of %s", hostile, KlingError(hostile), 3, None)
        log.info("%(name)s", {"name": "a mapping is one argument"})
    shown, mapping = (record.getMessage() for record in caplog.records)
    assert shown == "job a\ufffd[2J\ufffdforged: a\ufffd[2J\ufffdforged; nothing was spent., 3 of None"
    assert mapping == "a mapping is one argument"


def test_harmless_arguments_are_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers may look at them."""
    error = KlingError("broken")
    with caplog.at_level(logging.DEBUG, "kling_async"):
        log.warning("%s", error)
    assert caplog.records[0].args == (error,)


def test_the_package_logs_through_one_logger() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        # The emulator is a product of its own; the servers of webhooks are given a filter, and log nothing.
        if name.startswith("emulator") or name in {"_log.py", "webhooks/servers.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            used = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            assert used not in {"getLogger", "LoggerAdapter"}, f"{name} bypasses the filter of _log.py"
