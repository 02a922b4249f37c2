"""Order of jobs that begin with frames of other jobs' videos: parents first, and film after film."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence


def broken_chains(parents: Mapping[str, Sequence[str]], keys: Container[str]) -> dict[str, str]:
    """Return what is wrong with the parents of jobs, by the key of the job; empty when every job can be sent.

    Args:
        parents: Keys of the parents of each job that has any.
        keys: Keys of all jobs.
    """
    wrong: dict[str, str] = {}
    for key, of in parents.items():
        unknown = [parent for parent in of if parent not in keys]
        if key in of:
            wrong[key] = "continues itself"
        elif unknown:
            names = ", ".join(f"{each!r:.80}" for each in unknown)
            wrong[key] = f"continues {names}, which is no key of the same batch"
    for cycle in _cycles(parents):
        if len(cycle) > 1:
            wrong[cycle[0]] = f"continues itself: {' -> '.join(f'{each!r:.80}' for each in (*cycle, cycle[0]))}"
    return wrong


def _cycles(parents: Mapping[str, Sequence[str]]) -> Iterable[list[str]]:
    """Yield circles of jobs; a job that is in several of them is in one at least that is yielded."""
    done: set[str] = set()
    for start in parents:
        # From each job to its parents, on a stack of our own: chains may be longer than Python's.
        path: dict[str, int] = {}
        stack = [(start, iter(parents.get(start, ())))] if start not in done else []
        path[start] = 0
        while stack:
            key, of = stack[-1]
            parent = next(of, None)
            if parent is None:
                stack.pop()
                done.add(key)
                path.pop(key, None)
            elif parent in path:
                yield list(path)[path[parent] :]
            elif parent not in done:
                path[parent] = len(path)
                stack.append((parent, iter(parents.get(parent, ()))))


def dependents(parents: Mapping[str, Sequence[str]], gone: Iterable[str]) -> dict[str, str]:
    """Return the jobs that continue missing ones, directly or not, each with the key of a missing parent.

    Args:
        parents: Keys of the parents of each job that has any.
        gone: Keys of the jobs that are missing.
    """
    children = _children(parents)
    found: dict[str, str] = {}
    stack = [*gone]
    while stack:
        key = stack.pop()
        for child in children.get(key, ()):
            if child not in found:
                found[child] = key
                stack.append(child)
    return found


def _children(parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the jobs that continue each job, in their order."""
    children: defaultdict[str, list[str]] = defaultdict(list)
    for key, of in parents.items():
        for parent in of:
            children[parent].append(key)
    return children


def films(parents: Mapping[str, Sequence[str]], order: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the films of jobs: by the key of the job that each begins with, the keys of its jobs, parents first.

    Depth first: a job comes right after its parent, and before what else continues that parent. A job with several
    parents belongs to the film of the last of them. Jobs that neither continue a job nor are continued are in none.

    Args:
        parents: Keys of the parents of each job that has any, without broken chains.
        order: The keys of the jobs in the order of the input; of jobs that are in no film they may be missing.
    """
    children = _children(parents)
    missing = {key: len(of) for key, of in parents.items()}
    found: dict[str, tuple[str, ...]] = {}
    for root in order:
        if root in parents or root not in children:
            continue
        film: list[str] = []
        stack = [root]
        while stack:
            key = stack.pop()
            film.append(key)
            ready: list[str] = []
            for child in children.get(key, ()):
                missing[child] -= 1
                if not missing[child]:
                    ready.append(child)
            stack += reversed(ready)
        found[root] = tuple(film)
    return found
