"""Options of a run that the commands for going on repeat, and their record beside the ledger.

`status` and `export` know a run by its ledger alone, and a command without the run's `--budget` would spend without its
limit. So every run records its options in `<ledger>.options`, by batch; a database has no such file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_type_hints

import attrs
from typer.models import OptionInfo

from kling_async._files import open_file
from kling_async._log import log

from .options import BatchOptions, RunOptions
from .places import is_store

if TYPE_CHECKING:
    from .ledgers import LedgerName


_MAX_RECORD_BYTES: Final = 2**25
"""More than the options of a hundred thousand batches."""
_LEFT_OUT: Final = frozenset(
    {
        *("out", "ledger", "account", "name"),  # every command names these itself
        *("manifest", "prompt", "model", "duration", "root"),  # of the rows, which the ledger has
        "redo",  # done once
        *("yes", "quiet", "as_json", "debug"),  # of one call; who pastes a command is asked again
    }
)


@attrs.frozen
class RunRecord:
    """Destination and options of the last run of a batch.

    Attributes:
        out: Folder or URL that `--out` named; a folder is absolute.
        options: Words of the options that differ from their defaults.
    """

    out: str
    options: tuple[str, ...]

    @property
    def shown_out(self) -> str:
        """The destination as a user here would write it."""
        here = Path.cwd()
        if is_store(self.out) or not Path(self.out).is_relative_to(here):
            return self.out
        return str(Path(self.out).relative_to(here))


def kept_options(options: BatchOptions) -> list[str]:
    """Return the words of the options that a command for going on has in common with this one."""
    kind = RunOptions if options.rehearsal else BatchOptions
    hints = get_type_hints(kind, include_extras=True)
    words: list[str] = []
    for field in attrs.fields(kind):
        value = getattr(options, field.name)
        if field.name not in _LEFT_OUT and value != field.default:
            words += _words(field.name, hints[field.name], value)
    return words


def _words(name: str, hint: object, value: Any) -> list[str]:
    """Return an option as on the command line."""
    (option,) = (extra for extra in get_args(hint) if isinstance(extra, OptionInfo))
    # In an annotation, typer takes the first argument of `Option` for a default and turns it into a declaration later.
    flag = option.default if isinstance(option.default, str) else f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag.split("/")[0 if value else 1]]
    if isinstance(value, list):
        return [word for one in value for word in (flag, str(one))]
    return [flag, str(value).removesuffix(".0") if isinstance(value, float) else str(value)]


def record_run(options: BatchOptions, batch: str) -> None:
    """Record the options of a run beside its ledger; where that is not possible, hints name no options."""
    path = _path(options.ledger_name)
    if path is None:
        return
    records = _read(path)
    records.pop(batch, None)
    out = options.out if is_store(options.out) else str(Path(options.out).absolute())
    if options.results is not None:
        options = attrs.evolve(options, results=options.results.absolute())
    # At the end: the last one is the latest.
    records[batch] = RunRecord(out, tuple(kept_options(options)))
    from kling_async.results._files import replaced  # noqa: PLC0415 -- `status` reads a record, and writes none

    try:
        with replaced(path) as file:
            written = {name: attrs.asdict(record) for name, record in records.items()}
            json.dump(written, file, ensure_ascii=False, indent=1)
    except OSError as error:
        log.warning("the options of this run could not be kept in %s: %s", path, error)


def recorded_run(ledger: LedgerName, batch: str | None) -> RunRecord | None:
    """Return the record of a batch, or without a name that of the latest run; None if there is none."""
    path = _path(ledger)
    records = {} if path is None else _read(path)
    return records.get(next(reversed(records), "") if batch is None else batch)


def _path(ledger: LedgerName) -> Path | None:
    return None if ledger.path is None else ledger.path.with_name(f"{ledger.path.name}.options")


def _read(path: Path) -> dict[str, RunRecord]:
    """Return the records; none if the file cannot be read, since hints must not fail a command."""
    try:
        with open_file(path) as file:
            records = json.loads(file.read(_MAX_RECORD_BYTES))
        return {
            name: RunRecord(str(record["out"]), tuple(map(str, record["options"]))) for name, record in records.items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
