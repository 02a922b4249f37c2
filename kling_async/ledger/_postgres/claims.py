"""Claims of the jobs that may start now, shared among their callers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from kling_async._core.turns import FairTurns

from . import statements
from .connection import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .connection import Connection


def alike(caller: str) -> tuple[float, int | None]:
    """Return the weight of a caller like any other, and that it may have all slots."""
    del caller
    return 1.0, None


async def claim_fairly(
    connection: Connection,
    values: Mapping[str, Any],
    limit: int,
    callers: Callable[[str], tuple[float, int | None]],
) -> list[tuple[Any, ...]]:
    """Claim jobs that may start now, and return their lines. The account is locked.

    Args:
        connection: Connection in a transaction.
        values: Account, worker and limits of the account, for the statements.
        limit: Number of jobs at most.
        callers: Returns the weight of a caller, and the number of slots that it may have, None for no limit.
    """
    ((free,),) = await fetch(connection, statements.FREE_SLOTS, {**values, "limit": limit})
    if not free:
        return []
    waiting = await fetch(connection, statements.WAITING, {**values, "limit": free})
    if not waiting:
        return []
    ((virtual,),) = await fetch(connection, statements.VIRTUAL_TIME, [values["account"]])
    turns = FairTurns(virtual)
    room: dict[str, int] = {}
    for caller, start, ready, held in waiting:
        weight, most = callers(caller)
        room[caller] = ready if most is None else min(ready, most - held)
        if room[caller] > 0:
            turns.enter(caller, weight, start)
    numbers: Counter[str] = Counter()
    starts: dict[str, float] = {}
    while sum(numbers.values()) < free and (caller := turns.first()) is not None:
        turns.take(caller)
        numbers[caller] += 1
        starts[caller] = turns.start_of(caller)
        if numbers[caller] == room[caller]:
            turns.leave(caller)
    if not numbers:
        return []
    shares = {"callers": [*numbers], "numbers": [*numbers.values()], "started": [starts[name] for name in numbers]}
    return await fetch(connection, statements.CLAIM, {**values, **shares, "virtual": turns.virtual})
