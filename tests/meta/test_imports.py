"""Modules loaded by imports, in fresh interpreters."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kling_async

PACKAGE = Path(kling_async.__file__).parent
LATE = ["aiohttp", "typer", "click", "rich", "av", "PIL", "numpy", "pyarrow", "jinja2", "pyrate_limiter", "redis"]
LATE += ["filelock", "obstore", "fastapi", "starlette", "pydantic", "opentelemetry"]
"""Modules that importing the package must not load: optional, or slow and not needed yet."""
OPTIONAL_ROOMS = {
    "cli": ["typer", "rich"],
    "emulator": ["av", "PIL"],
    "_fit": ["PIL"],
    "integrations": ["fastapi", "opentelemetry"],
    "examples": ["fastapi", "uvicorn"],
}
MODULES = [
    "kling_async"
    + "".join(f".{part}" for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
]


def fresh(script: str, *arguments: str) -> object:
    """Run a script in an interpreter of its own that finds the same package, and return the JSON that it prints."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=PACKAGE.parent,
        # Without those of coverage, which loads modules of its own where it measures.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_package_import_loads_no_optional_module_or_aiohttp() -> None:
    loaded = fresh("import json, sys, kling_async; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert "kling_async._session.session" not in loaded, "a name is loaded when it is first used"
    assert [name for name in LATE if name in loaded] == []
    assert [name for name in loaded if name.startswith(("kling_async.emulator", "kling_async.cli"))] == []


def test_commands_are_listed_without_asyncio() -> None:
    """Help and completion import the module of the commands, and asyncio takes 20 ms."""
    loaded = fresh("import json, sys, kling_async.cli.app; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert [name for name in ("asyncio", "anyio", "aiohttp") if name in loaded] == []


WITH_THE_OPENING = [
    "aiohttp",
    "_session.engine",
    "_session.job_runner",
    "events",
    "_core.states",
    "_observers",
    "_submission.submitter",
    "_http.transport",
    "_watching.watcher",
    "limits",
    "sqlite3",
]
WITH_A_NEED = [
    "_session.batch",
    "_core.account",
    "_images.convert",
    "_worker.worker",
    "ledger.sqlite",
    "manifest",
    "providers._account",
]
WITH_A_NEED += ["results", "storage", "webhooks"]
"""Modules loaded when a session opens, and those loaded for more than submitting and waiting."""


def names(modules: list[str]) -> list[str]:
    """Return full module names as in `sys.modules`; third-party names are unchanged."""
    return [f"kling_async.{name}" if f"kling_async.{name}" in MODULES else name for name in modules]


def test_values_and_unentered_session_load_few_modules() -> None:
    script = """
import json, sys
from kling_async import Job, KlingSession
Job(prompt="Waves", image="https://pictures.example/face.png")
KlingSession("wsk_key_of_the_test")
print(json.dumps(sorted(sys.modules)))
"""
    loaded = fresh(script)
    assert isinstance(loaded, list)
    assert [name for name in names(WITH_THE_OPENING + WITH_A_NEED) if name in loaded] == []


def test_submitting_session_loads_few_modules() -> None:
    script = """
import asyncio, json, sys
from kling_async import HttpResponse, Job, KlingSession

class Transport:
    async def send(self, request):
        made = {"id": "p1", "status": "completed", "outputs": ["https://outputs.example/p1.mp4"]}
        return HttpResponse(status=200, body=json.dumps({"code": 200, "data": made}).encode())

async def main():
    async with KlingSession("wsk_key_of_the_test", transport=Transport()) as kling:
        made = await kling.generate(Job(prompt="Waves", image="https://pictures.example/face.png"))
        assert made.id == "p1"

asyncio.run(main())
print(json.dumps(sorted(sys.modules)))
"""
    loaded = fresh(script)
    assert isinstance(loaded, list)
    assert [name for name in names(WITH_A_NEED) if name in loaded] == []
    assert "kling_async._session.engine" in loaded, "the modules are called as they are here"


def test_values_and_unentered_session_need_no_aiohttp() -> None:
    script = """
import json, sys, kling_async
for name in kling_async.__all__:
    if name != "AiohttpTransport":
        getattr(kling_async, name)
kling_async.Job(prompt="Waves", image="https://pictures.example/face.png")
kling_async.KlingSession("wsk_key_of_the_test")
print(json.dumps("aiohttp" in sys.modules))
"""
    assert fresh(script) is False


# Importing any module imports the package first, always in the same order. So only a module that the package does not
# load can fail: each of these is imported with none of the others loaded.
EACH = """
import importlib, json, sys, kling_async
always = set(sys.modules)
failed = {}
for name in sys.argv[1:]:
    for loaded in [module for module in sys.modules if module.startswith("kling_async.") and module not in always]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


@pytest.mark.repeats
def test_every_module_imports_first() -> None:
    missing = {
        room for room, needs in OPTIONAL_ROOMS.items() if not all(importlib.util.find_spec(need) for need in needs)
    }
    modules = [name for name in MODULES if name.split(".")[1:2] not in [[room] for room in missing]]
    assert len(modules) > 40
    assert fresh(EACH, *modules) == {}


WITHOUT = """
import importlib, json, sys
missing = set(sys.argv[1].split(","))
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
failed = {}
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""


def test_package_works_without_extras() -> None:
    needs_extras = (
        "kling_async.cli.",
        "kling_async.emulator.renderer",
        "kling_async._core.former_pictures",
        "kling_async._core.pixels",
        "kling_async._images.convert",
        "kling_async.films._",
        "kling_async.films.frames",
        "kling_async.limits.shared",
        "kling_async.storage._objects",
        "kling_async.integrations.fastapi",
        "kling_async.integrations.opentelemetry",
        "kling_async.progress._display",
        "kling_async.examples.",
    )
    modules = [name for name in MODULES if not name.startswith(needs_extras)]
    assert (
        fresh(
            WITHOUT,
            "typer,click,rich,av,PIL,pillow_heif,numpy,pyarrow,redis,obstore,jinja2,fastapi,starlette,opentelemetry,uvicorn",
            *modules,
        )
        == {}
    )


def test_shared_limiter_names_missing_extra() -> None:
    script = WITHOUT.replace("ModuleNotFoundError as", "ImportError as")
    said = fresh(script, "redis", "kling_async.limits.shared")
    assert said == {"kling_async.limits.shared": "the shared limiter needs its extra: pip install 'kling-async[redis]'"}


def test_films_name_missing_extra() -> None:
    script = WITHOUT.replace("ModuleNotFoundError as", "Exception as")
    said = fresh(script, "av", "kling_async.films", "kling_async.films.frames")
    assert isinstance(said, dict)
    assert "PyAV 17.1 or later, which is not installed" in said["kling_async.films.frames"]
    assert "pip install 'kling-async[film]'" in said["kling_async.films.frames"]
    assert set(said) == {"kling_async.films.frames"}, "the names can be imported without it"


def test_joining_names_missing_extra(tmp_path: Path) -> None:
    script = WITHOUT.partition("failed = {}")[0]
    script += "\nimport anyio\nfrom kling_async import join\n"
    script += "try:\n    anyio.run(join, [sys.argv[2], sys.argv[2]], sys.argv[2] + '.mp4')\n"
    script += "except Exception as error:\n    print(json.dumps(f'{type(error).__name__}: {error}'))\n"
    assert "ConfigurationError: frames and joining need PyAV" in str(fresh(script, "av", str(tmp_path / "a.mp4")))


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("fastapi", "FastAPI", "fastapi"), ("opentelemetry", "OpenTelemetry", "otel")],
)
def test_integration_names_missing_extra(name: str, package: str, extra: str) -> None:
    module = f"kling_async.integrations.{name}"
    said = fresh(WITHOUT.replace("ModuleNotFoundError as", "ImportError as"), name, module)
    assert said == {module: f"{package} is not installed: pip install 'kling-async[{extra}]'"}


def test_check_without_extras_can_fail() -> None:
    assert fresh(WITHOUT, "attrs,attr", "kling_async._core.http") != {}


@pytest.mark.skipif(sys.platform == "win32", reason="the exit status is the same, the quoting is not")
def test_command_names_missing_extra() -> None:
    script = WITHOUT.partition("failed = {}")[0] + "\nfrom importlib.util import find_spec\n"
    script += "import importlib.util\nimportlib.util.find_spec = lambda n: None if n in missing else find_spec(n)\n"
    script += "from kling_async.cli import main\nmain()"
    ran = subprocess.run(
        [sys.executable, "-c", script, "typer,rich"], capture_output=True, text=True, check=False, cwd=PACKAGE.parent
    )
    assert ran.returncode == 2
    assert "pip install 'kling-async[cli]'" in ran.stderr
    assert "Traceback" not in ran.stderr
