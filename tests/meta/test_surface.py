"""Public names are complete, sorted and documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest

import kling_async
from kling_async import errors, events

PUBLIC_MODULES = (
    "kling_async",
    "kling_async.blocking",
    "kling_async.films",
    "kling_async.gallery",
    "kling_async.integrations.fastapi",
    "kling_async.integrations.names",
    "kling_async.integrations.opentelemetry",
    "kling_async.integrations.procrastinate",
    "kling_async.ledger",
    "kling_async.ledger.postgres",
    "kling_async.limits",
    "kling_async.manifest",
    "kling_async.progress",
    "kling_async.providers",
    "kling_async.results",
    "kling_async.storage",
    "kling_async.testing",
    "kling_async.webhooks",
)


def named(module: ModuleType) -> list[str]:
    """Return the public names of a module: `__all__`, or its own definitions."""
    declared = getattr(module, "__all__", None)
    if declared is not None:
        return list(declared)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def order(name: str) -> tuple[int, str]:
    """Return the sort key of ruff: constants, classes, the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def everything() -> dict[str, object]:
    """Return every public object of the package by its dotted name."""
    found: dict[str, object] = {}
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in named(module):
            found[f"{module_name}.{name}"] = getattr(module, name)
    for module in (errors, events):
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in named(module)}
    return found


OBJECTS = everything()
DEFINED = {name: value for name, value in OBJECTS.items() if inspect.isclass(value) or inspect.isroutine(value)}


def members(cls: type) -> dict[str, Any]:
    """Return the public methods and properties that a class of this package defines itself."""
    found: dict[str, Any] = {}
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function):
            found[name] = function
    return found


@pytest.mark.parametrize(
    "module_name", [name for name in PUBLIC_MODULES if hasattr(importlib.import_module(name), "__all__")]
)
def test_all_is_sorted_unique_and_importable(module_name: str) -> None:
    module = importlib.import_module(module_name)
    names = list(module.__all__)
    assert names == sorted(set(names), key=order)
    assert [name for name in names if not hasattr(module, name)] == []


def test_all_is_complete() -> None:
    """Names for type checkers, attributes at run time and `__all__` agree."""
    tree = ast.parse(inspect.getsource(kling_async))
    (seen,) = (node for node in tree.body if isinstance(node, ast.If))
    places = {
        alias.name: f"kling_async.{node.module}" if node.module else "kling_async"
        for node in seen.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(places) == set(kling_async.__all__)
    for name, place in places.items():
        module = importlib.import_module(f"{place}.{name}" if name in {"errors", "events"} else place)
        assert getattr(kling_async, name) is (module if name in {"errors", "events"} else getattr(module, name))
    assert dir(kling_async) == sorted(kling_async.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Client'"):
        kling_async.Client  # noqa: B018 -- asking is the point


def test_session_types_are_importable_from_top() -> None:
    """Types that users pass to a session or get from it can be imported from the top."""
    for kind in ("Job", "Prediction", "Outcome", "Batch", "Level", "RateLimiter", "Provider", "Ledger", "Clock"):
        assert kind in kling_async.__all__
    assert kling_async.__version__.count(".") == 2


@pytest.mark.parametrize("name", DEFINED)
def test_every_public_name_is_documented(name: str) -> None:
    doc = vars(DEFINED[name]).get("__doc__") if inspect.isclass(DEFINED[name]) else DEFINED[name].__doc__
    assert doc
    assert doc.strip().splitlines()[0].rstrip().endswith((".", ":")), "the first line is a sentence"


@pytest.mark.parametrize("name", [name for name, value in DEFINED.items() if inspect.isclass(value)])
def test_every_public_method_is_documented(name: str) -> None:
    cls = DEFINED[name]
    assert inspect.isclass(cls)
    undocumented = [member for member, function in members(cls).items() if not function.__doc__]
    assert undocumented == []


@pytest.mark.parametrize("name", DEFINED)
def test_every_parameter_of_a_public_callable_is_annotated(name: str) -> None:
    """`py.typed` promises types."""
    value = DEFINED[name]
    functions = members(value) if inspect.isclass(value) else {name: value}
    for member, function in functions.items():
        signature = inspect.signature(function)
        bare = [
            parameter.name
            for parameter in signature.parameters.values()
            if parameter.annotation is parameter.empty and parameter.name not in {"self", "cls"}
        ]
        assert (member, bare) == (member, [])
        assert signature.return_annotation is not signature.empty


def test_surface_is_not_empty() -> None:
    assert len(DEFINED) > 80
    assert sum(len(members(value)) for value in DEFINED.values() if inspect.isclass(value)) > 50
