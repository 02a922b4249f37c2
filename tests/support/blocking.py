"""Writer of `kling_async/blocking/_generated.py`, from the signatures of the asynchronous classes.

`python tests/support/blocking.py` writes it anew, and `ruff check --fix` and `ruff format` put it in order.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import kling_async
from kling_async._session import account_calls, batch, session

TARGET = Path(kling_async.__file__).parent / "blocking" / "_generated.py"
WRITTEN_BY_HAND = {"aclose"}
LEFT_OUT = {"webhook_receiver": "its receiver is asynchronous itself"}
PARAMETERS_LEFT_OUT = {"client_session": "it belongs to an event loop"}
OURS = {"KlingSession", "Batch"}
"""Names that mean the blocking class in generated signatures."""

HEAD = '''"""Blocking session and batch, written by tests/support/blocking.py. Do not edit."""

from __future__ import annotations

from kling_async._session.session import KlingSession as AsyncSession

from ._base import BatchBase, SessionBase
from ._thread import LoopThread, in_thread
'''
SESSION = '''
class KlingSession(SessionBase):
    """A session with one account at one provider, for programs without asyncio: the same names, without `await`.

    Enter it once with `with`. Its methods may be called from any number of threads; observers, a transport, a rate
    limiter and a clock of your own are used in the thread of the session. In a thread with a running event loop, calls
    are refused with `WrongLoopError`. For arguments and errors see `kling_async.KlingSession`.
    """
'''
BATCH = '''
class Batch(BatchBase):
    """A run over many jobs. Made by `KlingSession.batch`; enter it once with `with`, then iterate, in any threads.

    See `kling_async.Batch`. Ctrl-C and an exception leave it early: jobs that were not sent are not, and accepted
    predictions go on and are recorded.
    """
'''


def source_of(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def class_of(module: ModuleType, name: str) -> ast.ClassDef:
    return next(each for each in source_of(module).body if isinstance(each, ast.ClassDef) and each.name == name)


def origins(module: ModuleType) -> dict[str, str]:
    """Return the import statement of every name of a module."""
    tree = source_of(module)
    package = module.__name__.rpartition(".")[0]
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0]: f"import {each.name.partition('.')[0]}" for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            where = f"{package}.{node.module}" if node.level else node.module
            found |= {each.asname or each.name: f"from {where} import {each.name}" for each in node.names}
    defined = [each.name for each in tree.body if isinstance(each, ast.ClassDef)]
    assigned = [each.target for each in tree.body if isinstance(each, ast.AnnAssign)]
    defined += [each.id for each in assigned if isinstance(each, ast.Name)]
    return found | {name: f"from {module.__name__} import {name}" for name in defined}


def passed_on(arguments: ast.arguments) -> str:
    """Return the arguments of a call with the parameters of a function."""
    given = [each.arg for each in (*arguments.posonlyargs, *arguments.args) if each.arg != "self"]
    given += [f"{each.arg}={each.arg}" for each in arguments.kwonlyargs]
    given += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return ", ".join("in_thread(jobs)" if each == "jobs" else each for each in given)


def without_left_out(arguments: ast.arguments) -> ast.arguments:
    kept = [
        pair
        for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if pair[0].arg not in PARAMETERS_LEFT_OUT
    ]
    arguments.kwonlyargs = [each for each, _ in kept]
    arguments.kw_defaults = [default for _, default in kept]
    return arguments


def method(node: ast.FunctionDef | ast.AsyncFunctionDef, target: str, documented: str) -> str:
    """Return the blocking form of a method."""
    returns = ast.unparse(node.returns) if node.returns else "None"
    signature = ast.unparse(without_left_out(node.args))
    head = ""
    call = f"self.{target}.{node.name}({passed_on(node.args)})"
    later = f"lambda: {call}" if passed_on(node.args) else call.removesuffix("()")
    if any(ast.unparse(each) == "property" for each in node.decorator_list):
        head, call = "@property\n", f"self.{target}.{node.name}"
        later = f"lambda: {call}"
    if node.name == "__init__":
        body = f"self._session = AsyncSession({passed_on(node.args)})\nself._thread = LoopThread()"
        return f"@hides_arguments\ndef __init__({signature}) -> None:\n{textwrap.indent(body, '    ')}\n"
    if returns.startswith("AsyncIterator["):
        returns = returns.removeprefix("Async")
        body = f"return self._thread.iterate({call})"
    elif isinstance(node, ast.AsyncFunctionDef):
        body = f"return self._thread.run({later})"
    elif returns == "Batch":
        body = f"return Batch(self._thread, self._thread.ask({later}))"
    elif returns == "KlingSession":
        body = f"view = copy.copy(self)\nview._session = {call}  # noqa: SLF001 -- of the same class\nreturn view"
    else:
        body = f"return self._thread.ask({later})"
    if returns == "None":
        body = body.removeprefix("return ")
    summary = (ast.get_docstring(node) or "").partition("\n\n")[0].replace("`async with`", "`with`")
    more = f"\n\nFor arguments and errors see `{documented}.{node.name}`.\n" if head == "" else ""
    text = textwrap.indent(f'"""{summary}{more}"""', "    ")
    return f"{head}def {node.name}({signature}) -> {returns}:\n{text}\n{textwrap.indent(body, '    ')}\n"


def methods(module: ModuleType, name: str, target: str, documented: str) -> list[str]:
    return [
        method(node, target, documented)
        for node in class_of(module, name).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.name == "__init__" if node.name.startswith("_") else node.name not in WRITTEN_BY_HAND | set(LEFT_OUT))
        and not (name == "Batch" and node.name == "__init__")
    ]


def used(code: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}


def names_at_run_time(code: str) -> set[str]:
    """Return the names that are read without annotations being resolved."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return used(ast.unparse(tree))


def generated() -> str:
    """Return the source of the module, not yet formatted."""
    documented = "kling_async.KlingSession"
    of_session = [
        *methods(session, "KlingSession", "_session", documented),
        *methods(account_calls, "ServiceCalls", "_session", documented),
    ]
    of_batch = methods(batch, "Batch", "_batch", "kling_async.Batch")
    classes = SESSION + "".join("\n" + textwrap.indent(each, "    ") for each in of_session)
    classes += "\n" + BATCH + "".join("\n" + textwrap.indent(each, "    ") for each in of_batch)
    where = origins(batch) | origins(account_calls) | origins(session)
    where |= {"copy": "import copy", "Iterator": "from collections.abc import Iterator"}
    needed = (used(classes) & set(where)) - OURS - {"AsyncSession"}
    runtime = names_at_run_time(classes) & needed
    lines = [where[name] for name in sorted(runtime)]
    lines += ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:"]
    lines += [f"    {where[name]}" for name in sorted(needed - runtime)]
    return HEAD + "\n".join(lines) + "\n\n" + classes


def meaning(code: str) -> list[str]:
    """Return a module's statements, imports sorted, in a form that does not depend on its layout."""
    tree = ast.parse(code)
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imports += [f"from {'.' * node.level}{node.module} import {ast.unparse(each)}" for each in node.names]
        elif isinstance(node, ast.Import):
            imports += [f"import {each.name}" for each in node.names]
    others = [ast.dump(each) for each in tree.body if not isinstance(each, ast.Import | ast.ImportFrom | ast.If)]
    return [*sorted(imports), *others]


if __name__ == "__main__":
    importlib.invalidate_caches()
    TARGET.write_text(generated())
    for command in (["check", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(TARGET)], check=False)
