"""`nox` runs lint, types and tests; `nox -l` names the rest; `nox -s tests-3.13 -- -k batch` passes options on."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13"]


def install(session: nox.Session, *what: str) -> None:
    """Install into the session's environment. Groups of dependencies need pip 25.1."""
    session.install("pip>=25.1")
    session.install(*what)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    install(session, ".[demo]", "--group", "test")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests that need no services with the lowest versions that pyproject.toml allows of what it names."""
    session.install("uv")
    where = ("--python", f"{session.bin}/python", "--resolution", "lowest-direct")
    session.run("uv", "pip", "install", *where, "-r", "pyproject.toml", "--all-extras", "--group", "test")
    session.run("python", "-m", "pytest", "tests/core", "tests/virtual", *session.posargs)


@nox.session
def services(session: nox.Session) -> None:
    """Run the long forms of the tests with a database: 2,000 jobs, three workers, and forty kills."""
    install(session, ".[demo]", "--group", "test")
    long = {"KLING_WORKER_JOBS": "2000", "KLING_WORKER_KILLS": "40", "KLING_CLAIM_JOBS": "100000"}
    session.run("python", "-m", "pytest", "-s", "--timeout", "3600", "tests/services", *session.posargs, env=long)


@nox.session
def orchestrators(session: nox.Session) -> None:
    """Run the pages of Ray Data, Prefect and Temporal with the real libraries, in processes of this computer alone."""
    install(session, ".[demo]", "--group", "test", "--group", "orchestrators")
    session.run("python", "-m", "pytest", "tests/orchestrators", "-n", "0", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "--group", "lint")
    session.run("pre-commit", "run", "--all-files", "--show-diff-on-failure", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    # With its own node: elsewhere pyright would look for one and download it.
    install(session, ".[demo]", "--group", "test", "--group", "bench", "--group", "types", "pyright[nodejs]", "nox")
    session.run("mypy")
    session.run("pyright", "--pythonpath", f"{session.bin}/python")


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests and measure them as CI does: coverage starts in every process that has these variables."""
    install(session, ".[demo]", "--group", "test")
    data = {"COVERAGE_FILE": str(Path(session.create_tmp()) / "coverage")}
    session.run("coverage", "erase", env=data)
    measured = {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml")}
    session.run("python", "-m", "pytest", "-n", "auto", *session.posargs, env=data | measured)
    session.run("coverage", "combine", "--quiet", env=data)
    session.run("coverage", "report", env=data)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel and run the tests against it, outside of the checkout."""
    made = Path(session.create_tmp()).resolve()
    shutil.rmtree(made)
    away = made / "away"
    away.mkdir(parents=True)
    install(session, "build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(made), str(ROOT), silent=True)
    (built,) = made.glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(built))
    session.install(f"{built}[demo]", "--group", "test")
    for name in ("tests", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, away / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, away)
    session.chdir(away)
    # `-P`: nothing is imported from the current folder, or from that of the script.
    session.run("python", "-P", str(away / "tests" / "support" / "wheel.py"), str(built))
    session.run("python", "-P", "-m", "pytest", *session.posargs)


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
    """Run the long forms: 10,000 jobs and 300 films with faults in a tenth of the requests, kills, and every answer."""
    install(session, ".[demo]", "--group", "test")
    long = {"KLING_CHAOS_JOBS": "10000", "KLING_KILL_JOBS": "2000", "KLING_KILLS": "50", "KLING_MATRIX": "all"}
    long |= {"KLING_CHAOS_FILMS": "300", "KLING_FILM_KILLS": "30"}
    adversity = ("test_chaos.py", "test_film_chaos.py", "test_answer_matrix.py")
    rooms = (*(f"tests/adversity/{name}" for name in adversity), "tests/resume/test_kill.py")
    session.run("python", "-m", "pytest", "-s", "--timeout", "3600", *rooms, *session.posargs, env=long)


@nox.session
def pictures(session: nox.Session) -> None:
    """Send every picture of six source distributions, over 1,000, through `fit`, and compare them with Pillow's."""
    install(session, ".[heic]", "numpy")
    folder = session.create_tmp()
    sources = ("pillow", "pillow-heif", "imagesize", "imageio", "exifread", "thumbor")
    session.run("pip", "download", "--no-binary", ":all:", "--no-deps", "-d", folder, *sources)
    session.run("python", str(ROOT / "benchmarks" / "pictures.py"), folder, *session.posargs)
