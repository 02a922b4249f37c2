"""Progress of a batch, as the command line shows it: `async for outcome in progress(batch)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from rich.console import Console

    from kling_async import Batch, Outcome
    from kling_async import blocking as without_asyncio

__all__ = ["progress"]


@overload
def progress(batch: Batch, *, total: int | None = None, console: Console | None = None) -> AsyncIterator[Outcome]: ...
@overload
def progress(
    batch: without_asyncio.Batch, *, total: int | None = None, console: Console | None = None
) -> Iterator[Outcome]: ...
def progress(
    batch: Batch | without_asyncio.Batch, *, total: int | None = None, console: Console | None = None
) -> AsyncIterator[Outcome] | Iterator[Outcome]:
    """Yield a batch's outcomes, and show its progress meanwhile: live in a terminal or notebook, else line by line.

    ```python
    async with kling.batch(jobs, save_to="out/") as batch:
        async for outcome in progress(batch):
            ...
    ```

    Begin it as soon as the batch is entered: it counts what happens from then on. Needs rich (extra `cli`), and in a
    notebook IPython, which is there (extra `notebook` has both).

    Args:
        batch: The batch, entered. One of `kling_async.blocking` is iterated with `for`.
        total: Number of jobs. Default: that of the input, where it has a length.
        console: Console of rich to print to. Default: standard output.

    Raises:
        ImportError: rich is not installed.
    """
    # Imported here: the command line's help, which has texts of this package, loads neither of them.
    try:
        from ._display import shown  # noqa: PLC0415 -- see above
    except ImportError as error:
        raise ImportError("rich is not installed: pip install 'kling-async[cli]'") from error
    from kling_async._session.batch import Batch as AsyncBatch  # noqa: PLC0415 -- see above

    if isinstance(batch, AsyncBatch):
        return shown(batch, total, console)
    from kling_async.blocking._base import iterate_as  # noqa: PLC0415 -- see above

    return iterate_as(batch, lambda inner: shown(inner, total, console))
