"""`nox` runs lint, types and tests; `nox -l` names the rest; `nox -s tests-3.13 -- -k batch` passes options on."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13"]


def install(session: nox.Session, *what: str) -> None:
    """Install into the session's environment; groups of dependencies need pip 25.1."""
    session.install("pip>=25.1")
    session.install(*what)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    install(session, ".[demo]", "--group", "test")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def services(session: nox.Session) -> None:
    """The long forms of what needs a database: thousands of jobs, three workers, and a kill -9 every second."""
    install(session, ".[demo]", "--group", "test")
    long = {"KLING_WORKER_JOBS": "2000", "KLING_WORKER_KILLS": "40", "KLING_CLAIM_JOBS": "100000"}
    session.run("python", "-m", "pytest", "-s", "--timeout", "3600", "tests/services", *session.posargs, env=long)


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "--group", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    # With its own node: elsewhere pyright would look for one and download it.
    install(session, ".[demo]", "--group", "test", "--group", "bench", "--group", "types", "pyright[nodejs]", "nox")
    session.run("mypy")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")


@nox.session
def coverage(session: nox.Session) -> None:
    install(session, ".[demo]", "--group", "test")
    # Coverage starts itself in every process that finds this variable: workers and the command line are measured too.
    session.env["COVERAGE_FILE"] = str(ROOT / ".coverage")
    session.run("coverage", "erase")
    measured = {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml")}
    session.run("python", "-m", "pytest", *session.posargs, env=measured)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel once and run the tests against it, away from the checkout."""
    made = Path(session.create_tmp()).resolve()
    shutil.rmtree(made)
    away = made / "away"
    away.mkdir(parents=True)
    install(session, "build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(made), str(ROOT), silent=True)
    (built,) = made.glob("*.whl")
    _only_the_package(session, built)
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(f"{built}[demo]", "--group", "test")
    for name in ("tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, away / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "mkdocs.yml", "README.md"):
        shutil.copy(ROOT / name, away)
    session.chdir(away)
    # `-P`: neither the checkout nor the folder of the tests is looked into for the package.
    where = "import kling_async, sys; sys.exit('site-packages' not in kling_async.__file__)"
    session.run("python", "-P", "-c", where)
    session.run("python", "-P", "-m", "pytest", *session.posargs)


def _only_the_package(session: nox.Session, built: Path) -> None:
    """End the session unless the wheel holds the package with its mark of types, its metadata, and nothing else."""
    names = zipfile.ZipFile(built).namelist()
    foreign = [name for name in names if not name.startswith(("kling_async/", "kling_async-"))]
    if foreign or "kling_async/py.typed" not in names:
        session.error(f"{built.name}: py.typed missing, or what does not belong in it: {foreign}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        session.error(f"{built.name}: no license in it")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a link or an anchor that leads nowhere fails it."""
    install(session, "--group", "docs")
    # Material announces MkDocs 2 at every build.
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure everything and write it into docs/benchmarks.md; `-- --quick` only shows that it works."""
    install(session, ".[demo,fastapi,storage]", "--group", "test", "--group", "bench")
    session.run("python", str(ROOT / "benchmarks" / "run.py"), *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """The long forms: thousands of jobs, one request in ten going wrong, and a hundred kills."""
    install(session, ".[demo]", "--group", "test")
    long = {"KLING_CHAOS_JOBS": "10000", "KLING_KILL_JOBS": "2000", "KLING_KILLS": "50"}
    rooms = ("tests/adversity/test_chaos.py", "tests/resume/test_kill.py")
    session.run("python", "-m", "pytest", "-s", "--timeout", "3600", *rooms, *session.posargs, env=long)
