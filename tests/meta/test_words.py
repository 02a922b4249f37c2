"""README, documentation and docstrings use plain words: a list of those that made readers read a sentence twice."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pages import pages

ROOT = Path(__file__).parents[2]
WORDS = {
    r"\btold\b(?! apart|:)": "said, reported, published",
    r"\bhear(?:s|d)? of\b|\btestif(?:y|ies)\b": "learn of, add evidence",
    r"\bstands? (?!for\b|alone\b|still\b)(?:there|here|under|in|at|below|above|beside)\b": "is",
    r"\bfor ever\b": "forever",
    r"\bin vain\b": "without success",
    r"\btak(?:e|es|en) up\b(?! to\b)": "resume",
    r"\bcalled after\b": "named after",
    r"\bmend(?:s|ed)?\b": "fix",
    r"\b(?:a look|looks) (?:a|every) (?:second|\d)": "read",
    r"\bin nobody's hands?\b|\bin our hands?\b": "unowned, owned",
    r"\bhead of (?:a|the) repl(?:y|ies)\b": "response headers",
    r"\bnothing more comes\b": "end of stream",
    r"\btaken is taken\b": "durable",
    r"\blet(?:s|ting)? go of\b": "release",
    r"\bfound out\b": "learn, settle",
    r"\bhow it (?:stands|lies)\b": "state",
    r"\bof (?:one's|its) own accord\b": "automatically",
    r"\bit is not (?:to be|meant to be) (?:guessed|known)\b": "unknown",
}
"""Patterns, each with what is plain."""
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2|`[^`\n]+`|<!-- bench:begin.*?<!-- bench:end -->", re.MULTILINE | re.DOTALL)


def texts() -> Iterator[tuple[str, str]]:
    """Yield the place and the prose of every page and docstring."""
    for page in pages():
        yield page.relative_to(ROOT).as_posix(), CODE.sub("", page.read_text())
    for path in sorted((ROOT / "kling_async").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            # A docstring of a module, class, function or attribute.
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", CODE.sub("", node.value.value)


def odd(text: str) -> list[str]:
    """Return the words of a text that are in the list, with what is plain."""
    return [
        f"{match[0]!r}: {plain}"
        for pattern, plain in WORDS.items()
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]


def test_words_are_plain() -> None:
    assert {place: found for place, text in texts() if (found := odd(text))} == {}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It is told for ever.", 2),
        ("It stands under Limits", 1),
        ("It stands for the key; a `told` in code; stand-alone", 0),
    ],
)
def test_odd_words_are_found(text: str, count: int) -> None:
    assert len(odd(CODE.sub("", text))) == count
