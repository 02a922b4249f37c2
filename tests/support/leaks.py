"""Secrets in exceptions, as error reporters show them: messages, attributes, and the local variables of frames."""

from __future__ import annotations

import asyncio
import traceback
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

MAX_DEPTH = 6
"""Containers within containers that are searched; error reporters go 3 to 5 deep."""


def leaks(error: BaseException, secrets: Iterable[str]) -> list[str]:
    """Return the places that show one of the secrets, in an exception and in those linked to it."""
    secrets = tuple(secrets)
    found = []
    for each in linked(error):
        name = type(each).__name__
        shown = {"repr": repr(each), "str": str(each), "args": each.args, "attributes": vars(each)}
        found += [f"{where} of {name}" for where, value in shown.items() if shows(value, secrets)]
        for frame, _ in traceback.walk_tb(each.__traceback__):
            place = f"{frame.f_code.co_filename.rpartition('/')[2]}, {frame.f_code.co_name}"
            found += [f"{name}: {place}: {local}" for local, value in frame.f_locals.items() if shows(value, secrets)]
    report = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    return found + ["report"] * shows(report, secrets)


def linked(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def shows(value: object, secrets: tuple[str, ...], depth: int = MAX_DEPTH) -> bool:
    """Return whether a value, or one that it contains, shows a secret."""
    if isinstance(value, str):
        return any(secret in value for secret in secrets)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return any(secret.encode() in bytes(value) for secret in secrets)
    if depth and isinstance(value, Mapping):
        return any(shows(part, secrets, depth - 1) for pair in value.items() for part in pair)
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return any(shows(part, secrets, depth - 1) for part in value)
    return shows(repr(value), secrets)


def raised_by(call: Callable[[], object]) -> BaseException | None:
    """Return the exception that a call raises; None without one. No local variable of this frame shows a secret."""
    try:
        call()
    except BaseException as error:  # noqa: BLE001 -- any
        return error
    return None


async def error_of(work: Awaitable[object]) -> BaseException | None:
    """Return the exception that work ends with; None without one. No local variable of this frame shows a secret."""
    try:
        await work
    except BaseException as error:  # noqa: BLE001 -- any
        return error
    return None


@types.coroutine
def stopped_at(number: int, work: Coroutine[Any, Any, T], interrupt: BaseException | None) -> Generator[Any, Any, T]:
    """Run a coroutine up to its n-th await, and cancel the task there; return its result if it ends before.

    Args:
        number: The await, from 1.
        work: The coroutine.
        interrupt: Raised when the await has ended, instead of the cancellation, as Ctrl-C raises it in running code.
    """
    awaits = 0
    step: Any = work.send
    value: Any = None
    while True:
        try:
            waiting = step(value)
        except StopIteration as end:
            result: T = end.value
            return result
        awaits += 1
        if awaits == number and interrupt is None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            value = yield waiting
            step = work.send
            if awaits == number and interrupt is not None:
                step, value = work.throw, interrupt
        except BaseException as error:  # noqa: BLE001 -- passed on to the coroutine
            step, value = work.throw, error
