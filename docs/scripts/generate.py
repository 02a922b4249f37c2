"""Writes the parts of the documentation that follow from the code: `python docs/scripts/generate.py`.

Pages have them between `<!-- generated: NAME -->` and `<!-- end -->`; pictures are SVG files in docs/assets. A test
compares both with the code, so that neither becomes stale.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import kling_async
from kling_async import errors
from kling_async.cli.app import app
from kling_async.emulator import faults
from kling_async.ledger import State
from svg import bars_picture, rooms_picture, tree_picture

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGE = Path(kling_async.__file__).parent
PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FLAGS = ("account_wide", "insufficient_funds", "permanent", "refused", "transient")


def cell(text: object) -> str:
    """Return a text for a cell of a Markdown table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").strip()


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def first_line(thing: object) -> str:
    """Return the first sentence of a docstring."""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


# The command line


def commands(group: Any, path: tuple[str, ...] = ("kling-async",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with its words, subcommands after their group."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))


def command_line() -> str:
    """Return a section for every command: what it does, its arguments, and its options by group."""
    blocks = []
    root = typer.main.get_command(app)
    for words, command in commands(root):
        context = typer.Context(command, info_name=" ".join(words))
        usage = " ".join([*words, *command.collect_usage_pieces(context)])
        title = " ".join(words[1:])
        blocks += [f"## {title}", _help(command.help or ""), f"`{usage}`"]
        panels: dict[str, list[tuple[object, ...]]] = {}
        for param in command.get_params(context):
            if param.name == "help":
                continue
            panel = "Arguments" if param.param_type_name == "argument" else "Options"
            panel = getattr(param, "rich_help_panel", None) or panel
            panels.setdefault(panel, []).append(_parameter(param))
        for panel, rows in panels.items():
            kind = "argument" if panel == "Arguments" else "option"
            blocks += [f"**{panel}**", table((kind, "meaning", "default"), rows)]
    return "\n\n".join(blocks)


def _help(text: str) -> str:
    """Return a command's help: its paragraphs, and lines that are to be typed as code."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(
        f"`{one}`" if one.startswith("kling-async") else re.sub(r"(\{.*\})", r"`\1`", one) for one in paragraphs
    )


def _parameter(param: Any) -> tuple[object, ...]:
    argument = param.param_type_name == "argument"
    metavar = "" if getattr(param, "is_flag", False) else _values(param)
    names = [metavar] if argument else [*param.opts, *param.secondary_opts]
    name = ", ".join(f"`{one}`" for one in names) + (f" `{metavar}`" if metavar and not argument else "")
    default = param.show_default if isinstance(getattr(param, "show_default", None), str) else param.default
    if callable(default) or isinstance(default, bool) or default in (None, (), []) or "Sentinel" in repr(default):
        default = ""
    default = getattr(default, "value", default)
    variable = f"; `{param.envvar}`" if isinstance(param.envvar, str) else ""
    needed = "required" if param.required else ""
    return name, (param.help or "").strip(), (needed or (f"{default}" if default != "" else "")) + variable


def _values(param: Any) -> str:
    """Return the name of a parameter's values, or all of them if they are few."""
    if param.metavar:
        return str(param.metavar)
    kind = param.type_descriptor.annotation
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return " or ".join(one.value for one in kind)
    plain = param.param_type_name == "argument" or kind in {str, bool}
    return str(param.name if plain else kind.__name__).upper()


# States, errors, faults


def states() -> str:
    """Return the table of states, with the moves that are legal from each."""
    moves: Mapping[State, frozenset[State]] = importlib.import_module("kling_async._core.states").MOVES
    comments = _attribute_docs(inspect.getsource(State))
    order = list(State)
    rows: list[tuple[object, ...]] = []
    for state in order:
        onward = ", ".join(f"`{one.name}`" for one in order if one in moves[state])
        rows.append((f"`{state.name}`", state.label, comments[state.name], onward or "nowhere"))
    return table(("state", "label", "meaning", "goes on to"), rows)


def predicates() -> str:
    """Return the table of the properties of `State`, with the states that have each."""
    rows: list[tuple[object, ...]] = []
    for name, value in vars(State).items():
        if isinstance(value, property) and name not in {"label", "name", "value"}:
            held = ", ".join(f"`{state.name}`" for state in State if getattr(state, name))
            rows.append((f"`state.{name}`", first_line(value.fget), held))
    return table(("property", "meaning", "states"), rows)


def _attribute_docs(source: str) -> dict[str, str]:
    """Return the docstrings of a class's attributes."""
    body = [one for defined in ast.parse(source).body if isinstance(defined, ast.ClassDef) for one in defined.body]
    found = {}
    for one, following in pairwise(body):
        if (
            isinstance(one, ast.Assign)
            and isinstance(one.targets[0], ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            found[one.targets[0].id] = str(following.value.value)
    return found


def error_classes(above: type[errors.KlingError] = errors.KlingError) -> Iterator[type[errors.KlingError]]:
    """Yield the tree of errors, each before those below it, in the order of the module."""
    yield above
    for one in above.__subclasses__():
        if one.__module__ == errors.__name__:
            yield from error_classes(one)


def error_flags() -> str:
    """Return the table of the class attributes that classify errors."""
    rows: list[tuple[object, ...]] = []
    for one in error_classes():
        held = [f"`{flag}`" for flag in FLAGS if getattr(one, flag, False) is True]
        if held:
            rows.append((f"[`{one.__name__}`][kling_async.errors.{one.__name__}]", ", ".join(held)))
    return table(("error", "is"), rows)


def fault_list() -> str:
    """Return the table of the emulator's faults."""
    rows: list[tuple[object, ...]] = []
    for name in sorted(vars(faults)):
        what = getattr(faults, name)
        if inspect.isclass(what) and issubclass(what, faults.Fault):
            given = ", ".join(
                one.name if one.default is inspect.Parameter.empty else f"{one.name}={one.default!r}"
                for one in inspect.signature(what).parameters.values()
            )
            rows.append((f"`faults.{name}({given})`", first_line(what)))
    return table(("fault", "the emulator"), rows)


# Figures of the benchmarks


def results(name: str) -> dict[str, Any]:
    """Return what a benchmark measured last."""
    read: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return read


def median(found: Mapping[str, Any], part: str, name: str, unit: str) -> float:
    """Return one figure of a benchmark."""
    (one,) = (
        figure["median"]
        for figure in found["figures"]
        if (figure["part"], figure["name"], figure["unit"]) == (part, name, unit)
    )
    return float(one)


def figures() -> str:
    """Return three figures, each with what it is compared with and its day."""
    peers, memory, watching = map(results, ("peers", "memory", "watching"))
    cpu = [median(peers, TEN_SECONDS, name, CPU) for name in ("kling_async", "wavespeed, threads", "fal-client")]
    waiting = "Waiting for one video, 120 s in the middle"
    policy = '`"balanced"` (default), after 50 others'
    reads, delay = (
        median(watching, waiting, policy, f"of the {unit} of a fixed 5 s interval") for unit in ("requests", "delay")
    )
    resident = median(memory, "Memory of running jobs", "kling_async", "KiB resident per job")
    rows: list[tuple[object, ...]] = [
        (
            f"{cpu[0]:.2g} ms",
            f"of CPU for a job of 10 s, default settings; wavespeed in threads {cpu[1]:.3g}, fal-client {cpu[2]:.3g}",
            peers["date"],
        ),
        (
            f"{100 * reads:.0f} %",
            f"of the status requests of a read every 5 s, at {delay:.2g} times its delay",
            watching["date"],
        ),
        (f"{resident:.2g} KiB", "of memory for a running job", memory["date"]),
    ]
    return table(("figure", "meaning", "measured"), rows)


TEN_SECONDS = "Jobs of 10 s, default settings"
CPU = "ms of CPU per job"


def peers_chart() -> str:
    """Return the picture of the CPU that a job takes, of this package and its peers."""
    found = results("peers")
    bars = [
        (one["name"], one["median"], one["name"].startswith("kling_async"))
        for one in found["figures"]
        if one["part"] == TEN_SECONDS and one["unit"] == CPU and "a look a second" not in one["name"]
    ]
    return bars_picture(f"{TEN_SECONDS}: {CPU}", bars, f"Measured on {found['date']}, 2 cores; less is better.")


# Pictures


def tree() -> str:
    """Return the picture of the tree of errors."""

    def node(one: type[errors.KlingError]) -> tuple[str, str, list[Any]]:
        below = [node(sub) for sub in one.__subclasses__() if sub.__module__ == errors.__name__]
        return one.__name__, _said(one.__name__), below

    return tree_picture(node(errors.KlingError))


@cache
def _drawn() -> Mapping[str, str]:
    """Return the remarks of the tree that the module's docstring has."""
    found = re.findall(r"^[│ ]*(?:├──|└──) (\w+)(?: \(\w+\))? *(.*)$", errors.__doc__ or "", re.MULTILINE)
    return {name: said.replace("`", "") for name, said in found}


def _said(name: str) -> str:
    return _drawn().get(name, "")


def imports() -> dict[str, set[str]]:
    """Return the rooms of the package, and the rooms that each imports. The package itself is `kling_async`."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        ours = room(parts[0])
        seen = found.setdefault(ours, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                seen |= {room(name) for name in _imported(node, parts)}
            elif isinstance(node, ast.Import):
                names = [one.name.split(".") for one in node.names]
                seen |= {room(name[1] if len(name) > 1 else "__init__") for name in names if name[0] == "kling_async"}
        seen.discard(ours)
    return found


def _imported(node: ast.ImportFrom, parts: tuple[str, ...]) -> Iterator[str]:
    """Yield the modules at the top of the package that a `from` statement imports from."""
    if node.level:
        folder = list(parts[:-1])
        base = folder[: len(folder) - node.level + 1]
        module = [*base, *(node.module or "").split(".")] if node.module else base
    elif (node.module or "").split(".")[0] == "kling_async":
        module = (node.module or "").split(".")[1:]
    else:
        return
    if module:
        yield module[0]
        return
    for one in node.names:
        is_module = (PACKAGE / one.name).is_dir() or (PACKAGE / f"{one.name}.py").is_file()
        yield one.name if is_module else "__init__"


def room(module: str) -> str:
    """Return the room of a module at the top of the package."""
    if module in {"errors", "events", "_version"}:
        return "_core"
    return {"__init__": "kling_async", "__main__": "cli"}.get(module, module)


def rooms() -> str:
    """Return the picture of the rooms."""
    docs = {
        name: first_line(importlib.import_module("kling_async" if name == "kling_async" else f"kling_async.{name}"))
        for name in imports()
    }
    return rooms_picture(imports(), docs)


PARTS = {
    "command-line": command_line,
    "states": states,
    "predicates": predicates,
    "error-flags": error_flags,
    "faults": fault_list,
    "figures": figures,
}
PICTURES = {"assets/errors.svg": tree, "assets/rooms.svg": rooms, "assets/peers.svg": peers_chart}


def generated() -> dict[Path, str]:
    """Return the text of every file that this script writes."""
    found = {DOCS / name: make() for name, make in PICTURES.items()}
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        text = page.read_text()
        if PART.search(text):
            found[page] = PART.sub(lambda match: f"{match[1]}\n{PARTS[match['name']]()}\n\n{match[3]}", text)
    return found


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text)
