"""Sets of states are spelled out in one module; everything else uses its predicates and its sets."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kling_async
from kling_async._core.states import State

PACKAGE = Path(kling_async.__file__).parent
STATES = PACKAGE / "_core" / "states.py"
MIGRATIONS = {"ledger/_sqlite/tables.py", "ledger/_postgres/tables.py"}
"""Released statements, which keep their words."""
WORDS = "|".join(state.value for state in State)
LIST = re.compile(rf"'(?:{WORDS})'\s*,\s*'(?:{WORDS})'")


def sets(tree: ast.AST) -> Iterator[int]:
    """Lines on which two or more states stand in one set, tuple, list or pattern."""
    for node in ast.walk(tree):
        members: list[ast.AST]
        match node:
            case ast.Set(elts=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
                members = [part for part in parts if is_state(part)]
            case ast.MatchOr(patterns=patterns):
                members = [part for part in patterns if isinstance(part, ast.MatchValue) and is_state(part.value)]
            case _:
                continue
        if len(members) > 1:
            yield node.lineno


def is_state(node: ast.AST) -> bool:
    """Return whether an expression is a member of `State`, or the value of one."""
    if isinstance(node, ast.Attribute) and node.attr == "value":
        node = node.value
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "State"


def statements(tree: ast.AST) -> Iterator[int]:
    """Yield lines of string constants with a quoted list of states, as in SQL."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and LIST.search(node.value):
            yield node.lineno


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        # The emulator has states of its own.
        if path != STATES and not name.startswith("emulator/"):
            yield name, ast.parse(path.read_text())


def test_no_other_module_spells_out_a_set_of_states() -> None:
    found = [f"{name}:{line}" for name, tree in sources() for line in sets(tree)]
    assert found == []


def test_no_statement_spells_out_a_set_of_states() -> None:
    found = [f"{name}:{line}" for name, tree in sources() if name not in MIGRATIONS for line in statements(tree)]
    assert found == []


def test_documentation_has_the_label_of_every_state() -> None:
    guide = (PACKAGE.parent / "docs" / "guides" / "ledger.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `State\.(\w+)` \| (\w+) \|", guide, re.MULTILINE)) == {
        state.name: state.label for state in State
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x in {State.A, State.B}", True),
        ("frozenset((State.A, State.B))", True),
        ("[State.A, 1, State.B]", True),
        ("match x:\n  case State.A | State.B: pass", True),
        ("{State.A.value, State.B.value}", True),
        ("(x, State.A.value, State.B)", True),
        ("match x:\n  case State.A.value | State.B.value: pass", True),
        ("{State.A}", False),
        ("{x.value, y.value}", False),
        ("{State.A: 1, State.B: 2}", False),
        ("x is State.A or x is State.B", False),
    ],
)
def test_search_for_sets(source: str, found: bool) -> None:  # noqa: FBT001 -- a row
    assert bool([*sets(ast.parse(source))]) is found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("\"state IN ('intent', 'uncertain')\"", True),
        ("f\"{x} state IN ('intent', 'uncertain')\"", True),
        ("\"SET state = 'intent' WHERE state = 'pending'\"", False),
        ('"an intent, pending"', False),
    ],
)
def test_search_for_statements(source: str, found: bool) -> None:  # noqa: FBT001 -- a row
    assert bool([*statements(ast.parse(source))]) is found
