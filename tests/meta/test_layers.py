"""Imports point downwards only (architecture, section 3), checked on the syntax tree of every module."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import kling_async

PACKAGE = Path(kling_async.__file__).parent

ROWS = (
    {"__main__"},
    {"cli", "examples", "testing"},
    {"integrations"},
    {"progress"},
    {"blocking", "gallery"},
    {""},  # the package itself: the public names
    {"_worker"},
    {"_session"},
    {"results"},
    {"manifest"},
    {"_submission"},
    {"_budget", "films"},
    {"_images", "_watching", "storage"},
    {"_http", "ledger", "limits", "webhooks"},
    {"_observers", "_threads", "_turns"},
    {"_clock", "_files", "_log", "_loops", "_tasks"},
    {"providers"},
    {"_core", "_version"},
)
"""Layers from top to bottom. A package imports from layers below its own, never from its own layer."""
OF_THE_CORE = {"errors", "events"}
"""Files of the core, at the top because users import them by these names."""
APART = "emulator"
"""Package outside the layers, imported by `STARTS_IT` alone."""
STARTS_IT = {"cli", "examples", "testing"}

PURE = {"_core", "providers"}
IMPURE = {"aiohttp", "anyio", "asyncio", "time", "random", "socket", "logging", "threading", "subprocess", "tempfile"}

EVERYWHERE = {"attrs", "anyio"}
ROOMS_OF = {
    "aiohttp": {"_http", "emulator", "examples", "gallery", "webhooks"},
    "aiohttp_socks": {"_http"},
    "yarl": {"_http"},
    "cattrs": {"_core", "providers", "manifest"},
    "filelock": {"ledger"},
    "imagesize": {"_core"},
    "orjson": {"_core"},
    "pyarrow": {"manifest", "results"},
    "pillow_heif": {"_images"},
    "pyrate_limiter": {"limits"},
    "python_calamine": {"manifest"},
    "redis": {"limits"},
    "psycopg": {"ledger"},
    "procrastinate": {"integrations"},
    "typer": {"cli"},
    "click": {"cli"},
    "IPython": {"progress"},
    "rich": {"cli", "progress"},
    "av": {"emulator", "films"},
    "PIL": {"_core", "_images", "emulator", "cli", "gallery"},
    "jinja2": {"gallery"},
    "obstore": {"storage"},
    "fastapi": {"examples", "integrations"},
    "uvicorn": {"examples", "testing"},
    "starlette": {"integrations"},
    "opentelemetry": {"integrations"},
    "pytest": {"testing"},
}
"""Third-party packages by the parts that may import them; all others are forbidden."""
DISTRIBUTIONS = {
    "IPython": "ipython",
    "aiohttp_socks": "aiohttp-socks",
    "pyrate_limiter": "pyrate-limiter",
    "python_calamine": "python-calamine",
    "PIL": "pillow",
    "pillow_heif": "pillow-heif",
    "yarl": "aiohttp",
    "click": "typer",
    "starlette": "fastapi",
    "opentelemetry": "opentelemetry-api",
}
OPTIONAL = {
    "IPython",
    "aiohttp_socks",
    "typer",
    "click",
    "rich",
    "av",
    "orjson",
    "PIL",
    "pillow_heif",
    "jinja2",
    "pyarrow",
    "python_calamine",
    "redis",
    "psycopg",
    "procrastinate",
    "obstore",
    "fastapi",
    "starlette",
    "opentelemetry",
    "uvicorn",
}
BY_ITSELF = {"pytest"}
"""Packages that load the module importing them, hence are always installed then, and need no declaration."""


def sources() -> dict[str, str]:
    """Return the source of every module by its dotted name below the package."""
    found: dict[str, str] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts)] = path.read_text()
    return found


def imports(name: str, source: str) -> set[tuple[str, bool]]:
    """Yield a module's absolute imports, and whether for types alone. Modules of the package begin with a dot."""
    found: set[tuple[str, bool]] = set()
    package = ["kling_async", *name.split(".")[:-1]]

    def visit(node: ast.AST, typing: bool) -> None:  # noqa: FBT001 -- passed on
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                visit(statement, typing=True)
            for statement in node.orelse:
                visit(statement, typing=typing)
            return
        if isinstance(node, ast.Import):
            found.update((alias.name, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import x` names a module or an attribute; keep the longer name.
            found.update((f"{module}.{alias.name}", typing) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, typing)

    visit(ast.parse(source), typing=False)
    return {
        ("." + imported.removeprefix("kling_async").removeprefix("."), typing)
        if imported.partition(".")[0] == "kling_async"
        else (imported, typing)
        for imported, typing in found
    }


def room(module: str) -> str:
    """Return the part of a module or name below the package; names that are no module belong to the package itself."""
    first = module.partition(".")[0]
    if first in OF_THE_CORE:
        return "_core"
    known = set().union(*ROWS) | {APART}
    return first if first in known else ""


def row_of(name: str) -> int:
    return next(row for row, rooms in enumerate(ROWS) if name in rooms)


def complaints(modules: dict[str, str]) -> list[str]:
    """Return every forbidden import."""
    wrong: list[str] = []
    for name, source in modules.items():
        ours = room(name) if name != "__init__" else ""
        for imported, typing in sorted(imports(name, source)):
            if imported.startswith("."):
                target = imported[1:]
                theirs = room(target)
                if theirs == ours:
                    continue
                if ours == APART:
                    wrong.append(f"{name} imports {target}, and the emulator imports nothing of the package")
                elif theirs == APART:
                    if ours not in STARTS_IT:
                        wrong.append(f"{name} imports {target}, and only {sorted(STARTS_IT)} start the emulator")
                elif row_of(theirs) <= row_of(ours):
                    wrong.append(f"{name} imports {target}, which is not below it")
                continue
            top = imported.partition(".")[0]
            if ours in PURE and top in IMPURE:
                wrong.append(f"{name} imports {top}, and {ours} is pure")
            if top in sys.stdlib_module_names or top == "__future__" or (typing and top not in OPTIONAL):
                continue
            if top not in EVERYWHERE and ours not in ROOMS_OF.get(top, ()):
                wrong.append(f"{name} imports {top}, which belongs to {sorted(ROOMS_OF.get(top, ()))}")
    return wrong


@pytest.mark.promise(11)
def test_imports_run_downwards() -> None:
    assert not complaints(sources())


def test_every_module_has_a_layer() -> None:
    names = {name.partition(".")[0] for name in sources() if name != "__init__"}
    rooms = names - OF_THE_CORE
    assert rooms <= set().union(*ROWS) | {APART}
    assert set().union(*ROWS) <= rooms | {""}, "a row that names a room which is not there checks nothing"
    assert names >= OF_THE_CORE, "a file of the core that is not there checks nothing"


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("_core.job", "import asyncio", "pure"),
        ("_core.job", "from time import sleep", "pure"),
        ("_core.job", "def f():\n    import random", "pure"),
        ("providers._wire", "import aiohttp", "pure"),
        ("_core.job", "from kling_async.providers import WaveSpeed", "not below"),
        ("_core.job", "from ..providers import WaveSpeed", "not below"),
        ("_watching.watcher", "from .._submission.submitter import Submitter", "not below"),
        ("_watching.watcher", "from .. import storage", "not below"),
        ("limits.window", "from kling_async.ledger import Entry", "not below"),
        ("_session.engine", "from .. import KlingSession", "not below"),
        (
            "_submission.doubts",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .._session.session import KlingSession",
            "not below",
        ),
        ("errors", "import asyncio", "errors imports asyncio, and _core is pure"),
        ("errors", "from kling_async.providers import WaveSpeed", "not below"),
        ("events", "from .ledger import Entry", "not below"),
        ("events", "import aiohttp", "belongs to"),
        ("emulator.server", "import psycopg", "belongs to"),
        ("emulator.server", "import requests", "belongs to []"),
        ("emulator.server", "from ..errors import KlingError", "nothing of the package"),
        ("emulator.server", "from kling_async._core.http import Effect", "nothing of the package"),
        ("emulator.server", "from .. import MODELS", "nothing of the package"),
        ("_session.session", "from ..emulator import Emulator", "start the emulator"),
        ("storage", "import aiohttp", "belongs to"),
        ("storage", "from PIL import Image", "belongs to"),
        (
            "storage",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PIL import Image",
            "belongs to",
        ),
        ("storage", "import pytest", "belongs to"),
        ("storage", "import requests", "belongs to []"),
    ],
)
def test_check_finds_wrong_imports(name: str, source: str, said: str) -> None:
    assert said in "; ".join(complaints({name: source}))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("_session.engine", "from .. import storage\nfrom ..limits import Slots"),
        ("limits.window", "from ..errors import KlingError\nfrom .. import events"),
        ("events", "from ._core.prediction import Prediction\nfrom .errors import KlingError"),
        ("emulator.server", "from .clock import Clock\nimport aiohttp"),
        ("_http.transport", "from .._version import __version__\nimport aiohttp"),
        ("_session.session", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import aiohttp"),
        ("cli.demo", "from kling_async import KlingSession\nfrom kling_async.emulator import Emulator\nimport rich"),
    ],
)
def test_check_allows_right_imports(name: str, source: str) -> None:
    assert not complaints({name: source})


def test_third_party_imports_are_declared() -> None:
    file = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(file.read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {requirement.split(">")[0].split("[")[0].split("=")[0] for requirement in requirements}

    core = names(project["dependencies"])
    extras = names([one for extra in project["optional-dependencies"].values() for one in extra])
    for top in {*EVERYWHERE, *ROOMS_OF} - BY_ITSELF:
        distribution = DISTRIBUTIONS.get(top, top)
        assert distribution in (extras if top in OPTIONAL else core)
    used = {imported.partition(".")[0] for name, source in sources().items() for imported, _ in imports(name, source)}
    distributions = {DISTRIBUTIONS.get(top, top) for top in used}
    assert core <= distributions, "declared and not imported"
    assert extras - {"kling-async"} <= distributions, "declared and not imported"
